"""Over seeds: mean, sample standard deviation and bootstrap intervals; `differences` compares.

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
    "Summary",
    "bootstrap_interval",
    "summarise",
    "summarise_curves",
]


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
