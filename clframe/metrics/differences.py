"""Whether two settings differ: paired differences over seeds, their p values, and Holm's correction for many of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["MIN_SEEDS", "Difference", "corrected", "holm", "paired_difference", "student_quantile"]

MIN_SEEDS = 3
"""With fewer seeds no difference counts as supported."""


@dataclass(frozen=True)
class Difference:
    """The difference of two settings, first minus second, with its interval and p value from Student's t.

    Attributes:
        mean: Mean difference.
        low: Lower end of the interval; NaN where there are too few seeds for one.
        high: Upper end of it.
        n: Pairs of seeds, or the smaller number of seeds when unpaired.
        seeds: Seeds that both settings have, ascending.
        paired: Whether differences were taken seed by seed (at least two seeds shared), else Welch's interval.
        level: Level of the interval.
        p: Two-sided p value of no difference; NaN where there is no interval.
        adjusted: The p value after Holm's correction, see `corrected`; equal to `p` where nothing was corrected.
        comparisons: How many comparisons the correction is for; 1 where nothing was corrected.
    """

    mean: float
    low: float
    high: float
    n: int
    seeds: tuple[int, ...]
    paired: bool
    level: float = 0.95
    p: float = math.nan
    adjusted: float = math.nan
    comparisons: int = 1

    @property
    def supported(self) -> bool:
        """Whether at least three seeds stand behind it and its (corrected) p value is below 1 - level."""
        return self.n >= MIN_SEEDS and self.adjusted < 1 - self.level


def paired_difference(
    first: Mapping[int, float | None], second: Mapping[int, float | None], *, level: float = 0.95
) -> Difference:
    """Compare two settings, seed by seed where they share seeds.

    With at least two shared seeds this is Student's t on the differences of these seeds, the others unused; else
    Welch's t on all seeds, its degrees of freedom rounded down. One comparison alone: `corrected` accounts for many.

    Args:
        first: `{seed: value}`.
        second: `{seed: value}`.
        level: Level of the interval.
    """
    shared = tuple(sorted(set(first) & set(second)))
    if len(shared) >= 2:
        gaps = _array(first[s] for s in shared) - _array(second[s] for s in shared)
        variance = float(gaps.var(ddof=1)) / gaps.size
        return _difference(float(gaps.mean()), variance, gaps.size - 1, gaps.size, shared, True, level)
    a, b = _array(first.values()), _array(second.values())
    n = min(a.size, b.size)
    mean = float(a.mean() - b.mean()) if n else math.nan
    if n < 2:
        return Difference(mean, math.nan, math.nan, n, shared, paired=False, level=level)
    parts = np.array([a.var(ddof=1) / a.size, b.var(ddof=1) / b.size])
    spread = np.sum(parts**2 / np.array([a.size - 1, b.size - 1]))
    freedom = int(parts.sum() ** 2 / spread) if spread > 0 else n - 1
    return _difference(mean, float(parts.sum()), max(1, freedom), n, shared, False, level)


def _difference(
    mean: float, variance: float, freedom: int, n: int, seeds: tuple[int, ...], paired: bool, level: float
) -> Difference:
    """Interval and p value of a mean whose own variance is estimated with so many degrees of freedom."""
    if math.isnan(variance):
        return Difference(mean, math.nan, math.nan, n, seeds, paired, level)
    error = math.sqrt(variance)
    half = student_quantile((1 + level) / 2, freedom) * error
    same = 0.0 if mean else 1.0  # where every seed has the very same difference
    p = max(0.0, 2 * (1 - _student_cdf(abs(mean) / error, freedom))) if error > 0 else same
    return Difference(mean, mean - half, mean + half, n, seeds, paired, level, p, p)


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Correct a family of differences for their number, so that the chance of any false support stays below 1 - level.

    Differences with fewer than three seeds are never supported, so they don't count among the comparisons; they get
    no adjusted p value.
    """
    counted = [d.p if d.n >= MIN_SEEDS else math.nan for d in differences]
    number = sum(not math.isnan(p) for p in counted)
    adjusted = holm(counted)
    return [replace(d, adjusted=p, comparisons=number) for d, p in zip(differences, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for their number: Holm 1979, A simple sequentially rejective multiple test procedure.

    The k-th smallest of m is multiplied by m - k + 1 and is at least as large as the adjusted one before it. NaN is no
    comparison: it stays and doesn't count.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted((k for k, p in enumerate(p_values) if not math.isnan(p)), key=lambda k: p_values[k])
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for place, k in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p_values[k]))
        adjusted[k] = largest
    return adjusted


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution, by bisection of its closed form for whole degrees of freedom.

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4.

    Args:
        probability: Between 0.5 and 1.
        freedom: Degrees of freedom, at least 1.

    >>> round(student_quantile(0.975, 4), 3)
    2.776
    """
    low, high = 0.0, 1.0
    while _student_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _student_cdf(t: float, freedom: int) -> float:
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + inside / 2


def _array(values: Iterable[float | None]) -> NDArray[np.float64]:
    return np.array([math.nan if v is None else float(v) for v in values], dtype=np.float64)
