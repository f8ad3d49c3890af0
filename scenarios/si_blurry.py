"""Si-Blurry and i-Blurry: some classes belong to one task alone, others leak into all of them."""

from __future__ import annotations

import warnings
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clframe.scenarios._parts import Material, join, seeded
from clframe.scenarios._sequence import SequenceScenario
from clframe.spec import field

__all__ = ["IBlurry", "SiBlurry"]

Int = NDArray[np.int64]


class SiBlurry(SequenceScenario):
    """Online learning with blurry boundaries: some classes belong to one task alone, samples of the others leak into all.

    Stochastic incremental blurry boundaries, Moon et al. 2023, "Online Class Incremental Learning on Stochastic Blurry
    Task Boundary via Mask and Visual Prompt Tuning", ICCV. T tasks; N % of the classes are disjoint (each in one task
    alone), the others blurry. Random cuts deal both kinds out, so that tasks have random numbers of classes, none
    possible. Every task then gives the first of its blurry samples, a share of random size, to a pool of M % of all
    blurry samples; the pool is shuffled and dealt back in shares of the same sizes; late tasks may find less than their
    share. Each task is shuffled, and all are one sequence. The class counts of both kinds are rounded down to a
    multiple of T, and classes left over are dropped.

    Version history:
        1: first version.
    """

    stochastic: ClassVar[bool] = True
    example: ClassVar[str] = "--scenario.evaluate-every 100"

    num_tasks: int = field(default=5, ge=1, help="T, tasks whose classes are drawn (5 in the paper).")
    disjoint_percent: float = field(default=50.0, ge=0, le=100, unit="% of classes", help="N (50 in the paper).")
    blurry_percent: float = field(default=10.0, ge=0, le=100, unit="% of blurry samples", help="M (10 in the paper).")

    def sequence(self, found: Material) -> list[Tensor]:
        """Deal classes, exchange samples, and shuffle every task."""
        return [torch.from_numpy(rows) for rows in self.deal([c.numpy() for c in found.train])]

    def deal(self, rows: list[Int]) -> list[Int]:
        """Return the samples of every task in the order of presentation.

        Args:
            rows: Rows of every class, in the order of the data set.
        """
        draw, tasks = seeded(self.stream_seed, "si_blurry"), self.num_tasks
        classes = draw.permutation(len(rows))
        disjoint, blurry = self.class_counts(len(rows))
        own = self._by_cuts(classes[:disjoint], draw)
        shared = self._by_cuts(classes[disjoint : disjoint + blurry], draw)
        fixed = [_rows_of(rows, part) for part in own]
        leaking = [_rows_of(rows, part) for part in shared]
        shares = self._shares([len(part) for part in leaking], draw)
        pool = draw.permutation(np.concatenate([part[:n] for part, n in zip(leaking, shares, strict=True)]))
        dealt = np.split(pool, np.cumsum(shares)[:-1])
        kept = [part[n:] for part, n in zip(leaking, shares, strict=True)]
        return [draw.permutation(np.concatenate([fixed[i], kept[i], dealt[i]])) for i in range(tasks)]

    def class_counts(self, total: int) -> tuple[int, int]:
        """Return how many of the classes are disjoint and how many blurry; warns when some are left over."""
        disjoint = int(total * self.disjoint_percent / 100) // self.num_tasks * self.num_tasks
        blurry = (total - disjoint) // self.num_tasks * self.num_tasks
        if disjoint + blurry < total:
            warnings.warn(
                f"{total - disjoint - blurry} of {total} classes are left out, since the disjoint and the blurry ones must "
                f"each divide into {self.num_tasks} tasks.",
                stacklevel=3,
            )
        return disjoint, blurry

    def _by_cuts(self, classes: Int, draw: np.random.Generator) -> list[Int]:
        """Cut classes at sorted uniform places, or equally."""
        if not self.stochastic or not len(classes):
            return np.array_split(classes, self.num_tasks)
        return np.split(classes, np.sort(draw.integers(0, len(classes), self.num_tasks - 1)))

    def _shares(self, sizes: list[int], draw: np.random.Generator) -> list[int]:
        """Return how many samples every task gives to the pool, and later takes from it."""
        if not self.stochastic:
            return [int(n * self.blurry_percent / 100) for n in sizes]
        pool = int(sum(sizes) * self.blurry_percent / 100)
        cuts = np.sort(draw.integers(0, pool, self.num_tasks - 1)) if pool else np.zeros(self.num_tasks - 1, int)
        return [int(n) for n in np.diff(np.concatenate([[0], cuts, [pool]]))]


class IBlurry(SiBlurry):
    """Online learning with blurry boundaries and tasks of equally many classes, which exchange M % of their blurry samples.

    i-Blurry, Koh et al. 2022, "Online Continual Learning on Class Incremental Blurry Task Configuration with Anytime
    Inference", ICLR: as `si_blurry`, without its random numbers of classes and samples. The exchange goes through one
    shuffled pool, so that a task gets some of its own samples back (about a T-th), where the paper deals them to the
    other tasks.

    Version history:
        1: first version.
    """

    stochastic: ClassVar[bool] = False
    example: ClassVar[str] = "--scenario.evaluate-every 100"


def _rows_of(rows: list[Int], classes: Int) -> Int:
    """Return the rows of some classes in the order of the data set."""
    return join([torch.from_numpy(r) for r in rows], classes.tolist()).numpy()
