"""Hyperparameters as typed fields: the one place that the command line, YAML, `describe` and the docs read.

A class that derives from `Configurable` becomes a keyword-only dataclass. Constructing it only stores the values;
`validate` (called before a run computes anything) checks names, types and ranges.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, Literal, Self, TypeVar, dataclass_transform

import yaml

from clframe.errors import ConfigurationError, ContractError, did_you_mean

__all__ = ["Configurable", "FieldInfo", "build", "field", "fields_of", "to_dict", "validate"]

T = TypeVar("T")
C = TypeVar("C", bound="Configurable")


def field(
    *,
    default: Any = dataclasses.MISSING,
    default_factory: Any = dataclasses.MISSING,
    help: str = "",
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
        """Turn the subclass into a dataclass; constructing it runs no code of the subclass.

        Raises:
            ContractError: The subclass has a constructor of its own.
        """
        super().__init_subclass__(**kwargs)
        own = [name for name in ("__init__", "__post_init__") if name in cls.__dict__]
        if own:
            raise ContractError(
                f"{cls.__name__} must not define {own[0]}, because constructing it only stores its hyperparameters: declare "
                "them as annotated attributes (size: int = field(default=3)) and build state when the run starts."
            )
        learned = {k: v for k, v in inspect.get_annotations(cls).items() if k.endswith("_")}
        for name in learned:  # state, not a hyperparameter: leave it out of the dataclass
            del cls.__annotations__[name]
        dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)
        cls.__annotations__ = {**inspect.get_annotations(cls), **learned}

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
        return isinstance(other, Configurable) and type(self) is type(other) and to_dict(self) == to_dict(other)

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

    @property
    def accepts(self) -> str:
        """Type, bounds and unit in words: `int ≥ 1 samples or None`."""
        members = _members(self.type)
        optional = type(None) in members and len(members) > 1
        name = " | ".join(_type_name(m) for m in members if m is not type(None)) if optional else self.type_name
        unit = f" {self.unit}" if self.unit else ""
        return f"{name}{_bounds(self.bounds)}{unit}{' or None' if optional else ''}"


_known_fields: dict[type, tuple[FieldInfo, ...]] = {}


def fields_of(cls: type[Configurable]) -> tuple[FieldInfo, ...]:
    """Return the hyperparameters of a class in the order of their declaration, the base class's first."""
    if cls is Configurable:
        return ()
    if cls not in _known_fields:
        hints = _hints(cls)
        declared = dataclasses.fields(typing.cast(Any, cls))  # every subclass has been made a dataclass
        _known_fields[cls] = tuple(_field_info(f, hints[f.name]) for f in declared)
    return _known_fields[cls]


def _field_info(declared: dataclasses.Field[Any], kind: Any) -> FieldInfo:
    factory = declared.default_factory
    default = declared.default if factory is dataclasses.MISSING else factory()
    meta = declared.metadata
    return FieldInfo(declared.name, kind, default, meta.get("help", ""), meta.get("unit", ""), meta.get("bounds", {}))


def build(cls: type[C], values: Mapping[str, Any], where: str) -> C:
    """Make a configuration from plain values, as they come from YAML or the command line.

    Args:
        cls: The class to make.
        values: Hyperparameters by name; `-` and `_` mean the same. Strings are converted to the field's type.
        where: How the user addresses this section, such as `strategy`; used in errors. Empty for options that stand
            in no section.

    Raises:
        ConfigurationError: All problems at once: unknown names, wrong types, values out of range, missing values.
    """
    known = {f.name: f for f in fields_of(cls)}
    problems: list[str] = []
    checked: dict[str, Any] = {}
    given = {str(key).replace("-", "_"): (key, value) for key, value in values.items()}
    for name, (key, value) in given.items():
        if name not in known:
            problems.append(_unknown(str(key), known, cls, where))
            continue
        try:
            checked[name] = _convert(known[name], value)
        except ValueError as error:
            problems.append(f"{_address(where, name)}: {error}")
    missing = [f for f in known.values() if not f.has_default and f.name not in given]
    problems += [f"{_address(where, f.name)} must be given, it has no default{_told(f)}." for f in missing]
    if problems:
        raise ConfigurationError("\n".join(problems))
    return cls(**checked)


def _address(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _told(info: FieldInfo) -> str:
    return f" ({info.help.rstrip('.')})" if info.help else ""


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
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise ConfigurationError(
            f"The annotations of {cls.__name__} could not be read ({error}): import that name in its module."
        ) from None


def _unknown(key: str, known: Mapping[str, FieldInfo], cls: type, where: str) -> str:
    hint = did_you_mean(key.replace("-", "_"), known) or f" It has: {', '.join(sorted(known)) or 'no options'}."
    return f"{_address(where, key)} is not an option of {cls.__name__}.{hint}"


def _plain(value: Any) -> Any:
    if isinstance(value, Configurable):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(v) for v in value)
    return str(value) if isinstance(value, PurePath) else value


