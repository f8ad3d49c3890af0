"""What a probe matrix says about a run's extractors: what they lost, what they gained, and what the classifier wasted.

P[i, j] is the accuracy on task j of one classifier, fitted on the frozen features of extractor i and the training data of
all tasks, those to come included (`clframe.metrics.probe`). Source: Kim & Han 2023, "On the Stability-Plasticity Dilemma
of Class-Incremental Learning", CVPR.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clframe.metrics.scores import ScoreMatrix, as_scores

__all__ = ["did_not_learn", "joint_probe_gap", "plasticity", "probe_accuracy", "representation_gain", "stability"]

Float = NDArray[np.float64]
Matrix = ScoreMatrix | ArrayLike | Any


def probe_accuracy(matrix: Matrix) -> Float:
    """P_i = Σ_j n_j P[i, j] / Σ_j n_j over all tasks, for i = 1..T; NaN where a cell is missing."""
    scores = as_scores(matrix)
    filled = scores.sizes > 0
    found: Float = scores.values[1:, filled] @ scores.sizes[filled] / scores.sizes.sum()
    return found


def stability(matrix: Matrix) -> Float:
    """S_j = P[T, j] − P[j, j] (J,): what the extractor has lost (below 0) or gained of a task since it was taught."""
    scores = as_scores(matrix)
    return _rows(scores, np.full(len(scores.learned), scores.last)) - _rows(scores, scores.learned)


def plasticity(matrix: Matrix) -> Float:
    """Q_j = P[j, j] − P[j−1, j] (J,): what learning a task has brought the extractor for it; NaN in the first experience."""
    scores = as_scores(matrix)
    return _rows(scores, scores.learned) - _rows(scores, scores.learned - 1)


def _rows(scores: ScoreMatrix, rows: NDArray[np.int64]) -> Float:
    """A cell of every column; NaN in rows that don't exist, as of a task that is never taught."""
    columns = np.arange(len(rows))
    known = (rows >= 1) & (rows <= scores.last)
    return np.where(known, scores.values[np.where(known, rows, 0), columns], np.nan)


def representation_gain(matrix: Matrix) -> float:
    """G = P_T − P_1: what all that came after the first experience has brought the extractor."""
    means = probe_accuracy(matrix)
    return float(means[-1] - means[0])


def did_not_learn(gain: float, deviation: float) -> bool | None:
    """Whether the extractor did not learn after the first experience: G ≤ one standard deviation over seeds.

    Args:
        gain: Mean of G over the seeds.
        deviation: Sample standard deviation of G over the seeds.

    Returns:
        None where one of the two is NaN, as with a single seed.
    """
    return None if np.isnan(gain) or np.isnan(deviation) else bool(gain <= deviation)


def joint_probe_gap(seen_accuracy: ArrayLike, probe_seen_accuracy: ArrayLike) -> Float:
    """A_i − Â_i (T,): below 0, what a better classifier on the same features could recover.

    Args:
        seen_accuracy: (T,) A_i of the method's own classifier.
        probe_seen_accuracy: (T,) Â_i, of the probe restricted to the classes seen at i, on the same samples.
    """
    return np.asarray(seen_accuracy, dtype=np.float64) - np.asarray(probe_seen_accuracy, dtype=np.float64)
