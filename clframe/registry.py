"""Names to classes: built-in and third-party entry points, dotted paths, and a user's own file.

The engine never imports a strategy or a scenario by itself; it finds them here. A broken plugin is named in a
warning and doesn't stop the others. Of two packages that claim one name the first by name has it, clframe before any
other.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import sys
import warnings
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

from clframe.errors import ConfigurationError, did_you_mean

__all__ = [
    "Kind",
    "absolute",
    "address",
    "available",
    "load",
    "load_all",
    "load_object",
    "name_of",
    "register",
    "registered",
    "source_file",
    "split_names",
]

Kind = Literal["strategy", "scenario", "backbone", "metric", "tracker"]
_GROUPS: dict[Kind, str] = {
    "strategy": "clframe.strategies",
    "scenario": "clframe.scenarios",
    "backbone": "clframe.backbones",
    "metric": "clframe.metrics",
    "tracker": "clframe.trackers",
}
_BASES: dict[Kind, str] = {
    "strategy": "clframe.strategy:Strategy",
    "scenario": "clframe.scenario:Scenario",
    "tracker": "clframe.tracking.rundir:Tracker",
}
"""What a plugin's class derives from; rooms above this one, so named here and imported when a plugin is loaded."""
_registered: dict[tuple[Kind, str], Any] = {}
_from_files: dict[str, Path] = {}


def register(kind: Kind, name: str, made: Any) -> None:
    """Make a class (of metrics: a `Metric`) known under a name in this process, for instance from a notebook.

    Args:
        kind: `strategy`, `scenario`, `backbone`, `metric` or `tracker`.
        name: What configurations call it.
        made: The class, or the metric.

    Raises:
        ConfigurationError: The name is taken by something else.
    """
    taken = _registered.get((kind, name))
    if (taken is not None and taken is not made) or name in _entry_points(kind):
        raise ConfigurationError(f"The {kind} name {name!r} is taken already; choose another one.")
    _registered[kind, name] = made


def available(kind: Kind) -> list[str]:
    """Return every registered name of a kind, sorted."""
    return sorted({*_entry_points(kind), *registered(kind)})


def registered(kind: Kind) -> list[str]:
    """Return the names that are known in this process alone."""
    return sorted(n for k, n in _registered if k == kind)


def address(kind: Kind, name: str) -> str:
    """Return where a registered name leads, as `package.module:Class`, without loading it; any other name as it is."""
    point = _entry_points(kind).get(name)
    return name if point is None else point.value


def load(kind: Kind, name: str) -> Any:
    """Return the class behind a registered name, a dotted path (`package.module:Class`) or `path/to/file.py:Class`.

    Of a metric it is the `Metric` itself.

    Raises:
        ConfigurationError: Nothing of that name exists; names the closest one.
    """
    if (kind, name) in _registered:
        return _registered[kind, name]
    point = _entry_points(kind).get(name)
    if point is not None:
        return _load_entry_point(kind, point)
    if ":" in name:
        found = load_object(name)
        if not isinstance(found, type) and kind != "metric":
            raise ConfigurationError(f"Expected a {kind} class at {name!r}, received {type(found).__name__}.")
        return found
    if name.endswith(".py"):
        raise ConfigurationError(f"Expected the class in {name} to be named too: give {name}:ClassName.")
    choices = available(kind)
    hint = did_you_mean(name, choices) or f" Known: {', '.join(choices)}."
    raise ConfigurationError(f"There is no {kind} named {name!r}.{hint}")


def load_object(path: str) -> Any:
    """Import `package.module:Name` or `path/to/file.py:Name`.

    Raises:
        ConfigurationError: The module or the name in it doesn't exist, or importing it failed.
    """
    module_name, _, attribute = path.rpartition(":")
    module = _import_file(Path(module_name)) if module_name.endswith(".py") else _import_module(module_name)
    if not hasattr(module, attribute):
        hint = did_you_mean(attribute, [n for n in vars(module) if not n.startswith("_")])
        raise ConfigurationError(f"{module_name} has nothing named {attribute!r}.{hint}")
    return getattr(module, attribute)


