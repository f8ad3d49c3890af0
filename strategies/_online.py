"""What methods that replay beside every batch share: a memory to which every new sample is offered once, as it goes by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from clframe.memory import ExemplarMemory
from clframe.spec import field
from clframe.strategies._checks import refuse_local_softmax
from clframe.strategy import Batch, DataView, RunContext, Strategy, Tags
from clframe.stream import Experience

__all__ = ["OfferingStrategy", "StepReplay", "labelled_rows", "parts_of"]


class OfferingStrategy(Strategy):
    """Offers new samples to `memory_` once each: in the first epoch of the experience's first phase that offers."""

    memory_: ExemplarMemory
    offering_: str | None

    def setup(self) -> None:
        """No phase has offered samples yet."""
        self.offering_ = None

    def before_experience(self, experience: Experience) -> None:
        """Grow the classifier; no phase has offered samples yet."""
        super().before_experience(experience)
        self.offering_ = None

    def offer(self, batch: Batch, extras: Mapping[str, Tensor] | None = None) -> None:
        """Offer the new samples of a batch, where they go by for the first time.

        Args:
            batch: Just trained on.
            extras: Tensors (`num_new`, …) stored with the samples, such as logits.
        """
        if batch.epoch > 0:
            return
        self.offering_ = self.offering_ or batch.phase
        if batch.phase == self.offering_:
            ids = self.run.gathered(batch.ids[: batch.num_new])
            rows = labelled_rows(ids, batch.experience)
            new = ids[rows]
            stored = {name: self.run.gathered(value)[rows] for name, value in (extras or {}).items()}
            self.memory_.observe(new, self.run.targets(new), generator=self.run.rng("memory"), extras=stored)


class StepReplay(OfferingStrategy):
    """The frame of methods that draw samples from a memory beside every batch and fill it as the stream goes by."""

    tags: ClassVar[Tags] = Tags(stores_samples=True, can_unlearn=True)

    memory_size: int = field(default=200, ge=0, unit="samples", help="Exemplars in all.")
    policy: Literal["reservoir", "class_balanced", "greedy_balanced", "ring"] = field(
        default="reservoir", help="How exemplars are chosen; the papers' is the reservoir."
    )
    memory_batch: int | None = field(
        default=None, ge=1, unit="samples", help="Replayed beside each batch; none: the batch size."
    )

    @property
    def replayed(self) -> int:
        """Samples drawn from the memory beside each batch."""
        return self.memory_batch or self.run.batch_size

    def check(self, run: RunContext) -> None:
        """Refuse a memory too small for the stream's classes, and a loss that leaves out the old ones."""
        self._new_memory(run).check(run.num_classes)
        if self.memory_size:
            refuse_local_softmax(self, run)

    def setup(self) -> None:
        """Start with an empty memory."""
        super().setup()
        self.memory_ = self._new_memory(self.run)

    def _new_memory(self, run: RunContext) -> ExemplarMemory:
        return ExemplarMemory(self.memory_size, policy=self.policy, sample_bytes=run.sample_bytes)

    def training_data(self, experience: Experience) -> DataView:
        """New data, and at every step samples of the memory beside them."""
        return DataView(experience.train, memory=self.memory_, memory_batch=self.replayed)

    def after_step(self, batch: Batch) -> None:
        """Offer new samples to the memory."""
        self.offer(batch)


def labelled_rows(ids: Tensor, experience: Experience) -> Tensor:
    """Return the positions of the samples whose label isn't withheld."""
    rows = torch.arange(len(ids))
    hidden = experience.unlabelled
    return rows[~torch.isin(ids, hidden)] if len(hidden) else rows


def parts_of(allowed: Tensor | None, num_new: int) -> tuple[Tensor | None, Tensor | None]:
    """Split a mask of classes, (K,) or (B, K) or None, into that of new and that of replayed samples."""
    if allowed is None or allowed.ndim == 1:
        return allowed, allowed
    return allowed[:num_new], allowed[num_new:]
