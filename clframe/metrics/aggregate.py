"""Over seeds: mean, sample standard deviation, intervals, and whether a difference is supported.

A value that one seed can't give isn't averaged over the other seeds: the summary is NaN then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clframe.errors import ConfigurationError

__all__ = [
    "MIN_SEEDS",
    "Difference",
    "Summary",
    "bootstrap_interval",
    "paired_difference",
    "student_quantile",
    "summarise",
    "summarise_curves",
]

MIN_SEEDS = 3
"""With fewer seeds no difference counts as supported."""


@dataclass(frozen=True)
class Summary:
    """One number over seeds.

    Attributes:
        mean: Mean; NaN when a seed has no value.
        std: Sample standard deviation (divisor n - 1); NaN for one seed.
        n: Number of seeds.
        seeds: The seeds, ascending; empty when they weren't given.
        low: Lower end of the 95 % bootstrap interval of the mean; NaN for one seed.
        high: Upper end of it.
    """

    mean: float
    std: float
    n: int
    seeds: tuple[int, ...] = ()
    low: float = math.nan
    high: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON types, NaN as None."""
        data = {**asdict(self), "seeds": list(self.seeds)}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in data.items()}


Values = Mapping[int, float | None] | Sequence[float | None]


def _array(values: Iterable[float | None]) -> NDArray[np.float64]:
    return np.array([math.nan if v is None else float(v) for v in values], dtype=np.float64)


def summarise(values: Values) -> Summary:
    """Mean and spread over seeds.

    Args:
        values: `{seed: value}`, or the values alone; None and NaN mean that a seed has no value.

    Raises:
        ConfigurationError: There is no seed at all.

    >>> summarise({1: 0.5, 0: 0.7}).mean
    0.6
    """
    seeds: tuple[int, ...] = ()
    if isinstance(values, Mapping):
        seeds = tuple(sorted(values))
        values = [values[seed] for seed in seeds]
    array = _array(values)
    if array.size == 0:
        raise ConfigurationError(
            "A summary needs the value of at least one seed, but received none; finish a run first."
        )
    spread = float(array.std(ddof=1)) if array.size > 1 else math.nan
    low, high = bootstrap_interval(array)
    return Summary(mean=float(array.mean()), std=spread, n=array.size, seeds=seeds, low=low, high=high)


def summarise_curves(curves: Sequence[Sequence[float | None]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and sample standard deviation per point over the curves of several seeds.

    Returns:
        Two arrays `(T,)`; the deviations are NaN for one seed, a point is NaN where a seed has no value.

    Raises:
        ConfigurationError: There is no curve, or they differ in length.
    """
    if not curves or len({len(curve) for curve in curves}) > 1:
        raise ConfigurationError(
            f"Curves to summarise need the same length, but have {[len(curve) for curve in curves]} points; "
            "compare runs of the same scenario."
        )
    array = np.stack([_array(curve) for curve in curves])
    std = array.std(axis=0, ddof=1) if len(array) > 1 else np.full(array.shape[1], np.nan)
    return array.mean(axis=0), std


def bootstrap_interval(
    values: Sequence[float | None] | NDArray[np.float64],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, drawn with a generator of its own.

    Too narrow for few seeds, like every bootstrap; `paired_difference` uses Student's t instead.

    Args:
        values: One per seed.
        level: Share of the resampled means inside the interval.
        resamples: How often the seeds are drawn with replacement.
        seed: Of the resampling; the same values always give the same interval.

    Returns:
        Lower and upper end; NaN for fewer than two values, or where a seed has none.
    """
    array = _array(values)
    if array.size < 2 or np.isnan(array).any():
        return math.nan, math.nan
    draws = np.random.default_rng(seed).integers(array.size, size=(resamples, array.size))
    low, high = np.quantile(array[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """The difference of two settings, first minus second, with its interval from Student's t.

    Attributes:
        mean: Mean difference.
        low: Lower end of the interval; NaN where there are too few seeds for one.
        high: Upper end of it.
        n: Pairs of seeds, or the smaller number of seeds when unpaired.
        seeds: Seeds that both settings have, ascending.
        paired: Whether differences were taken seed by seed (at least two seeds shared), else Welch's interval.
        level: Level of the interval.
    """

    mean: float
    low: float
    high: float
    n: int
    seeds: tuple[int, ...]
    paired: bool
    level: float = 0.95

    @property
    def supported(self) -> bool:
        """Whether at least three seeds stand behind it and the interval leaves out zero."""
        return self.n >= MIN_SEEDS and (self.low > 0 or self.high < 0)

    def statement(self, scale: float = 1.0, digits: int = 4) -> str:
        """The difference in words.

        Args:
            scale: Factor of the shown numbers, 100 for percent.
            digits: Decimals.
        """
        how = f"paired over {self.n} seeds" if self.paired else f"unpaired, at least {self.n} seed(s) each"
        verdict = "supported" if self.supported else "not supported"
        if math.isnan(self.mean):
            return f"no difference can be given ({how})"
        shown = f"{scale * self.mean:+.{digits}f}"
        if math.isnan(self.low):
            return f"{shown}, {verdict}: too few seeds for an interval ({how})"
        ends = f"{scale * self.low:+.{digits}f} to {scale * self.high:+.{digits}f}"
        few = f", and {MIN_SEEDS} seeds are the least" if self.n < MIN_SEEDS else ""
        return f"{shown}, {verdict}: {self.level:.0%} interval {ends} ({how}{few})"


def paired_difference(
    first: Mapping[int, float | None], second: Mapping[int, float | None], *, level: float = 0.95
) -> Difference:
    """Compare two settings, seed by seed where they share seeds.

    With at least two shared seeds the interval is Student's t on the differences of these seeds, the others unused;
    else Welch's t on all seeds, its degrees of freedom rounded down. Intervals aren't corrected for the number of
    comparisons made.

    Args:
        first: `{seed: value}`.
        second: `{seed: value}`.
        level: Level of the interval.
    """
    shared = tuple(sorted(set(first) & set(second)))
    if len(shared) >= 2:
        gaps = _array(first[s] for s in shared) - _array(second[s] for s in shared)
        mean, half = float(gaps.mean()), _half_width(float(gaps.var(ddof=1)) / gaps.size, gaps.size - 1, level)
        return Difference(mean, mean - half, mean + half, len(shared), shared, paired=True, level=level)
    a, b = _array(first.values()), _array(second.values())
    n = min(a.size, b.size)
    mean = float(a.mean() - b.mean()) if n else math.nan
    if n < 2:
        return Difference(mean, math.nan, math.nan, n, shared, paired=False, level=level)
    parts = np.array([a.var(ddof=1) / a.size, b.var(ddof=1) / b.size])
    spread = np.sum(parts**2 / np.array([a.size - 1, b.size - 1]))
    freedom = int(parts.sum() ** 2 / spread) if spread > 0 else n - 1
    half = _half_width(float(parts.sum()), max(1, freedom), level)
    return Difference(mean, mean - half, mean + half, n, shared, paired=False, level=level)


def _half_width(variance_of_mean: float, freedom: int, level: float) -> float:
    if math.isnan(variance_of_mean):
        return math.nan
    return student_quantile((1 + level) / 2, freedom) * math.sqrt(variance_of_mean)


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
