"""Which trackers watch a run: names, names with options, or objects. They are no part of what the run is."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clframe import registry
from clframe.errors import ConfigurationError
from clframe.spec import Configurable, build, to_dict, validate
from clframe.tracking.rundir import Tracker, short_name

__all__ = ["Choice", "choices", "listed", "plain"]


@dataclass(frozen=True)
class Choice:
    """A tracker that another process can make, too.

    Attributes:
        name: Registered, a dotted path, or `path/to/file.py:Class`.
        options: Those of its options that were given, as plain values.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """A name for its file in the run directory."""
        if ":" not in self.name:
            return self.name
        return f"{short_name(self.name)}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"

    def checked(self) -> Choice:
        """Return the same with every option's value, without making a tracker that could do something by that.

        Raises:
            ConfigurationError: There is no such tracker, it is no tracker, a package is missing, or an option doesn't fit.
        """
        cls = self._class()
        missing = [package for package in cls.needs if importlib.util.find_spec(package) is None]
        if missing:
            raise ConfigurationError(
                f"The tracker {self.name} needs {' and '.join(missing)}, which is not installed: `pip install "
                f"{' '.join(missing)}`, or leave {self.name} out of `track`."
            )
        if issubclass(cls, Configurable):
            return Choice(self.name, to_dict(build(cls, self.options, f"track.{self.name}")))
        try:
            inspect.signature(cls).bind(**self.options)
        except TypeError as error:
            raise ConfigurationError(
                f"track.{self.name}: {cls.__name__} can't be made with the options given ({error}): correct them."
            ) from None
        return self

    def make(self) -> Tracker:
        """Make the tracker."""
        cls = self._class()
        if issubclass(cls, Configurable):
            made: Tracker = build(cls, self.options, f"track.{self.name}")
            return made
        return cls(**self.options)

    def _class(self) -> type[Tracker]:
        cls: type[Tracker] = registry.load("tracker", self.name)
        if not issubclass(cls, Tracker):
            raise ConfigurationError(
                f"The tracker {self.name!r} must derive from clframe.Tracker, but {cls.__name__} doesn't."
            )
        return cls


def listed(value: Any) -> list[Any]:
    """Return every tracker of a configuration's `track` by itself: mappings with a name, or objects.

    >>> listed("wandb,tensorboard")
    [{'name': 'wandb'}, {'name': 'tensorboard'}]
    >>> listed([{"name": "wandb", "project": "mine"}]), listed("none")
    ([{'name': 'wandb', 'project': 'mine'}], [])

    Raises:
        ConfigurationError: It is neither names, mappings with a name nor trackers.
    """
    if value is None or value == "none":
        return []
    if isinstance(value, str):
        return [{"name": name.strip()} for name in value.split(",") if name.strip()]
    if isinstance(value, Sequence):
        return [one for inner in value for one in listed(inner)]
    if isinstance(value, Tracker) or (isinstance(value, Mapping) and isinstance(value.get("name"), str)):
        return [value]
    raise ConfigurationError(
        f"track: expected names, mappings with a name and options, or trackers, received {value!r}: write it as "
        "[wandb, {name: tensorboard, logdir: logs}]."
    )


def choices(value: Any) -> list[Choice | Tracker]:
    """Check the trackers of a configuration.

    Args:
        value: A name, several names with commas between them, a mapping of a name and options, a tracker, or a list of such.

    Returns:
        Choices, and the objects that another process can't make.

    Raises:
        ConfigurationError: There is no such tracker, a package that it needs is missing, or an option doesn't fit.
    """
    found: list[Choice | Tracker] = []
    problems: list[str] = []
    for one in listed(value):
        try:
            found.append(_checked(one))
        except ConfigurationError as error:
            problems.append(str(error))
    names = [c.name for c in found if isinstance(c, Choice)]
    problems += [
        f"track: expected each tracker once, received {n} twice." for n in {n for n in names if names.count(n) > 1}
    ]
    if problems:
        raise ConfigurationError("\n".join(problems))
    return found


def plain(chosen: Sequence[Choice | Tracker]) -> list[dict[str, Any]]:
    """Return trackers as a configuration names them, for another process.

    Raises:
        ConfigurationError: One is an object that another process can't make.
    """
    for one in chosen:
        if not isinstance(one, Choice):
            raise ConfigurationError(
                f"track: expected trackers by name, since runs have processes of their own, received a "
                f"{type(one).__name__} object: register its class, or give file.py:Class."
            )
    return [{"name": one.name, **one.options} for one in chosen if isinstance(one, Choice)]


def _checked(one: Any) -> Choice | Tracker:
    if isinstance(one, Tracker):
        return _of_object(one)
    options = {str(k).replace("-", "_"): v for k, v in one.items()}
    choice = Choice(registry.absolute(options.pop("name")), options).checked()
    return choice.make() if choice.name in registry.registered("tracker") else choice


def _of_object(tracker: Tracker) -> Choice | Tracker:
    """A tracker whose options are all that it is goes by its name; any other stays the object."""
    cls = type(tracker)
    if not isinstance(tracker, Configurable):
        return tracker
    validate(tracker, f"track.{cls.__name__}")
    name = registry.name_of("tracker", cls)
    if cls.__module__ == "__main__" or "<locals>" in name or name in registry.registered("tracker"):
        return tracker
    return Choice(name, to_dict(tracker)).checked()
