"""Partially labelled: only a share of every experience's samples comes with a label."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from clframe.data import ImageData
from clframe.scenarios._parts import seeded, source_field
from clframe.scenarios.split import Split
from clframe.spec import field
from clframe.stream import Experience, Stream

__all__ = ["PartiallyLabelled"]


class PartiallyLabelled(Split):
    """Semi-supervised class-incremental learning: labelled and unlabelled samples of an experience come separately.

    Kang et al. 2023, "A Soft Nearest-Neighbor Framework for Continual Semi-Supervised Learning" (NNCSL): of every class
    0.8, 1, 5 or 25 % of the images keep their labels. At least one of every class does. Which ones depends neither on
    the run's seed nor on the class order.

    Version history:
        1: first version.
    """

    example: ClassVar[str] = "--scenario.labelled 0.1 --strategy replay+pseudo_labels --strategy.memory-size 20"
    prefix: ClassVar[str] = "partially_labelled"
    usual_experiences: ClassVar[int | None] = 5

    source: str = source_field("digits")
    labelled: float = field(default=0.05, gt=0, le=1, help="Share of every class's training samples with a label.")
    stream_seed: int = field(default=0, ge=0, help="Seed of the draw; independent of the run's seed.")

    def cut(self, data: ImageData) -> Stream:
        """Withhold labels; images are not touched."""
        stream = super().cut(data)
        source = data.train.targets
        stream = dataclasses.replace(
            stream, experiences=tuple(self._withhold(e, source[e.train]) for e in stream.experiences)
        )
        stream.check()
        return stream

    def _withhold(self, experience: Experience, labels: Tensor) -> Experience:
        keep = torch.zeros(len(labels), dtype=torch.bool)
        for label in torch.unique(labels).tolist():
            own = (labels == label).nonzero().flatten()
            count = max(1, round(self.labelled * len(own)))
            drawn = seeded(self.stream_seed, "labelled", label).permutation(len(own))[:count]
            keep[own[torch.from_numpy(drawn)]] = True
        train = experience.train
        return dataclasses.replace(experience, train=train[keep], unlabelled=train[~keep])
