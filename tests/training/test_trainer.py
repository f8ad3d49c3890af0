"""The loop: the order of hooks, what trains and what doesn't, and how it stops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clframe.errors import ContractError, TrainingError
from clframe.strategies.finetune import Finetune
from clframe.strategies.replay import Replay
from clframe.strategy import Batch, DataView, ParameterGroup, Phase, Strategy, TensorView
from clframe.stream import Experience
from clframe.testing import MemoryRecorder, TinyBackbone
from clframe.testing.bench import first_difference
from clframe.training.checkpoint import pack
from clframe.training.plan import memory_bytes, plan_phases
from tests.fakes import make_setup, make_trainer, run

TWO = {"experiences": [[0, 1], [2, 3]]}


class Diary(Strategy):
    """Writes down every hook."""

    def note(self, what: str) -> None:
        vars(self).setdefault("diary_", []).append(what)

    def check(self, run: Any) -> None:
        self.note("check")

    def setup(self) -> None:
        self.note("setup")

    def before_experience(self, experience: Experience) -> None:
        self.note(f"before {experience.index}")
        super().before_experience(experience)

    def query(self, experience: Experience) -> Tensor:
        self.note("query")
        return super().query(experience)

    def phases(self, experience: Experience) -> list[Phase]:
        self.note("phases")
        first = Phase(
            name="a",
            data=DataView(experience.train),
            epochs=2,
            on_start=lambda: self.note("start a"),
            on_end=lambda: self.note("end a"),
        )
        second = Phase(
            name="b",
            data=DataView(experience.train),
            epochs=1,
            on_start=lambda: self.note("start b"),
            on_end=lambda: self.note("end b"),
        )
        return [first, second]

    def before_epoch(self, phase: Phase, epoch: int) -> None:
        self.note(f"epoch {phase.name}{epoch}")

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        self.note("loss")
        return super().loss_terms(batch)

    def after_backward(self, batch: Batch) -> None:
        assert self.network.classifier.weight.grad is not None  # type: ignore[union-attr]
        self.note("backward")

    def after_step(self, batch: Batch) -> None:
        self.note("step")

    def after_experience(self, experience: Experience) -> None:
        assert not self.network.training
        self.note(f"after {experience.index}")

    def forget(self, experience: Experience) -> None:
        self.note("forget")

    def report_heads(self, output: Any) -> dict[str, Tensor]:
        self.note("predict")
        return super().report_heads(output)


def test_hooks_are_called_in_the_order_that_the_contract_states() -> None:
    stream = {**TWO, "train_per_class": 4, "pool_per_class": 1, "query_budget": 2}
    trainer = run(Diary(), stream, measure="none")
    steps = ["loss", "backward", "step"] * 3  # 8 samples and 2 bought ones, 4 at a time
    one = ["phases", "start a", "epoch a0", *steps, "epoch a1", *steps, "end a", "start b", "epoch b0", *steps, "end b"]
    expected = ["check", "setup"]
    for i in range(2):
        expected += [f"before {i}", "query", *one, f"after {i}", "predict"]
    assert trainer.strategy.diary_ == expected  # type: ignore[attr-defined]


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 6, 7])
def test_phase_hooks_are_called_once_across_a_resume(stop: int) -> None:
    """on_start and on_end, setup, before_experience and query; `phases` alone is asked again."""
    stream = {**TWO, "train_per_class": 4}
    whole = run(Diary(), stream).strategy.diary_  # type: ignore[attr-defined]
    stopped = run(Diary(), stream, stop_after=stop)
    assert isinstance(stopped.recorder, MemoryRecorder)
    resumed = run(Diary(), stream, state=stopped.recorder.latest()).strategy.diary_  # type: ignore[attr-defined]
    again = [n for n in resumed if n not in ("phases", "check")]
    assert again == [n for n in whole if n not in ("phases", "check")]
    assert resumed.count("phases") == whole.count("phases") + 1


class Explodes(Strategy):
    """A term becomes NaN at a given step of the second experience."""

    def extra_losses(self, batch: Batch, output: Any) -> dict[str, Tensor]:
        bad = (batch.experience.index, batch.epoch, batch.step) == (1, 1, 2)
        return {"penalty": output.logits.sum() * (float("nan") if bad else 0.0)}


def test_a_loss_that_is_no_number_stops_the_run_and_says_where() -> None:
    recorder = MemoryRecorder()
    trainer = make_trainer(Explodes(epochs=3), TWO, recorder=recorder)
    with pytest.raises(
        TrainingError, match=r"'penalty' became nan in experience 2, phase 'train', epoch 2, step 3: .*last checkpoint"
    ):
        trainer.run()
    last = recorder.latest()
    assert last["position"] == [1, "train", 0, 1, 0]
    assert all(bool(t.isfinite().all()) for t in last["network"]["state"].values())
    assert sum(kind == "epoch" for kind, _ in recorder.events) == 3 + 1


class Inside(Strategy):
    """Trains the classifier's bias alone, with the BatchNorm in eval mode."""

    def phases(self, experience: Experience) -> list[Phase]:
        classifier: Any = self.network.classifier
        return [
            Phase(
                name="head", data=DataView(experience.train), epochs=2,
                parameters=[ParameterGroup([classifier.bias], lr_scale=2.0)], eval_modules=[self.network.branches[0].bn],  # type: ignore[list-item]
            )
        ]  # fmt: skip

    def after_step(self, batch: Batch) -> None:
        branch: Any = self.network.branches[0]
        assert not branch.bn.training
        assert branch.conv.training
        assert [n for n, p in self.network.named_parameters() if p.requires_grad] == ["heads.classifier.bias"]
        if batch.step == 0:  # statistics in the middle of an epoch must not wake the BatchNorm up
            self.run.features(batch.ids)
            assert not branch.bn.training
            assert branch.conv.training
            assert self.network.training


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in network.state_dict().items()}


