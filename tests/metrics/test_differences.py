"""Differences over seeds: intervals and p values against SciPy, Holm's correction against its definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clframe.metrics import corrected, holm, paired_difference
from clframe.metrics.differences import student_quantile

LAW = settings(derandomize=True, deadline=None, max_examples=60)


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
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=1e-12)
    assert found.supported == (stats.ttest_rel(a, b).pvalue < 0.05)
    back = paired_difference(dict(enumerate(b)), dict(enumerate(a)))
    assert (back.mean, back.low, back.high) == pytest.approx((-found.mean, -found.high, -found.low))


def test_unpaired_is_welch_with_whole_degrees_of_freedom():
    a, b = {0: 1.0, 1: 1.4, 2: 1.1, 3: 1.2}, {10: 0.1, 11: 0.5, 12: 0.2}
    found = paired_difference(a, b)
    test = stats.ttest_ind(list(a.values()), list(b.values()), equal_var=False)
    exact = test.confidence_interval(0.95)
    assert not found.paired
    assert found.low <= exact.low < exact.high <= found.high
    assert found.high - found.low == pytest.approx(exact.high - exact.low, rel=0.25)
    assert found.p == pytest.approx(2 * stats.t.sf(test.statistic, math.floor(test.df)), abs=1e-12)
    assert found.p >= test.pvalue
    assert found.supported


def test_only_shared_seeds_are_paired():
    found = paired_difference({0: 1.0, 1: 2.0, 2: 3.5, 9: 100.0}, {0: 0.0, 1: 1.0, 2: 2.0, 3: -100.0})
    assert found.seeds == (0, 1, 2)
    assert found.mean == pytest.approx(3.5 / 3)
    assert found.paired


def test_too_few_seeds_support_nothing():
    two = paired_difference({0: 1.0, 1: 1.0}, {0: 0.0, 1: 0.0})
    assert not two.supported
    assert two.p == 0
    one = paired_difference({0: 1.0}, {0: 0.0})
    assert math.isnan(one.low)
    assert math.isnan(one.p)
    assert not one.supported
    same = paired_difference({0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert not same.supported
    assert same.p == 1
    apart = paired_difference({0: 1.0, 1: 2.0, 2: 3.0}, {0: 0.5, 1: 1.5, 2: 2.5})
    assert apart.supported
    assert apart.p == 0
    missing = paired_difference({0: None, 1: 1.0, 2: 1.0}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert not missing.supported
    assert math.isnan(missing.mean)


# -- many comparisons ----------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; none below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    with_gap = holm([0.01, math.nan, 0.04])
    assert with_gap[::2] == pytest.approx([0.02, 0.04])
    assert math.isnan(with_gap[1])


@LAW
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.5))
def test_holm_is_the_procedure_that_rejects_one_by_one(p_values, alpha):
    """Reject the smallest while it is at most alpha over the number that are left."""
    rejected = set()
    for k, place in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[place] > alpha / (len(p_values) - k):
            break
        rejected.add(int(place))
    near = {k for k, p in enumerate(holm(p_values)) if abs(p - alpha) < 1e-12}
    assert {k for k, p in enumerate(holm(p_values)) if p <= alpha} - near == rejected - near


def test_correction_counts_only_what_could_be_supported():
    clear = paired_difference({0: 0.5, 1: 0.6, 2: 0.71}, {0: 0.1, 1: 0.2, 2: 0.3})
    two = paired_difference({0: 0.5, 1: 0.6}, {0: 0.1, 1: 0.21})
    one = paired_difference({0: 0.5}, {0: 0.1})
    found = corrected([clear, two, one, clear])
    assert [d.comparisons for d in found] == [2, 2, 2, 2]
    assert found[0].adjusted == pytest.approx(2 * clear.p)
    assert math.isnan(found[1].adjusted)
    assert [d.supported for d in found] == [True, False, False, True]
    assert (found[0].p, found[0].low) == (clear.p, clear.low)


def test_correction_can_take_support_away_though_the_interval_leaves_out_zero():
    """t = 6 with 2 degrees of freedom: p = 0.0267, doubled 0.0534."""
    gap = paired_difference({0: 6 - math.sqrt(3), 1: 6.0, 2: 6 + math.sqrt(3)}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert gap.p == pytest.approx(stats.t.sf(6, 2) * 2)
    assert gap.low > 0
    assert gap.supported
    first, second = corrected([gap, gap])
    assert not first.supported
    assert not second.supported
    assert first.adjusted == pytest.approx(2 * gap.p)


def test_among_equal_settings_support_is_rare_only_when_corrected():
    """Four settings without a difference, four seeds, 400 repetitions: any support at all in at most about 5 %."""
    rng = np.random.default_rng(0)
    any_raw = any_corrected = 0
    for _ in range(400):
        groups = [dict(enumerate(rng.normal(size=4))) for _ in range(4)]
        gaps = [paired_difference(a, b) for a, b in itertools.combinations(groups, 2)]
        any_raw += any(g.supported for g in gaps)
        any_corrected += any(g.supported for g in corrected(gaps))
    assert any_raw > 50
    assert any_corrected <= 28  # 5 % are 20; 28 is two standard deviations above
