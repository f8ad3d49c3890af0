"""The cost account of a run: operations, steps, bytes, seconds and energy of every experience."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clframe.models import eval_mode
from clframe.strategy import Batch, BegunPhase
from clframe.stream import Experience
from clframe.training.energy import EnergyMeter
from clframe.training.flops import FlopCounter, formulas
from clframe.training.footprint import kept_bytes, optimizer_bytes
from clframe.training.instruments import Instrument

if TYPE_CHECKING:
    from clframe.training.context import Context
    from clframe.training.stepper import Stepper

__all__ = ["Account", "Cost", "StepCosts"]

_NOTHING: AbstractContextManager[Any] = contextlib.nullcontext()


@dataclass
class Account:
    """What was spent since the last report; seconds and operations in all processes of a run are those of one.

    Attributes:
        step_flops: Operations of optimiser steps, by the phase's name.
        hook_flops: Operations of the strategy's hooks outside of steps, by kind.
        evaluation_flops: Operations of scoring.
        steps: Optimiser steps.
        presentations: Samples presented to them, every view and replayed sample.
        optimizer_bytes: Largest state of a phase's optimiser.
        wall: Seconds by `steps`, `hooks` and `evaluation`.
        cpu: The same of the process's CPU time, all threads.
    """

    step_flops: dict[str, int] = field(default_factory=dict)
    hook_flops: dict[str, int] = field(default_factory=dict)
    evaluation_flops: int = 0
    steps: int = 0
    presentations: int = 0
    optimizer_bytes: int = 0
    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)


class StepCosts:
    """Operations of a phase's steps from those of a few: a step costs what one of the same shape and samples did.

    A shape is counted until two steps of it in a row have presented as many samples at the same cost: where a memory
    still fills up, every step is counted.

    Args:
        known: What `known` returned, to go on from.
    """

    def __init__(self, known: list[tuple[list[int], int, int, bool]] | None = None) -> None:
        self._found = {tuple(shape): (samples, flops, same) for shape, samples, flops, same in known or []}

    @property
    def known(self) -> list[tuple[list[int], int, int, bool]]:
        """Of every shape of a batch its last count: samples, operations, and whether it is settled; plain values."""
        return [(list(shape), *found) for shape, found in self._found.items()]

    def settled(self, shape: tuple[int, ...]) -> bool:
        """Whether the cost of steps of a shape is known."""
        return shape in self._found and self._found[shape][2]

    def counted(self, shape: tuple[int, ...], samples: int, flops: int) -> int:
        """Take note of a step that was counted; returns its operations."""
        self._found[shape] = (samples, flops, self._found.get(shape, (-1, -1))[:2] == (samples, flops))
        return flops

    def expected(self, shape: tuple[int, ...], samples: int) -> int:
        """Return the operations of a step that wasn't counted: in proportion, where it presented another number of samples."""
        before, flops, _ = self._found[shape]
        if samples == before:
            return flops
        self._found[shape] = (before, flops, False)
        return round(flops * samples / before) if before else flops