def test_only_the_parameters_that_are_named_train_and_flags_come_back() -> None:
    trainer = make_trainer(Inside(), {"experiences": [[0, 1]]})
    before = state_of(trainer.context.network)
    trainer.run()
    after = state_of(trainer.strategy.network)
    changed = {
        n for n in before if n in after and before[n].shape == after[n].shape and not torch.equal(before[n], after[n])
    }
    assert changed == set()  # the backbone, with its BatchNorm's statistics; the classifier had no units then
    assert all(p.requires_grad for p in trainer.strategy.network.parameters())


@pytest.mark.parametrize("size", [1, 5, 512])
def test_features_do_not_depend_on_the_scoring_batch_size(size: int) -> None:
    context = make_trainer(Finetune(), TWO, eval_batch_size=size).context
    sizes: list[int] = []
    batches = context.batches
    context.batches = lambda ids, batch_size=None: (sizes.append(batch_size), batches(ids, batch_size))[1]  # type: ignore[method-assign]
    context.features(context.stream.experiences[0].train)
    assert sizes == [512]


def test_without_eval_modules_the_statistics_move() -> None:
    trainer = make_trainer(Finetune(epochs=1), {"experiences": [[0, 1]]})
    before = state_of(trainer.context.network)
    trainer.run()
    assert not torch.equal(
        before["branches.0.bn.running_mean"], trainer.strategy.network.state_dict()["branches.0.bn.running_mean"]
    )


class Frozen(Strategy):
    """Freezes its first layer for good."""

    def before_experience(self, experience: Experience) -> None:
        super().before_experience(experience)
        self.network.branches[0].conv.requires_grad_(False)  # type: ignore[union-attr]


