"""What is left of what was to be forgotten: margins, their divergence from retrained models, steps to learn it again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clframe.errors import ConfigurationError

__all__ = ["klom", "margins", "steps_to_regain"]

Float = NDArray[np.float64]

MARGIN_LIMIT = 100.0
"""Margins are clipped to ± this."""
MOST_BINS = 20
PSEUDO_COUNT = 0.5
"""Models added to every bin, so that an empty one makes no infinite divergence (Jeffreys' prior)."""


def margins(scores: ArrayLike, targets: ArrayLike) -> Float:
    """How far the right class is ahead: its score minus the logsumexp of the others, `(N,)`.

    Args:
        scores: `(N, K)` logits.
        targets: `(N,)` right classes, below K.
    """
    logits, right = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=np.int64)
    rows = np.arange(len(right))
    others = logits.copy()
    others[rows, right] = -np.inf
    highest = np.maximum(others.max(axis=1, initial=-np.inf), -1e300)  # a single class has no others
    with np.errstate(divide="ignore"):
        rest = highest + np.log(np.exp(others - highest[:, None]).sum(axis=1))
    result: Float = logits[rows, right] - rest
    return result


def klom(unlearned: ArrayLike, retrained: ArrayLike) -> Float:
    """KL divergence of margins: for every point KL(retrained ‖ unlearned) of histograms over models, `(N,)`.

    Georgiev et al. 2024, "Attribute-to-Delete: Machine Unlearning via Datamodel Matching", compare hundreds of models.
    This is a form for few. Margins are clipped to ±100; a point's histogram has min(20, max(2, ⌈√k⌉)) bins of equal width,
    k the models of the smaller side, between the least and the greatest margin that any model gives the point; half a
    model is added to every bin. The value is 0 for equal histograms; the largest that k models on each side can give, those
    of no overlap, grows with k.

    Args:
        unlearned: `(k, N)` margins of k models that unlearned.
        retrained: `(k', N)` margins of k' models that never learnt what was forgotten.

    Raises:
        ConfigurationError: The points differ, or there is no model on a side.
    """
    sides = [np.asarray(given, dtype=np.float64) for given in (retrained, unlearned)]
    if any(s.ndim != 2 or not len(s) for s in sides) or sides[0].shape[1] != sides[1].shape[1]:
        raise ConfigurationError(
            f"KLoM compares margins (models, points) of the same points, received {sides[1].shape} and {sides[0].shape}; "
            "give both kinds of models the same points."
        )
    sides = [np.clip(s, -MARGIN_LIMIT, MARGIN_LIMIT) for s in sides]
    low = np.minimum(*(s.min(axis=0) for s in sides))
    span = np.maximum(*(s.max(axis=0) for s in sides)) - low
    bins = min(MOST_BINS, max(2, math.ceil(math.sqrt(min(map(len, sides))))))
    p, q = (_histogram(s, low, np.where(span > 0, span, 1.0), bins) for s in sides)
    result: Float = (p * np.log(p / q)).sum(axis=0)
    return result


def _histogram(values: Float, low: Float, span: Float, bins: int) -> Float:
    """Probabilities `(bins, N)`."""
    place = np.minimum((bins * (values - low) / span).astype(np.int64), bins - 1)
    counts = np.full((bins, values.shape[1]), PSEUDO_COUNT)
    np.add.at(counts, (place, np.arange(values.shape[1])[None, :]), 1.0)
    shares: Float = counts / counts.sum(axis=0)
    return shares


def steps_to_regain(curve: Sequence[float], target: float) -> int | None:
    """Optimiser steps until an accuracy is reached; None where the curve ends before.

    Args:
        curve: Accuracy after 0, 1, 2, … steps.
        target: The accuracy to reach.
    """
    return next((step for step, accuracy in enumerate(curve) if accuracy >= target), None)
