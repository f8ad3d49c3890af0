"""From names and plain values to a run's parts, and back: the record repeats the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import clframe
from clframe import registry
from clframe.composite import Composite
from clframe.config import merged, resolve
from clframe.data.augment import HorizontalFlip, RandomCrop
from clframe.errors import ConfigurationError
from clframe.models import HeadConfig
from clframe.spec import to_dict
from clframe.training.recipe import Recipe

STRATEGY = registry.load("strategy", "replay")
EWC = registry.load("strategy", "ewc")

MINE = """
from torch import nn
from clframe import Scenario, Strategy, field

class Mine(Strategy):
    strength: float = field(default=1.0, ge=0, help="How much.")

class Cut(Scenario):
    parts: int = field(default=2, ge=1, help="How many.")

class Net(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.layer = nn.Linear(64, width)

    def forward(self, x):
        return self.layer(x.flatten(1))

def make_net(width: int = 4):
    return Net(width)
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "my-files" / "mine.py"
    file.parent.mkdir()
    file.write_text(MINE)
    return file


def again(record: dict[str, Any]) -> dict[str, Any]:
    """The record after a trip through config.yaml."""
    return resolve(yaml.safe_load(yaml.safe_dump(record, sort_keys=False))).record


def assert_repeats(config: dict[str, Any]) -> dict[str, Any]:
    record = resolve(config).record
    assert again(record) == record
    return record


def _named() -> list[Any]:
    cases = [{kind: name} for kind in ("strategy", "scenario", "backbone") for name in registry.available(kind)]
    required = {"timm": {"model": "resnet18"}, "split": {"source": "digits"}, "split_folder": {"source": "x.zip"},
                "multi_dataset": {"sources": ["digits"]}, "feature_stream": {"scenario": "si_blurry", "backbone": "mlp"}}  # fmt: skip
    filled = [{k: {"name": n, **required.get(n, {})} for k, n in case.items()} for case in cases]
    return [pytest.param(case, id="-".join(f"{k}-{v['name']}" for k, v in case.items())) for case in filled]


@pytest.mark.parametrize("config", _named())
def test_the_record_of_everything_registered_repeats_itself(config: dict[str, Any]) -> None:
    record = assert_repeats(config)
    ((section, given),) = config.items()
    assert record[section]["name"] == given["name"]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"epochs": 3, "seed": 4, "batch-size": "16"},
        {"strategy": "replay+ewc"},
        {"strategy": {"name": "replay+ewc", "memory-size": "50", "strength": 2, "epochs": 3}},
        {"strategy": {"name": "ewc+lwf", "ewc": {"strength": 5.0}}},
        {"backbone": "timm/resnet18"},
        {"backbone": {"name": "timm/resnet18", "options": {"zero_init_last": False}}},
        {"first_optimizer": {"lr": "0.01"}, "optimizer": "adam"},
        {"first_optimizer": "adamw"},
        {"augmentation": ["horizontal_flip", {"name": "random_crop", "padding": 2}]},
        {"head": "cosine"},
    ],
)
def test_the_record_repeats_itself(config: dict[str, Any]) -> None:
    assert_repeats(config)


def test_text_and_values_give_the_same_record() -> None:
    typed = {"strategy": {"name": "replay", "memory-size": "50"}, "first_optimizer": {"lr": "1e-2"}, "seed": "3"}
    plain = {"strategy": {"name": "replay", "memory_size": 50}, "first_optimizer": {"lr": 0.01}, "seed": 3}
    assert resolve(typed).record == resolve(plain).record


def test_objects_and_names_give_the_same_record() -> None:
    objects = {
        "strategy": STRATEGY(memory_size=50),
        "scenario": registry.load("scenario", "split_digits")(experiences=2),
        "backbone": registry.load("backbone", "mlp")(hidden=[7]),
        "head": HeadConfig(name="cosine"),
        "optimizer": Recipe(lr=0.5),
        "augmentation": [RandomCrop(padding=1), HorizontalFlip()],
    }
    names = {
        "strategy": {"name": "replay", "memory_size": 50},
        "scenario": {"name": "split_digits", "experiences": 2},
        "backbone": {"name": "mlp", "hidden": [7]},
        "head": {"name": "cosine"},
        "optimizer": {"lr": 0.5},
        "augmentation": [
            {"name": "random_crop", **to_dict(RandomCrop(padding=1))},
            {"name": "horizontal_flip", **to_dict(HorizontalFlip())},
        ],
    }
    assert assert_repeats(objects) == resolve(names).record


def test_a_composition_in_python_is_the_one_by_name() -> None:
    record = assert_repeats({"strategy": STRATEGY(memory_size=9, epochs=2) + EWC(strength=5.0)})
    assert (
        record == resolve({"strategy": {"name": "replay+ewc", "memory_size": 9, "strength": 5.0, "epochs": 2}}).record
    )


