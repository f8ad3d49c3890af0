"""Long-tailed: some classes have many training samples, most have few."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from clframe.data import ImageData
from clframe.errors import ConfigurationError
from clframe.scenarios._parts import Material, seeded, source_field
from clframe.scenarios.split import Split
from clframe.spec import field

__all__ = ["LongTailed"]


class LongTailed(Split):
    """Class-incremental learning of a long-tailed source; the test set stays balanced.

    Liu et al. 2022, "Long-Tailed Class Incremental Learning", ECCV: `ordered` puts the classes with many samples first,
    `shuffled` deals the profile to the classes at random. The class of rank r = 0 … K-1 keeps
    n_r = round(n_max · ρ^{r/(K-1)}) samples (Cui et al. 2019), with n_max the smallest class of the source and
    ρ = n_min / n_max; the first ones in the source's order.

    Version history:
        1: first version.
    """

    prefix: ClassVar[str] = "long_tailed"
    usual_experiences: ClassVar[int | None] = 5

    source: str = source_field("digits")
    ratio: float = field(default=0.01, gt=0, le=1, help="ρ, samples of the smallest class over those of the largest.")
    placement: Literal["ordered", "shuffled"] = field(
        default="shuffled", help="Whether the largest classes come first in the class order, or anywhere."
    )
    counts: list[int] | None = field(
        default=None, ge=1, unit="samples", help="Samples of every class in the class order, instead of the profile."
    )
    stream_seed: int = field(default=0, ge=0, help="Seed of the shuffled placement; independent of the run's seed.")

    def material(self, data: ImageData) -> Material:
        """Cut every class down to its count.

        Raises:
            ConfigurationError: A class has fewer samples than `counts` says, or their number is wrong.
        """
        found = super().material(data)
        counts = self.profile([len(rows) for rows in found.train])
        return dataclasses.replace(found, train=[r[:n] for r, n in zip(found.train, counts, strict=True)])

    def profile(self, available: list[int]) -> list[int]:
        """Return the samples that every class keeps, in the class order."""
        total = len(available)
        if self.counts is not None:
            if len(self.counts) != total or any(n > m for n, m in zip(self.counts, available, strict=True)):
                raise ConfigurationError(
                    f"scenario.counts: expected {total} numbers of at most {available} samples, received {self.counts}."
                )
            return list(self.counts)
        ranks = np.arange(total)
        if self.placement == "shuffled":
            ranks = seeded(self.stream_seed, "long_tailed").permutation(total)
        return [max(1, round(min(available) * self.ratio ** (r / max(1, total - 1)))) for r in ranks.tolist()]
