"""Centred kernel alignment (CKA): how alike two layers arrange the same samples, whatever basis they do it in.

Kornblith, Norouzi, Lee & Hinton 2019, with the unbiased estimator HSIC₁ of Song et al. 2012, accumulated over
mini-batches as in Nguyen, Raghu & Kornblith 2021. With K = XXᵀ and L = YYᵀ, their diagonals zeroed, of n samples:

    HSIC₁(K, L) = [ tr(KL) + (1ᵀK1)(1ᵀL1) / ((n−1)(n−2)) − 2/(n−2) · 1ᵀKL1 ] / (n(n−3))
    CKA = Σ_b HSIC₁(K, L) / √( Σ_b HSIC₁(K, K) · Σ_b HSIC₁(L, L) )   over mini-batches b

A layer enters as its Gram matrices alone, one per mini-batch: whoever keeps these compares it with any number of others,
of whatever width, without passing the samples through the network again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clframe.errors import DataError

__all__ = ["LEAST_SAMPLES", "Alignments", "cka", "gram", "hsic"]

Float = NDArray[np.float64]

Grams = Mapping[str, Sequence[Float]]
"""By layer: a Gram matrix per mini-batch."""

LEAST_SAMPLES = 4
"""Samples below which a mini-batch has no HSIC₁."""


def gram(*activations: NDArray[np.floating[Any]]) -> Float:
    """Return the Gram matrix (n, n) of a mini-batch, its diagonal zeroed.

    Args:
        activations: (n, …) arrays, flattened and laid side by side: several branches of a network are one layer.

    Raises:
        DataError: There are none, or they are of different numbers of samples.
    """
    sizes = {len(values) for values in activations}
    if len(sizes) != 1:
        raise DataError(f"A Gram matrix needs activations of the same samples, received {sorted(sizes)} samples.")
    found = np.zeros((n := sizes.pop(), n))
    for values in activations:
        rows = values.reshape(n, -1)
        rows = rows - rows.mean(axis=0)  # HSIC₁ doesn't change, but rounding would drown in a large common part
        found += rows @ rows.T
    np.fill_diagonal(found, 0.0)
    return found


def hsic(first: Float, second: Float) -> float:
    """Return HSIC₁ of two Gram matrices (n, n) with zero diagonals; unbiased, so it may be negative.

    Raises:
        DataError: There are fewer than 4 samples, or the matrices differ in size.
    """
    n = len(first)
    if first.shape != second.shape or n < LEAST_SAMPLES:
        raise DataError(
            f"HSIC₁ needs two Gram matrices of one size, of {LEAST_SAMPLES} samples or more, received "
            f"{first.shape} and {second.shape}."
        )
    rows, others = first.sum(axis=0), second.sum(axis=0)
    both = rows.sum() * others.sum() / ((n - 1) * (n - 2))
    return float((np.vdot(first, second) + both - 2 / (n - 2) * (rows @ others)) / (n * (n - 3)))


def cka(first: Sequence[Float], second: Sequence[Float]) -> float:
    """Return the CKA of two layers from their Gram matrices, one per mini-batch of the same samples.

    1 means the same up to rotation, reflection and scale; unrelated layers are near 0, on either side. Mini-batches of
    fewer than 4 samples are left out.

    Returns:
        The alignment; NaN where no mini-batch is left, or a layer tells no sample from another.

    Raises:
        DataError: The layers have unlike mini-batches.
    """
    if [len(k) for k in first] != [len(k) for k in second]:
        raise DataError(
            f"CKA needs the same mini-batches of both layers, received {[len(k) for k in first]} and "
            f"{[len(k) for k in second]} samples."
        )
    pairs = [(k, m) for k, m in zip(first, second, strict=True) if len(k) >= LEAST_SAMPLES]
    cross = sum(hsic(k, m) for k, m in pairs)
    own = sum(hsic(k, k) for k, _ in pairs), sum(hsic(m, m) for _, m in pairs)
    return cross / math.sqrt(own[0] * own[1]) if min(own) > 0 else math.nan


class Alignments:
    """CKA of a sequence of models, layer by layer: of each with the first one, and with the one before.

    Attributes:
        to_first: By layer, a value per model.
        to_previous: Likewise; NaN for the first model.

    Args:
        seen_at: Number of the first model (from 1) whose comparison a sample enters, one array (n,) per mini-batch; None
            lets all samples enter all of them.
    """

    def __init__(self, seen_at: Sequence[NDArray[np.integer[Any]]] | None = None) -> None:
        self.to_first: dict[str, list[float]] = {}
        self.to_previous: dict[str, list[float]] = {}
        self._seen_at = seen_at
        self._first: Grams | None = None
        self._before: Grams | None = None
        self._count = 0

    def add(self, grams: Grams) -> None:
        """Compare the next model; of the others the first and the last one are kept."""
        self._count += 1
        self._first = grams if self._first is None else self._first
        for found, other in ((self.to_first, self._first), (self.to_previous, self._before)):
            for layer, now in grams.items():
                value = math.nan if other is None else cka(self._cut(other[layer]), self._cut(now))
                found.setdefault(layer, []).append(value)
        self._before = grams

    def _cut(self, grams: Sequence[Float]) -> Sequence[Float]:
        if self._seen_at is None:
            return grams
        kept = [np.flatnonzero(part <= self._count) for part in self._seen_at]
        return [matrix[np.ix_(rows, rows)] for matrix, rows in zip(grams, kept, strict=True)]
