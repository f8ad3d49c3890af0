"""Telling what was learnt from what is new by a score of each sample: AUROC, FPR@95, and the scores.

Everywhere a larger score means "known", and known samples are the positive side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clframe.errors import ConfigurationError
from clframe.metrics.predictions import Predictions

__all__ = ["SCORES", "Weibull", "auroc", "fpr_at_tpr", "known_score"]

Float = NDArray[np.float64]

SCORES = ("confidence", "entropy", "energy")
"""The scores that kept predictions give."""

_SIGNS = {"confidence": 1.0, "entropy": -1.0, "energy": -1.0}


def known_score(predictions: Predictions, score: str) -> Float | None:
    """A score `(N,)`, larger for what looks known: max softmax, minus the entropy, minus the energy; None if not kept."""
    kept: NDArray[np.float32] | None = getattr(predictions, score)
    return None if kept is None else _SIGNS[score] * kept.astype(np.float64)


def auroc(known: ArrayLike, unknown: ArrayLike) -> float:
    """Probability that a known sample has a larger score than an unknown one; a tie counts one half.

    Args:
        known: `(N,)` scores of the positive side.
        unknown: `(M,)` scores of the negative side.

    Returns:
        The area under the curve of true over false positive rate; NaN where a side is empty.

    Raises:
        ConfigurationError: A score isn't a number.
    """
    positive, negative = _scores(known), np.sort(_scores(unknown))
    if not len(positive) or not len(negative):
        return float("nan")
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    return float((below + not_above).mean() / 2 / len(negative))


def fpr_at_tpr(known: ArrayLike, unknown: ArrayLike, percent: int = 95) -> float:
    """Fraction of unknown samples accepted by the largest threshold that accepts so many percent of the known ones.

    A sample is accepted when its score is at least the threshold.

    Args:
        known: `(N,)` scores of the positive side.
        unknown: `(M,)` scores of the negative side.
        percent: The least true positive rate.

    Returns:
        The false positive rate; NaN where a side is empty.

    Raises:
        ConfigurationError: A score isn't a number.
    """
    positive, negative = np.sort(_scores(known)), _scores(unknown)
    if not len(positive) or not len(negative):
        return float("nan")
    accepted = -(-percent * len(positive) // 100)
    return float(np.mean(negative >= positive[len(positive) - accepted]))


def _scores(given: ArrayLike) -> Float:
    values = np.asarray(given, dtype=np.float64)
    if values.ndim != 1 or np.isnan(values).any():
        raise ConfigurationError(
            f"Known and unknown are told apart by one number per sample, received shape {values.shape} with "
            f"{int(np.isnan(values).sum())} NaN; correct the scores."
        )
    return values


class Weibull:
    """A Weibull distribution with location 0, fitted to the largest distances of a class by maximum likelihood.

    Extreme-value theory gives a maximum over many samples this form; Bendale and Boult 2016, "Towards Open Set Deep
    Networks", fit it to the `tail` largest distances between a class's samples and its mean.

        F(d) = 1 - exp(-(d / λ)^k)

    Args:
        distances: `(N,)` not negative, at least two of them above 0.
        tail: How many of the largest ones are fitted; at most half of them, and at least two.

    Attributes:
        shape: k, at most 1e4: equal distances have no finite one.
        scale: λ.
    """

    _MOST = 1e4

    def __init__(self, distances: ArrayLike, tail: int = 20) -> None:
        values = np.sort(np.asarray(distances, dtype=np.float64))
        values = values[values > 0]
        if len(values) < 2:
            raise ConfigurationError(
                f"A Weibull fit needs at least two distances above 0, received {len(values)}; give more samples."
            )
        largest = values[-max(2, min(tail, len(values) // 2)) :]
        logs = np.log(largest)
        self.shape = self._likeliest(logs)
        top = logs.max()
        self.scale = float(np.exp(top + np.log(np.mean(np.exp(self.shape * (logs - top)))) / self.shape))

    def _likeliest(self, logs: Float) -> float:
        """Solve Σ d^k ln d / Σ d^k - 1/k = mean ln d for k by bisection: the left side rises with k."""
        centred = logs - logs.max()

        def excess(k: float) -> float:
            weights = np.exp(k * centred)
            return float(np.average(centred, weights=weights) - 1 / k - centred.mean())

        low, high = 1e-3, float(self._MOST)
        if excess(high) < 0:
            return high
        for _ in range(100):
            middle = (low * high) ** 0.5
            low, high = (low, middle) if excess(middle) > 0 else (middle, high)
        return float((low * high) ** 0.5)

    def log_hazard(self, distances: ArrayLike) -> Float:
        """Return k ln(d / λ): rises with F(d) and, unlike it, doesn't saturate at 0 and 1; -inf for a distance of 0."""
        with np.errstate(divide="ignore"):
            result: Float = self.shape * (np.log(np.asarray(distances, dtype=np.float64)) - np.log(self.scale))
        return result

    def cdf(self, distances: ArrayLike) -> Float:
        """F(d)."""
        with np.errstate(over="ignore"):
            result: Float = -np.expm1(-np.exp(self.log_hazard(distances)))
        return result
