"""Hyperparameters: what text turns into, what is refused and how, and that plain values bring everything back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from clframe import registry
from clframe.config import RunOptions
from clframe.errors import ConfigurationError, ContractError
from clframe.models import HeadConfig
from clframe.spec import Configurable, build, field, fields_of, to_dict, validate
from clframe.training.recipe import Recipe


class Thing(Configurable):
    size: int = field(default=3, ge=1, unit="samples", help="How many.")
    rate: float = field(default=0.1, gt=0, le=1)
    order: str | list[int] = field(default="natural")
    steps: list[float] = field(default_factory=list, ge=0)
    flag: bool = field(default=False)
    anything: Any = field(default=None)
    file: str | None = field(default=None)
    classes: int | list[int] | None = field(default=None)
    mode: Literal["none", "full"] = field(default="full")
    level: Literal[1, 2] = field(default=1)
    limit: int | None = field(default=None, ge=1)
    table: dict[str, int] = field(default_factory=dict)
    widths: tuple[int, ...] = field(default=(1, 2))
    shared: ClassVar[int] = 7
    state_: int


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("size", "5", 5),
        ("size", " 5 ", 5),
        ("size", "5.0", 5),
        ("size", 5.0, 5),
        ("size", "1e3", 1000),
        ("size", "010", 10),  # in YAML an octal eight
        ("size", np.int64(4), 4),
        ("rate", "1e-4", 1e-4),  # in YAML text
        ("rate", 1, 1.0),
        ("order", "seed:1993", "seed:1993"),
        ("order", "3,1,2", [3, 1, 2]),
        ("order", "[3, 1, 2]", [3, 1, 2]),
        ("order", "none", "none"),
        ("steps", "30", [30.0]),
        ("steps", "30,0.5", [30.0, 0.5]),
        ("steps", "30, 60,", [30.0, 60.0]),
        ("steps", "", []),
        ("steps", "[]", []),
        ("steps", 30, [30.0]),
        ("flag", "yes", True),
        ("flag", "False", False),
        ("flag", "1", True),
        ("flag", "off", False),
        ("anything", "1e-4", 1e-4),
        ("anything", "true", True),
        ("anything", "1,a", [1, "a"]),
        ("anything", "{a: [1, 2]}", {"a": [1, 2]}),
        ("anything", "1:30", "1:30"),  # in YAML ninety
        ("anything", "plain", "plain"),
        ("file", "None", None),
        ("file", "null", None),
        ("file", "7", "7"),
        ("file", "a,b.pt", "a,b.pt"),
        ("classes", "5", 5),
        ("classes", "5,6", [5, 6]),
        ("classes", "NONE", None),
        ("mode", "none", "none"),
        ("level", "2", 2),
        ("limit", "~", None),
        ("table", "{a: 1}", {"a": 1}),
        ("widths", "4,5", (4, 5)),
    ],
)
def test_text_becomes_the_value_of_its_type(name: str, text: Any, value: Any) -> None:
    found = getattr(build(Thing, {name: text}, "thing"), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("size", "many", "thing.size: expected int ≥ 1 samples, received 'many'."),
        ("size", 0, "thing.size: expected int ≥ 1 samples, received 0."),
        ("size", "-5", "thing.size: expected int ≥ 1 samples, received '-5'."),
        ("size", 2.5, "thing.size: expected int ≥ 1 samples, received 2.5."),
        ("size", True, "thing.size: expected int ≥ 1 samples, received True."),
        ("size", None, "thing.size: expected int ≥ 1 samples, received None."),
        ("size", [1, 2], "thing.size: expected int ≥ 1 samples, received [1, 2]."),
        ("rate", "1,2", "thing.rate: expected float > 0 and ≤ 1, received '1,2'."),
        ("rate", math.nan, "thing.rate: expected float > 0 and ≤ 1, received nan."),
        ("steps", [1, -1], "thing.steps: expected list[float] ≥ 0, received [1, -1]."),
        ("flag", "2", "thing.flag: expected bool, received '2'."),
        ("mode", "ful", "thing.mode: expected 'none' | 'full', received 'ful'. Did you mean 'full'?"),
        ("limit", 0, "thing.limit: expected int ≥ 1 or None, received 0."),
        ("classes", "a,b", "thing.classes: expected int | list[int] or None, received 'a,b'."),
        ("file", 5, "thing.file: expected str or None, received 5."),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build(Thing, {name: value}, "thing")
    assert str(caught.value) == sentence


def test_all_problems_are_named_at_once() -> None:
    class Needs(Configurable):
        must: int = field(help="What it must have.")
        rate: float = field(default=0.5, lt=1)

    with pytest.raises(ConfigurationError) as caught:
        build(Needs, {"rate": 2, "rat": 1}, "strategy")
    assert str(caught.value).split("\n") == [
        "strategy.rate: expected float < 1, received 2.",
        "strategy.rat is not an option of Needs. Did you mean 'rate'?",
        "strategy.must must be given, it has no default (What it must have).",
    ]


def test_dashes_are_underscores() -> None:
    class Dashed(Configurable):
        memory_size: int = 1

    assert build(Dashed, {"memory-size": "4"}, "x").memory_size == 4


def test_options_in_no_section_are_named_alone() -> None:
    with pytest.raises(ConfigurationError, match=r"^seed: expected int"):
        build(RunOptions, {"seed": -1}, "")


def test_state_and_class_variables_are_no_hyperparameters() -> None:
    names = [f.name for f in fields_of(Thing)]
    assert names[0] == "size"
    assert "state_" not in names
    assert "shared" not in names
    with pytest.raises(TypeError):
        Thing(state_=1)


def test_lists_are_not_shared() -> None:
    default = next(f.default for f in fields_of(Thing) if f.name == "steps")
    made = [Thing(), Thing(), build(Thing, {"steps": default}, "x")]
    for thing in made:
        thing.steps.append(1.0)
    assert [thing.steps for thing in made] == [[1.0]] * 3
    assert default == []


def test_values_made_in_python_are_validated() -> None:
    validate(Thing(size=2), "thing")
    with pytest.raises(ConfigurationError, match=r"thing\.size: expected int ≥ 1 samples, received 0"):
        validate(Thing(size=0), "thing")


def test_replace_copies_hyperparameters_and_no_state() -> None:
    old = Thing(size=5)
    old.state_ = 3
    new = old.replace(rate=0.5)
    assert (new.size, new.rate, old.rate) == (5, 0.5, 0.1)
    assert not hasattr(new, "state_")


def test_equality_is_of_class_and_values() -> None:
    class Other(Thing):
        pass

    assert Thing(size=4) == Thing(size=4)
    assert Thing(size=4) != Thing(size=5)
    assert Thing() != Other()
    assert Thing() != "Thing()"


def test_repr_shows_what_differs_from_the_defaults() -> None:
    assert repr(Thing(size=4)) == "Thing(size=4)"


@pytest.mark.parametrize("name", ["__init__", "__post_init__"])
def test_a_constructor_of_ones_own_is_refused(name: str) -> None:
    with pytest.raises(ContractError, match=f"must not define {name}"):
        type("Eager", (Configurable,), {name: lambda self: None})


def test_an_annotation_that_cannot_be_read_is_named() -> None:
    class Lost(Configurable):
        value: Missing = 1  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ConfigurationError, match="annotations of Lost could not be read"):
        fields_of(Lost)


def test_plain_values_of_paths_and_sets() -> None:
    class Odd(Configurable):
        path: Any = None
        chosen: Any = None

    assert to_dict(Odd(path=Path("a/b"), chosen={3, 1})) == {"path": "a/b", "chosen": [1, 3]}


def _registered() -> list[Any]:
    found = [
        pytest.param(registry.load(kind, name), id=f"{kind}-{name}")
        for kind in ("strategy", "scenario", "backbone")
        for name in registry.available(kind)
    ]
    return [*found, *(pytest.param(c, id=c.__name__) for c in (Recipe, HeadConfig, RunOptions))]


@pytest.mark.parametrize("cls", _registered())
def test_round_trip_of_everything_registered(cls: type[Configurable]) -> None:
    required = {f.name: "some" for f in fields_of(cls) if not f.has_default}
    made = cls(**required)
    text = yaml.safe_dump(to_dict(made))
    assert build(cls, yaml.safe_load(text), "x") == made
    typed = {f.name: _typed(getattr(made, f.name)) for f in fields_of(cls)}
    assert build(cls, typed, "x") == made, "the command line gives text for everything"


def _typed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


@pytest.mark.parametrize("cls", _registered())
def test_every_default_keeps_its_own_bounds_and_every_option_says_what_it_is(cls: type[Configurable]) -> None:
    validate(cls(**{f.name: "some" for f in fields_of(cls) if not f.has_default}), "x")
    assert [f.name for f in fields_of(cls) if not f.help] == []


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    size=st.integers(1, 10**12),
    rate=st.floats(1e-300, 1, exclude_min=True),
    order=st.lists(st.integers(-9, 99), min_size=2),
    steps=st.lists(st.floats(0, 1e300)),
    flag=st.booleans(),
    limit=st.none() | st.integers(1, 99),
)
def test_text_and_yaml_bring_any_value_back(**values: Any) -> None:
    made = build(Thing, values, "thing")
    assert build(Thing, yaml.safe_load(yaml.safe_dump(to_dict(made))), "thing") == made
    assert build(Thing, {k: _typed(v) for k, v in values.items()}, "thing") == made
