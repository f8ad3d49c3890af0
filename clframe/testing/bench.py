"""Where strategies are tried: tiny runs kept in memory, whose every read of a sample can be watched."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from clframe import registry
from clframe.composite import Composite, leaves, tags_of
from clframe.config import resolve
from clframe.data.reader import ImageReader
from clframe.evaluation import Columns
from clframe.launch.build import build_setup
from clframe.memory import ExemplarMemory
from clframe.models import BackboneConfig
from clframe.models.mlp import MLP
from clframe.spec import fields_of
from clframe.strategy import Batch, BegunPhase, Phase, Strategy, Tags
from clframe.stream import Experience, Stream
from clframe.testing.streams import TinyBackbone, synthetic_stream
from clframe.training.checkpoint import pack, strategy_state
from clframe.training.context import Setup
from clframe.training.stepper import Stepper
from clframe.training.trainer import Stopped, Trainer

__all__ = ["Bench", "MemoryRecorder", "Outcome", "Walker", "WatchedReader", "first_difference", "held_ids"]

SHORT = 2
"""Epochs of every phase in a trial."""

SMALL_MEMORY = 12
"""Exemplars in a trial: fewer than the stream has samples, so that a budget binds."""


class MemoryRecorder:
    """Keeps what a run leaves in memory; checkpoints pass through bytes, as they do on disk."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.kept: dict[tuple[str, int, str], Columns] = {}
        self.saved: list[bytes] = []

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Keep an event."""
        self.events.append((kind, dict(values)))

    def predictions(self, split: str, after: int, heads: Mapping[str, Columns]) -> dict[str, Any]:
        """Keep predictions."""
        self.kept.update({(split, after, head): columns for head, columns in heads.items()})
        return {}

    def checkpoint(self, state: Mapping[str, Any], keep_as: str | None) -> None:
        """Keep a checkpoint, as bytes."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        self.saved.append(buffer.getvalue())

    def latest(self) -> dict[str, Any]:
        """Read the last checkpoint without executing code."""
        return dict(torch.load(io.BytesIO(self.saved[-1]), weights_only=True))


class WatchedReader:
    """An image reader that tells which rows are read."""

    def __init__(self, inner: ImageReader, tell: Callable[[Tensor], None]) -> None:
        """Wrap a reader."""
        self.inner = inner
        self.tell = tell

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return self.inner.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the pixels."""
        return self.inner.dtype

    def __len__(self) -> int:
        return len(self.inner)

    def gather(self, indices: Tensor) -> Tensor:
        """Tell, and return the images."""
        self.tell(indices)
        return self.inner.gather(indices)

    def batches(self, index_batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Tell before every batch."""
        for indices in index_batches:
            yield self.gather(indices)


class Watching(Trainer):
    """A trainer that says where it is while samples are read."""

    evaluating = False
    current: Experience | None = None
    held: Tensor = torch.empty(0, dtype=torch.int64)

    def _experience(self, experience: Experience) -> None:
        self.current = experience
        self.held = held_ids(self.strategy)
        super()._experience(experience)

    def _evaluate(self, after: int) -> None:
        self.evaluating = True
        try:
            super()._evaluate(after)
        finally:
            self.evaluating = False


class Often(Trainer):
    """A trainer that scores after every epoch too."""

    def _end_epoch(self, experience: Experience, phase: Phase, stepper: Stepper, epoch: int) -> None:
        super()._end_epoch(experience, phase, stepper, epoch)
        self._evaluate(experience.index + 1)


