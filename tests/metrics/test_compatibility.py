"""Compatibility: verification and search against plain loops and scikit-learn, and what follows from a matrix by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import KNeighborsClassifier

from clframe.errors import ConfigurationError
from clframe.metrics.compatibility import (
    average_accuracy,
    average_compatibility,
    compatibility_gain,
    compatibility_price,
    cosine_similarities,
    paired_similarities,
    search,
    verification_accuracy,
)

LAW = settings(derandomize=True, deadline=None, max_examples=40)


# -- similarities ------------------------------------------------------------------------------------------------------


@LAW
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6))
def test_cosine_of_the_shared_dimensions(seed, first, second):
    draws = np.random.default_rng(seed)
    a, b = draws.normal(size=(5, first)), draws.normal(size=(7, second))
    shared = min(first, second)
    expected = cosine_similarity(a[:, :shared], b[:, :shared])
    np.testing.assert_allclose(cosine_similarities(a, b), expected, atol=1e-9)
    np.testing.assert_allclose(paired_similarities(a, b[:5]), np.diagonal(expected), atol=1e-9)
    np.testing.assert_allclose(cosine_similarities(3 * a, b), expected, atol=1e-9)


def test_appended_dimensions_change_nothing_and_zeros_are_no_error():
    a, b = np.array([[1.0, 2.0]]), np.array([[2.0, 1.0], [0.0, 0.0]])
    grown = np.hstack([a, [[5.0, -7.0]]])
    np.testing.assert_array_equal(cosine_similarities(grown, b), cosine_similarities(a, b))
    assert cosine_similarities(a, b)[0, 1] == 0


# -- verification ------------------------------------------------------------------------------------------------------


def plain_verification(similarity, same):
    """Try every threshold for every fold."""
    rights = []
    for fold in np.array_split(np.arange(len(similarity)), 10):
        rest = np.setdiff1d(np.arange(len(similarity)), fold)
        levels = np.unique(similarity[rest])[::-1]
        cuts = [math.inf, *((a + b) / 2 for a, b in pairwise(levels)), -math.inf]
        scores = [np.mean((similarity[rest] >= cut) == same[rest]) for cut in cuts]
        rights.append(np.mean((similarity[fold] >= cuts[int(np.argmax(scores))]) == same[fold]))
    return np.mean(rights)


@LAW
@given(st.integers(0, 10**6), st.integers(10, 90), st.booleans(), st.floats(0, 2))
def test_verification_equals_trying_every_threshold(seed, count, ties, distance):
    draws = np.random.default_rng(seed)
    same = draws.random(count) < 0.5
    similarity = draws.normal(size=count) + distance * same
    similarity = np.round(similarity) if ties else similarity
    assert verification_accuracy(similarity, same) == pytest.approx(plain_verification(similarity, same), abs=1e-12)


def test_verification_of_what_is_clear():
    same = np.tile([True, False], 20)
    assert verification_accuracy(same.astype(float), same) == 1.0
    assert verification_accuracy(1.0 - same, same) == 0.5  # the best cut of pairs told apart the wrong way: none
    assert verification_accuracy(np.full(40, 3.0), same) == 0.5
    with pytest.raises(ConfigurationError, match="at least 10 pairs"):
        verification_accuracy(same[:9], same[:9])


# -- search ------------------------------------------------------------------------------------------------------------


@LAW
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 700))
def test_search_equals_scikit_learn(seed, gallery_size, query_count):
    draws = np.random.default_rng(seed)
    names = draws.integers(0, 3, gallery_size)
    wanted = names[draws.integers(0, gallery_size, query_count)]
    gallery, queries = draws.normal(size=(gallery_size, 4)), draws.normal(size=(query_count, 4))
    similarity = cosine_similarity(queries, gallery)
    top, precision = search(queries, gallery, wanted, names)
    nearest = KNeighborsClassifier(1, metric="cosine").fit(gallery, names).predict(queries)
    assert top == pytest.approx(np.mean(nearest == wanted))
    expected = [average_precision_score(names == w, row) for w, row in zip(wanted, similarity, strict=True)]
    assert precision == pytest.approx(np.mean(expected), abs=1e-12)


@LAW
@given(st.integers(0, 10**6))
def test_ties_have_no_order(seed):
    draws = np.random.default_rng(seed)
    names = draws.integers(0, 2, 12)
    gallery = draws.integers(0, 2, size=(12, 1)) * np.array([[1.0, 0.0]]) + np.array([[0.0, 1.0]])  # two directions
    gallery *= draws.uniform(0.1, 9, size=(12, 1))
    queries, wanted = np.array([[1.0, 2.0]]), names[:1]
    similarity = np.round(cosine_similarity(queries, gallery)[0], 9)
    top, precision = search(queries, gallery, wanted, names)
    assert precision == pytest.approx(average_precision_score(names == wanted[0], similarity))
    nearest = similarity == similarity.max()
    assert top == pytest.approx(np.mean(names[nearest] == wanted[0]))
    order = draws.permutation(12)
    assert search(queries, gallery[order], wanted, names[order]) == pytest.approx((top, precision))


def test_search_by_hand():
    gallery = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    # The query's own are ranks 2 and 3: precision (1/2 + 2/3)/2; the nearest is another.
    assert search([[1.0, 0.05]], gallery, [1], [0, 1, 1, 0]) == (0.0, pytest.approx((1 / 2 + 2 / 3) / 2))
    unknown = search([[1.0, 0.0], [1.0, 0.0]], gallery, [7, 0], [0, 1, 1, 0])
    assert unknown == search([[1.0, 0.0]], gallery, [0], [0, 1, 1, 0])
    assert all(math.isnan(v) for v in search([[1.0, 0.0]], gallery, [7], [0, 1, 1, 0]))


# -- the matrix --------------------------------------------------------------------------------------------------------

MATRIX = [[0.5, math.nan, math.nan], [0.6, 0.7, math.nan], [0.5, 0.8, 0.9]]


def test_a_tie_is_not_compatible():
    # (2,1): .6 > .5; (3,1): .5 = .5, a tie; (3,2): .8 > .7.
    assert average_compatibility(MATRIX) == pytest.approx(2 / 3)
    assert average_compatibility([[0.5, 0], [0.5, 0.9]]) == 0.0
    assert average_compatibility([[0.5, 0], [0.5 + 1e-12, 0.9]]) == 1.0
    assert math.isnan(average_compatibility([[1.0]]))


def test_mean_gain_and_price_by_hand():
    assert average_accuracy(MATRIX) == pytest.approx((0.5 + 0.6 + 0.7 + 0.5 + 0.8 + 0.9) / 6)
    gain = compatibility_gain(MATRIX, [0.5, 0.9, 0.95])
    expected = np.full((3, 3), np.nan)
    expected[1, 0], expected[2, 0], expected[2, 1] = 0.1 / 0.4, 0.0, 0.1 / 0.25
    np.testing.assert_allclose(gain, expected)
    np.testing.assert_allclose(compatibility_price(MATRIX, [0.5, 0.9, 0.95]), [0, -0.2, -0.05])
    assert np.isnan(compatibility_gain([[0.5, 0], [0.6, 0.7]], [0.5, 0.5])).all()  # no room for a gain
    with pytest.raises(ConfigurationError, match=r"\(T, T\)"):
        average_accuracy([[1.0, 2.0]])


@LAW
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_only_the_lower_triangle_counts(seed, count):
    draws = np.random.default_rng(seed)
    matrix, other = draws.random((count, count)), draws.random((count, count))
    changed = np.where(np.tri(count, dtype=bool), matrix, other)
    best = draws.random(count)
    assert average_compatibility(matrix) == average_compatibility(changed)
    assert average_accuracy(matrix) == average_accuracy(changed)
    np.testing.assert_array_equal(compatibility_gain(matrix, best), compatibility_gain(changed, best))
    pairs = [(i, j) for i in range(count) for j in range(i)]
    assert average_compatibility(matrix) == np.mean([matrix[i, j] > matrix[j, j] for i, j in pairs])