def _convert(info: FieldInfo, value: Any) -> Any:
    """Convert and check one value.

    Raises:
        ValueError: With the rest of a sentence: what was expected and what was received.
    """
    if info.has_default and value is info.default and not isinstance(value, (list, dict, set)):
        return value
    expected = f"expected {info.accepts}"
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a number of NumPy or PyTorch
        value = value.item()
    read = _read(info.type, value) if isinstance(value, str) else value
    if isinstance(read, (int, float, str)) and _is_sequence(info.type) and not isinstance(read, bool):
        read = [read]  # `--optimizer.milestones 30` means a list of one
    members = _members(info.type)
    if isinstance(read, bool) and not any(m in (bool, Any, object) for m in members):
        raise ValueError(f"{expected}, received {value!r}.")
    from pydantic import TypeAdapter, ValidationError

    try:
        converted = TypeAdapter(info.type, config={"arbitrary_types_allowed": True}).validate_python(read)
    except ValidationError:
        raise ValueError(f"{expected}, received {value!r}.{_choice_hint(info, value)}") from None
    except Exception:  # a type that pydantic refuses to describe: such values are taken as they are
        converted = read
    if not all(_within(info.bounds, number) for number in _numbers(converted)):
        raise ValueError(f"{expected}, received {value!r}.")
    return converted


def _read(kind: Any, text: str) -> Any:
    """Turn text, from a command line or a quoted YAML value, into what a type can take; text for text.

    Numbers are Python's, not YAML's, in which 1e-4 is text, 010 is eight and 1:30 is ninety.
    """
    members = _members(kind)
    if type(None) in members and text.strip().lower() in ("none", "null", "~") and text not in _choices(kind):
        return None
    looks_like_list = text.strip().startswith("[") or "," in text
    holds_list = any(_origin(m) in (list, tuple) for m in members)
    if int in members and str in members and text.strip().isdecimal():
        return int(text)
    if _takes_text(kind) and not (looks_like_list and holds_list):
        return text
    if holds_list and not text.strip():
        return []
    return _scalar(text, split=not _takes_text(kind) or holds_list)


def _scalar(text: str, split: bool = True) -> Any:
    """Read none, true or false, a number, a list or mapping in YAML's brackets, or comma-separated values."""
    plain = text.strip()
    words = {"none": None, "null": None, "~": None, "true": True, "yes": True, "on": True}
    words |= {"false": False, "no": False, "off": False}
    if plain.lower() in words:
        return words[plain.lower()]
    for number in (int, float):
        try:
            return number(plain)
        except ValueError:
            continue
    if plain[:1] in ("[", "{"):
        try:
            return yaml.safe_load(plain)
        except yaml.YAMLError:
            return text
    if split and "," in plain:
        return [_scalar(part, split=False) for part in plain.rstrip(",").split(",")]
    return text


def _numbers(value: Any) -> Iterator[float]:
    """Every number in a value, those in lists too: bounds hold for each."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _numbers(inner)


def _within(bounds: Mapping[str, float], value: float) -> bool:
    tests: dict[str, Callable[[float, float], bool]] = {
        "ge": lambda v, b: v >= b,
        "gt": lambda v, b: v > b,
        "le": lambda v, b: v <= b,
        "lt": lambda v, b: v < b,
    }
    return not math.isnan(value) and all(tests[kind](value, bound) for kind, bound in bounds.items())


def _bounds(bounds: Mapping[str, float]) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    words = " and ".join(f"{signs[kind]} {bound:g}" for kind, bound in bounds.items())
    return f" {words}" if words else ""


def _choices(kind: Any) -> list[str]:
    return [str(c) for m in _members(kind) if typing.get_origin(m) is Literal for c in typing.get_args(m)]


def _choice_hint(info: FieldInfo, value: Any) -> str:
    return did_you_mean(str(value), _choices(info.type))


def _members(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type alone."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return typing.get_args(kind)
    return (kind,)


def _origin(kind: Any) -> Any:
    return typing.get_origin(kind) or kind


def _takes_text(kind: Any) -> bool:
    """Whether text is a value of the type; of an untyped value, text that reads as something else is that."""
    words = (c for m in _members(kind) if typing.get_origin(m) is Literal for c in typing.get_args(m))
    return str in _members(kind) or any(isinstance(c, str) for c in words)


def _is_sequence(kind: Any) -> bool:
    origins = [_origin(m) for m in _members(kind)]
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
