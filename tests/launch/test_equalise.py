"""The same operations for every method, as their own accounts count them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import clframe
from clframe.data import MemoryReader
from clframe.errors import ConfigurationError
from clframe.launch.equalise import _ExperienceCost, _PhaseCost
from clframe.stream import SampleTable
from clframe.testing import synthetic_stream

BASE: dict[str, Any] = {
    "scenario": {"name": "split_digits", "experiences": 5, "train_per_class": 60},
    "backbone": {"name": "mlp", "hidden": [16]},
    "epochs": 2,
    "batch_size": 16,
    "optimizer": {"lr": 0.02},
}


def configuration(strategy: Any, **changes: Any) -> dict[str, Any]:
    return {**BASE, "strategy": strategy, **changes}


def flops(folder: Path, name: str, config: dict[str, Any]) -> list[float]:
    run = clframe.run(**config, run_dir=folder / name, progress=False)
    found: list[float] = run.metric("train_flops")
    return found


METHODS: dict[str, Any] = {
    "finetune": "finetune",
    "replay": {"name": "replay", "memory_size": 100},
    "ewc": "ewc",
    "der": {"name": "der", "memory_size": 100, "balanced_epochs": 3},
    "foster": {"name": "foster", "memory_size": 100, "compression_epochs": 3},
}


@pytest.mark.parametrize("backbone", ["mlp", "resnet8"])
def test_every_method_takes_the_same_operations_in_every_experience(tmp_path, backbone):
    changes: dict[str, Any] = {}
    methods = METHODS
    if backbone == "resnet8":
        changes = {"backbone": backbone, "scenario": {**BASE["scenario"], "experiences": 2, "train_per_class": 30}}
        methods = {n: METHODS[n] for n in ("finetune", "der")}
    reference = configuration(METHODS["foster"], **changes)
    equal = clframe.equalise([configuration(m, **changes) for m in methods.values()], reference)
    budget = flops(tmp_path, "reference", reference)
    for name, config in zip(methods, equal, strict=True):
        found = flops(tmp_path, name, config)
        half_a_step = [0.5 / s for s in config["steps_per_experience"]]
        for own, given, tolerance in zip(found, budget, half_a_step, strict=True):
            assert own == pytest.approx(given, rel=tolerance + 0.005), name
            assert own == pytest.approx(given, rel=0.03), name
        assert sum(found) == pytest.approx(sum(budget), rel=0.01)
    steps = {n: c["steps_per_experience"] for n, c in zip(methods, equal, strict=True)}
    assert steps["finetune"][-1] > steps["der"][-1]
    if backbone == "mlp":
        assert steps["der"][4] < 0.6 * steps["der"][1]  # every extractor makes the next steps dearer


DRAWN: dict[str, Any] = {
    "step": {"name": "replay", "form": "step", "memory_size": 100},
    "dark_er": {"name": "dark_er", "memory_size": 100},
    "agem": {"name": "agem", "memory_size": 100},
}


@pytest.mark.parametrize("name", DRAWN)
def test_samples_that_a_method_draws_beside_a_batch_count(tmp_path, name):
    budget = 1e7
    equal = clframe.equalise([configuration(DRAWN[name])], budget)[0]
    found = flops(tmp_path, name, equal)
    for own, steps in zip(found, equal["steps_per_experience"], strict=True):
        assert own == pytest.approx(budget, rel=0.5 / steps + 0.005)
    assert (
        equal["steps_per_experience"][-1]
        < clframe.equalise([configuration("finetune")], budget)[0]["steps_per_experience"][-1]
    )


def test_a_reference_may_be_a_run_or_numbers(tmp_path):
    config = configuration("finetune")
    by_config = clframe.equalise([config], config)
    run = clframe.run(**config, run_dir=tmp_path / "run", progress=False)
    by_run = clframe.equalise([config], run)
    by_numbers = clframe.equalise([config], run.metric("train_flops"))
    assert by_config == by_run == by_numbers
    # 120 samples and 16 a step are 8 steps an epoch: its own operations give its own steps back
    assert by_config[0]["steps_per_experience"] == [16] * 5
    twice = clframe.equalise([config], [2 * f for f in run.metric("train_flops")])
    assert all(31 <= steps <= 33 for steps in twice[0]["steps_per_experience"])


def test_a_stated_number_of_steps_is_the_references_budget():
    config = configuration("finetune")
    stated = {**config, "steps_per_experience": [8, 10, 20, 30, 41]}
    equal = clframe.equalise([config], stated)
    assert equal[0]["steps_per_experience"] == [8, 10, 20, 30, 41]
    assert clframe.equalise([{**config, "steps_per_experience": 1}], stated) == clframe.equalise(equal, stated) == equal


def test_training_once_at_the_end_takes_the_operations_of_all_experiences(tmp_path):
    reference = configuration("finetune")
    equal = clframe.equalise([configuration("joint")], reference)[0]
    found, budget = flops(tmp_path, "joint", equal), flops(tmp_path, "own", reference)
    assert found[:4] == [0, 0, 0, 0]
    assert found[4] == pytest.approx(sum(budget), rel=0.01)


def test_an_experience_without_samples_leaves_its_budget_to_the_next_one(tmp_path):
    stream = synthetic_stream(experiences=[[0, 1]] * 3, setting="domain", train_per_class=[16, 0, 16])
    config = configuration("finetune", scenario=stream, batch_size=8)
    equal = clframe.equalise([config], 2e5)[0]
    found = flops(tmp_path, "run", equal)
    assert found[1] == 0
    half_a_step = 0.5 * found[0] / equal["steps_per_experience"][0]
    assert found[0] == pytest.approx(2e5, abs=half_a_step)
    assert found[2] == pytest.approx(4e5, abs=half_a_step)


@pytest.mark.filterwarnings("ignore:The weights were pretrained")
def test_what_a_cache_spares_counts_all_the_same(tmp_path, monkeypatch):
    """Of a frozen network every run computes its features anew, so that the order of runs decides nothing."""
    monkeypatch.setenv("CLFRAME_CACHE", str(tmp_path / "cache"))
    backbone = {"name": "mlp", "hidden": [16], "weights": str(weights(tmp_path))}
    probe = configuration("nmc+gauss_align", backbone=backbone)
    reference = configuration("finetune", backbone=backbone, epochs=20)
    equal = clframe.equalise([probe], reference)[0]
    cached = flops(tmp_path, "cached", {**equal, "feature_cache": "auto"})
    again = flops(tmp_path, "again", {**equal, "feature_cache": "auto"})
    found, budget = flops(tmp_path, "own", equal), flops(tmp_path, "reference", reference)
    assert sum(found) == pytest.approx(sum(budget), rel=0.01)
    assert sum(again) < sum(cached)


def weights(folder: Path) -> Path:
    """A file of weights trained elsewhere."""
    out = folder / "weights.safetensors"
    made = {"scenario": "split_digits", "backbone": {"name": "mlp", "hidden": [16]}, "epochs": 1}
    clframe.pretrain(out=out, run_dir=folder / "pretrained", progress=False, **made)
    return out


def test_epochs_that_cut_or_repeat_the_data_present_what_the_trainer_presents():
    phase = _PhaseCost(2, [4, 4, 3], None, per_sample=10.0, views=1, beside=2)
    assert phase.of([3, 3]) == 10 * (11 + 11 + 6 * 2)
    assert phase.of([2, 7]) == 10 * (8 + 22 + 4 + 9 * 2)
    assert phase.of(phase.configured) == phase.of([3, 3])
    assert _PhaseCost(2, [], None).of([5, 5]) == 0
    experience = _ExperienceCost(100.0, [phase, _PhaseCost(1, [5], None, per_sample=1.0)])
    assert experience.of(10) == 100 + phase.of([3, 3]) + 4 * 5  # 10 steps over 3 epochs: 3, 3, 4
    for steps in (3, 4, 17, 200):
        assert experience.steps_for(experience.of(steps)) == steps


def test_budgets_that_can_not_be_met_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CLFRAME_CACHE", str(tmp_path))
    with pytest.raises(
        ConfigurationError, match=r"ewc takes .* in experience 1 at least .* raise it, or lower the epochs"
    ):
        clframe.equalise([configuration("ewc")], 1000.0)
    with pytest.raises(ConfigurationError, match="operations for each of 5 experiences of finetune, received 2"):
        clframe.equalise([configuration("finetune")], [1e9, 1e9])
    unmeasured = clframe.run(**configuration("finetune", measure="none"), run_dir=tmp_path / "run", progress=False)
    with pytest.raises(ConfigurationError, match="didn't measure its cost: run it with `measure`"):
        clframe.equalise([configuration("finetune")], unmeasured)
    online = synthetic_stream(online=True)
    with pytest.raises(ConfigurationError, match="presents every sample once"):
        clframe.equalise([configuration("finetune", scenario=online, epochs=1)], 1e9)
    frozen = configuration("nmc", backbone={"name": "mlp", "hidden": []}, scenario=synthetic_features())
    with pytest.raises(ConfigurationError, match="nmc takes no optimiser steps whose operations count"):
        clframe.equalise([frozen], 1e9)


def synthetic_features() -> Any:
    """A stream of what looks like features of pretrained weights."""
    stream = synthetic_stream()
    table = SampleTable(MemoryReader(torch.randn(len(stream.train), 7)), stream.train.targets)
    tests = SampleTable(MemoryReader(torch.randn(len(stream.test), 7)), stream.test.targets)
    return dataclasses.replace(stream, train=table, test=tests, mean=(0.0,), std=(1.0,), pretrained=True)
