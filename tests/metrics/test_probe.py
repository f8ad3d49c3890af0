"""The probes against scikit-learn used directly, and the recipe: one for all, chosen on samples held out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from clframe.errors import DataError
from clframe.metrics.probe import STRENGTHS, NeighbourProbe, fit_probe, held_out


@pytest.fixture(scope="module")
def digits():
    """Training and test features of very unlike scales, one of them constant."""
    x, y = load_digits(return_X_y=True)
    x = (x * np.geomspace(0.01, 100, 64)).astype(np.float32)
    order = np.random.default_rng(1).permutation(len(x))
    x, y = x[order], y[order].astype(np.int64)
    return x[:600], y[:600], x[600:], y[600:]


def direct(train, targets, strength):
    scaler = StandardScaler().fit(train.astype(np.float64))
    model = LogisticRegression(C=1 / (strength * len(train)), max_iter=5000, tol=1e-6)
    return scaler, model.fit(scaler.transform(train.astype(np.float64)), targets)


def test_probe_is_the_logistic_regression_of_the_best_strength(digits):
    x, y, test, _ = digits
    probe = fit_probe(x, y)
    scaler, model = direct(x, y, probe.strength)
    expected = model.predict(scaler.transform(test.astype(np.float64)))
    assert (probe.predict(test) == expected).mean() > 0.99
    aside = held_out(y)
    scores = {}
    for strength in STRENGTHS:
        own = LogisticRegression(C=1 / (strength * (~aside).sum()), max_iter=5000)
        rows = scaler.transform(x.astype(np.float64))
        scores[strength] = own.fit(rows[~aside], y[~aside]).score(rows[aside], y[aside])
    assert scores[probe.strength] >= max(scores.values()) - 1 / aside.sum()


@pytest.mark.parametrize("strength", [1e-1, 1e-3])
def test_strength_does_not_depend_on_the_number_of_samples(digits, strength):
    """Twice the same samples are the same problem."""
    x, y, test, _ = digits
    one = fit_probe(x, y, strengths=(strength,))
    two = fit_probe(np.concatenate([x, x]), np.concatenate([y, y]), strengths=(strength,))
    np.testing.assert_allclose(one.weight, two.weight, atol=1e-2)
    assert (one.predict(test) == two.predict(test)).mean() > 0.99


def test_strength_suits_the_features():
    """Few noisy samples want a strong penalty; a class that shows in a small difference wants large weights."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 150)
    assert fit_probe(rng.normal(size=(3, 40))[y] + 6 * rng.normal(size=(150, 40)), y).strength >= 1e-2
    common = rng.normal(size=2000)
    pair = np.stack([common, common + 0.01 * rng.normal(size=2000)], axis=1)
    assert fit_probe(pair, (pair[:, 0] > pair[:, 1]).astype(int)).strength <= 1e-4


def test_same_features_give_the_same_probe_bit_for_bit_and_scale_gives_the_same_answers(digits):
    x, y, test, _ = digits
    first, second = fit_probe(x, y), fit_probe(x.copy(), y.copy())
    np.testing.assert_array_equal(first.weight, second.weight)
    scaled = fit_probe(1000 * x + 5, y)
    assert (scaled.predict(1000 * test + 5) == first.predict(test)).mean() > 0.99


def test_nothing_global_is_drawn(digits):
    x, y, _, _ = digits
    before = np.random.get_state()[1].copy()
    fit_probe(x[:100], y[:100])
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_two_classes(digits):
    x, y, test, labels = digits
    two = np.isin(y, (3, 8))
    probe = fit_probe(x[two], y[two])
    scaler, model = direct(x[two], y[two], probe.strength)
    chosen = np.isin(labels, (3, 8))
    expected = model.predict(scaler.transform(test[chosen].astype(np.float64)))
    assert set(probe.predict(test)) <= {3, 8}
    assert (probe.predict(test[chosen]) == expected).mean() > 0.98


def test_restricted_to_the_classes_seen(digits):
    x, y, test, labels = digits
    for probe in (fit_probe(x, y), NeighbourProbe(x, y)):
        found = probe.predict(test, 4)
        assert set(found) == {0, 1, 2, 3}
        seen = labels < 4
        assert (found[seen] == labels[seen]).mean() >= (probe.predict(test)[seen] == labels[seen]).mean()
        np.testing.assert_array_equal(probe.predict(test, 10), probe.predict(test))
    linear = fit_probe(x, y)
    scores = (test - linear.mean) / linear.deviation @ linear.weight.T + linear.bias
    np.testing.assert_array_equal(linear.predict(test, 4), scores[:, :4].argmax(axis=1))


def test_a_fixed_tenth_of_every_class_is_held_out():
    y = np.repeat(np.arange(5), [400, 200, 100, 50, 50])
    y = y[np.random.default_rng(0).permutation(800)]
    aside = held_out(y)
    assert aside.sum() == 80
    np.testing.assert_array_equal(np.bincount(y[aside]), [40, 20, 10, 5, 5])
    np.testing.assert_array_equal(aside, held_out(y.copy()))
    assert 0 < np.flatnonzero(aside)[0] < 40
    with pytest.raises(DataError, match=r"at least 10 training samples of two classes, received 9 of 2"):
        held_out(np.arange(9) % 2)
    with pytest.raises(DataError, match="received 20 of 1"):
        held_out(np.zeros(20, dtype=int))


def test_a_class_may_be_held_out_whole():
    rng = np.random.default_rng(0)
    y = np.concatenate([np.arange(5).repeat(8), [5]])
    x = rng.normal(size=(41, 6)) + 3 * rng.normal(size=(6, 6))[y]
    assert set(fit_probe(x, y).labels) == set(range(6))


@pytest.mark.parametrize("k", [1, 5, 20])
def test_neighbours_are_those_of_scikit_learn(digits, k):
    x, y, test, _ = digits
    expected = KNeighborsClassifier(k, metric="cosine").fit(x.astype(np.float64), y).predict(test.astype(np.float64))
    found = NeighbourProbe(x.astype(np.float64), y, k).predict(test.astype(np.float64))
    np.testing.assert_array_equal(found, expected)
    assert len(test) > 1024  # more than are compared at once


def test_fewer_samples_than_neighbours_all_vote():
    x, y = np.eye(5), np.array([2, 2, 2, 7, 7])
    np.testing.assert_array_equal(NeighbourProbe(x, y).predict(np.eye(5)), np.full(5, 2))
    np.testing.assert_array_equal(NeighbourProbe(x, y, 2).predict(np.array([[0, 0, 0, 1, 1.0]])), [7])
    np.testing.assert_array_equal(NeighbourProbe(x, y).predict(np.eye(5), 1), np.full(5, -1))
