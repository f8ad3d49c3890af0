"""Memory-aware synapses: hold weights back in proportion to how much the outputs depend on them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from clframe.spec import field
from clframe.strategies._anchors import AnchoredStrategy, mean_over_samples, sample_gradients
from clframe.strategy import Batch, Tags
from clframe.stream import Experience

__all__ = ["MAS"]


class MAS(AnchoredStrategy):
    """Memory-aware synapses.

    Aljundi, Babiloni, Elhoseiny, Rohrbach & Tuytelaars 2018, "Memory Aware Synapses: Learning what (not) to forget",
    eq. 2–4, without labels:

        Ω_i ← Ω_i + (1/n) Σ_x |∂ ‖z(x)‖² / ∂θ_i|     after an experience, one gradient per sample
        L = CE + λ Σ_i Ω_i (θ_i − θ*_i)²             θ* the weights after the last experience

    z are the outputs that predict: those of the sample's own task where there are task ids, else those of all classes
    seen. Eval mode, no augmentation.

    Differs from the paper:
        Ω is measured on the training samples of the experience alone; the paper may use any unlabelled data. Public
        code often takes the absolute value of a batch's gradient, which is smaller where samples disagree. The local
        (Hebbian) variant is left out. Classifier rows added later are not held back.
        `importance_max` bounds what a weight gains in an experience: a few large importances make plain gradient descent
        diverge at learning rates that networks are trained with from scratch.
    """

    tags: ClassVar[Tags] = Tags(scores=frozenset({"accuracy", "squared_error"}), needs_boundaries=True, online=False)
    term: ClassVar[str] = "mas"

    strength: float = field(default=1.0, ge=0, help="λ, the weight of the penalty (1 in the paper).")
    samples: int | None = field(
        default=None, ge=1, unit="samples", help="Samples of an experience used for the importance; none means all."
    )

    def after_experience(self, experience: Experience) -> None:
        """Measure the importance of every weight, and move the anchor here."""
        self.consolidate(self.measure_importance(experience))

    def measure_importance(self, experience: Experience) -> dict[str, Tensor]:
        """Return (1/n) Σ_x |∂ ‖z(x)‖² / ∂θ_i| by parameter name."""
        return mean_over_samples(self, experience, self.samples, "importance", self._absolute_gradients)

    def _absolute_gradients(self, batch: Batch, parameters: dict[str, nn.Parameter], total: dict[str, Tensor]) -> int:
        """Add the absolute gradients of every sample of a batch."""
        count = len(batch.x)
        if batch.task_ids is None:
            counted = torch.ones(count, self.network.num_classes, dtype=torch.bool, device=batch.x.device)
        else:
            counted = self.run.task_mask(batch.task_ids)
        found = sample_gradients(self.network, batch, parameters, _squared_norm, counted)
        for name, gradients in found.items():
            total[name] += gradients.abs().sum(dim=0)
        return count


def _squared_norm(logits: Tensor, counted: Tensor) -> Tensor:
    """‖z‖² over the outputs that count; a multi-head's others are −∞."""
    return logits.masked_fill(~counted, 0).square().sum()