def test_objects_stay_as_they_were() -> None:
    replay, ewc = STRATEGY(epochs=2), EWC(epochs=7)
    given = Composite(parts=[Composite(parts=[replay]), ewc])
    config = resolve({"strategy": given, "epochs": 3})
    assert [p.epochs for p in config.strategy.parts] == [3, 3]
    assert (replay.epochs, ewc.epochs) == (2, 7)
    assert isinstance(given.parts[0], Composite)


def test_a_users_file_is_recorded_with_its_full_path_and_its_text(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine.parent)
    config = {
        "strategy": "replay+mine.py:Mine",
        "scenario": "mine.py:Cut",
        "backbone": {"name": "mine.py:Net", "width": "5"},
    }
    resolved = resolve(config)
    monkeypatch.chdir("/")
    assert again(resolved.record) == resolved.record
    assert resolved.record["strategy"]["name"] == f"replay+{mine}:Mine"
    assert resolved.record["strategy"][f"{mine}:Mine"] == {"version": 1, "strength": 1.0}
    assert resolved.record["scenario"]["name"] == f"{mine}:Cut"
    assert resolved.record["backbone"] == {
        "name": f"{mine}:Net",
        "weights": None,
        "input_mean": None,
        "input_std": None,
        "width": 5,
    }
    assert resolved.sources == {"mine.py": MINE}


