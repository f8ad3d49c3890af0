"""Short runs kept in memory, and what the tests of the methods watch in them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from clframe.config import resolve
from clframe.launch.build import build_setup
from clframe.strategy import Batch, Strategy
from clframe.stream import Experience, Stream
from clframe.testing.bench import MemoryRecorder, Stopped, first_difference
from clframe.testing.streams import TinyBackbone, synthetic_stream
from clframe.training.checkpoint import pack
from clframe.training.trainer import Trainer


class Recorder(MemoryRecorder):
    """Keeps checkpoints only where a test wants to resume."""

    saves = False

    def checkpoint(self, state, keep_as) -> None:
        if self.saves:
            super().checkpoint(state, keep_as)


@dataclasses.dataclass
class Trial:
    """A trainer, what it recorded, and every batch that it trained on."""

    trainer: Trainer
    recorder: Recorder
    batches: list[Batch] = dataclasses.field(default_factory=list)

    @property
    def strategy(self) -> Any:
        return self.trainer.strategy

    @property
    def stream(self) -> Stream:
        return self.trainer.setup.stream

    def run(self) -> Trial:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.trainer.run()
        return self

    def watch(self) -> Trial:
        losses = self.strategy.loss_terms

        def watched(batch: Batch):
            self.batches.append(batch)
            return losses(batch)

        self.strategy.loss_terms = watched
        return self

    def presented(self, experience: int, epoch: int = 0) -> list[int]:
        """Ids of an epoch's own samples, without those replayed beside them."""
        chosen = [b for b in self.batches if b.experience.index == experience and b.epoch == epoch]
        return [i for b in chosen for i in b.ids[: b.num_new].tolist()]

    def before(self, hook: str, call: Callable[[Experience], None]) -> Trial:
        """Call something before a hook that takes the experience."""
        inner = getattr(self.strategy, hook)

        def both(experience: Experience):
            call(experience)
            return inner(experience)

        setattr(self.strategy, hook, both)
        return self

    def bits(self, head: str = "classifier") -> dict[str, Any]:
        """The network and everything that the head predicted."""
        kept = {f"{s}/{i}": {n: torch.from_numpy(v) for n, v in c.items()}
                for (s, i, h), c in self.recorder.kept.items() if h == head}  # fmt: skip
        return {"network": pack(self.trainer.strategy.network), "predictions": kept}

    def final_accuracy(self, head: str = "classifier", column: str = "predicted") -> float:
        last = max(i for s, i, h in self.recorder.kept)
        columns = self.recorder.kept["test", last, head]
        return float((columns[column] == columns["target"]).mean())


def make(strategy: Strategy, stream: Stream | None = None, **options: Any) -> Trial:
    """Prepare a run of a copy of the strategy: by default three experiences of two classes, a tiny network, four a batch."""
    stream = synthetic_stream() if stream is None else stream
    chosen = {"device": "cpu", "precision": "fp32", "batch_size": 4, "optimizer": {"lr": 0.05}, "epochs": 2,
              "backbone": TinyBackbone(), **options}  # fmt: skip
    config = resolve({"scenario": stream, "strategy": strategy, **chosen})
    recorder = Recorder()
    return Trial(Trainer(build_setup(config, stream), recorder), recorder)


def resumed_equals_uninterrupted(strategy: Strategy, stop_after: int, **options: Any) -> None:
    whole = make(strategy, **options).run()
    first = make(strategy, **options)
    first.recorder.saves = True
    first.trainer.stop_after = stop_after
    with pytest.raises(Stopped):
        first.run()
    second = make(strategy, **options)
    second.trainer.load_state(first.recorder.latest())
    second.run()
    assert first_difference(pack(whole.strategy.network), pack(second.strategy.network)) is None


@pytest.fixture(name="make")
def make_fixture() -> Callable[..., Trial]:
    return make


@pytest.fixture
def resumes() -> Callable[..., None]:
    return resumed_equals_uninterrupted


@pytest.fixture
def same() -> Callable[[Any, Any], None]:
    def check(a: Any, b: Any) -> None:
        assert first_difference(a, b) is None

    return check


@pytest.fixture(scope="session")
def digits() -> Callable[..., Stream]:
    from clframe.data import DataRoot
    from clframe.scenarios.split import SplitDigits

    return lambda **options: SplitDigits(**options).build(DataRoot.resolve())
