"""Few-shot class-incremental: a base of well-known classes, then new ones with a handful of samples each."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from clframe.data import ImageData
from clframe.errors import ConfigurationError
from clframe.scenarios._parts import Material, seeded, source_field
from clframe.scenarios.split import Split
from clframe.spec import field
from clframe.stream import Setting

__all__ = ["FewShot"]


class FewShot(Split):
    """Few-shot class-incremental learning: base classes with all their samples, then new classes with a handful each.

    Tao et al. 2020, "Few-Shot Class-Incremental Learning", CVPR. The base classes keep all their training samples;
    every later class keeps `shots` of them, drawn by `stream_seed`. The usual protocol on CIFAR-100: a base of 60
    classes, then 8 experiences of 5 classes with 5 shots (`--scenario.source cifar100 --scenario.base 60
    --scenario.increment 5`).

    Version history:
        1: first version.
    """

    prefix: ClassVar[str] = "few_shot"
    settings: ClassVar[tuple[Setting, ...]] = ("class", "task")

    source: str = source_field("digits")
    base: int | None = field(default=4, ge=1, unit="classes", help="Classes of the first experience, with all samples.")
    increment: int | None = field(
        default=2, ge=1, unit="classes", help="Classes of every later experience; the last takes the remainder."
    )
    shots: int = field(default=5, ge=1, unit="samples", help="Training samples of every class after the base.")
    stream_seed: int = field(default=0, ge=0, help="Seed of the draw; independent of the run's seed.")

    def material(self, data: ImageData) -> Material:
        """Draw the shots of every class after the base.

        Raises:
            ConfigurationError: A class has fewer samples.
        """
        found = super().material(data)
        base = len(self.groups(found.num_classes)[0])
        kept = list(found.train[:base])
        for k, rows in enumerate(found.train[base:], base):
            if len(rows) < self.shots:
                raise ConfigurationError(
                    f"scenario.shots: expected at most the {len(rows)} training samples of the class {found.names[k]!r}, "
                    f"received {self.shots}."
                )
            drawn = seeded(self.stream_seed, "shots", found.order[k]).permutation(len(rows))[: self.shots]
            kept.append(rows[torch.from_numpy(drawn)].sort().values)
        return dataclasses.replace(found, train=kept)
