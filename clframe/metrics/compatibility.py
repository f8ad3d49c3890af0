"""Whether a newer model understands an older one's features: search and verification across models, and what follows.

`M[i, j]`, i ≥ j, is a measure with queries by model i and a gallery by model j. A pair is compatible where a newer model's
queries find more in the old gallery than the old model's own: `M[i, j] > M[j, j]`, strictly. Source: Biondi et al. 2023,
"CoReS: Compatible Representations via Stationarity"; its public code counts ties as compatible, here they are not.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clframe.errors import ConfigurationError

__all__ = [
    "average_accuracy",
    "average_compatibility",
    "compatibility_gain",
    "compatibility_price",
    "cosine_similarities",
    "search",
    "verification_accuracy",
]

Float = NDArray[np.float64]
FOLDS = 10
"""Of the verification protocol, as for Labeled Faces in the Wild."""
_ROWS = 512
_DECIMALS = 9


def cosine_similarities(first: ArrayLike, second: ArrayLike) -> Float:
    """Similarities `(N, M)` of features of two models.

    Where one model's features are longer than the other's they are truncated to the shorter length, and only then brought
    to unit length: extractors that grow append new dimensions behind the old ones, which are compared. Rounded to nine
    decimals, so that what is equal stays so whatever the order of summation.

    Args:
        first: `(N, D)`.
        second: `(M, D')`.
    """
    shared = min(np.shape(first)[1], np.shape(second)[1])
    result: Float = np.round(_unit(first, shared) @ _unit(second, shared).T, _DECIMALS)
    return result


def paired_similarities(first: ArrayLike, second: ArrayLike) -> Float:
    """Similarities `(N,)` of features row by row, under the same rule.

    Args:
        first: `(N, D)`.
        second: `(N, D')`.
    """
    shared = min(np.shape(first)[1], np.shape(second)[1])
    result: Float = np.round((_unit(first, shared) * _unit(second, shared)).sum(axis=1), _DECIMALS)
    return result


def _unit(features: ArrayLike, length: int) -> Float:
    """Features cut to a length, of unit norm; zeros stay zeros."""
    cut = np.asarray(features, dtype=np.float64)[:, :length]
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    result: Float = cut / np.where(norms > 0, norms, 1.0)
    return result


def verification_accuracy(similarity: ArrayLike, same: ArrayLike) -> float:
    """Accuracy of telling pairs of one identity from pairs of two by a threshold on their similarity.

    The pairs are cut into ten folds in their order. The threshold for a fold is the best one on the other nine: of the
    cuts between neighbouring similarities the one that tells most pairs right, and of equally good ones the highest.

    Args:
        similarity: `(P,)`.
        same: `(P,)` whether the two images are of one identity.

    Returns:
        The mean over folds.

    Raises:
        ConfigurationError: There are fewer pairs than folds.
    """
    values, alike = np.asarray(similarity, dtype=np.float64), np.asarray(same, dtype=bool)
    if values.shape != alike.shape or len(values) < FOLDS:
        raise ConfigurationError(
            f"Verification needs at least {FOLDS} pairs, with a similarity and an answer each, received {values.shape} and "
            f"{alike.shape}; give more pairs."
        )
    right = []
    for fold in np.array_split(np.arange(len(values)), FOLDS):
        rest = np.ones(len(values), dtype=bool)
        rest[fold] = False
        accepted = values[fold] >= _best_threshold(values[rest], alike[rest])
        right.append(np.mean(accepted == alike[fold]))
    return float(np.mean(right))


def _best_threshold(values: Float, alike: NDArray[np.bool_]) -> float:
    """The highest of the best thresholds; accepting nothing is one too."""
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    score = np.concatenate([[0], np.cumsum(np.where(alike[order], 1, -1))])  # right pairs, up to a constant
    between = np.concatenate([[True], ranked[1:] < ranked[:-1], [True]])  # a cut can't part equal similarities
    best = int(np.argmax(np.where(between, score, score.min() - 1)))
    if best in (0, len(ranked)):
        return float("inf") if best == 0 else float("-inf")
    return float((ranked[best - 1] + ranked[best]) / 2)


def search(
    queries: ArrayLike, gallery: ArrayLike, query_identities: ArrayLike, gallery_identities: ArrayLike
) -> tuple[float, float]:
    """Search a gallery for every query by cosine similarity.

    Equal similarities have no order: the nearest image counts by the share of right ones among equally near ones, and
    precision is read only where the similarity changes, as scikit-learn's `average_precision_score` does.

    Args:
        queries: `(Q, D)` features.
        gallery: `(G, D')` features, see `cosine_similarities`.
        query_identities: `(Q,)`.
        gallery_identities: `(G,)`.

    Returns:
        Top-1 accuracy, and the mean over queries of the average precision `Σ_n (R_n - R_{n-1}) P_n`. Queries whose
        identity the gallery lacks count for neither; both are NaN where that is so of all.
    """
    wanted, there = np.asarray(query_identities), np.asarray(gallery_identities)
    top, precision = [], []
    for rows in _chunks(len(wanted)):
        similarity = cosine_similarities(np.asarray(queries)[rows], gallery)
        relevant = wanted[rows][:, None] == there[None, :]
        findable = relevant.any(axis=1)
        similarity, relevant = similarity[findable], relevant[findable]
        nearest = similarity == similarity.max(axis=1, keepdims=True)
        top.append((relevant & nearest).sum(axis=1) / nearest.sum(axis=1))
        precision.append(_average_precision(similarity, relevant))
    found = [np.concatenate(parts) for parts in (top, precision)]
    if not len(found[0]):
        return float("nan"), float("nan")
    return float(found[0].mean()), float(found[1].mean())


def _chunks(count: int) -> Iterator[slice]:
    return (slice(k, k + _ROWS) for k in range(0, count, _ROWS))


def _average_precision(similarity: Float, relevant: NDArray[np.bool_]) -> Float:
    """Average precision `(Q,)` of every row of `(Q, G)`."""
    order = np.argsort(-similarity, axis=1, kind="stable")
    ranked, hits = np.take_along_axis(similarity, order, 1), np.take_along_axis(relevant, order, 1)
    count = hits.shape[1]
    ends = np.concatenate([ranked[:, 1:] < ranked[:, :-1], np.ones((len(hits), 1), dtype=bool)], axis=1)
    at = np.where(ends, np.arange(count), count)  # where the group of equals ends that a place belongs to
    at = np.minimum.accumulate(at[:, ::-1], axis=1)[:, ::-1]
    precision = np.take_along_axis(np.cumsum(hits, axis=1), at, 1) / (at + 1)
    result: Float = (hits * precision).sum(axis=1) / hits.sum(axis=1)
    return result


def average_compatibility(matrix: ArrayLike) -> float:
    """AC = (2/(T(T-1))) Σ_{i>j} 1[M[i,j] > M[j,j]]; a tie isn't compatible. NaN for a single model.

    Args:
        matrix: `(T, T)`, of which the lower triangle is read.
    """
    values = _square(matrix)
    later, earlier = np.tril_indices(len(values), -1)
    if not len(later):
        return float("nan")
    return float(np.mean(values[later, earlier] > values[earlier, earlier]))


def average_accuracy(matrix: ArrayLike) -> float:
    """AM, the mean of the lower triangle with the diagonal.

    Args:
        matrix: `(T, T)`.
    """
    values = _square(matrix)
    return float(values[np.tril_indices(len(values))].mean())


def compatibility_gain(matrix: ArrayLike, independent: ArrayLike) -> Float:
    """(M[i,j] - M[j,j]) / (M*_i - M[j,j]): how much of an independent model's improvement the old gallery gets, `(T, T)`.

    NaN on and above the diagonal, and where the independent model improves nothing.

    Args:
        matrix: `(T, T)`.
        independent: `(T,)` M*_i, an independently trained model i against itself.
    """
    values, best = _square(matrix), np.asarray(independent, dtype=np.float64)
    own = np.diagonal(values)[None, :]
    room = best[:, None] - own
    gain: Float = np.divide(values - own, room, out=np.full(values.shape, np.nan), where=room > 0)
    gain[np.triu_indices(len(values))] = np.nan
    return gain


def compatibility_price(matrix: ArrayLike, independent: ArrayLike) -> Float:
    """M[i,i] - M*_i `(T,)`: negative where being compatible, or learning one after the other, costs accuracy.

    Args:
        matrix: `(T, T)`.
        independent: `(T,)` M*_i.
    """
    result: Float = np.diagonal(_square(matrix)) - np.asarray(independent, dtype=np.float64)
    return result


def _square(matrix: ArrayLike) -> Float:
    values = np.asarray(matrix, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or not len(values):
        raise ConfigurationError(
            f"A compatibility matrix has the shape (T, T), but this has {values.shape}; give one row and column per model."
        )
    return values
