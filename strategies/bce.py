"""Binary cross-entropy: one sigmoid per class in place of the softmax."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from clframe.losses import binary_cross_entropy
from clframe.models import Output
from clframe.spec import field
from clframe.strategy import Batch, Strategy

__all__ = ["BCE"]


class BCE(Strategy):
    """Fine-tuning with one sigmoid per class, to be composed: `bce+predkd`, `bce+predkd+ewc`, `bce+predkd+l2_anchor`.

    The classification loss of Smith et al. 2023, "A Closer Look at Rehearsal-Free Continual Learning":

        L = −(1/B) Σ_b Σ_c [y_c = 1] log sig(z_c) + [y_c = 0] log (1 − sig(z_c))

    Every class has its own loss, so that new classes don't push the old ones' outputs down by themselves. c runs over the
    experience's classes, as in public code of the authors' group, where the old outputs learn from the teacher alone
    (`predkd`) or from nobody; `loss_over=seen` gives old classes zero targets as well.

    Differs from the paper:
        No recipe is set: the paper's is Adam 0.001, divided by ten at 100, 150 and 200 of 250 epochs. `ewc` beside it
        measures its Fisher information by the softmax. Old classes that an experience brings again count as its own.
    """

    loss_over: Literal["auto", "seen", "experience"] = field(
        default="experience",
        help="Classes whose sigmoids are trained: the experience's (the sample's own task's where there are task ids), or "
        "all seen. auto: experience in the task-incremental setting, else seen.",
    )

    def main_loss(self, batch: Batch, output: Output) -> Tensor:
        """Return the sum over classes of the binary cross-entropy."""
        return binary_cross_entropy(output.logits, batch.y, self.allowed_classes(batch))
