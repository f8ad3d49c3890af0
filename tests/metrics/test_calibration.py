"""Calibration: bins by hand, the error against a few lines of NumPy, and what a run's metrics take from kept predictions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clframe import metrics as m
from clframe.errors import ConfigurationError

LAW = settings(derandomize=True, deadline=None, max_examples=100)


def plain_error(confidence, correct, bins):
    """ECE, sample by sample."""
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        mine = [(low < p <= high) or (b == 0 and p == 0) for p in confidence]
        if any(mine):
            total += sum(mine) * abs(np.mean(correct[mine]) - np.mean(confidence[mine]))
    return total / len(confidence)


@LAW
@given(st.integers(0, 10**6), st.integers(1, 200), st.integers(1, 20))
def test_error_equals_the_plain_loop(seed, count, bins):
    draws = np.random.default_rng(seed)
    confidence, correct = draws.random(count), draws.random(count) < 0.6
    found = m.reliability(confidence, correct, bins)
    assert found.error == pytest.approx(plain_error(confidence, correct, bins), abs=1e-12)
    assert found.counts.sum() == count
    again = draws.permutation(count)
    assert m.reliability(confidence[again], correct[again], bins).error == pytest.approx(found.error, abs=1e-12)


def test_a_table_by_hand():
    # Bins of fifths: (0.6, 0.8] has 0.7 right, 0.8 wrong; (0.8, 1] has 0.9 and 1.0 right, 0.95 wrong.
    found = m.reliability([0.7, 0.8, 0.9, 0.95, 1.0], [1, 0, 1, 0, 1], bins=5)
    assert found.counts.tolist() == [0, 0, 0, 2, 3]
    np.testing.assert_allclose(found.confidence, [np.nan, np.nan, np.nan, 0.75, 0.95])
    np.testing.assert_allclose(found.accuracy, [np.nan, np.nan, np.nan, 0.5, 2 / 3])
    assert found.error == pytest.approx((2 * 0.25 + 3 * (0.95 - 2 / 3)) / 5)


def test_edges_belong_to_the_bin_below_and_zero_to_the_first():
    edges = np.linspace(0, 1, 16)
    assert m.reliability(edges, np.ones(16)).counts.tolist() == [2] + [1] * 14
    assert m.reliability(np.float32([1.0, np.nextafter(np.float32(1), np.float32(2))]), [1, 1]).counts[-1] == 2


def test_sure_and_right_is_calibrated_and_sure_and_wrong_is_not():
    assert m.reliability([1.0, 1.0], [1, 1]).error == 0.0
    assert m.reliability([1.0, 1.0], [0, 0]).error == 1.0
    assert m.reliability([0.5] * 10, [1, 0] * 5).error == pytest.approx(0.0)
    assert math.isnan(m.reliability([], []).error)


def test_json_and_bad_input():
    shown = json.loads(json.dumps(m.reliability([0.7], [1], bins=2).to_dict(), allow_nan=False))
    assert shown == {"edges": [0.0, 0.5, 1.0], "counts": [0, 1], "confidence": [None, 0.7], "accuracy": [None, 1.0],
                     "error": pytest.approx(0.3)}  # fmt: skip
    with pytest.raises(ConfigurationError, match="a confidence and an outcome for each sample"):
        m.reliability([0.5, 0.5], [1])
    with pytest.raises(ConfigurationError, match="at least one bin"):
        m.reliability([0.5], [1], bins=0)


def kept(seed, seen, future, per_class=20):
    """Two tasks of two classes; answers on seen classes, confidence everywhere."""
    draws = np.random.default_rng(seed)
    target = np.repeat(np.arange(4 if future else seen), per_class)
    predicted = np.where(draws.random(target.size) < 0.6, target % seen, draws.integers(0, seen, target.size))
    predicted = np.where(target < seen, predicted, -1)
    columns = {name: draws.normal(size=target.size) for name in ("energy", "entropy")}
    return m.Predictions(
        sample=np.arange(target.size), task=target // 2, target=target, predicted=predicted, predicted_local=predicted,
        predicted_upto=predicted, confidence=draws.random(target.size), **columns,
    )  # fmt: skip


@pytest.mark.parametrize("future", [False, True])
def test_a_run_is_calibrated_on_seen_classes_only(future):
    tasks = m.Tasks.split([2, 2])
    runs = {i: kept(i, 2 * i, future) for i in (1, 2)}
    report = m.compute_from_predictions({"h": runs}, tasks)
    found = report.values["h"]["global"]
    for i, p in runs.items():
        seen = p.target < 2 * i
        right = (p.predicted == p.target)[seen]
        expected = plain_error(p.confidence[seen].astype(np.float64), right, 15)
        assert found["calibration_error"][i - 1] == pytest.approx(expected, abs=1e-9)
    assert found["final_calibration_error"] == found["calibration_error"][1]
    for restriction in ("local", "upto"):  # the kept confidence is over all classes seen
        assert not {"calibration_error", "open_set_auroc_energy"} & set(report.values["h"][restriction])


def test_reasons():
    tasks = m.Tasks.split([2, 2])
    runs = {1: kept(1, 2, False), 2: kept(2, 4, False)}
    absent = m.compute_from_predictions({"h": runs}, tasks).absent
    assert "evaluate_future" in absent["open_set_auroc_energy"]
    bare = {
        i: m.Predictions(**{n: c for n, c in p.columns().items() if n not in ("confidence", "energy")})
        for i, p in runs.items()
    }
    absent = m.compute_from_predictions({"h": bare}, tasks).absent
    assert absent["final_calibration_error"] == "It needs the confidence of every prediction, which was not kept."
    assert absent["open_set_fpr95_energy"] == "It needs the energy of every prediction, which was not kept."