def test_what_is_frozen_for_good_stays_frozen_across_a_resume() -> None:
    trainer = make_trainer(Frozen(epochs=2), TWO)
    before = state_of(trainer.context.network)["branches.0.conv.weight"]
    trainer.run()
    assert torch.equal(before, trainer.strategy.network.state_dict()["branches.0.conv.weight"])
    stopped = run(Frozen(epochs=2), TWO, stop_after=2)
    resumed = make_trainer(Frozen(epochs=2), TWO, state=stopped.recorder.latest())  # type: ignore[attr-defined]
    flags = {n: p.requires_grad for n, p in resumed.strategy.network.named_parameters()}
    assert [n for n, f in flags.items() if not f] == ["branches.0.conv.weight", "branches.0.conv.bias"]
    resumed.run()
    assert first_difference(pack(resumed.strategy.network), pack(trainer.strategy.network)) is None


class Queries(Strategy):
    """Chooses the first samples of the pool, or what the field says."""

    wish: str = ""

    def query(self, experience: Experience) -> Tensor:
        pool, budget = experience.pool, experience.query_budget
        return {
            "good": pool[:budget], "none": pool[:0], "many": pool[: budget + 1], "twice": pool[:1].repeat(2),
            "foreign": experience.train[:1],
        }[self.wish]  # fmt: skip


POOL = {**TWO, "pool_per_class": 3, "query_budget": 2}


@pytest.mark.parametrize("wish", ["many", "twice", "foreign"])
def test_a_query_past_its_budget_is_refused(wish: str) -> None:
    with pytest.raises(ContractError, match="different samples of the pool"):
        run(Queries(wish=wish), POOL)


class Presented(Queries):
    """Notes what it is given."""

    def setup(self) -> None:
        self.seen_ = torch.empty(0, dtype=torch.int64)

    def after_step(self, batch: Batch) -> None:
        self.seen_ = torch.cat([self.seen_, batch.ids])


@pytest.mark.parametrize("wish", ["good", "none"])
@pytest.mark.parametrize("stop", [None, 2, 4, 9])
def test_bought_labels_are_trained_on_and_the_rest_of_the_pool_is_not(wish: str, stop: int | None) -> None:
    trainer = run(Presented(wish=wish, epochs=2), POOL, stop_after=stop)
    if stop is not None:
        trainer = run(Presented(wish=wish, epochs=2), POOL, state=trainer.recorder.latest())  # type: ignore[attr-defined]
    bought = [e.pool[:2] if wish == "good" else e.pool[:0] for e in trainer.setup.stream.experiences]
    expected = torch.cat(
        [torch.cat([e.train, b]).repeat(2) for e, b in zip(trainer.setup.stream.experiences, bought, strict=True)]
    )
    assert trainer.strategy.seen_.sort().values.tolist() == expected.sort().values.tolist()  # type: ignore[attr-defined]


def test_forgetting_removes_samples_from_memory() -> None:
    stream = {**TWO, "forget_per_experience": 4}
    trainer = run(Replay(epochs=1, memory_size=12), stream)
    gone = trainer.setup.stream.experiences[1].forget
    kept = trainer.strategy.memory_.ids  # type: ignore[attr-defined]
    assert len(gone) == 4
    assert not bool(torch.isin(kept, gone).any())
    without = run(Replay(epochs=1, memory_size=12), TWO).strategy.memory_.ids  # type: ignore[attr-defined]
    assert bool(torch.isin(without, gone).any())  # so it is the forgetting that removed them


class TwiceTheSame(Strategy):
    """Names two phases alike."""

    def phases(self, experience: Experience) -> list[Phase]:
        return [self.main_phase(experience), self.main_phase(experience)]


class Features(Strategy):
    """Trains the head on Gaussian features."""

    def phases(self, experience: Experience) -> list[Phase]:
        labels = torch.arange(2).repeat(5) + 2 * experience.index
        x = torch.randn(10, self.network.feature_dim, generator=self.run.rng("gaussian"))
        head = ParameterGroup(list(self.network.classifier.parameters()))
        return [
            Phase(name="align", data=TensorView(x, labels, batch_size=5), epochs=1, loss=self.align, parameters=[head])
        ]

    def align(self, batch: Batch) -> dict[str, Tensor]:
        return {"align": nn.functional.cross_entropy(self.network.classifier(batch.x), batch.y)}


