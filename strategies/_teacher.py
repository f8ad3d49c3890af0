"""What methods share that learn from the model of the experience before."""

from __future__ import annotations

from typing import ClassVar

import torch

from clframe.models import Network, Output
from clframe.strategy import Batch, Strategy, Tags
from clframe.stream import Experience

__all__ = ["TeacherStrategy"]


class TeacherStrategy(Strategy):
    """The frame of distillation: the model as each experience leaves it teaches the next one, on the same images."""

    tags: ClassVar[Tags] = Tags(needs_boundaries=True, online=False)

    def setup(self) -> None:
        """Start without a teacher."""
        self.teacher_: Network | None = None

    def taught(self, batch: Batch, stages: bool = False) -> Output | None:
        """Return what the teacher gives for a batch, of every class that it knows; None while there is no teacher."""
        if self.teacher_ is None:
            return None
        with torch.no_grad():
            output: Output = self.teacher_(batch.x, None, stages)
        return output

    def after_experience(self, experience: Experience) -> None:
        """The model as it is now becomes the teacher."""
        self.teacher_ = self.network.frozen_copy()
