"""Plasticity: hundreds of short, equally hard tasks, on which a network that goes on training learns ever less."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from clframe.data.domains import Identity, Permutation
from clframe.scenarios._domains import DomainScenario
from clframe.scenarios._parts import seeded
from clframe.spec import field
from clframe.stream import AugmentationSpec, InputTransform

__all__ = ["Plasticity"]


class Plasticity(DomainScenario):
    """A long stream of short tasks that a fresh network finds equally hard; what is lost is the ability to learn.

    `kind=permuted_inputs` (online permuted MNIST; Dohare et al. 2024, "Loss of plasticity in deep continual learning",
    Nature) gives every task its own pixel permutation, `kind=permuted_labels` its own permutation of the labels (Lyle
    et al. 2023, "Understanding plasticity in neural networks", with whole classes shuffled, so that test images can be
    scored). The reading is learning accuracy over the tasks, against that of a network that starts afresh.

    Version history:
        1: first version.
    """

    example: ClassVar[str] = "--scenario.experiences 20 --epochs 1"
    augmentation: ClassVar[AugmentationSpec] = "none"

    kind: Literal["permuted_inputs", "permuted_labels"] = field(
        default="permuted_inputs", help="What is shuffled anew in every task, see above."
    )
    experiences: int = field(default=200, ge=1, help="Number of tasks.")
    train_per_class: int | None = field(
        default=40, ge=1, unit="samples", help="Use only the first so many training samples of every class."
    )
    test_per_class: int | None = field(
        default=20, ge=1, unit="samples", help="Use only the first so many test samples of every class."
    )

    def domains(self, shape: tuple[int, ...]) -> Sequence[InputTransform]:
        """Draw a permutation of the pixels for every task, where inputs are permuted."""
        if self.kind == "permuted_labels":
            return [Identity()] * self.experiences
        size = shape[0] if len(shape) == 1 else prod(shape[1:])
        draws = (seeded(self.domain_seed, "permutation", i).permutation(size) for i in range(self.experiences))
        return [Permutation(torch.from_numpy(order)) for order in draws]

    def relabelled(self, domain: int, labels: Tensor) -> Tensor:
        """Permute the labels of a task, where labels are permuted."""
        if self.kind == "permuted_inputs":
            return labels
        count = int(labels.max()) + 1 if len(labels) else 0
        return torch.from_numpy(seeded(self.domain_seed, "labels", domain).permutation(count))[labels]
