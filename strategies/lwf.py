"""Learning without forgetting: distil the previous model's answers on new images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from clframe.losses import distillation
from clframe.models import Output
from clframe.spec import field
from clframe.strategies._teacher import TeacherStrategy
from clframe.strategy import Batch
from clframe.stream import Experience

__all__ = ["LwF"]


class LwF(TeacherStrategy):
    """Learning without forgetting.

    Li & Hoiem 2016, "Learning without Forgetting", eq. 1–3: CE over the new classes plus λ times the distillation of
    the previous model's old outputs at temperature T, on new images alone; the teacher sees the same augmented view.

    In the class-incremental setting the old outputs are softened together (the form called LwF.MC, Rebuffi et al.
    2017, but with softmax); in the task-incremental one every old task's outputs by themselves, as in the paper.

    Differs from the paper:
        No warm-up of the new head with the rest frozen. The distillation carries no factor T² unless `scale` says so.
        The loss of several old tasks is their mean, so that λ means the same at every length of stream.
    """

    strength: float = field(default=1.0, ge=0, help="λ, the weight of the distillation (1 in the paper; 3 in PyCIL).")
    temperature: float = field(default=2.0, gt=0, help="T (2 in the paper).")
    scale: bool = field(default=False, help="Multiply the distillation by T².")
    loss_over: Literal["auto", "seen", "experience"] = field(
        default="experience",
        help="Classes in the softmax of the classification loss; the paper's is the experience's own.",
    )

    def setup(self) -> None:
        """Start without a teacher."""
        super().setup()
        self.old_tasks_: list[list[int]] = []

    def extra_losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the distillation once there is a teacher."""
        taught = self.taught(batch) if self.strength else None
        if taught is None:
            return {}
        # a multi-head with task ids has hidden the old tasks' logits
        logits = output.logits if batch.task_ids is None else self.network.classifier(output.features)
        return {"distillation": self.strength * self.distil(logits, taught.logits)}

    def distil(self, logits: Tensor, taught: Tensor) -> Tensor:
        """Return the mean over the old tasks of KD_T(z ‖ z⁻), or all old outputs' at once.

        Args:
            logits: (B, K) of the network.
            taught: (B, K_old) of the teacher.
        """
        losses = [
            distillation(logits[:, group], taught[:, group], self.temperature, scale=self.scale)
            for group in self._groups(taught.shape[1])
        ]
        return torch.stack(losses).mean()

    def _groups(self, num_old: int) -> list[list[int]] | list[slice]:
        """Return the classes whose outputs are softened together."""
        return self.old_tasks_ if self.run.setting == "task" else [slice(0, num_old)]

    def after_experience(self, experience: Experience) -> None:
        """The model as it is now becomes the teacher."""
        super().after_experience(experience)
        self.old_tasks_.append(list(experience.classes))
