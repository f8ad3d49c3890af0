"""Seeds: summaries and differences against SciPy and NumPy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clframe.errors import ConfigurationError
from clframe.metrics import bootstrap_interval, paired_difference, summarise, summarise_curves
from clframe.metrics.aggregate import student_quantile

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


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 8, 31, 200])
@pytest.mark.parametrize("probability", [0.6, 0.95, 0.975, 0.999])
def test_student_quantile(freedom, probability):
    assert student_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-8)


@LAW
@given(st.integers(3, 8), st.integers(0, 1000))
def test_paired_interval_is_scipys(n, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0.5, 1, n), rng.normal(0, 1, n)
    found = paired_difference(dict(enumerate(a)), dict(enumerate(b)))
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6)
    assert found.supported == (stats.ttest_rel(a, b).pvalue < 0.05)
    back = paired_difference(dict(enumerate(b)), dict(enumerate(a)))
    assert (back.mean, back.low, back.high) == pytest.approx((-found.mean, -found.high, -found.low))


def test_unpaired_is_welch_with_whole_degrees_of_freedom():
    a, b = {0: 1.0, 1: 1.4, 2: 1.1, 3: 1.2}, {10: 0.1, 11: 0.5, 12: 0.2}
    found = paired_difference(a, b)
    exact = stats.ttest_ind(list(a.values()), list(b.values()), equal_var=False).confidence_interval(0.95)
    assert not found.paired
    assert found.low <= exact.low < exact.high <= found.high
    assert found.high - found.low == pytest.approx(exact.high - exact.low, rel=0.25)
    assert found.supported


def test_only_shared_seeds_are_paired():
    found = paired_difference({0: 1.0, 1: 2.0, 2: 3.5, 9: 100.0}, {0: 0.0, 1: 1.0, 2: 2.0, 3: -100.0})
    assert found.seeds == (0, 1, 2)
    assert found.mean == pytest.approx(3.5 / 3)
    assert found.paired


def test_too_few_seeds_support_nothing():
    two = paired_difference({0: 1.0, 1: 1.0}, {0: 0.0, 1: 0.0})
    assert not two.supported
    assert "3 seeds are the least" in two.statement()
    one = paired_difference({0: 1.0}, {0: 0.0})
    assert "too few seeds" in one.statement()
    assert not one.supported
    same = paired_difference({0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert not same.supported
    missing = paired_difference({0: None, 1: 1.0, 2: 1.0}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert not missing.supported
    assert "no difference can be given" in missing.statement()


def test_statement_names_interval_and_seeds():
    found = paired_difference({0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.1, 1: 0.2, 2: 0.31})
    assert found.statement(100, 1) == "+39.7, supported: 95% interval +38.2 to +41.1 (paired over 3 seeds)"
