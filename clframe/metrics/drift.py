"""Prototype drift: how far the mean feature of a class has moved since the experience that taught the class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clframe.errors import DataError

__all__ = ["Drift", "prototype_drift"]

Float = NDArray[np.float64]


def prototype_drift(
    before: NDArray[np.floating[Any]], spread: NDArray[np.floating[Any]], now: NDArray[np.floating[Any]]
) -> tuple[Float, Float]:
    """Return how far class means have moved, ‖μ_now − μ_before‖₂ / √(tr Σ_before), and the cosine of the two means.

    Distances count in the class's own spread: at 1, the mean has moved as far as the samples of the class lie from it
    in the root mean square. Features that have been added since, such as those of a new branch, are left out.

    Args:
        before: (K, D) class means after the experience that taught the class.
        spread: (K,) traces of the classes' covariances Σ_before then.
        now: (K, D') class means of the same samples now.

    Returns:
        Two arrays (K,): distance, and cosine. NaN where the features have become fewer (D' < D), and where the spread (of
        the distance) or a mean (of the cosine) is zero.

    Raises:
        DataError: The arrays are of different numbers of classes.
    """
    if not len(before) == len(spread) == len(now):
        raise DataError(
            f"Prototype drift needs means and spreads of the same classes, received {len(before)}, {len(spread)} and {len(now)}."
        )
    old, new = np.asarray(before, dtype=np.float64), np.asarray(now, dtype=np.float64)
    if new.shape[1] < old.shape[1]:
        return np.full(len(old), np.nan), np.full(len(old), np.nan)
    new = new[:, : old.shape[1]]
    moved = np.linalg.norm(new - old, axis=1)
    lengths = np.linalg.norm(new, axis=1) * np.linalg.norm(old, axis=1)
    return _ratio(moved, np.sqrt(np.asarray(spread, dtype=np.float64))), _ratio((new * old).sum(axis=1), lengths)


def _ratio(part: Float, whole: Float) -> Float:
    found: Float = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return found


class Drift:
    """Prototype drift of every class over a sequence of models.

    Attributes:
        distance: Per model, the drift of every class (K,); NaN until a model after the one that was taught the class.
        cosine: Likewise.

    Args:
        taught: (K,) number of the model (from 1) that was taught each class.
    """

    def __init__(self, taught: Sequence[int]) -> None:
        self.distance: list[Float] = []
        self.cosine: list[Float] = []
        self._taught = list(taught)
        self._before: dict[int, tuple[Float, float]] = {}

    def add(self, features: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> None:
        """Compare the next model.

        Args:
            features: (N, D) of the samples by which classes are compared: the same ones for every model.
            labels: (N,) their classes.
        """
        number = len(self.distance) + 1
        distance, cosine = np.full(len(self._taught), np.nan), np.full(len(self._taught), np.nan)
        for label in np.unique(labels).tolist():
            rows = features[labels == label].astype(np.float64)
            if self._taught[label] == number:
                spread = rows.var(axis=0, ddof=1).sum() if len(rows) > 1 else 0.0
                self._before[label] = rows.mean(axis=0), float(spread)
            elif label in self._before:
                mean, spread = self._before[label]
                moved = prototype_drift(mean[None], np.array([spread]), rows.mean(axis=0)[None])
                distance[label], cosine[label] = moved[0][0], moved[1][0]
        self.distance.append(distance)
        self.cosine.append(cosine)
