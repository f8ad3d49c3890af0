"""iCaRL: distil the old classes' outputs, keep herded exemplars, classify by their nearest mean."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from clframe.losses import binary_cross_entropy, binary_distillation, distillation
from clframe.models import Output
from clframe.spec import field
from clframe.strategies._checks import refuse_multi_head
from clframe.strategies._exemplars import TaughtStrategy
from clframe.strategy import Batch, RunContext

__all__ = ["ICaRL"]


class ICaRL(TaughtStrategy):
    """Incremental classifier and representation learning, in its two forms.

    Rebuffi, Kolesnikov, Sperl & Lampert 2017, "iCaRL: Incremental Classifier and Representation Learning", CVPR. On new
    data ∪ memory, with z⁻ the logits of the network of the experience before:

        bce (the paper, Alg. 3)   L = Σ_{c new} BCE(sig(z_c), [y = c]) + Σ_{c old} BCE(sig(z_c), sig(z⁻_c))
        kd (PyCIL)                L = CE(z, y) + λ KD_T(z_{1:K_old} ‖ z⁻)

    In `bce` an old class's target is the old network's answer for every sample, an exemplar's own class included. The
    first experience has no old classes. Afterwards exemplars are chosen by herding (Alg. 4), and inference is by the
    nearest mean of exemplars (Alg. 1).

    Official recipe, CIFAR-100: 70 epochs, batch 128, weight decay 1e-5, rate divided by 5 after epochs 49 and 63. Its
    rate of 2.0 belongs to the mean over 100 outputs; the sum over classes of the equation, which is used here, takes
    the hundredth part: `--optimizer.lr 0.02`. PyCIL: `--strategy.loss kd`, 170 epochs, rate 0.1, a tenth after 80
    and 120.

    Report heads: `nme` (primary; the paper's inference); `classifier`, the network's own output (the paper's hybrid1,
    and the number that PyCIL calls CNN).

    Differs from the paper:
        The loss has no outputs for classes still to come, which the public code trains towards 0. Exemplar means are of
        one view, without the public code's average over the flipped image. ⌊size / classes⌋ exemplars of every class, as
        the paper writes, where the public code rounds up. An old class that comes back is trained as a new one in `bce`.
    """

    loss: Literal["bce", "kd"] = field(
        default="bce",
        help="bce: a sigmoid for every class, old ones taught by the old network (the paper); kd: softmax cross-entropy "
        "and distillation (PyCIL).",
    )
    distill_weight: float = field(default=1.0, ge=0, help="kd: λ, the weight of the distillation (PyCIL: 1).")
    temperature: float = field(default=2.0, gt=0, help="kd: T of the distillation, without a factor T² (PyCIL: 2).")

    def check(self, run: RunContext) -> None:
        """Refuse a memory too small for the stream's classes, and a classifier of several layers."""
        super().check(run)
        refuse_multi_head(self, run)

    def main_loss(self, batch: Batch, output: Output) -> Tensor:
        """CE(z, y); in the paper's form the sigmoids of all classes but the old ones."""
        if self.loss == "kd":
            return super().main_loss(batch, output)
        new = torch.ones(output.logits.shape[1], dtype=torch.bool)
        new[self.old_classes(batch)] = False
        return binary_cross_entropy(output.logits, batch.y, new.to(output.logits.device))

    def extra_losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Distil the old network's answers once there is one."""
        taught = self.taught(batch)
        if taught is None:
            return {}
        if self.loss == "kd":
            if not self.distill_weight:
                return {}
            kept = distillation(output.logits[:, : taught.logits.shape[1]], taught.logits, self.temperature)
            return {"distillation": self.distill_weight * kept}
        old = self.old_classes(batch)
        return {"distillation": binary_distillation(output.logits[:, old], taught.logits[:, old])}

    def old_classes(self, batch: Batch) -> list[int]:
        """Return the classes that the old network teaches: those it knows, without any that have come back."""
        num_old = 0 if self.teacher_ is None else self.teacher_.num_classes
        return [c for c in range(num_old) if c not in batch.experience.classes]

    def report_heads(self, output: Output) -> dict[str, Tensor]:
        """Score by the nearest exemplar mean, and by the network's own output."""
        return {**self.nme_head(output.features), "classifier": output.logits}