class Walker(Trainer):
    """A trainer that takes a few steps of every epoch, shows every batch, and neither scores nor saves."""

    steps = 2

    def __init__(self, setup: Setup, visit: Callable[[Phase, Batch], None], predict: bool = True) -> None:
        """Make the loop; `visit` is shown every batch before its step."""
        super().__init__(setup, MemoryRecorder())
        self.visit = visit
        self.predicts = predict

    def _epoch(
        self, experience: Experience, begun: BegunPhase, stepper: Stepper, epoch: int, resumed: dict[str, Any] | None
    ) -> None:
        phase, streams = begun.phase, self.context.streams
        streams.enter("epoch", experience.index, self.position.phase, epoch)
        self.strategy.before_epoch(phase, epoch)
        stepper.begin_epoch(epoch)
        batches = self.context.train_maker.epoch(
            begun.data, self.setup.batch_size, experience, phase.name, epoch, streams
        )
        for batch in islice(batches, self.steps):
            self.visit(phase, batch)
            stepper.step(batch)

    @torch.no_grad()
    def _evaluate(self, after: int) -> None:
        task = self.setup.stream.tasks[0]
        if self.predicts and len(task.test):
            maker = self.context.test_maker
            ids = None
            if self.setup.stream.setting == "task":
                ids = torch.full((len(task.test),), task.task_id or 0).to(self.setup.device)
            self.strategy.network.eval()
            self.strategy.predict(maker.test_input(maker.table.gather(task.test)), ids)

    def _checkpoint(self, keep_as: str | None, stepper: Stepper | None = None, inside: bool = False) -> None:
        """Save nothing."""


@dataclasses.dataclass(eq=False)
class Outcome:
    """What a run came to."""

    trainer: Trainer
    recorder: MemoryRecorder

    @functools.cached_property
    def state(self) -> dict[str, Any]:
        """Network, strategy state and counters, as plain values and tensors."""
        trainer = self.trainer
        counters = {n: trainer.counters[n] for n in ("steps", "presentations")}
        return {
            "network": pack(trainer.strategy.network),
            "strategies": [strategy_state(s) for s in leaves(trainer.strategy)],
            "counters": counters,
        }

    @property
    def bits(self) -> dict[str, Any]:
        """Everything that two equal runs share: the state, and the kept predictions."""
        kept = {
            "/".join(map(str, k)): {n: torch.from_numpy(v) for n, v in c.items()} for k, c in self.recorder.kept.items()
        }
        return {**self.state, "predictions": kept}

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return int(self.trainer.counters["steps"])


class Bench:
    """Tries one strategy on tiny streams.

    Args:
        strategy: What is tried; shortened, and never changed. One that needs another's exemplars is tried behind replay.
        backbone: By default `TinyBackbone`; for a strategy that needs described channels a perceptron.
    """

    def __init__(self, strategy: Strategy, backbone: BackboneConfig | None = None) -> None:
        """Store; nothing runs before a check asks."""
        tags = tags_of(strategy)
        composed = isinstance(tags, Tags) and tags.needs_exemplars  # what is no Tags at all, a check will say
        if composed and not (tags.stores_samples or tags.needs_all_data):
            strategy = Composite(parts=[registry.load("strategy", "replay")(), strategy])
        self.given = strategy
        self.strategy = shortened(strategy)
        self.tags = tags_of(strategy)
        described = isinstance(self.tags, Tags) and self.tags.needs_own_channels
        self.backbone = backbone or (MLP(hidden=[8, 8]) if described else TinyBackbone())
        self.name = "+".join(type(s).__name__ for s in leaves(strategy))

    def stream(self, **options: Any) -> Stream:
        """Return a synthetic stream that the strategy's tags allow, unless the options say otherwise."""
        settings, scores = self.tags.settings, self.tags.scores
        allowed: dict[str, Any] = {
            "setting": next((s for s in ("class", "task", "domain") if s in settings), "class"),
            "score": next((s for s in ("accuracy", "squared_error") if s in scores), "accuracy"),
        }
        chosen = {**allowed, **options}
        if chosen["setting"] == "domain" or chosen["score"] == "squared_error":
            chosen.setdefault("experiences", [[0, 1], [0, 1], [0, 1]])
        return synthetic_stream(**chosen)

    @functools.cached_property
    def usual(self) -> Outcome:
        """An uninterrupted run on the usual stream."""
        return self.train()

    def setup(self, stream: Stream | None = None, **options: Any) -> Setup:
        """Make the objects of a run of a fresh copy of the strategy."""
        stream = self.stream() if stream is None else stream
        chosen = {
            "device": "cpu", "precision": "fp32", "batch_size": 4, "augmentation": "crop_flip", "seed": 0,
            "optimizer": {"lr": 0.05}, "measure": "none", **options,
        }  # fmt: skip
        config = resolve({"scenario": stream, "strategy": self.strategy, "backbone": self.backbone, **chosen})
        return build_setup(config, stream)

    def train(
        self, stream: Stream | None = None, *, stop_after: int | None = None, state: dict[str, Any] | None = None,
        trainer: type[Trainer] = Trainer, ready: Callable[[Trainer], None] | None = None, **options: Any,
    ) -> Outcome:  # fmt: skip
        """Run a fresh copy of the strategy.

        Args:
            stream: By default the usual one.
            stop_after: Stop and save after so many steps.
            state: A checkpoint to continue from.
            trainer: The loop.
            ready: Called with the trainer before it starts.
            **options: Of the run, such as `seed`.
        """
        recorder = MemoryRecorder()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a tiny stream has few samples, and a memory says so
            made = trainer(self.setup(stream, **options), recorder, stop_after=stop_after)
            if state is not None:
                made.load_state(state)
            if ready is not None:
                ready(made)
            with contextlib.suppress(Stopped):
                made.run()
        return Outcome(made, recorder)


