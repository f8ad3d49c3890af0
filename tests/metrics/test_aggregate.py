"""Seeds: summaries against SciPy and NumPy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clframe.errors import ConfigurationError
from clframe.metrics import bootstrap_interval, summarise, summarise_curves

LAW = settings(derandomize=True, deadline=None, max_examples=60)
numbers = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


@LAW
@given(numbers)
def test_summary(values):
    found = summarise(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.std == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert found.n == len(values)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert summarise(dict(enumerate(values))).seeds == tuple(range(len(values)))


def test_missing_value_is_not_averaged_away():
    found = summarise({0: 0.5, 1: None})
    assert math.isnan(found.mean)
    assert found.n == 2
    assert json.dumps(found.to_dict(), allow_nan=False).startswith('{"mean": null')
    assert math.isnan(summarise([0.5]).std)
    with pytest.raises(ConfigurationError, match="at least one seed"):
        summarise([])


def test_curves():
    mean, std = summarise_curves([[1.0, None, 3.0], [3.0, 1.0, 3.0]])
    np.testing.assert_allclose(mean, [2, np.nan, 3])
    np.testing.assert_allclose(std, [math.sqrt(2), np.nan, 0])
    with pytest.raises(ConfigurationError, match="same length"):
        summarise_curves([[1.0], [1.0, 2.0]])


def test_bootstrap_is_repeatable_and_agrees_with_scipy():
    values = np.random.default_rng(0).normal(size=40)
    state = np.random.get_state()[1].copy()
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    assert (low, high) != bootstrap_interval(values, seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    other = stats.bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    assert (low, high) == pytest.approx((other.low, other.high), abs=0.02)