@pytest.mark.parametrize("key", ["mine.py:Mine", "Mine"])
def test_a_part_of_a_composition_is_addressed_by_its_name_or_class(
    mine: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.chdir(mine.parent)
    config = {"strategy": {"name": "ewc+mine.py:Mine", key: {"strength": 3}, "ewc": {"strength": 4}}}
    parts = resolve(config).strategy.parts
    assert [p.strength for p in parts] == [4.0, 3.0]
    assert_repeats(config)


def test_a_module_class_or_factory_of_a_file_given_in_python_is_found_again(mine: Path) -> None:
    for name in ("Net", "make_net"):
        made = registry.load_object(f"{mine}:{name}")
        assert assert_repeats({"backbone": made})["backbone"]["name"] == f"{mine}:{name}"


@pytest.mark.parametrize("section", ["strategy", "backbone", "scenario"])
def test_what_only_python_knows_must_be_given_again(section: str) -> None:
    class Local(clframe.Strategy):
        pass

    class Net(nn.Linear):
        pass

    class Cut(clframe.Scenario):
        pass

    given = {"strategy": Local(), "backbone": Net(64, 3), "scenario": Cut()}[section]
    record = resolve({section: given}).record
    assert record[section]["name"].startswith("python:")
    with pytest.raises(
        ConfigurationError,
        match=rf"was an object in Python: give it again, as in clframe.resume\(directory, {section}=",
    ):
        resolve(record)
    assert resolve({**record, section: given}).record == record


def test_a_given_module_stays_untrained() -> None:
    given = nn.Linear(64, 3)
    built = resolve({"backbone": given}).backbone.build((64,))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.zero_()
    assert given.weight.abs().sum() > 0


def test_names_may_carry_their_version() -> None:
    assert (
        resolve({"strategy": "replay@1", "scenario": "split_digits@1"}).record == resolve({"strategy": "replay"}).record
    )
    for config in (
        {"strategy": "replay@7"},
        {"strategy": {"name": "replay", "version": 7}},
        {"strategy": {"name": "ewc+replay", "replay": {"version": 7}}},
    ):
        with pytest.raises(ConfigurationError, match=r"asks for strategy replay@7, but this clframe has replay@1"):
            resolve(config)


def test_all_problems_of_all_sections_are_named_at_once() -> None:
    config = {
        "stratgy": "x", "seed": -1, "batch_size": "many", "strategy": {"name": "replay", "memory_size": "x", "form": "unoin"},
        "scenario": "split_digit", "backbone": {"name": "mlp", "hiden": 3}, "optimizer": {"lr": 0, "momentu": 1}, "head": "linaer",
    }  # fmt: skip
    with pytest.raises(ConfigurationError) as caught:
        resolve(config)
    said = str(caught.value).split("\n")
    starts = [
        "stratgy is not an option of a run. Did you mean 'strategy'?",
        "There is no scenario named 'split_digit'. Did you mean 'split_digits'?",
        "strategy.memory_size: expected int ≥ 0 samples, received 'x'.",
        "strategy.form: expected 'union' | 'step', received 'unoin'. Did you mean 'union'?",
        "backbone.hiden is not an option of MLP. Did you mean 'hidden'?",
        "head.name: expected",
        "optimizer.lr: expected float > 0, received 0.",
        "optimizer.momentu is not an option of Recipe. Did you mean 'momentum'?",
        "seed: expected int ≥ 0, received -1.",
        "batch_size: expected int ≥ 1 samples, received 'many'.",
    ]
    assert len(said) == len(starts)
    assert all(line.startswith(start) for line, start in zip(said, starts, strict=True)), said


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"strategy": 3}, "strategy: expected a name, a mapping"),
        ({"strategy": {"name": 3}}, "strategy.name: expected a name, received 3"),
        ({"optimizer": 3}, "optimizer: expected a name or a mapping of options, received int"),
        ({"strategy": "ewc+ewc"}, "A composition needs different strategies, received 'ewc\\+ewc'"),
        ({"strategy": EWC() + EWC()}, "A composition needs different strategies"),
        ({"strategy": "clframe.scenarios.split:Split"}, "must derive from clframe.Strategy, but Split doesn't"),
        ({"strategy": {"name": "replay+ewc", "memorysize": 3}}, "not an option of replay\\+ewc. Did you mean 'memory_size'"),
        ({"strategy": {"name": "replay+ewc", "replay": {"ewc": 3}}}, "strategy.replay.ewc is not an option of Replay"),
        ({"schema": 99}, "Expected a configuration of schema 1, received 99"),
        ({"epochs": "x"}, "strategy.epochs: expected int ≥ 1 epochs, received 'x'"),
        ({"epochs": 0, "strategy": EWC()}, "strategy.epochs: expected int ≥ 1 epochs, received 0"),
        ({1: 2}, "1 is not an option of a run"),
        ({"backbone": {"name": "timm", "model": "resnet18", "options": {"act": object()}}}, "backbone.options.act: expected numbers"),
        ({"first_optimizer": {"lr": -1}}, "first_optimizer.lr: expected float > 0"),
    ],
)  # fmt: skip
def test_one_sentence_for_each(config: dict[Any, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        resolve(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("base", "changes", "expected"),
    [
        ({"strategy": "ewc"}, {"strategy": {"name": "ewc", "decay": 1}}, {"strategy": {"name": "ewc", "decay": 1}}),
        ({"strategy": {"name": "ewc", "decay": 1}}, {"strategy": {"name": "lwf"}}, {"strategy": {"name": "lwf"}}),
        (
            {"strategy": {"name": "ewc", "decay": 1}},
            {"strategy": {"mode": "online"}},
            {"strategy": {"name": "ewc", "decay": 1, "mode": "online"}},
        ),
        (
            {"strategy": {"name": "ewc", "memory-size": 1}},
            {"strategy": {"memory_size": 2}},
            {"strategy": {"name": "ewc", "memory-size": 2}},
        ),
        ({"epochs": 5}, {"strategy": {"epochs": 3}}, {"strategy": {"epochs": 3}}),
        ({"epochs": 5, "seed": 1}, {"epochs": 3}, {"epochs": 3, "seed": 1}),
        ({"batch-size": 5}, {"batch_size": 3}, {"batch-size": 3}),
    ],
)
def test_what_is_given_beside_a_file_wins(
    base: dict[str, Any], changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    before = yaml.safe_dump([base, changes])
    assert merged(base, changes) == expected
    assert yaml.safe_dump([base, changes]) == before, "neither is changed"


# ---- the classifier that a strategy asks for


class Wanting(clframe.Strategy):
    """A strategy that asks for a cosine classifier."""

    tags = clframe.Tags(head={"name": "cosine", "scale": 4.0})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {"name": "cosine", "scale": 4.0, "init": "torch"}),
        ({"init": "kaiming_normal"}, {"name": "cosine", "scale": 4.0, "init": "kaiming_normal"}),
        ({"scale": "2"}, {"name": "cosine", "scale": 2.0}),
        ("cosine", {"name": "cosine", "scale": 4.0}),
        ("linear", {"name": "linear", "scale": 1.0}),
        ({"name": "linear", "bias": False}, {"name": "linear", "scale": 1.0, "bias": False}),
        (HeadConfig(), {"name": "linear", "scale": 1.0}),
    ],
)
@pytest.mark.parametrize("composed", [False, True])
def test_a_strategy_may_ask_for_a_classifier_and_the_configuration_has_the_last_word(given, expected, composed) -> None:
    strategy = EWC() + Wanting() if composed else Wanting()
    config = resolve({"strategy": strategy, "head": given})
    assert expected.items() <= config.record["head"].items()
    assert to_dict(config.head) == config.record["head"]
    assert resolve({"strategy": strategy, "head": config.record["head"]}).record["head"] == config.record["head"]


def test_without_such_a_wish_the_classifier_is_linear() -> None:
    assert resolve({"strategy": EWC() + STRATEGY()}).record["head"] == to_dict(HeadConfig())