def test_phases_need_different_names_and_may_train_on_features() -> None:
    with pytest.raises(ContractError, match="different names"):
        run(TwiceTheSame(epochs=1), TWO)
    trainer = run(Features(), TWO)
    assert trainer.counters["steps"] == 4
    stopped = run(Features(), TWO, stop_after=3)
    resumed = run(Features(), TWO, state=stopped.recorder.latest())  # type: ignore[attr-defined]
    assert first_difference(pack(trainer.strategy.network), pack(resumed.strategy.network)) is None


class Idle(Strategy):
    """Trains nothing."""

    def phases(self, experience: Experience) -> list[Phase]:
        return []


def test_an_experience_may_train_nothing_or_hold_nothing() -> None:
    trainer = run(Idle(), TWO)
    assert trainer.counters["steps"] == 0
    assert {after for _, after, _ in trainer.recorder.kept} == {1, 2}  # type: ignore[attr-defined]
    empty = run(Finetune(epochs=2), {**TWO, "train_per_class": [4, 0]})
    assert empty.counters["steps"] == 4


def test_checkpoints_inside_an_epoch_and_models_on_request() -> None:
    often, seldom = MemoryRecorder(), MemoryRecorder()
    run(Finetune(epochs=2), TWO, recorder=often, checkpoint_seconds=0.0)
    run(Finetune(epochs=2), TWO, recorder=seldom)
    assert len(often.saved) - len(seldom.saved) == 2 * 2 * 2  # of three steps in an epoch the last is its end
    kept: list[str | None] = []

    class Keeps(MemoryRecorder):
        def checkpoint(self, state: Any, keep_as: str | None) -> None:
            kept.append(keep_as)

    run(Finetune(epochs=1), TWO, recorder=Keeps(), keep_models=True)
    assert [k for k in kept if k] == ["experience-001", "experience-002"]


def test_every_checkpoint_ends_in_the_same_bits() -> None:
    """Killed at any moment: a resume from each checkpoint ever written gives the uninterrupted result."""
    whole = MemoryRecorder()
    options: dict[str, Any] = {"augmentation": "crop_flip"}
    strategy = Replay(epochs=2, memory_size=6, form="step")
    done = run(strategy.replace(), TWO, recorder=whole, checkpoint_seconds=0.0, **options)
    expected = pack(done.strategy.network)
    assert len(whole.saved) > 10
    for k in range(len(whole.saved)):
        recorder = MemoryRecorder()
        recorder.saved = whole.saved[k : k + 1]
        resumed = run(strategy.replace(), TWO, state=recorder.latest(), **options)
        assert first_difference(pack(resumed.strategy.network), expected) is None, f"checkpoint {k}"
        assert resumed.counters["steps"] == done.counters["steps"]
        assert resumed.counters["presentations"] == done.counters["presentations"]


def test_validation_is_scored_apart() -> None:
    stream = {**TWO, "valid_per_class": 2}
    recorder = MemoryRecorder()
    trainer = run(Finetune(epochs=1), stream, recorder=recorder, valid=True)
    valid = trainer.setup.stream.tasks[1].valid
    assert recorder.kept["valid", 2, "classifier"]["sample"][-4:].tolist() == valid.tolist()
    assert recorder.kept["test", 2, "classifier"]["target"].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_a_plan_counts_what_a_run_does() -> None:
    trainer = make_trainer(Diary(), TWO)
    trainer.run()
    planned = make_trainer(Diary(), make_setup(Diary(), TWO).stream)
    planned.setup.dry = True
    rows = plan_phases(planned)
    assert sum(r["steps"] for r in rows) == trainer.counters["steps"]
    assert [(r["experience"], r["phase"]) for r in rows] == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]


def test_memory_bytes_count_the_exemplars() -> None:
    trainer = run(Replay(epochs=1, memory_size=8), TWO)
    found = memory_bytes(trainer)
    assert found["exemplars"] == 8 * (8 * 8 + 8)
    network = trainer.strategy.network
    assert found["deployed"] == sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))
    assert TinyBackbone().width == 4
