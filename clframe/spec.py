"""Hyperparameters as typed fields: the one place that the command line, YAML, `describe` and the docs read.

A class that derives from `Configurable` becomes a keyword-only dataclass. Constructing it only stores the values;
`validate` (called before a run computes anything) checks names, types and ranges.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, TypeVar, dataclass_transform

import yaml

from clframe.errors import ConfigurationError, did_you_mean

__all__ = ["Configurable", "FieldInfo", "build", "field", "fields_of", "to_dict", "validate"]

T = TypeVar("T")
C = TypeVar("C", bound="Configurable")


def field(
    *,
    default: Any = dataclasses.MISSING,
    default_factory: Any = dataclasses.MISSING,
    help: str = "",  # noqa: A002 - the word users know from argparse
    unit: str = "",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """Declare a hyperparameter with its default, bounds, unit and one sentence of help.

    Args:
        default: The value when none is given.
        default_factory: Makes the default, for lists and dictionaries.
        help: One sentence, shown by `clframe describe` and in the docs.
        unit: What the number counts, for instance `samples`, `bytes`, `epochs` or `steps`.
        ge: The value must be at least this.
        gt: The value must be above this.
        le: The value must be at most this.
        lt: The value must be below this.
    """
    bounds = {k: v for k, v in {"ge": ge, "gt": gt, "le": le, "lt": lt}.items() if v is not None}
    metadata = {"help": help, "unit": unit, "bounds": bounds}
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(kw_only_default=True, field_specifiers=(field,))
class Configurable:
    """Base of everything that a user configures: strategies, scenarios, backbones, recipes.

    Every subclass is a keyword-only dataclass of its annotated attributes. Attributes whose name ends in an
    underscore, or that are `ClassVar`, are not hyperparameters.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Turn the subclass into a dataclass; constructing it runs no code of the subclass."""
        super().__init_subclass__(**kwargs)
        learned = {k: v for k, v in cls.__dict__.get("__annotations__", {}).items() if k.endswith("_")}
        for name in learned:  # state, not a hyperparameter: leave it out of the dataclass
            del cls.__annotations__[name]
        dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)
        cls.__annotations__ = {**cls.__dict__.get("__annotations__", {}), **learned}

    def __init__(self) -> None:
        """Store nothing; replaced by the dataclass constructor in every subclass."""

    def __repr__(self) -> str:
        """Show the class and the values that differ from their defaults."""
        shown = (
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields_of(type(self))
            if not f.has_default or getattr(self, f.name) != f.default
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        """Two configurations are equal when class and values are."""
        return type(self) is type(other) and to_dict(self) == to_dict(typing.cast("Configurable", other))

    __hash__ = object.__hash__

    def replace(self, **changes: Any) -> Self:
        """Return a fresh configuration, without any learned state, in which some values are changed."""
        values = {f.name: getattr(self, f.name) for f in fields_of(type(self))}
        return type(self)(**{**values, **changes})


@dataclasses.dataclass(frozen=True, slots=True)
class FieldInfo:
    """One hyperparameter, as `describe`, the command line and the docs see it."""

    name: str
    type: Any
    default: Any
    help: str
    unit: str
    bounds: Mapping[str, float]

    @property
    def has_default(self) -> bool:
        """Whether the hyperparameter may be left out."""
        return self.default is not dataclasses.MISSING

    @property
    def type_name(self) -> str:
        """The type in words: `int`, `float | None`, `'a' | 'b'`."""
        return _type_name(self.type)


@functools.cache
def fields_of(cls: type[Configurable]) -> tuple[FieldInfo, ...]:
    """Return the hyperparameters of a class in the order of their declaration, the base class's first."""
    if not dataclasses.is_dataclass(cls):
        return ()
    hints = _hints(cls)
    found = []
    for f in dataclasses.fields(cls):
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        meta = f.metadata
        info = FieldInfo(
            f.name, hints[f.name], default, meta.get("help", ""), meta.get("unit", ""), meta.get("bounds", {})
        )
        found.append(info)
    return tuple(found)


def build(cls: type[C], values: Mapping[str, Any], where: str) -> C:
    """Make a configuration from plain values, as they come from YAML or the command line.

    Args:
        cls: The class to make.
        values: Hyperparameters by name; `-` and `_` mean the same. Strings are converted to the field's type.
        where: How the user addresses this section, such as `strategy`; used in errors.

    Raises:
        ConfigurationError: All problems at once: unknown names, wrong types, values out of range, missing values.
    """
    known = {f.name: f for f in fields_of(cls)}
    problems: list[str] = []
    checked: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            problems.append(_unknown(key, known, cls, where))
            continue
        try:
            checked[name] = _convert(known[name], value)
        except ValueError as error:
            problems.append(f"{where}.{name}: {error}")
    missing = [f.name for f in known.values() if not f.has_default and f.name not in checked]
    given = {k.replace("-", "_") for k in values}
    problems += [
        f"{where}.{name} has no default and must be given ({known[name].help})."
        for name in missing
        if name not in given
    ]
    if problems:
        raise ConfigurationError("\n".join(problems))
    return cls(**checked)


