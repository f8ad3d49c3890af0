"""Elastic weight consolidation: hold weights back in proportion to their Fisher information."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from clframe.losses import cross_entropy
from clframe.models import Output
from clframe.spec import field
from clframe.strategies._anchors import mean_over_samples, padded, quadratic, sample_gradients, weights_of
from clframe.strategy import Batch, Strategy, Tags
from clframe.stream import Experience

__all__ = ["EWC"]


class EWC(Strategy):
    """Elastic weight consolidation.

    Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks", eq. 3:
    L = CE + λ · ½ Σ_i F_i (θ_i − θ*_i)², with F the diagonal of the empirical Fisher information
    F_i = (1/n) Σ_j (∂ log p(y_j | x_j) / ∂θ_i)².

    `mode=separate` has one such penalty per past experience, as the paper; `mode=online` (Schwarz et al. 2018,
    "Progress & Compress", sec. 3.2) a single one: F ← γ F + F_new, anchored at the latest weights.

    Differs from the paper:
        The sum of separate penalties is a quadratic, so it is kept as its total curvature, its centre and its offset:
        the same loss and gradient to rounding, at the cost of one penalty however many experiences passed.
        `fisher=batch` squares the gradient of a batch's mean loss, as much public code does: smaller by up to the batch
        size, so that a λ tuned for one form means nothing for the other; the form is part of the run's record.
        `fisher_max` bounds the information, as public code does too (PyCIL: 1e-4 with λ = 1000): a few weights with large
        information would make plain gradient descent diverge.
        Labels are the data's, not drawn from the model. Classifier rows added later are not held back.
    """

    tags: ClassVar[Tags] = Tags(needs_boundaries=True, online=False)

    strength: float = field(default=100.0, ge=0, help="λ, the weight of the penalty.")
    mode: Literal["separate", "online"] = field(
        default="separate", help="A penalty per past experience, or a running one."
    )
    decay: float = field(
        default=1.0, ge=0, le=1, help="γ of the online mode: how much of the old Fisher information stays."
    )
    fisher: Literal["per_sample", "batch"] = field(
        default="per_sample", help="Gradient squared per sample, or per batch mean."
    )
    fisher_samples: int | None = field(
        default=None,
        ge=1,
        unit="samples",
        help="Samples of an experience used for the Fisher information; none means all.",
    )
    fisher_max: float | None = field(
        default=None,
        gt=0,
        help="Largest information of a weight and experience; none: any. Steps diverge where lr · λ · F is above 2.",
    )

    def setup(self) -> None:
        """Start without a penalty."""
        self.fisher_: dict[str, Tensor] = {}
        self.anchor_: dict[str, Tensor] = {}
        self.offset_ = 0.0

    def extra_losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the penalty once there is a past."""
        return {"ewc": self.penalty()} if self.fisher_ and self.strength else {}

    def penalty(self) -> Tensor:
        """Return λ · ½ Σ_t Σ_i F_ti (θ_i − θ*_ti)²."""
        return 0.5 * self.strength * (quadratic(self.network, self.anchor_, self.fisher_) + self.offset_)

    def after_experience(self, experience: Experience) -> None:
        """Measure the Fisher information of this experience and add it to the penalty."""
        new = self.measure_fisher(experience)
        weights = weights_of(self.network)
        if self.mode == "online":
            old = {n: padded(f, new[n]) for n, f in self.fisher_.items()}
            self.fisher_ = {n: f + self.decay * old[n] if n in old else f for n, f in new.items()}
            self.anchor_ = weights
            return
        for name, fisher in new.items():
            before = self.fisher_.get(name)
            if before is None:
                self.fisher_[name], self.anchor_[name] = fisher, weights[name]
            else:
                self._add_quadratic(name, padded(before, fisher), fisher, weights[name])

    def _add_quadratic(self, name: str, old: Tensor, new: Tensor, weight: Tensor) -> None:
        """Add F(θ − θ*)² to A(θ − c)²: curvature A + F, centre their weighted mean, and a constant offset."""
        centre = padded(self.anchor_[name], new)
        total = old + new
        share = torch.where(total > 0, new / total.clamp(min=torch.finfo(total.dtype).tiny), torch.zeros_like(total))
        self.offset_ += float((old * share * (centre - weight).square()).sum())
        self.fisher_[name], self.anchor_[name] = total, centre + share * (weight - centre)

    def measure_fisher(self, experience: Experience) -> dict[str, Tensor]:
        """Return the diagonal Fisher information by parameter name.

        Eval mode, no augmentation, and the classes of the softmax that training used.
        """
        squares = self._squared_batch_gradient if self.fisher == "batch" else self._squared_sample_gradients
        found = mean_over_samples(self, experience, self.fisher_samples, "fisher", squares)
        return found if self.fisher_max is None else {n: f.clamp(max=self.fisher_max) for n, f in found.items()}

    def _squared_batch_gradient(
        self, batch: Batch, parameters: dict[str, nn.Parameter], total: dict[str, Tensor]
    ) -> int:
        """Add the squared gradient of the batch's mean loss."""
        logits = self.network(batch.x, batch.task_ids).logits
        loss = cross_entropy(logits, batch.y, self.allowed_classes(batch))
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                total[name].addcmul_(gradient, gradient)
        return 1

    def _squared_sample_gradients(
        self, batch: Batch, parameters: dict[str, nn.Parameter], total: dict[str, Tensor]
    ) -> int:
        """Add the squared gradients of every sample of a batch."""
        allowed = self.allowed_classes(batch)
        count = len(batch.y)
        masks = torch.ones(count, self.network.num_classes, dtype=torch.bool, device=batch.x.device)
        masks = masks if allowed is None else masks & allowed
        found = sample_gradients(self.network, batch, parameters, cross_entropy, batch.y, masks)
        for name, gradients in found.items():
            total[name] += gradients.square().sum(dim=0)
        return count
