"""Prototype drift, stability and plasticity on examples worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clframe.errors import DataError
from clframe.metrics.drift import Drift, prototype_drift
from clframe.metrics.scores import ScoreMatrix
from clframe.metrics.stability_plasticity import (
    did_not_learn,
    joint_probe_gap,
    plasticity,
    probe_accuracy,
    representation_gain,
    stability,
)

LAW = settings(derandomize=True, deadline=None, max_examples=40)


def test_drift_by_hand():
    before, now = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[0.0, 0.0], [0.0, 2.0]])
    distance, cosine = prototype_drift(before, np.array([4.0, 5.0]), now)
    np.testing.assert_allclose(distance, [5 / 2, 1])
    np.testing.assert_allclose(cosine, [np.nan, 0])
    distance, cosine = prototype_drift(before, np.array([4.0, 0.0]), 2 * before)
    np.testing.assert_allclose(distance, [5 / 2, np.nan])
    np.testing.assert_allclose(cosine, [1, 1])


def test_features_added_since_are_left_out_and_lost_ones_make_it_unknown():
    before = np.array([[3.0, 4.0]])
    distance, cosine = prototype_drift(before, np.array([1.0]), np.array([[3.0, 4.0, 99.0]]))
    assert (distance, cosine) == (pytest.approx(0), pytest.approx(1))
    assert np.isnan(prototype_drift(before, np.array([1.0]), np.array([[3.0]]))).all()
    with pytest.raises(DataError, match="received 1, 2 and 1"):
        prototype_drift(before, np.ones(2), before)


def test_drift_counts_from_the_model_that_was_taught_the_class():
    labels = np.array([0, 0, 1, 1])
    first = np.array([[0.0, 1.0], [2.0, 1.0], [5.0, 5.0], [5.0, 5.0]])  # class 0: mean (1, 1), variances 2 and 0
    second = np.array([[4.0, 1.0], [4.0, 1.0], [1.0, 0.0], [1.0, 8.0]])  # class 1: mean (1, 4), variances 0 and 32
    third = np.array([[1.0, 3.0], [1.0, 3.0], [1.0, 0.0], [1.0, 0.0]])
    drift = Drift([1, 2, 4])
    for features in (first, second, third):
        drift.add(features, labels)
    nan = np.nan
    np.testing.assert_allclose(
        drift.distance, [[nan] * 3, [3 / 2**0.5, nan, nan], [2 / 2**0.5, 4 / 32**0.5, nan]], atol=1e-12
    )
    assert drift.cosine[2][0] == pytest.approx(4 / 20**0.5)


def test_drift_does_not_depend_on_rotation_or_scale():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    models = [rng.normal(size=(60, 4)) + labels[:, None] + k for k in range(3)]
    q, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    plain, turned = Drift([1, 1]), Drift([1, 1])
    for x in models:
        plain.add(x, labels)
        turned.add(5 * x @ q, labels)
    np.testing.assert_allclose(turned.distance, plain.distance)
    np.testing.assert_allclose(turned.cosine, plain.cosine)


MATRIX = ScoreMatrix.of([[0.0, 0.0, 0.0], [0.8, 0.3, 0.2], [0.7, 0.6, 0.3], [0.9, 0.5, 0.8]], sizes=[10, 30, 60])


def test_derived_numbers_by_hand():
    np.testing.assert_allclose(stability(MATRIX), [0.1, -0.1, 0])
    np.testing.assert_allclose(plasticity(MATRIX), [np.nan, 0.3, 0.5])
    np.testing.assert_allclose(probe_accuracy(MATRIX), [0.29, 0.43, 0.72])
    assert representation_gain(MATRIX) == pytest.approx(0.43)


def test_tasks_taught_together_late_or_never():
    matrix = ScoreMatrix.of(np.arange(12.0).reshape(3, 4), learned=[1, 2, 2, 3])
    np.testing.assert_allclose(stability(matrix), [4, 0, 0, np.nan])
    np.testing.assert_allclose(plasticity(matrix), [np.nan, 4, 4, np.nan])


@LAW
@given(st.integers(2, 6), st.integers(0, 1000))
def test_identities(tasks, seed):
    """The columns' telescopes: from row 1 to row T a task gains its plasticity, its stability, and what came before."""
    values = np.random.default_rng(seed).random((tasks + 1, tasks))
    before = np.array([0, *(values[j, j] - values[1, j] for j in range(1, tasks))])  # rows 1 to j − 1 of task j, from 1
    gain = values[-1] - values[1]
    np.testing.assert_allclose(np.nan_to_num(plasticity(values)) + stability(values) + before, gain)
    assert representation_gain(values) == pytest.approx(gain.mean())


def test_flag():
    assert did_not_learn(0.01, 0.02) is True
    assert did_not_learn(0.02, 0.02) is True
    assert did_not_learn(0.021, 0.02) is False
    assert did_not_learn(-0.5, 0.0) is True
    assert did_not_learn(0.1, float("nan")) is None


def test_gap():
    np.testing.assert_allclose(joint_probe_gap([0.5, None], [0.75, 0.2]), [-0.25, np.nan])
