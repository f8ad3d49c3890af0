"""Permuted images: every experience shows all classes with its own fixed permutation of the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import ClassVar

import torch

from clframe.data.domains import Identity, Permutation
from clframe.scenarios._domains import DomainScenario
from clframe.scenarios._parts import seeded
from clframe.spec import field
from clframe.stream import AugmentationSpec, InputTransform

__all__ = ["Permuted"]


class Permuted(DomainScenario):
    """Permuted images: every experience shows all classes through a fixed permutation of the pixels of its own.

    Goodfellow et al. 2013; Kirkpatrick et al. 2017. All channels of a pixel move together. Permuted images are not
    augmented unless the run says so: neighbours mean nothing in them. Domain-incremental by default (van de Ven &
    Tolias 2019 have all three settings).

    Version history:
        1: first version.
    """

    augmentation: ClassVar[AugmentationSpec] = "none"
    experiences: int = field(default=10, ge=1, help="Number of permutations, one per experience.")
    first: bool = field(default=True, help="Whether the first experience is permuted too, or shows images as they are.")

    def domains(self, shape: tuple[int, ...]) -> Sequence[InputTransform]:
        """Draw a permutation of every experience from a generator of its own."""
        size = shape[0] if len(shape) == 1 else prod(shape[1:])
        found: list[InputTransform] = []
        for i in range(self.experiences):
            drawn = torch.from_numpy(seeded(self.domain_seed, "permutation", i).permutation(size))
            found.append(Permutation(drawn) if i or self.first else Identity())
        return found
