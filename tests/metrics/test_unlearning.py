"""Unlearning: margins, their divergence over models, and steps on a known curve."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from clframe.errors import ConfigurationError
from clframe.metrics.unlearning import klom, margins, steps_to_regain

LAW = settings(derandomize=True, deadline=None, max_examples=60)


@LAW
@given(st.integers(0, 10**6), st.integers(1, 10), st.integers(2, 8), st.floats(0.1, 300))
def test_margins_equal_scipy(seed, count, classes, scale):
    draws = np.random.default_rng(seed)
    scores, right = scale * draws.normal(size=(count, classes)), draws.integers(0, classes, count)
    expected = [row[k] - logsumexp(np.delete(row, k)) for row, k in zip(scores, right, strict=True)]
    np.testing.assert_allclose(margins(scores, right), expected, rtol=1e-10, atol=1e-10)


def test_margins_by_hand():
    # Two classes: the margin is the difference. Equal logits of three classes: -ln 2.
    np.testing.assert_allclose(margins([[3.0, 1.0], [3.0, 1.0]], [0, 1]), [2, -2])
    assert margins([[5.0, 5.0, 5.0]], [1])[0] == pytest.approx(-math.log(2))
    assert margins([[0.0]], [0])[0] > 1e3  # nothing else to say
    assert margins(np.zeros((0, 3)), []).shape == (0,)


def plain_klom(unlearned, retrained):
    """Point by point, with NumPy's histogram."""
    count = min(len(unlearned), len(retrained))
    bins = min(20, max(2, math.ceil(math.sqrt(count))))
    found = []
    for mine, theirs in zip(np.clip(unlearned, -100, 100).T, np.clip(retrained, -100, 100).T, strict=True):
        span = (min(mine.min(), theirs.min()), max(mine.max(), theirs.max()))
        p, q = (np.histogram(side, bins, span)[0] + 0.5 for side in (theirs, mine))
        found.append(np.sum(p / p.sum() * np.log((p / p.sum()) / (q / q.sum()))))
    return np.array(found)


@LAW
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 30), st.floats(-3, 3))
def test_klom_equals_a_plain_loop(seed, mine, theirs, shift):
    draws = np.random.default_rng(seed)
    unlearned, retrained = draws.normal(size=(mine, 6)) + shift, draws.normal(size=(theirs, 6))
    np.testing.assert_allclose(klom(unlearned, retrained), plain_klom(unlearned, retrained), atol=1e-12)


@LAW
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_klom_of_the_same_models_is_zero_and_knows_no_order_or_scale(seed, count):
    draws = np.random.default_rng(seed)
    models, others = draws.normal(size=(count, 5)), draws.normal(size=(count, 5)) + 1
    np.testing.assert_array_equal(klom(models, models[::-1]), 0.0)
    assert (klom(others, models) >= 0).all()
    np.testing.assert_allclose(klom(3 * others + 1, 3 * models + 1), klom(others, models), atol=1e-12)
    np.testing.assert_array_equal(klom(np.full((count, 2), 7.0), np.full((count, 2), 7.0)), 0.0)


def test_klom_grows_with_the_shift_and_with_the_number_of_models():
    draws = np.random.default_rng(0)
    retrained, fresh = draws.normal(size=(2, 60, 400))
    means = [klom(fresh + shift, retrained).mean() for shift in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert all(a < b for a, b in pairwise(means))
    apart = [klom(np.ones((k, 1)), np.zeros((k, 1)))[0] for k in (2, 4, 9, 100)]
    assert all(a < b for a, b in pairwise(apart))
    # Three models on a side, two bins, all apart: p = (3.5, .5)/4 against (.5, 3.5)/4.
    assert klom(np.ones((3, 1)), np.zeros((3, 1)))[0] == pytest.approx(0.75 * math.log(7))


def test_klom_clips_what_is_off_the_scale():
    assert klom([[1e9], [1e9]], [[150.0], [120.0]])[0] == 0
    with pytest.raises(ConfigurationError, match="the same points"):
        klom(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ConfigurationError, match="models, points"):
        klom(np.zeros((0, 3)), np.zeros((2, 3)))


def test_steps_on_a_known_curve():
    curve = [0.1, 0.4, 0.85, 0.9, 0.88, 0.95]
    assert steps_to_regain(curve, 0.9) == 3
    assert steps_to_regain(curve, 0.91) == 5
    assert steps_to_regain(curve, 0.1) == 0
    assert steps_to_regain(curve, 0.96) is None
