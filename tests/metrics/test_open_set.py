"""Known against unknown: AUROC, FPR@95 and Weibull fits against scikit-learn and SciPy, and the curves of a run."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import weibull_min
from sklearn.metrics import roc_auc_score, roc_curve

from clframe import metrics as m
from clframe.errors import ConfigurationError
from clframe.metrics.open_set import SCORES, Weibull, known_score

LAW = settings(derandomize=True, deadline=None, max_examples=150)


def sides(seed, known, unknown, ties):
    draws = np.random.default_rng(seed)
    scores = [draws.normal(1.0, 1.5, known), draws.normal(0.0, 1.0, unknown)]
    return [np.round(s) if ties else s for s in scores]


@LAW
@given(st.integers(0, 10**6), st.integers(1, 80), st.integers(1, 80), st.booleans())
def test_equal_to_scikit_learn_with_ties_and_without(seed, known, unknown, ties):
    positive, negative = sides(seed, known, unknown, ties)
    labels, scores = np.r_[np.ones(known), np.zeros(unknown)], np.r_[positive, negative]
    assert m.auroc(positive, negative) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert m.fpr_at_tpr(positive, negative) == pytest.approx(false[np.argmax(true >= 0.95)], abs=1e-12)


def test_by_hand():
    assert m.auroc([3, 2], [1, 2]) == (1 + 1 + 1 + 0.5) / 4
    assert m.auroc([1], [1, 1]) == 0.5
    assert m.auroc([0], [1]) == 0.0
    # Twenty known samples 1..20: the threshold that keeps 95 % of them is 2.
    assert m.fpr_at_tpr(np.arange(1, 21), [1.5, 2.0, 30.0, -1.0]) == 0.5
    assert m.fpr_at_tpr(np.arange(1, 20), [1.5]) == 1.0  # 18 of 19 would be less than 95 %
    assert math.isnan(m.auroc([], [1]))
    assert math.isnan(m.fpr_at_tpr([1], []))
    with pytest.raises(ConfigurationError, match="1 NaN"):
        m.auroc([np.nan], [1])


@LAW
@given(st.integers(0, 10**6))
def test_only_the_order_of_scores_counts_and_sides_swap(seed):
    positive, negative = sides(seed, 30, 40, seed % 2 == 0)
    assert m.auroc(np.exp(positive), np.exp(negative)) == m.auroc(positive, negative)
    assert m.auroc(negative, positive) == pytest.approx(1 - m.auroc(positive, negative))
    assert m.fpr_at_tpr(np.exp(positive), np.exp(negative)) == m.fpr_at_tpr(positive, negative)


# -- the curves of a run -----------------------------------------------------------------------------------------------


def kept(seed, seen, classes=6, per_class=12, margin=2.0):
    """After some classes: sure of what was seen, less so of the rest."""
    draws = np.random.default_rng(seed)
    target = np.repeat(np.arange(classes), per_class)
    logits = draws.normal(size=(target.size, seen))
    known = target < seen
    logits[known, target[known]] += margin
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    answer = np.where(known, logits.argmax(axis=1), -1)
    return m.Predictions(
        sample=np.arange(target.size), task=target // 2, target=target, predicted=answer, predicted_local=answer,
        predicted_upto=answer, confidence=p.max(axis=1), energy=-np.log(np.exp(logits).sum(axis=1)),
        entropy=-(p * np.log(p)).sum(axis=1),
    )  # fmt: skip


def test_curves_are_those_of_the_kept_columns():
    tasks = m.Tasks.split([2, 2, 2])
    runs = {i: kept(i, 2 * i) for i in (1, 2, 3)}
    report = m.compute_from_predictions({"h": runs}, tasks)
    found = report.values["h"]["global"]
    for i in (1, 2):
        p = runs[i]
        seen = p.target < 2 * i
        for score, values in (("confidence", p.confidence), ("entropy", -p.entropy), ("energy", -p.energy)):
            assert found[f"open_set_auroc_{score}"][i - 1] == pytest.approx(roc_auc_score(seen, values), abs=1e-9)
            false, true, _ = roc_curve(seen, values, drop_intermediate=False)
            assert found[f"open_set_fpr95_{score}"][i - 1] == pytest.approx(false[np.argmax(true >= 0.95)], abs=1e-9)
            assert found[f"open_set_auroc_{score}"][i - 1] > 0.5, "larger must mean known"
            assert found[f"open_set_auroc_{score}"][2] is None
    assert {k for k in report.gaps if "open_set" in k} == {
        f"h/global/open_set_{what}_{score}" for what in ("auroc", "fpr95") for score in SCORES
    }
    assert report.gaps["h/global/open_set_auroc_energy"] == "After experience 3 nothing comes that was not seen."


def test_a_part_of_what_comes_is_not_enough():
    """A stream of overlapping tasks shows samples of some later classes already; the rest is missing."""
    tasks = m.Tasks.split([2, 2, 2])
    first = kept(1, 2)
    early = {n: c[first.task < 2] for n, c in first.columns().items()}
    runs = {1: m.Predictions(**early), 2: kept(2, 4), 3: kept(3, 6)}
    found = m.compute_from_predictions({"h": runs}, tasks)
    assert found.values["h"]["global"]["open_set_auroc_energy"][0] is None
    assert "after experience 1: it needs evaluate_future" in found.gaps["h/global/open_set_auroc_energy"]


def test_known_scores_point_to_the_known_side():
    p = kept(0, 4)
    for score, sign in (("confidence", 1), ("entropy", -1), ("energy", -1)):
        np.testing.assert_allclose(known_score(p, score), sign * getattr(p, score).astype(float))
    bare = m.Predictions(**{n: c for n, c in p.columns().items() if n != "energy"})
    assert known_score(bare, "energy") is None


# -- Weibull -----------------------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(0.5, 8), st.floats(0.1, 50))
def test_a_fit_is_scipys_maximum_likelihood_of_the_tail(seed, shape, scale):
    distances = scale * np.random.default_rng(seed).weibull(shape, 200)
    fitted = Weibull(distances, tail=40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, _, stretch = weibull_min.fit(np.sort(distances)[-40:], floc=0)
    assert fitted.shape == pytest.approx(expected, rel=2e-3)
    assert fitted.scale == pytest.approx(stretch, rel=2e-3)
    where = np.linspace(0, 2 * scale, 9)
    np.testing.assert_allclose(fitted.cdf(where), weibull_min.cdf(where, fitted.shape, scale=fitted.scale), atol=1e-12)


def test_the_tail_is_the_largest_half_at_most_and_order_is_free():
    distances = np.arange(1.0, 11.0)
    assert Weibull(distances, tail=20).scale == Weibull(distances, tail=5).scale
    assert Weibull(distances[::-1], tail=5).shape == Weibull(distances, tail=5).shape
    assert Weibull(distances, tail=2).shape > Weibull(distances, tail=5).shape  # 9 and 10 lie closer together


def test_the_hazard_keeps_the_order_where_the_cdf_saturates():
    fitted = Weibull([5.0, 5.01, 5.02, 5.03], tail=2)
    far = np.array([6.0, 7.0, 8.0])
    assert (fitted.cdf(far) == 1).all()
    assert (np.diff(fitted.log_hazard(far)) > 0).all()
    assert fitted.cdf(0.0) == 0
    assert Weibull([2.0, 2.0, 2.0]).cdf(2.0) == pytest.approx(1 - math.exp(-1))
    with pytest.raises(ConfigurationError, match="at least two distances above 0, received 1"):
        Weibull([0.0, 3.0])