def shortened(strategy: Strategy) -> Strategy:
    """Return a copy whose phases take a few epochs and whose memory is small."""
    if hasattr(strategy, "parts"):
        return strategy.replace(parts=[shortened(p) for p in strategy.parts])
    changes: dict[str, Any] = {}
    for f in fields_of(type(strategy)):
        value = getattr(strategy, f.name)
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if f.unit == "epochs":
            changes[f.name] = min(value, SHORT)
        elif f.name == "memory_size":
            changes[f.name] = min(value, SMALL_MEMORY)
    return strategy.replace(**changes)


def memories(strategy: Strategy) -> Iterator[tuple[str, ExemplarMemory]]:
    """Yield every exemplar memory that a strategy keeps as state, with its name."""
    for part in leaves(strategy):
        for name, value in vars(part).items():
            if isinstance(value, ExemplarMemory):
                yield f"{type(part).__name__}.{name}", value


def held_ids(strategy: Strategy) -> Tensor:
    """Return every sample id that a strategy's state may hold: those of memories, and of vectors of integers."""
    found = [m.ids for _, m in memories(strategy)]
    for part in leaves(strategy):
        vectors = (v for n, v in vars(part).items() if n.endswith("_") and isinstance(v, Tensor))
        found += [v.cpu() for v in vectors if v.dtype == torch.int64 and v.ndim == 1]
    return torch.cat([torch.empty(0, dtype=torch.int64), *found]).clone()


def first_difference(a: Any, b: Any, where: str = "") -> str | None:
    """Return the name of the first value in which two packed states differ, None when every bit is the same."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and _same_bits(a, b)
        return None if same else where or "value"
    if isinstance(a, dict) and isinstance(b, dict):
        if list(a) != list(b):
            return f"{where} (names {sorted(map(str, set(a) ^ set(b))) or 'in another order'})"
        parts = ((a[k], b[k], f"{where}.{k}".lstrip(".")) for k in a)
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return f"{where} (length {len(a)} and {len(b)})"
        parts = ((x, y, f"{where}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True)))
    else:
        return None if type(a) is type(b) and (a == b or (a != a and b != b)) else where or "value"
    return next((found for x, y, name in parts if (found := first_difference(x, y, name)) is not None), None)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.is_meta:
        return True
    if a.is_floating_point():
        return bool(((a == b) | (a.isnan() & b.isnan())).all())
    return bool(torch.equal(a, b))
