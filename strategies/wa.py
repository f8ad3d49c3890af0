"""WA: distil the old classes, then scale the new classes' weights to the old ones' norm."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from clframe.losses import distillation
from clframe.models import Output
from clframe.spec import field
from clframe.strategies._alignment import align_weights, refuse_directions
from clframe.strategies._checks import refuse_multi_head
from clframe.strategies._exemplars import TaughtStrategy
from clframe.strategy import Batch, RunContext, Tags
from clframe.stream import Experience

__all__ = ["WA"]


class WA(TaughtStrategy):
    """Weight aligning.

    Zhao, Xiao, Gan, Zhang & Xia 2020, "Maintaining Discrimination and Fairness in Class Incremental Learning", CVPR. On
    new data ∪ memory, with z⁻ the logits of the network of the experience before:

        L = (1 − λ) CE(z, y) + λ KD_T(z_{1:K_old} ‖ z⁻),   λ = K_old / K               maintaining discrimination

    the first experience trains plainly. Once an experience's training is over, and before anything is copied from the
    network, its new rows are scaled once:

        W_new ← γ W_new,   γ = mean_c ‖w_c‖ (c old) / mean_c ‖w_c‖ (c new)             maintaining fairness, eq. 8

    So that a row's norm says how large its logits are on features that a ReLU has made non-negative, the weights of the
    classifier are cut at 0 from below after every step (`clamp`), and it has no bias (which is what this method takes
    where the configuration says nothing about the head). A bias, where there is one, is trained and left unscaled.

    PyCIL's form: `--strategy.clamp false --head.bias true`, 170 epochs, rate 0.1, a tenth after 60, 100 and 140, weight
    decay 2e-4.

    Report heads: `classifier`, `nme`.

    Differs from the paper:
        K_old counts the classes without data in the experience, which matters only where classes come back; where an
        experience brings no new class, nothing is scaled. T is PyCIL's, and the distillation carries no factor T².
    """

    tags: ClassVar[Tags] = dataclasses.replace(TaughtStrategy.tags, head={"name": "linear", "bias": False})

    temperature: float = field(default=2.0, gt=0, help="T of the distillation, without a factor T² (PyCIL: 2).")
    clamp: bool = field(
        default=True, help="Keep the classifier's weights at 0 or above (the paper); off: signed weights (PyCIL)."
    )
    align: bool = field(default=True, help="Scale the new rows after training; off leaves the distillation alone.")

    def check(self, run: RunContext) -> None:
        """Refuse a memory too small for the stream's classes, and heads whose rows can't be scaled."""
        super().check(run)
        refuse_multi_head(self, run)
        refuse_directions(self, run, "", "")

    def main_loss(self, batch: Batch, output: Output) -> Tensor:
        """(1 − λ) CE(z, y)."""
        return (1 - self.old_share(batch.experience)) * super().main_loss(batch, output)

    def extra_losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """λ KD_T(z_{1:K_old} ‖ z⁻) once there is an old network."""
        taught, share = self.taught(batch), self.old_share(batch.experience)
        if taught is None:
            return {}
        old = output.logits[:, : taught.logits.shape[1]]
        return {"distillation": share * distillation(old, taught.logits, self.temperature)}

    def after_step(self, batch: Batch) -> None:
        """Cut the classifier's weights at 0 from below, when asked to."""
        if self.clamp:
            head = self.network.classifier
            head.write(head.weight.detach().clamp(min=0))

    def after_experience(self, experience: Experience) -> None:
        """Align, choose exemplars, and copy the teacher."""
        if self.align:
            align_weights(self.network.classifier, len(experience.new_classes))
        super().after_experience(experience)
