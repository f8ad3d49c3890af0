"""Prediction distillation: the previous model's predictions of the old classes, on new data."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from clframe.composite import leaves
from clframe.losses import binary_distillation
from clframe.spec import field
from clframe.strategies.bce import BCE
from clframe.strategies.lwf import LwF

__all__ = ["PredKD"]


class PredKD(LwF):
    """Prediction distillation, PredKD.

    A term of Smith et al. 2023, "A Closer Look at Rehearsal-Free Continual Learning": cross-entropy between the
    predictions of the previous model z⁻ and the network's z for the old classes, on new data.

        softmax:  −(1/B) Σ_b Σ_{c old} q_c log p_c,  p = σ(z_old / T), q = σ(z⁻ / T)
        sigmoid:  −(1/B) Σ_b Σ_{c old} q_c log p_c + (1 − q_c) log (1 − p_c),  p = sig(z / T), q = sig(z⁻ / T)

    The softmax form is LwF's distillation as a term by itself: here it leaves the classification loss over all classes
    seen, at T = 1. The sigmoid form goes with a loss per class: `bce+predkd` puts the teacher's sigmoids in place of the
    old classes' targets, LwF.MC as public code of the authors' group has it (after Rebuffi et al. 2017).

    Differs from the paper:
        The forms and their constants follow that code, and the weight λ, tuned there on the first tasks, is 1. In the
        task-incremental setting the softmax form takes every old task by itself and their mean, as LwF does.
    """

    temperature: float = field(default=1.0, gt=0, help="T (1: the predictions as they are).")
    form: Literal["auto", "softmax", "sigmoid"] = field(
        default="auto", help="How outputs become predictions; auto: sigmoid in a composition with bce, else softmax."
    )
    loss_over: Literal["auto", "seen", "experience"] = field(
        default="auto",
        help="Classes in the softmax of the classification loss: all seen so far, or those of the experience (of the "
        "sample's own task where there are task ids). auto: experience in the task-incremental setting, else seen.",
    )

    def resolved_form(self) -> Literal["softmax", "sigmoid"]:
        """The form that `auto` stands for."""
        if self.form != "auto":
            return self.form
        return "sigmoid" if any(isinstance(p, BCE) for p in leaves(self.run.strategy)) else "softmax"

    def distil(self, logits: Tensor, taught: Tensor) -> Tensor:
        """Return the distillation of the old classes in the form chosen.

        Args:
            logits: (B, K) of the network.
            taught: (B, K_old) of the teacher.
        """
        if self.resolved_form() == "softmax":
            return super().distil(logits, taught)
        return binary_distillation(logits[:, : taught.shape[1]], taught, self.temperature, scale=self.scale)
