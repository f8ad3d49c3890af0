"""How far a model's confidence is from its accuracy: the bins of a reliability diagram, and their mean gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clframe.errors import ConfigurationError
from clframe.metrics.cube import Pairs
from clframe.metrics.predictions import Predictions, Tasks

__all__ = ["BINS", "Reliability", "reliability", "seen_reliability"]

BINS = 15
"""Bins of the calibration error, as in Guo et al. 2017."""

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Reliability:
    """A reliability diagram: samples by confidence, in B bins of equal width.

    Attributes:
        edges: `(B + 1,)` from 0 to 1; a bin holds its upper edge, and the first one 0 as well.
        counts: `(B,)` samples of every bin.
        confidence: `(B,)` their mean confidence, NaN in an empty bin.
        accuracy: `(B,)` the fraction of them that was predicted right, likewise.
    """

    edges: Float
    counts: NDArray[np.int64]
    confidence: Float
    accuracy: Float

    @property
    def error(self) -> float:
        """ECE = Σ_b (n_b / n) |accuracy_b - confidence_b|, the expected calibration error; NaN without samples."""
        filled = self.counts > 0
        if not filled.any():
            return float("nan")
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float(np.average(gaps, weights=self.counts[filled]))

    def to_dict(self) -> dict[str, Any]:
        """The diagram as JSON types, NaN as None."""
        named = {name: [None if np.isnan(v) else v for v in values.tolist()] for name, values in vars(self).items()}
        return {**named, "error": None if np.isnan(self.error) else self.error}


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> Reliability:
    """Sort samples into bins by their confidence.

    Guo, Pleiss, Sun and Weinberger 2017, "On Calibration of Modern Neural Networks", section 2.

    Args:
        confidence: `(N,)` probability of the predicted class, in [0, 1].
        correct: `(N,)` whether the prediction was right.
        bins: B.

    Raises:
        ConfigurationError: The shapes differ, or there is no bin.
    """
    p, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if p.ndim != 1 or p.shape != right.shape or bins < 1:
        raise ConfigurationError(
            f"A reliability diagram needs a confidence and an outcome for each sample and at least one bin, received "
            f"{p.shape}, {right.shape} and {bins} bins; correct them."
        )
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, p, side="left") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    means = []
    for values in (p, right):
        total = np.bincount(place, weights=values, minlength=bins)
        means.append(np.divide(total, counts, out=np.full(bins, np.nan), where=counts > 0))
    return Reliability(edges, counts, *means)


def seen_reliability(predictions: Predictions, tasks: Tasks, after: int) -> Reliability:
    """Sort the samples of everything seen after so many experiences into bins by the confidence of their prediction.

    Args:
        predictions: What one head said after them, among all classes seen.
        tasks: The evaluation tasks of the stream.
        after: Experiences trained.

    Raises:
        ConfigurationError: The predictions hold no confidence.
    """
    if predictions.confidence is None or predictions.predicted is None:
        raise ConfigurationError(
            "A reliability diagram needs the confidence of every prediction, which these don't hold; it is made for runs that "
            "are scored by accuracy."
        )
    pairs = Pairs.of(tasks)
    seen = (pairs.seen_at[pairs.locate(predictions)] <= after) & (predictions.predicted >= 0)
    return reliability(predictions.confidence[seen], (predictions.predicted == predictions.target)[seen])
