"""What a simple classifier can read in frozen features: a logistic-regression probe of one fixed recipe, and nearest neighbours.

The recipe is the same for every extractor, so that what differs between two probes is what differs between the features:
they are standardised by their own training statistics, the strength of the L2 penalty is the best of `STRENGTHS` on a
fixed tenth of the training samples, and the probe is then fitted to all of them.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clframe.errors import DataError

__all__ = ["MAX_ITERATIONS", "NEIGHBOURS", "STRENGTHS", "LinearProbe", "NeighbourProbe", "fit_probe", "held_out"]

Values = NDArray[np.floating[Any]]
Int = NDArray[np.int64]

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""λ in: mean cross-entropy + λ/2 ‖W‖²; independent of the number of samples. Tried from the strongest on."""

MAX_ITERATIONS = 500
"""Of L-BFGS, for every strength; a fit begins where the stronger penalty left it."""

NEIGHBOURS = 20
_TOLERANCE = 1e-5  # of the gradient; at scikit-learn's own 1e-4, one answer in a hundred still changes
_HELD_OUT = 10  # every tenth sample
_CHUNK = 1024  # test samples whose similarities are in memory at once


def held_out(targets: Int) -> NDArray[np.bool_]:
    """Choose a tenth of the samples, spread evenly over the classes; the same for the same targets.

    Args:
        targets: (N,) labels.

    Returns:
        (N,): whether a sample serves the choice of the strength.

    Raises:
        DataError: There are fewer than 10 samples, or a single class.
    """
    if len(targets) < _HELD_OUT or len(np.unique(targets)) < 2:
        raise DataError(
            f"A probe needs at least {_HELD_OUT} training samples of two classes, received {len(targets)} of "
            f"{len(np.unique(targets))}."
        )
    shuffled = np.random.default_rng(0).permutation(len(targets))
    by_class = shuffled[np.argsort(targets[shuffled], kind="stable")]
    chosen = np.zeros(len(targets), dtype=bool)
    chosen[by_class[_HELD_OUT // 2 :: _HELD_OUT]] = True
    return chosen


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A multinomial logistic regression on standardised features.

    Attributes:
        labels: (K,) the classes it knows, ascending.
        weight: (K, D), and
        bias: (K,): of standardised features.
        mean: (D,) by which features are standardised, and
        deviation: (D,) likewise.
        strength: λ that was chosen.
    """

    labels: Int
    weight: Values
    bias: Values
    mean: Values
    deviation: Values
    strength: float

    def predict(self, features: Values, num_classes: int | None = None) -> Int:
        """Return the label (N,) of every row of features (N, D), on request among the first `num_classes` labels."""
        scores = ((features - self.mean) / self.deviation) @ self.weight.T + self.bias
        among = len(self.labels) if num_classes is None else int(np.searchsorted(self.labels, num_classes))
        found: Int = self.labels[scores[:, :among].argmax(axis=1)] if among else np.full(len(features), -1)
        return found


@dataclass(frozen=True, eq=False)
class NeighbourProbe:
    """A vote of the k training samples of greatest cosine similarity; among equal counts the lowest label wins.

    Attributes:
        features: (N, D) of the training samples.
        targets: (N,) their labels.
        neighbours: k; of fewer training samples, all vote.
    """

    features: Values
    targets: Int
    neighbours: int = NEIGHBOURS

    @property
    def strength(self) -> float:
        """NaN: nothing is chosen."""
        return float("nan")

    def predict(self, features: Values, num_classes: int | None = None) -> Int:
        """Return the label (N,) of every row of features (N, D), on request among the first `num_classes` labels."""
        chosen = slice(None) if num_classes is None else self.targets < num_classes
        targets, gallery = self.targets[chosen], _unit(self.features[chosen])
        if not len(targets):
            return np.full(len(features), -1, dtype=np.int64)
        k, width = min(self.neighbours, len(targets)), int(targets.max()) + 1
        found = np.empty(len(features), dtype=np.int64)
        for start in range(0, len(features), _CHUNK):
            alike = _unit(features[start : start + _CHUNK]) @ gallery.T
            nearest = targets[np.argpartition(-alike, k - 1, axis=1)[:, :k]]
            cells = nearest + width * np.arange(len(nearest))[:, None]
            votes = np.bincount(cells.ravel(), minlength=width * len(nearest)).reshape(-1, width)
            found[start : start + _CHUNK] = votes.argmax(axis=1)
        return found


def _unit(features: Values) -> Values:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1)


def fit_probe(
    features: Values, targets: Int, *, strengths: tuple[float, ...] = STRENGTHS, tick: Callable[[], None] | None = None
) -> LinearProbe:
    """Fit a linear probe by the fixed recipe; nothing is drawn from any global generator.

    Args:
        features: (N, D) of the training samples.
        targets: (N,) their labels.
        strengths: Penalties to choose from, from the strongest on; of equally good ones the strongest is taken.
        tick: Called after every fit, of which there are one more than strengths.

    Raises:
        DataError: There are too few samples to choose a strength.
    """
    aside = held_out(targets)
    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    deviation = np.where(deviation > 0, deviation, 1.0)
    rows = (features - mean) / deviation
    best, fitted, chosen = -1.0, None, None
    for strength in strengths:
        fitted = _fit(rows[~aside], targets[~aside], strength, fitted)
        predicted = fitted.predict(rows[aside])
        accuracy = float((predicted == targets[aside]).mean())
        if accuracy > best:
            best, chosen = accuracy, fitted
        if tick is not None:
            tick()
    probe = _fit(rows, targets, chosen.strength if chosen else strengths[0], chosen)
    if tick is not None:
        tick()
    return dataclasses.replace(probe, mean=mean, deviation=deviation)


def _fit(rows: Values, targets: Int, strength: float, start: LinearProbe | None) -> LinearProbe:
    """Fit to standardised rows, from the weights of another fit on if that knows the same classes."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / (strength * len(rows)), tol=_TOLERANCE, max_iter=MAX_ITERATIONS, warm_start=True)
    labels = np.unique(targets)
    if start is not None and np.array_equal(start.labels, labels):
        two = len(labels) == 2  # of two classes the second one's weights, less those of the first
        model.classes_ = labels
        model.coef_ = np.diff(start.weight, axis=0) if two else start.weight.copy()
        model.intercept_ = np.diff(start.bias) if two else start.bias.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows, targets)
    weight, bias = model.coef_, model.intercept_
    if len(labels) == 2:
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    width = weight.shape[1]
    return LinearProbe(labels, weight, bias, np.zeros(width), np.ones(width), strength)