def validate(config: Configurable, where: str) -> None:
    """Check the types and ranges of a configuration that was made in Python.

    Raises:
        ConfigurationError: All problems at once.
    """
    build(type(config), {f.name: getattr(config, f.name) for f in fields_of(type(config))}, where)


def to_dict(config: Configurable) -> dict[str, Any]:
    """Return the hyperparameters as plain values that JSON and YAML can hold."""
    return {f.name: _plain(getattr(config, f.name)) for f in fields_of(type(config))}


def _hints(cls: type) -> dict[str, Any]:
    """Resolve annotations; a user's file may lack an import that only its annotations need."""
    try:
        return typing.get_type_hints(cls)
    except NameError as error:
        raise ConfigurationError(
            f"The annotations of {cls.__name__} could not be read ({error}): import that name in its module."
        ) from None


def _unknown(key: str, known: Mapping[str, FieldInfo], cls: type, where: str) -> str:
    hint = did_you_mean(key.replace("-", "_"), known) or f" It has: {', '.join(sorted(known)) or 'no options'}."
    return f"{where}.{key} is not an option of {cls.__name__}.{hint}"


def _plain(value: Any) -> Any:
    if isinstance(value, Configurable):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _convert(info: FieldInfo, value: Any) -> Any:
    """Convert and check one value.

    Raises:
        ValueError: With the rest of a sentence: what was expected and what was received.
    """
    if info.has_default and value is info.default:
        return value
    if isinstance(value, str) and not _takes_text(info.type):
        value = yaml.safe_load(value) if value.strip() else value
    if isinstance(value, str) and "," in value and not _takes_text(info.type):
        value = [yaml.safe_load(part) for part in value.split(",")]
    if isinstance(value, (int, float, str)) and _is_sequence(info.type) and not isinstance(value, bool):
        value = [value]  # `--strategy.milestones 30` means a list of one
    expected = f"expected {info.type_name}{_bounds(info.bounds)}{' ' + info.unit if info.unit else ''}"
    if isinstance(value, bool) and bool not in _members(info.type) and typing.Any not in _members(info.type):
        raise ValueError(f"{expected}, received {value!r}.")
    from pydantic import TypeAdapter, ValidationError

    try:
        converted = TypeAdapter(info.type, config={"arbitrary_types_allowed": True}).validate_python(value)
    except ValidationError:
        raise ValueError(f"{expected}, received {value!r}.{_choice_hint(info, value)}") from None
    except Exception:  # a dataclass type refuses `config`; such values are taken as they are
        converted = value
    if isinstance(converted, (int, float)) and not isinstance(converted, bool):
        _check_bounds(info, converted, expected)
    return converted


def _check_bounds(info: FieldInfo, value: float, expected: str) -> None:
    tests: dict[str, Callable[[float, float], bool]] = {
        "ge": lambda v, b: v >= b,
        "gt": lambda v, b: v > b,
        "le": lambda v, b: v <= b,
        "lt": lambda v, b: v < b,
    }
    if not all(tests[kind](value, bound) for kind, bound in info.bounds.items()):
        raise ValueError(f"{expected}, received {value!r}.")


def _bounds(bounds: Mapping[str, float]) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return "".join(f" {signs[kind]} {bound:g}" for kind, bound in bounds.items())


def _choice_hint(info: FieldInfo, value: Any) -> str:
    choices = [str(c) for m in _members(info.type) if typing.get_origin(m) is Literal for c in typing.get_args(m)]
    return did_you_mean(str(value), choices)


def _members(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type alone."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return typing.get_args(kind)
    return (kind,)


def _takes_text(kind: Any) -> bool:
    members = _members(kind)
    return any(m is str or m is Any or typing.get_origin(m) is Literal for m in members)


def _is_sequence(kind: Any) -> bool:
    origins = [typing.get_origin(m) or m for m in _members(kind)]
    return any(o in (list, tuple) for o in origins) and not any(o in (int, float, str) for o in origins)


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " | ".join(repr(c) for c in typing.get_args(kind))
    if len(_members(kind)) > 1:
        return " | ".join(_type_name(m) for m in _members(kind))
    if kind is type(None):
        return "None"
    if typing.get_origin(kind) is not None or not inspect.isclass(kind):
        return str(kind).replace("typing.", "")
    return kind.__name__
