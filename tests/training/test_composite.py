"""Composition: explicit, ordered, and refused where two want the same."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from clframe.composite import Composite, tags_of
from clframe.errors import ConfigurationError
from clframe.strategies.ewc import EWC
from clframe.strategies.finetune import Finetune
from clframe.strategies.joint import Joint
from clframe.strategies.lwf import LwF
from clframe.strategies.replay import Replay
from clframe.strategy import Batch, DataView, Phase, Strategy, Tags
from clframe.stream import Experience
from clframe.testing.bench import first_difference
from clframe.testing.streams import synthetic_stream
from clframe.training.checkpoint import pack
from tests.fakes import make_trainer, run

TWO = {"experiences": [[0, 1], [2, 3]]}
calls: list[str] = []


class Part(Strategy):
    """Notes its hooks and adds a term of its own."""

    def note(self, what: str) -> None:
        calls.append(f"{type(self).__name__}.{what}")

    def setup(self) -> None:
        self.note("setup")

    def before_epoch(self, phase: Phase, epoch: int) -> None:
        self.note("before_epoch")

    def extra_losses(self, batch: Batch, output: Any) -> dict[str, Tensor]:
        self.note("extra_losses")
        return {"term": output.logits.mean() * 0 + 1}

    def after_backward(self, batch: Batch) -> None:
        self.note("after_backward")

    def after_step(self, batch: Batch) -> None:
        self.note("after_step")

    def after_experience(self, experience: Experience) -> None:
        self.note("after_experience")

    def forget(self, experience: Experience) -> None:
        self.note("forget")

    def report_heads(self, output: Any) -> dict[str, Tensor]:
        return {"classifier": output.logits, type(self).__name__: output.logits}


class One(Part):
    """The first."""


class Two(Part):
    """The second."""


class OwnPhases(Part):
    """Brings phases, of which one has a loss of its own."""

    def phases(self, experience: Experience) -> list[Phase]:
        plain = Phase(name="plain", data=DataView(experience.train), epochs=1)
        own = Phase(name="own", data=DataView(experience.train), epochs=1, loss=self.own_loss)
        return [plain, own]

    def own_loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"term": self.network(batch.x).logits.square().mean()}


class OwnMain(Strategy):
    """Replaces the main loss."""

    def main_loss(self, batch: Batch, output: Any) -> Tensor:
        return output.logits.square().mean() * 0 + 7.0


class OwnData(Strategy):
    """Replaces the data."""

    def training_data(self, experience: Experience) -> DataView:
        return DataView(experience.train[:4])


def epochs_of(trainer: Any) -> list[dict[str, Any]]:
    return [v for kind, v in trainer.recorder.events if kind == "epoch"]


def test_hooks_run_in_the_order_given() -> None:
    calls.clear()
    run(One(epochs=1) + Two(epochs=1), {"experiences": [[0, 1]], "train_per_class": 2})
    assert calls == [f"{p}.{h}" for h in ("setup", "before_epoch", "extra_losses", "after_backward", "after_step", "after_experience")
                     for p in ("One", "Two")]  # fmt: skip
    calls.clear()
    run(Two(epochs=1) + One(epochs=1), {"experiences": [[0, 1]], "train_per_class": 2})
    assert calls[:2] == ["Two.setup", "One.setup"]


def test_extra_losses_add_up_once_each_from_one_forward_pass() -> None:
    trainer = make_trainer(One(epochs=1) + Two(epochs=1), TWO)
    passes: list[int] = []
    trainer.context.network.register_forward_pre_hook(lambda module, _: passes.append(1) if module.training else None)
    trainer.run()
    assert len(passes) == trainer.counters["steps"]
    event = epochs_of(trainer)[0]
    assert set(event["terms"]) == {"classification", "term", "term_2"}
    assert event["loss"] == pytest.approx(event["terms"]["classification"] + 2)


def test_no_term_replaces_another_silently() -> None:
    trainer = run(OwnPhases(epochs=1) + Two(epochs=1), TWO)
    plain, own = epochs_of(trainer)[:2]
    assert set(plain["terms"]) == {"classification", "term", "term_2"}
    assert set(own["terms"]) == {"term", "term_2"}
    assert own["terms"]["term_2"] == pytest.approx(1.0)


def test_the_main_loss_of_one_part_serves_the_phases_of_another() -> None:
    trainer = run(OwnPhases(epochs=1) + OwnMain(epochs=1), TWO)
    assert epochs_of(trainer)[0]["terms"]["classification"] == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("strategy", "named"),
    [
        (OwnMain() + Replay(), "main_loss"),
        (OwnData() + Replay(), "training_data"),
        (Joint() + OwnPhases(), "phases"),
        (OwnPhases() + OwnData(), "own phases and OwnData its own training data"),
    ],
)
def test_conflicts_are_refused_before_anything_runs(strategy: Strategy, named: str) -> None:
    calls.clear()
    with pytest.raises(ConfigurationError, match=named):
        make_trainer(strategy, TWO)
    assert calls == []


def test_shared_fields_are_the_first_parts() -> None:
    trainer = make_trainer(One(epochs=3, loss_over="experience") + Two(epochs=1), TWO)
    parts = trainer.strategy.parts  # type: ignore[attr-defined]
    assert [(p.epochs, p.loss_over) for p in (trainer.strategy, *parts)] == [(3, "experience")] * 3


def test_compositions_of_compositions_are_flat() -> None:
    trainer = make_trainer(One(epochs=1) + Two(epochs=1) + Finetune(epochs=1), TWO)
    assert [type(p).__name__ for p in trainer.strategy.parts] == ["One", "Two", "Finetune"]  # type: ignore[attr-defined]


def test_report_heads_stand_side_by_side() -> None:
    trainer = run(One(epochs=1) + Two(epochs=1), TWO)
    assert [h for _, after, h in trainer.recorder.kept if after == 2] == ["classifier", "One", "Two"]  # type: ignore[attr-defined]


class Only(Strategy):
    """Does only class-incremental learning."""

    tags: ClassVar[Tags] = Tags(settings=frozenset({"class"}), can_unlearn=True, online=False)


def test_tags_are_what_all_can_and_any_needs() -> None:
    tags = tags_of(Only() + Replay() + EWC())
    assert tags.settings == frozenset({"class"})
    assert tags.stores_samples
    assert tags.needs_boundaries
    assert not tags.can_unlearn
    assert not tags.online


def test_a_part_that_does_nothing_changes_no_bit() -> None:
    alone = run(EWC(epochs=2, strength=0.0), TWO)
    both = run(Composite(parts=[EWC(epochs=2, strength=0.0), Finetune()]), TWO)
    assert first_difference(pack(alone.strategy.network), pack(both.strategy.network)) is None
    plain = run(Finetune(epochs=2), TWO)
    assert first_difference(pack(plain.strategy.network), pack(both.strategy.network)) is None


def test_lwf_and_ewc_both_hold_back() -> None:
    trainer = run(LwF(epochs=1) + EWC(epochs=1), TWO)
    assert set(epochs_of(trainer)[1]["terms"]) == {"classification", "distillation", "ewc"}
    assert all(torch.isfinite(p).all() for p in trainer.strategy.network.parameters())


class Halved(Strategy):
    """Changes what is scored."""

    def final_output(self, output: Any) -> Any:
        return dataclasses.replace(output, logits=output.logits / 2)


class HalvedAgain(Halved):
    """Once more."""


def test_every_part_may_change_what_is_scored_in_order() -> None:
    trainer = run(One(epochs=1) + Halved() + HalvedAgain(), TWO)
    network = trainer.strategy.network.eval()
    x = next(iter(trainer.context.batches(torch.arange(4), batch_size=4))).x
    with torch.no_grad():
        heads = trainer.strategy.predict(x)
        assert torch.allclose(heads["classifier"], network(x).logits / 4)
        assert torch.equal(heads["One"], heads["classifier"])


@pytest.mark.parametrize("setting", ["class", "task"])
def test_a_composition_gives_every_task_one_layer_of_a_multi_head(setting):
    from tests.strategies.conftest import make

    stream = synthetic_stream(setting=setting)
    trial = make(LwF() + EWC(), stream, head={"name": "multi"}).run()
    head = trial.strategy.network.classifier
    assert head.task_classes == [list(e.classes) for e in stream.experiences]