def name_of(kind: Kind, cls: Any) -> str:
    """Return the name under which `load` finds the class again."""
    for (known_kind, name), known in _registered.items():
        if known_kind == kind and known is cls:
            return name
    for name, point in _entry_points(kind).items():
        if point.value == f"{cls.__module__}:{cls.__qualname__}":
            return name
    file = source_file(cls)
    return f"{file}:{cls.__qualname__}" if file else f"{cls.__module__}:{cls.__qualname__}"


def source_file(made: Any) -> Path | None:
    """Return the user's file that a class or function was loaded from, or None for an installed module."""
    return _from_files.get(getattr(made, "__module__", ""))


def absolute(name: str) -> str:
    """Return `file.py:Name` with its path made absolute, so that a run resumes from any folder; other names as they are."""
    file, colon, attribute = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        return name
    return f"{Path(file).expanduser().resolve()}:{attribute}"


def split_names(name: str) -> list[str]:
    """Split `replay+ewc`; a plus sign in the folders of a user's file separates nothing.

    >>> split_names("replay+/home/c++/mine.py:Mine")
    ['replay', '/home/c++/mine.py:Mine']
    """
    parts: list[str] = []
    open_path = ""
    for token in name.split("+"):
        open_path = f"{open_path}+{token}" if open_path else token
        if "/" not in open_path or ".py:" in open_path:
            parts.append(open_path)
            open_path = ""
    return [*parts, open_path] if open_path else parts


@functools.cache
def _entry_points(kind: Kind) -> dict[str, EntryPoint]:
    """Return who provides each name; who claims a name that another package has is named in a warning."""
    found: dict[str, EntryPoint] = {}
    points = entry_points(group=_GROUPS[kind])
    for point in sorted(points, key=lambda p: (_package(p) != "clframe", _package(p), p.value)):
        first = found.setdefault(point.name, point)
        if first.value != point.value:
            warnings.warn(
                f"The {kind} {point.name!r} of the package {_package(point)} is left out, because {_package(first)} has "
                f"one of that name: use {point.value}, or rename it there.",
                stacklevel=3,
            )
    return found


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "an unknown package"


def _load_entry_point(kind: Kind, point: EntryPoint) -> Any:
    try:
        loaded = point.load()
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"The {kind} {point.name!r} of {_package(point)} could not be imported ({type(error).__name__}: {error}); "
            "repair or uninstall that package."
        ) from error
    if kind == "metric":  # the catalogue says what a metric is
        return loaded
    if not isinstance(loaded, type):
        raise ConfigurationError(f"The {kind} {point.name!r} is registered as {point.value}, which is not a class.")
    base = load_object(_BASES[kind]) if kind in _BASES else object
    if not issubclass(loaded, base):
        raise ConfigurationError(
            f"The {kind} {point.name!r} of {_package(point)} must derive from {base.__name__}, but {point.value} doesn't: "
            "repair or uninstall that package."
        )
    return loaded


def load_all(kind: Kind) -> dict[str, Any]:
    """Load everything registered of a kind; a broken plugin becomes a warning."""
    found: dict[str, Any] = {}
    for name in available(kind):
        try:
            found[name] = load(kind, name)
        except ConfigurationError as error:
            warnings.warn(str(error), stacklevel=2)
    return found


def _import_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ConfigurationError(
            f"The module {name!r} could not be imported ({type(error).__name__}: {error}): install its package, or give a "
            "file as in path/to/file.py:Name."
        ) from error


def _import_file(path: Path) -> Any:
    """Import a user's file once, under a name that can't hide an installed module."""
    resolved = path.expanduser().resolve()
    if not resolved.is_file():
        raise ConfigurationError(
            f"There is no file {path}; give the path of a Python file, as in path/to/file.py:Name."
        )
    name = f"clframe_user_{hashlib.sha256(str(resolved).encode()).hexdigest()[:12]}_{resolved.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{path} can't be imported as Python.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _from_files[name] = resolved
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script without a main guard may parse arguments and exit
        del sys.modules[name]
        del _from_files[name]
        raise ConfigurationError(
            f"Importing {path} failed ({type(error).__name__}: {error}): correct it, so that `python {path}` runs."
        ) from error
    return module
