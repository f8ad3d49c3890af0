"""CKA against a literal NumPy version of the U-statistic, and its invariances."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clframe.errors import DataError
from clframe.metrics.cka import Alignments, cka, gram, hsic

LAW = settings(derandomize=True, deadline=None, max_examples=25)


def features(n=12, d=5, seed=0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def grams(x, size):
    return [gram(x[k : k + size]) for k in range(0, len(x), size)]


def u_statistic(x, y):
    """HSIC as the mean of h over all quadruples of different samples: Song et al. 2012, eq. 2, term by term."""
    k, m = x @ x.T, y @ y.T
    values = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in itertools.permutations(range(len(x)), 4)]
    return np.mean(values)


def reference_cka(x, y):
    """The formula of the docstring, with matrices of ones, not centred."""
    n = len(x)
    one = np.ones((n, 1))

    def h(k, m):
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        sums = (one.T @ k @ one).item() * (one.T @ m @ one).item() / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + sums - 2 / (n - 2) * (one.T @ k @ m @ one).item()) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    return h(k, m) / math.sqrt(h(k, k) * h(m, m))


@LAW
@given(st.integers(4, 7), st.integers(0, 1000))
def test_hsic_is_the_u_statistic(n, seed):
    x, y = features(n, 3, seed), features(n, 4, seed + 1)
    assert hsic(gram(x), gram(y)) == pytest.approx(u_statistic(x, y), abs=1e-10)


@LAW
@given(st.integers(5, 30), st.integers(1, 9), st.integers(0, 1000))
def test_one_batch_is_the_reference(n, d, seed):
    x, y = features(n, d, seed), features(n, 3, seed + 1) + 0.5 * features(n, d, seed)[:, :1]
    expected = reference_cka(x, y)
    assert cka([gram(x)], [gram(y)]) == pytest.approx(expected, rel=1e-6)
    assert cka([gram(y)], [gram(x)]) == pytest.approx(expected, rel=1e-6)


def test_batches_are_summed_before_the_ratio():
    x, y = features(24, 4), features(24, 6, 1) + features(24, 4)[:, :1]
    parts = [slice(0, 8), slice(8, 16), slice(16, 24)]
    sums = [sum(u_statistic(a[p], b[p]) for p in parts) for a, b in ((x, y), (x, x), (y, y))]
    assert cka(grams(x, 8), grams(y, 8)) == pytest.approx(sums[0] / math.sqrt(sums[1] * sums[2]), rel=1e-8)


def test_orthogonal_maps_scale_and_shift_change_nothing():
    x = features(40, 6)
    q, _ = np.linalg.qr(features(6, 6, 3))
    for other in (x @ q, 7.5 * x, x + 100.0, -x, np.c_[x, np.zeros(40)]):
        assert cka(grams(x, 20), grams(other, 20)) == pytest.approx(1, abs=1e-9)
    y = features(40, 9, 1) + x[:, :1]
    assert cka(grams(x @ q, 20), grams(3 * y, 20)) == pytest.approx(cka(grams(x, 20), grams(y, 20)), abs=1e-9)


def test_a_linear_map_that_is_no_rotation_changes_it():
    x = features(40, 6)
    assert cka([gram(x)], [gram(x * [10, 1, 1, 1, 1, 1])]) < 0.9


def test_a_large_common_part_does_not_drown_the_rest_in_single_precision():
    x, y = features(50, 30, 0), features(50, 30, 1) + features(50, 30, 0)
    exact = cka([gram(x)], [gram(y)])
    shifted = [gram((a + 1000).astype(np.float32)) for a in (x, y)]
    assert cka([shifted[0]], [shifted[1]]) == pytest.approx(exact, abs=1e-3)


def test_unrelated_features_are_near_zero_however_wide_and_small_the_batches():
    """The biased estimator would give about 0.9 here."""
    found = [cka(grams(features(200, 200, s), 20), grams(features(200, 200, 100 + s), 20)) for s in range(10)]
    assert abs(np.mean(found)) < 3 * np.std(found, ddof=1) / math.sqrt(10)
    assert max(map(abs, found)) < 0.15


def test_several_branches_are_one_layer():
    x, y = features(10, 3), features(10, 4, 1)
    np.testing.assert_allclose(gram(x, y), gram(np.c_[x, y]), atol=1e-12)
    maps = features(10, 24, 2)
    np.testing.assert_allclose(gram(maps.reshape(10, 2, 3, 4)), gram(maps), atol=1e-12)


def test_what_can_not_be_compared():
    x = features(10)
    assert math.isnan(cka([gram(np.ones((10, 3)))], [gram(x)]))
    assert math.isnan(cka([gram(x[:3])], [gram(x[:3])]))
    assert cka([gram(x), gram(x[:3])], [gram(x), gram(features(3, 5, 9))]) == pytest.approx(1)
    with pytest.raises(DataError, match="same mini-batches"):
        cka([gram(x)], [gram(x[:9])])
    with pytest.raises(DataError, match="4 samples or more"):
        hsic(gram(x[:3]), gram(x[:3]))
    with pytest.raises(DataError, match="same samples"):
        gram(x, x[:9])


def test_alignments_compare_with_the_first_and_the_one_before():
    models = [features(20, 5, 0), features(20, 5, 1) + features(20, 5, 0), features(20, 5, 2)]
    found = Alignments()
    for x in models:
        found.add({"features": grams(x, 10), "same": grams(models[0], 10)})
    a, b, c = (grams(x, 10) for x in models)
    assert found.to_first["features"] == pytest.approx([1, cka(a, b), cka(a, c)])
    assert found.to_previous["features"][1:] == pytest.approx([cka(a, b), cka(b, c)])
    assert math.isnan(found.to_previous["features"][0])
    assert found.to_first["same"] == pytest.approx([1, 1, 1])


def test_samples_enter_when_their_task_has_been_taught():
    x, y = features(24, 5), features(24, 5, 1) + features(24, 5)
    seen_at = np.arange(24) % 3 + 1
    found = Alignments([seen_at[:12], seen_at[12:]])
    for model in (x, y, y):
        found.add({"features": grams(model, 12)})
    for i, value in enumerate(found.to_first["features"][1:], 2):
        kept = [np.flatnonzero(seen_at[p] <= i) + p.start for p in (slice(0, 12), slice(12, 24))]
        assert value == pytest.approx(cka([gram(x[k]) for k in kept], [gram(y[k]) for k in kept]))
