"""The same training operations for every method: how many steps each may take."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clframe.config import resolve
from clframe.errors import ConfigurationError
from clframe.launch.build import build_setup, open_stream
from clframe.results import Run
from clframe.strategy import Batch, BegunPhase, DataView, TensorView
from clframe.stream import Experience
from clframe.tracking.recorder import Unwritten
from clframe.training.batches import split_batches
from clframe.training.context import Setup
from clframe.training.cost import Cost
from clframe.training.flops import FlopCounter
from clframe.training.stepper import Stepper
from clframe.training.trainer import Trainer

__all__ = ["equalise"]

Reference = Mapping[str, Any] | Run | float | Sequence[float]
"""Whose operations all shall take: a configuration, a finished run, or numbers."""

_UNCACHED = {"feature_cache": "off"}
"""What is read from a cache is not computed, so that the order of runs would decide what they cost."""


def equalise(
    configs: Sequence[Mapping[str, Any]],
    reference: Reference,
    *,
    data_root: str | Path | None = None,
    download: bool = False,
) -> list[dict[str, Any]]:
    """Return configurations with `steps_per_experience` such that all take the reference's training operations.

    Every configuration is tried: its hooks run in full, and of every phase two steps, which tell what a step takes. So the
    operations of methods with several phases, with statistics passes, and with networks that grow are those of each
    experience. Steps are whole, so an experience misses its budget by half a step at most; beyond that, a trial doesn't know
    what depends on the trained weights (DER's pruned extractors) or on how full a memory is that is filled step by step. An
    experience without training leaves its budget to the next one, and the last one's stays unspent: joint training at the
    end takes the operations of all experiences. Features are not cached (`feature_cache: off`), since what is read isn't counted.

    Args:
        configs: As `clframe.run` takes them.
        reference: A configuration, whose own epochs and steps count; a finished run; or operations, one number for each
            experience or one for all.
        data_root: Folders to look for data in.
        download: Whether a missing data set may be fetched.

    Raises:
        ConfigurationError: A method's hooks alone, or one step for every epoch, take more than the budget; it takes no
            steps at all; the reference has another number of experiences, or didn't measure its cost; or every sample is
            presented once.
    """
    trials = [_Trial.of({**config, "steps_per_experience": None}, data_root, download) for config in configs]
    budgets = _budgets(reference, data_root, download)
    found = []
    for config, trial in zip(configs, trials, strict=True):
        given = budgets * len(trial.experiences) if len(budgets) == 1 else budgets
        if len(given) != len(trial.experiences):
            raise ConfigurationError(
                f"reference: expected operations for each of {len(trial.experiences)} experiences of {trial.name}, received "
                f"{len(given)}: compare methods on one stream."
            )
        found.append({**config, **_UNCACHED, "steps_per_experience": trial.steps_for(given)})
    return found


def _budgets(reference: Reference, data_root: str | Path | None, download: bool) -> list[float]:
    """Return the operations of every experience, or one number for all of them."""
    if isinstance(reference, Run):
        return list(reference.metric("train_flops"))
    if isinstance(reference, Mapping):
        return [e.as_configured() for e in _Trial.of(reference, data_root, download).experiences]
    return [float(reference)] if isinstance(reference, (int, float)) else list(map(float, reference))


# -- what an experience takes ------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _PhaseCost:
    """One phase.

    Attributes:
        epochs: Its length.
        sizes: Samples of every batch of one pass.
        steps: Of every epoch, where the configuration states a budget.
        per_sample: Operations for every image presented.
        views: Images presented for every sample of a batch.
        beside: Images presented in every step beside those.
    """

    epochs: int
    sizes: list[int]
    steps: Sequence[int] | None
    per_sample: float = 0.0
    views: int = 1
    beside: int = 0

    def note(self, batch: Batch, drawn: int, flops: int) -> None:
        """Take a step as what all of the phase are like."""
        presented = sum(map(len, batch.views)) + drawn
        self.per_sample = flops / presented
        self.views = len(batch.views)
        self.beside = presented - self.views * batch.num_new

    def of(self, lengths: Sequence[int]) -> float:
        """Return the operations of epochs of so many steps."""
        return sum(map(self._epoch, lengths)) if self.sizes else 0.0

    def _epoch(self, steps: int) -> float:
        passes, rest = divmod(steps, len(self.sizes))
        samples = passes * sum(self.sizes) + sum(self.sizes[:rest])
        return self.per_sample * (self.views * samples + self.beside * steps)

    @property
    def configured(self) -> Sequence[int]:
        """Steps of every epoch as the configuration has them."""
        return self.steps if self.steps is not None else [len(self.sizes)] * self.epochs


@dataclass(eq=False)
class _ExperienceCost:
    """One experience: operations of its hooks, and its phases."""

    hooks: float = 0.0
    phases: list[_PhaseCost] = dataclasses.field(default_factory=list)

    @property
    def trains(self) -> bool:
        """Whether it takes steps, and these cost something."""
        return any(p.sizes and p.per_sample for p in self.phases)

    @property
    def epochs(self) -> int:
        return sum(p.epochs for p in self.phases)

    def as_configured(self) -> float:
        """Return the operations of the epochs or steps that the configuration states."""
        return self.hooks + sum(p.of(p.configured) for p in self.phases)

    def of(self, steps: int) -> float:
        """Return the operations of so many steps, spread over the epochs of all phases as the trainer spreads them."""
        count = self.epochs
        each = iter([steps * (i + 1) // count - steps * i // count for i in range(count)])
        return self.hooks + sum(phase.of([next(each) for _ in range(phase.epochs)]) for phase in self.phases)

    def steps_for(self, budget: float) -> int:
        """Return the steps whose operations come nearest to a budget."""
        low, high = self.epochs, 2 * self.epochs
        while self.of(high) < budget:
            high *= 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.of(middle) <= budget else (low, middle)
        return min((low, high), key=lambda steps: abs(self.of(steps) - budget))


# -- trying a configuration --------------------------------------------------------------------------------------------


class _Trial:
    """What a configuration's experiences take."""

    def __init__(self, name: str, experiences: list[_ExperienceCost]) -> None:
        self.name = name
        self.experiences = experiences

    @classmethod
    def of(cls, given: Mapping[str, Any], data_root: str | Path | None, download: bool) -> _Trial:
        """Try a configuration."""
        config = resolve({**given, **_UNCACHED})
        stream = open_stream(config, data_root, download)
        if stream.online:
            raise ConfigurationError(
                f"The scenario {stream.name!r} presents every sample once, so what a method takes there can't be chosen: set "
                "scenario.online to false."
            )
        setup = dataclasses.replace(build_setup(config, stream), instruments=[Cost()])
        trainer = _Trying(setup)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run itself will say it
            trainer.run()
        return cls(str(config.record["strategy"]["name"]), trainer.found)

    def steps_for(self, budgets: Sequence[float]) -> list[int]:
        """Return the steps of every experience; where there is no training, as few as the trainer accepts, which it doesn't take."""
        if not any(e.trains for e in self.experiences):
            raise ConfigurationError(
                f"{self.name} takes no optimiser steps whose operations count, so no number of them equals a budget: leave it out."
            )
        found, saved = [], 0.0
        for number, (experience, budget) in enumerate(zip(self.experiences, budgets, strict=True), 1):
            saved += budget
            if not experience.trains:
                saved -= experience.hooks
                found.append(max(1, experience.epochs))
                continue
            self._refuse_too_little(experience, number, saved)
            found.append(experience.steps_for(saved))
            saved = 0.0
        return found

    def _refuse_too_little(self, experience: _ExperienceCost, number: int, budget: float) -> None:
        """Refuse a budget that is more than half a step below the fewest steps that the trainer takes."""
        least, epochs = experience.of(experience.epochs), experience.epochs
        if budget < least - 0.5 * (least - experience.hooks) / epochs:
            raise ConfigurationError(
                f"{self.name} takes {least:.4g} operations in experience {number} at least ({experience.hooks:.4g} in hooks, and "
                f"one step for each of {epochs} epochs), but the budget is {budget:.4g}: raise it, or lower the epochs."
            )


class _Trying(Trainer):
    """A trainer that takes two steps of every phase, and neither scores nor saves.

    Attributes:
        found: What every experience takes.
    """

    steps = 2
    """In the first one a memory may be empty still."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, Unwritten())
        self.found: list[_ExperienceCost] = []

    def _experience(self, experience: Experience) -> None:
        self.found.append(_ExperienceCost())
        super()._experience(experience)

    def _epoch(
        self, experience: Experience, begun: BegunPhase, stepper: Stepper, epoch: int, resumed: dict[str, Any] | None
    ) -> None:
        phase, streams = begun.phase, self.context.streams
        streams.enter("epoch", experience.index, self.position.phase, epoch)
        with self.instruments.work("epoch", experience):
            self.strategy.before_epoch(phase, epoch)
        stepper.begin_epoch(epoch)
        if epoch > 0:
            return
        maker, size = self.context.train_maker, self.setup.batch_size
        cost = _PhaseCost(phase.epochs, _sizes(begun.data, size), begun.steps)
        self.found[-1].phases.append(cost)
        for batch in maker.epoch(begun.data, size, experience, phase.name, epoch, streams, steps=self.steps):
            with FlopCounter() as counter:
                stepper.step(batch)
            drawn, self.context.presented = self.context.presented, 0
            cost.note(batch, drawn, counter.flops)

    def _evaluate(self, after: int) -> None:
        """Score nothing."""

    def _checkpoint(self, keep_as: str | None, stepper: Stepper | None = None, inside: bool = False) -> None:
        """Save nothing."""

    def _measure(self, experience: Experience) -> None:
        """Take from the account what hooks have taken."""
        self.found[-1].hooks = sum(self.instruments.report(experience)["hook_flops"].values())


def _sizes(data: DataView | TensorView, batch_size: int) -> list[int]:
    """Return the samples of every batch of one pass."""
    if isinstance(data, DataView) and data.order is not None:
        return [len(ids) for ids in data.order()]
    return [
        len(part) for part in split_batches(torch.empty(len(data), dtype=torch.int8), data.batch_size or batch_size)
    ]
