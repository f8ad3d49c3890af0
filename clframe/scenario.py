"""The contract of a scenario: parameters that cut a source into a stream."""

from __future__ import annotations

import typing
from typing import Any, ClassVar, Self

from clframe.data.root import DataRoot
from clframe.spec import Configurable, fields_of
from clframe.stream import Setting, Stream

__all__ = ["Scenario", "settings_of"]


class Scenario(Configurable):
    """Base of every scenario generator.

    A subclass declares its parameters as fields and makes a stream of index sets in `build`. The same parameters give
    the same stream on every machine; a change of behaviour is a new version with a line of history.
    """

    version: ClassVar[int] = 1
    history: ClassVar[tuple[str, ...]] = ("1: first version.",)
    settings: ClassVar[tuple[Setting, ...]] = ()
    """Which settings the streams may have, where no field `setting` says so; empty: not said."""
    example: ClassVar[str] = ""
    """Options of a command that shows it on embedded data; empty: made from the fields."""

    def settled(self) -> Self:
        """Return this scenario with what small text files say in the place of their names, for the record of a run.

        Raises:
            ConfigurationError: Such a file is missing or says nothing.
        """
        return self

    def build(self, root: DataRoot, *, download: bool = False) -> Stream:
        """Make the stream.

        Args:
            root: Where data is looked for.
            download: Whether a missing data set may be fetched.

        Raises:
            ConfigurationError: The parameters don't fit the source.
            DataError: The source is missing or damaged.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how its stream is built.")


def settings_of(cls: Any) -> tuple[str, ...]:
    """Return the settings that a scenario's streams may have, the usual one first; empty where the class doesn't say."""
    info = next((f for f in fields_of(cls) if f.name == "setting"), None)
    declared = tuple(getattr(cls, "settings", ()))
    if declared or info is None:
        return declared
    choices = [str(choice) for choice in typing.get_args(info.type)]
    return tuple(sorted(choices, key=lambda choice: choice != info.default))
