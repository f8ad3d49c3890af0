"""The same number of optimiser steps in every experience, whatever a method trains on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clframe.data.augment import ToInput
from clframe.data.reader import MemoryReader
from clframe.errors import ConfigurationError
from clframe.strategies.cumulative import Cumulative
from clframe.strategies.finetune import Finetune
from clframe.strategies.joint import Joint
from clframe.strategies.replay import Replay
from clframe.strategy import Batch, DataView, ParameterGroup, Phase, Strategy, TensorView
from clframe.stream import Experience, SampleTable
from clframe.testing.bench import first_difference
from clframe.testing.streams import synthetic_stream
from clframe.training.batches import BatchMaker
from clframe.training.checkpoint import pack
from clframe.training.plan import plan_phases
from clframe.training.seeds import RandomStreams
from clframe.training.stepper import Stepper
from tests.fakes import make_trainer, run

THREE = {"experiences": [[0, 1], [2, 3], [4, 5]]}
"""Twelve samples an experience, three steps an epoch."""


class Watched(Strategy):
    """Notes what is presented, and at which learning rate."""

    def setup(self) -> None:
        super().setup()
        self.seen_: list[list[int]] = []

    def after_step(self, batch: Batch) -> None:
        super().after_step(batch)
        self.seen_.append([batch.experience.index, batch.epoch, batch.step, batch.num_steps, *batch.ids.tolist()])


class WatchedFinetune(Watched, Finetune):
    """Fine-tuning."""


class WatchedCumulative(Watched, Cumulative):
    """Everything so far."""


class Stages(Watched, Finetune):
    """Two phases of unequal length, the second on features."""

    def extra_phases(self, experience: Experience) -> list[Phase]:
        def features() -> TensorView:
            labels = self.run.targets(experience.train)
            return TensorView(self.run.features(experience.train), labels, batch_size=5)

        def loss(batch: Batch) -> dict[str, Tensor]:
            return {"align": torch.nn.functional.cross_entropy(self.network.classifier(batch.x), batch.y)}

        def head() -> list[ParameterGroup]:
            return [ParameterGroup(list(self.network.classifier.parameters()))]

        return [Phase(name="align", data=features, epochs=1, loss=loss, parameters=head)]


def lengths(trainer: Any) -> list[list[int]]:
    """Steps of every epoch, by experience, as they were taken."""
    found: dict[int, list[int]] = {}
    for kind, values in trainer.recorder.events:
        if kind == "epoch":
            found.setdefault(values["experience"], []).append(values["steps"])
    return list(found.values())


@pytest.mark.parametrize(
    "strategy",
    [Finetune(epochs=4), Cumulative(epochs=4), Replay(epochs=4, memory_size=6), Cumulative(epochs=4, start="scratch")],
    ids=["finetune", "cumulative", "replay", "scratch"],
)
@pytest.mark.parametrize("budget", [4, 13, 50])
def test_every_method_takes_the_same_steps_in_every_experience(strategy, budget):
    trainer = run(strategy, THREE, steps_per_experience=budget)
    expected = [budget * (i + 1) // 4 - budget * i // 4 for i in range(4)]
    assert lengths(trainer) == [expected] * 3
    assert trainer.counters["steps"] == 3 * budget


def test_one_number_for_each_experience_serves_the_oracle_of_the_summed_budget():
    trainer = run(Joint(epochs=2, every="experience"), THREE, steps_per_experience=[5, 10, 15])
    assert [sum(e) for e in lengths(trainer)] == [5, 10, 15]
    assert run(Joint(epochs=2), THREE, steps_per_experience=15).counters["steps"] == 15


def test_the_budget_of_whole_passes_changes_no_bit():
    plain, budgeted = (run(Finetune(epochs=3), THREE, **o) for o in ({}, {"steps_per_experience": 9}))
    assert first_difference(pack(plain.strategy.network), pack(budgeted.strategy.network)) is None


def test_phases_share_the_budget_by_their_epochs_and_the_plan_says_so():
    trainer = run(Stages(epochs=2), THREE, steps_per_experience=16)
    assert lengths(trainer) == [[5, 5, 6]] * 3
    rows = plan_phases(make_trainer(Stages(epochs=2), THREE, steps_per_experience=16))
    assert [(r["phase"], r["steps"]) for r in rows] == [("train", 10), ("align", 6)] * 3


@pytest.mark.parametrize("cls", [WatchedFinetune, WatchedCumulative, Stages])
@pytest.mark.parametrize("stop", [1, 4, 7, 8, 20, 22])
def test_a_run_resumed_inside_an_epoch_of_several_passes_ends_the_same(cls, stop):
    options = {"steps_per_experience": 21, "augmentation": "none", "optimizer": {"lr": 0.05, "schedule": "cosine"}}
    whole = run(cls(epochs=2), THREE, **options)
    first = run(cls(epochs=2), THREE, stop_after=stop, **options)
    resumed = run(cls(epochs=2), THREE, state=first.recorder.latest(), **options)
    assert first_difference(pack(whole.strategy.network), pack(resumed.strategy.network)) is None
    assert whole.strategy.seen_ == resumed.strategy.seen_
    assert whole.counters["presentations"] == resumed.counters["presentations"]


def test_passes_present_every_sample_equally_often_and_more_data_a_part_of_it():
    seen = run(WatchedFinetune(epochs=1), THREE, steps_per_experience=9).strategy.seen_
    for e in range(3):
        counts = torch.bincount(torch.tensor([i for s in seen if s[0] == e for i in s[4:]]))
        assert set(counts[counts > 0].tolist()) == {3}
        orders = [tuple(i for s in seen if s[0] == e and s[2] // 3 == k for i in s[4:]) for k in range(3)]
        assert len(set(orders)) == 3
    seen = run(WatchedCumulative(epochs=2), THREE, steps_per_experience=8).strategy.seen_
    for epoch in (0, 1):
        ids = [i for s in seen if s[:2] == [2, epoch] for i in s[4:]]
        assert len(ids) == len(set(ids)) == 16  # of 36


@pytest.mark.parametrize("per", ["epoch", "step"])
def test_methods_pass_through_the_same_learning_rates(per, monkeypatch):
    rates: list[list[float]] = []
    inner = Stepper.step

    def noted(self: Stepper, batch: Batch) -> dict[str, Tensor]:
        terms = inner(self, batch)
        rates[-1].append(self.optimizer.param_groups[0]["lr"])
        return terms

    monkeypatch.setattr(Stepper, "step", noted)
    recipe = {"lr": 0.05, "schedule": "multistep", "milestones": [2, 0.8], "warmup": 1.0, "per": per}
    for strategy in (Finetune(epochs=5), Cumulative(epochs=5)):
        rates.append([])
        run(strategy, THREE, steps_per_experience=17, optimizer=recipe)
    assert len(rates[0]) == 51
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 2


@pytest.mark.parametrize("kind", ["images", "features"])
def test_no_data_gives_no_steps(kind):
    table = SampleTable(MemoryReader(torch.zeros(3, 2, 2, 1, dtype=torch.uint8)), torch.zeros(3, dtype=torch.int64))
    maker = BatchMaker(table, ToInput([0.5], [0.25]), torch.device("cpu"))
    ids = torch.empty(0, dtype=torch.int64)
    view = DataView(ids) if kind == "images" else TensorView(torch.empty(0, 2), ids)
    rng = RandomStreams(0)
    rng.enter("epoch", 0, 0, 0)
    experience = synthetic_stream().experiences[0]
    assert list(maker.epoch(view, 4, experience, "train", 0, rng, steps=5)) == []


def test_budgets_that_make_no_sense_are_refused():
    with pytest.raises(ConfigurationError, match=r"a step for each of the 5 epochs of experience 1, received 4"):
        run(Finetune(epochs=5), THREE, steps_per_experience=4)
    with pytest.raises(ConfigurationError, match=r"one number, or one for each of 3 experiences, received 2"):
        make_trainer(Finetune(epochs=1), THREE, steps_per_experience=[4, 5])
    with pytest.raises(ConfigurationError, match="steps_per_experience: expected int"):
        make_trainer(Finetune(epochs=1), THREE, steps_per_experience=0)
    with pytest.raises(ConfigurationError, match="presents every sample once, so steps_per_experience"):
        run(Finetune(epochs=1), {**THREE, "online": True}, steps_per_experience=4)
