"""Instruments: what measures a run while it trains, and can change nothing in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from clframe.strategy import Batch, BegunPhase
from clframe.stream import Experience

if TYPE_CHECKING:
    from torch import Tensor

    from clframe.training.context import Context
    from clframe.training.stepper import Stepper

__all__ = ["Instrument", "Instruments"]

_NOTHING = contextlib.nullcontext()


class Instrument:
    """Measures a run while it trains: what costs and plasticity are known by.

    It reads the strategy, its network and the batches, and leaves weights, gradients, modes and every generator as they
    are: a run with it is bit-identical to one without. The trainer calls it in the order of the methods below; what
    `report` returns is logged after every experience as an event `measured`, and metrics of the run are computed from
    that alone.
    """

    name: ClassVar[str] = ""
    """Of its state in a checkpoint."""

    def begin(self, context: Context) -> None:
        """The run starts or goes on; `context` is what it is made of. Called before `load_state_dict`."""

    def work(self, kind: str, experience: Experience | None) -> AbstractContextManager[Any]:
        """Enclose work outside of the optimiser steps.

        Args:
            kind: `setup`, `before`, `phases`, `start`, `epoch`, `end` or `after` for the strategy's hook of that name,
                `epoch` inside of a phase; `evaluation` for scoring.
            experience: The experience, None before the first one.
        """
        return _NOTHING

    def pass_over(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Hand on the batches of a pass over samples in order, which a hook of the strategy makes."""
        return batches

    def phase(self, experience: Experience, begun: BegunPhase, stepper: Stepper) -> AbstractContextManager[Any]:
        """Enclose the steps of a phase, or what is left of them when the run was resumed inside."""
        return _NOTHING

    def step(self, batch: Batch) -> AbstractContextManager[Any]:
        """Enclose one optimiser step."""
        return _NOTHING

    def stepped(self, batch: Batch, terms: Mapping[str, Tensor]) -> None:
        """An optimiser step was taken; gradients are still there.

        Args:
            batch: What was trained on.
            terms: Every loss term and their `total`, detached, on the device.
        """

    def report(self, experience: Experience) -> Mapping[str, Any]:
        """Return what was measured since the last report, by name; plain values. Called after the evaluation."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know of the time before, as plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""


class Instruments:
    """The instruments of a run, as one."""

    def __init__(self, instruments: Sequence[Instrument]) -> None:
        self.instruments = tuple(instruments)
        self._stepping = _overriding(instruments, "step")
        self._after_step = _overriding(instruments, "stepped")
        self._passing = _overriding(instruments, "pass_over")

    def begin(self, context: Context) -> None:
        """Tell all that the run starts or goes on."""
        for instrument in self.instruments:
            instrument.begin(context)

    @contextlib.contextmanager
    def work(self, kind: str, experience: Experience | None = None) -> Iterator[None]:
        """Enclose work outside of the optimiser steps."""
        with contextlib.ExitStack() as stack:
            for instrument in self.instruments:
                stack.enter_context(instrument.work(kind, experience))
            yield

    def pass_over(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Hand on the batches of a pass over samples in order."""
        for instrument in self._passing:
            batches = instrument.pass_over(batches)
        return batches

    @contextlib.contextmanager
    def phase(self, experience: Experience, begun: BegunPhase, stepper: Stepper) -> Iterator[None]:
        """Enclose the steps of a phase."""
        with contextlib.ExitStack() as stack:
            for instrument in self.instruments:
                stack.enter_context(instrument.phase(experience, begun, stepper))
            yield

    def step(self, batch: Batch) -> AbstractContextManager[Any]:
        """Enclose one optimiser step; costs nothing where no instrument watches steps."""
        if len(self._stepping) == 1:
            return self._stepping[0].step(batch)
        if not self._stepping:
            return _NOTHING
        stack = contextlib.ExitStack()
        for instrument in self._stepping:
            stack.enter_context(instrument.step(batch))
        return stack

    def stepped(self, batch: Batch, terms: Mapping[str, Tensor]) -> None:
        """Tell all that watch steps that one was taken."""
        for instrument in self._after_step:
            instrument.stepped(batch, terms)

    def report(self, experience: Experience) -> dict[str, Any]:
        """Return what all have measured."""
        return {name: value for i in self.instruments for name, value in i.report(experience).items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each by its name."""
        return {i.name: i.state_dict() for i in self.instruments}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Give each its state back."""
        for instrument in self.instruments:
            if instrument.name in states:
                instrument.load_state_dict(states[instrument.name])


def _overriding(instruments: Sequence[Instrument], method: str) -> list[Instrument]:
    return [i for i in instruments if getattr(type(i), method) is not getattr(Instrument, method)]
