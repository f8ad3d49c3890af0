"""Online: disjoint groups of classes one after the other, every sample presented once."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from clframe.scenarios._grouping import GroupedScenario
from clframe.scenarios._parts import Material, join, seeded
from clframe.scenarios._sequence import SequenceScenario
from clframe.spec import field

__all__ = ["Online"]


class Online(SequenceScenario, GroupedScenario):
    """Single-pass class-incremental learning: disjoint groups of classes, every sample presented once.

    Groups are shuffled inside and cut into mini-experiences, after each of which the model is scored. A mini-experience
    may lie across two groups: nothing tells the model where one ends.

    Version history:
        1: first version.
    """

    usual_experiences: ClassVar[int | None] = 5
    evaluate_every: int = field(
        default=250, ge=1, unit="samples", help="Samples of a mini-experience; the model is scored after each."
    )

    def sequence(self, found: Material) -> list[Tensor]:
        """Shuffle the samples of every group."""
        parts = []
        for i, group in enumerate(self.groups(found.num_classes)):
            rows = join(found.train, group)
            parts.append(rows[torch.from_numpy(seeded(self.stream_seed, "online", i).permutation(len(rows)))])
        return parts