class Cost(Instrument):
    """The cost account: what every experience took to train, to score and to keep.

    Floating-point operations (a multiplication and an addition are two) of optimiser steps are counted on the first
    steps of every phase and of every shape of a batch, and multiplied by the steps (`StepCosts`); those of the strategy's
    other hooks and of scoring are all counted, but of a pass over samples the first batches alone. Of several processes
    the first one's are multiplied by their number.
    Definitions: docs/cost.md.
    """

    name = "cost"

    def __init__(self) -> None:
        self._counter = FlopCounter()
        self._account = Account()
        self._clock = _Clock(self._account)
        self._energy = EnergyMeter()
        self._costs = StepCosts()
        self._place: tuple[int, str] | None = None  # experience and phase that `_costs` belongs to
        self._rebuilding = False  # hooks that ran before the checkpoint run again, to make the phase it was taken in
        self._counting = False
        self._peaks: dict[str, int] = {}

    def begin(self, context: Context) -> None:
        """Remember the run, and start counting energy and memory."""
        self._context = context
        self._seen = torch.zeros(len(context.stream.train), dtype=torch.bool)
        self._seen_samples = self._seen_experiences = 0
        formulas()  # what it imports is none of the first step's time
        self._energy.begin(context.device)
        if context.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(context.device)

    # -- while it trains ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def work(self, kind: str, experience: Experience | None) -> Iterator[None]:
        """Count what a hook or scoring computes."""
        if self._rebuilding:
            yield
            return
        before, scoring = self._counter.flops, kind == "evaluation"
        with self._clock.running("evaluation" if scoring else "hooks"), self._counter.running():
            yield
        spent = self._everywhere(self._counter.flops - before)
        if scoring:
            self._account.evaluation_flops += spent
        elif spent:
            self._account.hook_flops[kind] = self._account.hook_flops.get(kind, 0) + spent

    def pass_over(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Take what is done with a batch to cost what it did with the one before, from the second of a shape on."""
        if not self._counter.is_running:
            yield from batches
            return
        costs = StepCosts()
        for batch in batches:
            shape, samples, before = tuple(batch.x.shape), len(batch.x), self._counter.flops
            if costs.settled(shape):
                self._counter.flops += costs.expected(shape, samples)  # first: a pass may be left within a batch
                with self._counter.pausing():
                    yield batch
            else:
                yield batch
                costs.counted(shape, samples, self._counter.flops - before)

    @contextlib.contextmanager
    def phase(self, experience: Experience, begun: BegunPhase, stepper: Stepper) -> Iterator[None]:
        """Take the time of a phase, and the size of its optimiser's state at the end."""
        self._rebuilding = False
        place = (experience.index, begun.phase.name)
        if place != self._place:
            self._place, self._costs = place, StepCosts()
        with self._clock.running("steps"):
            yield
        self._account.optimizer_bytes = max(self._account.optimizer_bytes, optimizer_bytes(stepper.optimizer))

    def step(self, batch: Batch) -> AbstractContextManager[Any]:
        """Count a step of which the cost isn't known yet."""
        self._counting = not self._costs.settled(tuple(batch.x.shape))
        self._counter.flops = 0
        return self._counter if self._counting else _NOTHING

    def stepped(self, batch: Batch, terms: Mapping[str, Tensor]) -> None:
        """Book a step."""
        shape, samples = tuple(batch.x.shape), len(batch.x) + self._context.presented
        if self._counting:
            flops = self._costs.counted(shape, samples, self._everywhere(self._counter.flops))
        else:
            flops = self._costs.expected(shape, samples)
        account = self._account
        account.step_flops[batch.phase] = account.step_flops.get(batch.phase, 0) + flops
        account.steps += 1
        account.presentations += samples

    def _everywhere(self, flops: int) -> int:
        return flops * self._context.setup.ranks.count

    # -- reporting ------------------------------------------------------------------------------------------------------

    def report(self, experience: Experience) -> dict[str, Any]:
        """Return the account of an experience, and start the next one."""
        account, kept = self._account, kept_bytes(self._context.strategy, self._context.sample_bytes)
        found = {
            "step_flops": account.step_flops,
            "hook_flops": account.hook_flops,
            "evaluation_flops": account.evaluation_flops,
            "inference_flops": self._inference_flops(),
            "steps": account.steps,
            "presentations": account.presentations,
            "deployed_bytes": kept["deployed"],
            "training_only_bytes": kept["training_only"],
            "exemplar_bytes": kept["exemplars"],
            "statistics_bytes": kept["statistics"],
            "optimizer_bytes": account.optimizer_bytes,
            "data_bytes": self._data_bytes(experience),
            **self._peak_bytes(),
            "wall_seconds": {purpose: round(s, 4) for purpose, s in account.wall.items()},
            "cpu_seconds": {purpose: round(s, 4) for purpose, s in account.cpu.items()},
            **self._energy.spent(),
        }
        self._account = Account()
        self._clock = _Clock(self._account)
        self._place = None
        return {name: value for name, value in found.items() if value is not None}

    @torch.inference_mode()
    def _inference_flops(self) -> float | None:
        """Operations of predicting one sample of noise, the mean of a batch of two; None while no class is known."""
        context, strategy = self._context, self._context.strategy
        if not strategy.scored_classes:
            return None
        images = _noise(context.input_shape)
        before = self._counter.flops
        with eval_mode(strategy.network), self._counter:
            strategy.predict(context.test_maker.test_input(images), self._tasks(len(images)))
        return (self._counter.flops - before) / len(images)

    def _tasks(self, count: int) -> Tensor | None:
        """The first task's id for some samples, where the setting gives it."""
        context = self._context
        first = context.stream.tasks[0].task_id
        return torch.full((count,), first or 0, device=context.device) if context.setting == "task" else None

    def _data_bytes(self, experience: Experience) -> int:
        """Bytes of the training samples of the stream so far, each once; looks only at what came since the last time."""
        for e in self._context.stream.experiences[self._seen_experiences : experience.index + 1]:
            self._seen_samples += len(torch.unique(e.train[~self._seen[e.train]]))
            self._seen[e.train] = True
        self._seen_experiences = max(self._seen_experiences, experience.index + 1)
        return self._seen_samples * self._context.sample_bytes

    def _peak_bytes(self) -> dict[str, int]:
        """Largest memory that the process has held so far, and that its tensors have held on a GPU."""
        device = self._context.device
        now = {"peak_memory_bytes": _peak_resident_bytes()}
        if device.type == "cuda":
            now["peak_device_bytes"] = torch.cuda.max_memory_allocated(device)
        self._peaks = {name: max(size, self._peaks.get(name, 0)) for name, size in now.items()}
        return self._peaks

    # -- checkpoints ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the account so far and what is known of the phase's steps."""
        self._clock.note()
        return {
            "account": dataclasses.asdict(self._account),
            "place": None if self._place is None else list(self._place),
            "costs": [list(known) for known in self._costs.known],
            "peaks": self._peak_bytes(),
            "energy": self._energy.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with an account; what is done until the phase goes on was booked before the checkpoint."""
        self._account = Account(**state["account"])
        self._clock = _Clock(self._account)
        self._place = None if state["place"] is None else (state["place"][0], state["place"][1])
        self._rebuilding = self._place is not None
        self._costs = StepCosts(state["costs"])
        self._peaks = dict(state["peaks"])
        self._energy.load_state_dict(state["energy"])


class _Clock:
    """Books seconds on the innermost purpose that runs."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self._running: list[str] = []
        self._since = (0.0, 0.0)

    @contextlib.contextmanager
    def running(self, purpose: str) -> Iterator[None]:
        """Book what follows on a purpose."""
        self.note()
        self._running.append(purpose)
        try:
            yield
        finally:
            self.note()
            self._running.pop()

    def note(self) -> None:
        """Book the seconds until now."""
        now = time.monotonic(), time.process_time()
        if self._running:
            purpose = self._running[-1]
            for book, spent in (
                (self.account.wall, now[0] - self._since[0]),
                (self.account.cpu, now[1] - self._since[1]),
            ):
                book[purpose] = book.get(purpose, 0.0) + spent
        self._since = now


def _noise(shape: tuple[int, ...]) -> Tensor:
    """Two samples as the stream's own, (2, H, W, C) uint8 or (2, D) float32, that no generator of the run has drawn."""
    generator = torch.Generator().manual_seed(0)
    if len(shape) == 1:
        return torch.randn(2, *shape, generator=generator)
    channels, height, width = shape
    return torch.randint(256, (2, height, width, channels), generator=generator, dtype=torch.uint8)


def _peak_resident_bytes() -> int:
    """Largest resident memory of the process since it began."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
