"""A-GEM: a step never goes against the gradient on a batch of the past."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from clframe.errors import ConfigurationError
from clframe.memory import OBSERVING, ExemplarMemory
from clframe.spec import field
from clframe.strategies._checks import refuse_local_softmax
from clframe.strategies._exemplars import take_exemplars
from clframe.strategies._online import OfferingStrategy
from clframe.strategy import Batch, RunContext, Tags
from clframe.stream import Experience

__all__ = ["AGEM"]


class AGEM(OfferingStrategy):
    """Averaged gradient episodic memory.

    Chaudhry, Ranzato, Rohrbach & Elhoseiny 2019, "Efficient Lifelong Learning with A-GEM", ICLR. With g the gradient of
    the loss on the current batch, and g_ref that on a batch drawn from the memory of the experiences before:

        g̃ = g                                   if gᵀ g_ref ≥ 0
        g̃ = g − (gᵀ g_ref / g_refᵀ g_ref) g_ref     else (eq. 11)

    The gradient is that of every parameter of the network together, before weight decay and momentum.

    Report heads: `classifier`.

    Differs from the paper:
        The paper's streams present every sample once, in a task-incremental setting with a head of its own for each task
        (`--head.name multi`); here any setting and any number of epochs. `policy=random` keeps ⌊memory_size / classes
        seen⌋ random samples of every class, chosen when an experience ends, where the paper keeps a fixed number. The other
        policies fill the memory on the way, and what they hold of the current experience is no reference; of a class
        that comes again, a ring soon holds nothing else. In a stream without boundaries `random` is refused, and the
        whole memory is the reference.
        The forward pass of the reference batch moves BatchNorm's running statistics, as in public code.
    """

    tags: ClassVar[Tags] = Tags(stores_samples=True, can_unlearn=True)

    memory_size: int = field(default=200, ge=0, unit="samples", help="Exemplars in all.")
    policy: Literal["random", "ring", "reservoir", "class_balanced", "greedy_balanced"] = field(
        default="random",
        help="How exemplars are chosen: random ones of every class when an experience ends, or on the way by one of the others.",
    )
    memory_batch: int | None = field(
        default=None, ge=1, unit="samples", help="Samples of a reference batch; none: the batch size."
    )

    def check(self, run: RunContext) -> None:
        """Refuse a memory too small for the stream's classes, one that waits for boundaries, a loss without old classes."""
        self._new_memory(run).check(run.num_classes)
        if not self.memory_size:
            return
        refuse_local_softmax(self, run)
        if self.policy == "random" and not run.boundaries:
            raise ConfigurationError(
                "strategy.policy: AGEM chooses random exemplars when an experience ends, which this stream doesn't say: "
                "expected reservoir, ring or class_balanced, received 'random'."
            )

    def setup(self) -> None:
        """Start with an empty memory."""
        super().setup()
        self.memory_ = self._new_memory(self.run)
        self.past_ = self.memory_.ids

    def before_experience(self, experience: Experience) -> None:
        """Grow the classifier; what the memory holds now is of earlier experiences."""
        super().before_experience(experience)
        self.past_ = self.memory_.ids.clone()

    def _new_memory(self, run: RunContext) -> ExemplarMemory:
        return ExemplarMemory(self.memory_size, policy=self.policy, sample_bytes=run.sample_bytes)

    # -- the projection --------------------------------------------------------------------------------------------

    def after_backward(self, batch: Batch) -> None:
        """Project the gradient when it goes against the reference."""
        ids = self.reference_ids()
        if not len(ids):
            return
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        reference = self.reference_gradients(self.run.training_batch(ids, "reference"), parameters)
        for gradient, change in zip(gradients, projections(gradients, reference), strict=True):
            gradient.sub_(change)

    def reference_ids(self) -> Tensor:
        """Draw samples of what earlier experiences left in the memory; without boundaries, of all that it holds."""
        ids = self.memory_.ids
        if self.run.boundaries:
            ids = ids[torch.isin(ids, self.past_)]
        order = torch.randperm(len(ids), generator=self.run.rng("reference"))
        return ids[order[: self.memory_batch or self.run.batch_size]]

    def reference_gradients(self, batch: Batch, parameters: list[torch.nn.Parameter]) -> list[Tensor]:
        """Return g_ref, that of the mean loss on the batch."""
        with torch.enable_grad():
            loss = self.main_loss(batch, self.network(batch.x, batch.task_ids))
        return list(torch.autograd.grad(loss, parameters, materialize_grads=True))

    # -- the memory ------------------------------------------------------------------------------------------------

    def after_step(self, batch: Batch) -> None:
        """Offer new samples to a memory that is filled on the way."""
        if self.policy in OBSERVING:
            self.offer(batch)

    def after_experience(self, experience: Experience) -> None:
        """Choose exemplars, where that waits until now."""
        if self.policy not in OBSERVING:
            take_exemplars(self.memory_, experience, self.run)


def projections(gradients: list[Tensor], reference: list[Tensor]) -> list[Tensor]:
    """Return what to take off every gradient so that together they don't go against the reference; zeros when they don't."""
    dot = torch.stack([(g * r).sum() for g, r in zip(gradients, reference, strict=True)]).sum()
    square = torch.stack([r.square().sum() for r in reference]).sum()
    factor = torch.where(square > 0, dot.clamp(max=0) / square.clamp(min=torch.finfo(square.dtype).tiny), 0.0)
    return [factor * r for r in reference]
