"""Metrics of the score matrix against a worked example, independent few-line versions, and the identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clframe import metrics as m
from clframe.errors import ConfigurationError

LAW = settings(derandomize=True, deadline=None, max_examples=80)

# Rows: before training, after tasks 1..3; columns: tasks 1..3.
WORKED = np.array([[0.1, 0.2, 0.3], [0.9, 0.25, 0.35], [0.7, 0.8, 0.5], [0.4, 0.6, 0.95]])
SIZES = np.array([50, 25, 25])


def worked() -> m.ScoreMatrix:
    return m.ScoreMatrix.of(WORKED, sizes=SIZES, class_counts=[2, 1, 1])


BY_HAND = {
    # A_1 = .9; A_2 = (50*.7 + 25*.8)/75 = 55/75; A_3 = (50*.4 + 25*.6 + 25*.95)/100 = .5875
    "final_accuracy": 0.5875,
    "average_incremental_accuracy": (0.9 + 55 / 75 + 0.5875) / 3,
    "forgetting_max": ((0.9 - 0.4) + (0.8 - 0.6)) / 2,
    "forgetting_max_incl": 0.35,
    "forgetting_first": 0.35,
    "backward_transfer": -0.35,
    "forward_transfer_minus_init": ((0.25 - 0.2) + (0.5 - 0.3)) / 2,
    "forward_transfer_raw": (0.25 + 0.5) / 2,
    "learning_accuracy": (0.9 + 0.8 + 0.95) / 3,
    "in_domain": (0.9 + 0.8 + 0.95) / 3,
    "learning_accuracy_slope": 0.025,  # ((-1)(.9) + 0 + (1)(.95)) / 2
    "backward": (0.7 + 0.4 + 0.6) / 3,
    "forward": (0.25 + 0.35 + 0.5) / 3,
    # i=2: 2/3 (.9-.7); i=3: 2/4 (.9-.4) + 1/4 (.8-.6); over T-1 = 2
    "forgetting_global": (2 / 3 * 0.2 + 0.5 * 0.5 + 0.25 * 0.2) / 2,
    "forgetting_local": 0.35,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_worked_example(name):
    assert getattr(m, name)(worked()) == pytest.approx(BY_HAND[name], abs=1e-12)


def test_worked_curves_and_intransigence():
    np.testing.assert_allclose(m.seen_accuracy(worked()), [0.9, 55 / 75, 0.5875])
    np.testing.assert_allclose(m.seen_accuracy_macro(worked()), [0.9, 0.75, 0.65])
    assert m.intransigence(worked(), [0.9, 0.85, 1.0]) == pytest.approx((0 + 0.05 + 0.05) / 3)


@st.composite
def matrices(draw, lowest=1):
    steps = draw(st.integers(lowest, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return m.ScoreMatrix.of(
        rng.random((steps + 1, steps)),
        sizes=rng.integers(1, 100, steps),
        class_counts=rng.integers(1, 9, steps),
    )


# Independent versions, with plain loops and the formulas' own indices (a[i][j], 1-based; row 0 before training).
def by_loops(s: m.ScoreMatrix) -> dict[str, float]:
    big = s.last
    a = {(i, j): float(s.values[i, j - 1]) for i in range(big + 1) for j in range(1, big + 1)}
    n = {j: int(s.sizes[j - 1]) for j in range(1, big + 1)}
    c = {j: int(s.class_counts[j - 1]) for j in range(1, big + 1)}
    seen = [
        sum(n[j] * a[i, j] for j in range(1, i + 1)) / sum(n[j] for j in range(1, i + 1)) for i in range(1, big + 1)
    ]
    old, ahead = range(1, big), range(2, big + 1)
    out = {
        "final_accuracy": seen[-1],
        "average_incremental_accuracy": sum(seen) / big,
        "learning_accuracy": sum(a[j, j] for j in range(1, big + 1)) / big,
    }
    if big > 1:
        out["forgetting_max"] = sum(max(a[i, j] for i in range(j, big)) - a[big, j] for j in old) / (big - 1)
        out["forgetting_max_incl"] = sum(max(a[i, j] for i in range(j, big + 1)) - a[big, j] for j in old) / (big - 1)
        out["forgetting_first"] = sum(a[j, j] - a[big, j] for j in old) / (big - 1)
        out["backward_transfer"] = sum(a[big, j] - a[j, j] for j in old) / (big - 1)
        out["forward_transfer_minus_init"] = sum(a[j - 1, j] - a[0, j] for j in ahead) / (big - 1)
        out["forward_transfer_raw"] = sum(a[j - 1, j] for j in ahead) / (big - 1)
        below = [a[i, j] for i in range(1, big + 1) for j in range(1, i)]
        above = [a[i, j] for i in range(1, big + 1) for j in range(i + 1, big + 1)]
        out["backward"], out["forward"] = sum(below) / len(below), sum(above) / len(above)
        out["learning_accuracy_slope"] = np.polyfit(range(1, big + 1), [a[j, j] for j in range(1, big + 1)], 1)[0]
        out["forgetting_global"] = sum(
            c[k] / sum(c[q] for q in range(1, i + 1)) * (a[k, k] - a[i, k])
            for i in range(2, big + 1)
            for k in range(1, i)
        ) / (big - 1)
        out["forgetting_local"] = out["forgetting_first"]
    return out


@LAW
@given(matrices())
def test_equal_to_loops(scores):
    for name, value in by_loops(scores).items():
        assert getattr(m, name)(scores) == pytest.approx(value, abs=1e-9), name


@LAW
@given(matrices(lowest=2))
def test_identities(scores):
    big = scores.last
    forgetting_first, backward = m.forgetting_first(scores), m.backward_transfer(scores)
    assert forgetting_first == pytest.approx(-backward)
    assert m.forgetting_max(scores) >= forgetting_first - 1e-12
    assert m.forgetting_max_incl(scores) >= max(0, m.forgetting_max(scores)) - 1e-12
    expected = m.learning_accuracy(scores) + (big - 1) / big * backward
    assert m.seen_accuracy_macro(scores)[-1] == pytest.approx(expected)
    assert m.in_domain(scores) == m.learning_accuracy(scores)
    if big == 2:
        assert m.forgetting_max(scores) == pytest.approx(forgetting_first)


@LAW
@given(matrices(lowest=2))
def test_lower_last_row_forgets_more(scores):
    worse = scores.values.copy()
    worse[-1] -= 0.01
    lower = m.ScoreMatrix.of(worse, sizes=scores.sizes, class_counts=scores.class_counts)
    for name in ("forgetting_max", "forgetting_max_incl", "forgetting_first", "forgetting_global"):
        assert getattr(m, name)(lower) > getattr(m, name)(scores) - 1e-12
        if name != "forgetting_global":
            assert getattr(m, name)(lower) == pytest.approx(getattr(m, name)(scores) + 0.01) or name.endswith("incl")


@LAW
@given(matrices(lowest=2))
def test_error_instead_of_accuracy_forgets_the_same(scores):
    error = m.ScoreMatrix.of(
        1 - scores.values, sizes=scores.sizes, class_counts=scores.class_counts, higher_is_better=False
    )
    same = ["forgetting_max", "forgetting_max_incl", "forgetting_first", "backward_transfer", "forgetting_global",
            "forgetting_local", "forward_transfer_minus_init"]  # fmt: skip
    for name in same:
        assert getattr(m, name)(error) == pytest.approx(getattr(m, name)(scores), abs=1e-12), name
    for name in ("final_accuracy", "learning_accuracy", "forward_transfer_raw", "backward"):
        assert getattr(m, name)(error) == pytest.approx(1 - getattr(m, name)(scores)), name
    best = np.linspace(0, 1, scores.last)
    assert m.intransigence(error, 1 - best) == pytest.approx(m.intransigence(scores, best), abs=1e-12)


@LAW
@given(matrices(), st.floats(0.1, 10), st.floats(-5, 5))
def test_scale_and_shift(scores, scale, shift):
    """Levels follow an affine change of the score; differences follow its scale only."""
    moved = m.ScoreMatrix.of(scale * scores.values + shift, sizes=scores.sizes, class_counts=scores.class_counts)
    for name, value in by_loops(scores).items():
        level = not name.startswith(("forgetting", "backward_", "forward_transfer_minus", "learning_accuracy_slope"))
        assert getattr(m, name)(moved) == pytest.approx(scale * value + shift * level, abs=1e-8), name


NEEDS = {  # cells (row, column) that each metric reads when T = 4
    "final_accuracy": [(4, 0), (4, 1), (4, 2), (4, 3)],
    "average_incremental_accuracy": [(i, j) for i in range(1, 5) for j in range(i)],
    "forgetting_max": [(i, j) for j in range(3) for i in range(j + 1, 5)],
    "forgetting_max_incl": [(i, j) for j in range(3) for i in range(j + 1, 5)],
    "forgetting_first": [(j + 1, j) for j in range(3)] + [(4, j) for j in range(3)],
    "backward_transfer": [(j + 1, j) for j in range(3)] + [(4, j) for j in range(3)],
    "forward_transfer_minus_init": [(j, j) for j in range(1, 4)] + [(0, j) for j in range(1, 4)],
    "forward_transfer_raw": [(j, j) for j in range(1, 4)],
    "learning_accuracy": [(j + 1, j) for j in range(4)],
    "learning_accuracy_slope": [(j + 1, j) for j in range(4)],
    "in_domain": [(j + 1, j) for j in range(4)],
    "backward": [(i, j) for j in range(4) for i in range(j + 2, 5)],
    "forward": [(i, j) for j in range(4) for i in range(1, j + 1)],
    "forgetting_global": [(i, j) for j in range(3) for i in range(j + 1, 5)],
    "forgetting_local": [(j + 1, j) for j in range(3)] + [(4, j) for j in range(3)],
}


@pytest.mark.parametrize("name", NEEDS)
def test_nan_exactly_where_a_needed_cell_is_missing(name):
    full = np.random.default_rng(0).random((5, 4))
    value = getattr(m, name)(full)
    for cell in np.ndindex(5, 4):
        holed = full.copy()
        holed[cell] = np.nan
        got = getattr(m, name)(holed)
        if cell in NEEDS[name]:
            assert math.isnan(got), cell
        else:
            assert got == pytest.approx(value), cell


def test_one_task():
    scores = m.ScoreMatrix.of([[0.1], [0.8]])
    for name in (
        "forgetting_max",
        "forgetting_max_incl",
        "forgetting_first",
        "backward_transfer",
        "forward",
        "backward",
        "forward_transfer_raw",
        "forward_transfer_minus_init",
        "forgetting_global",
        "learning_accuracy_slope",
    ):
        assert math.isnan(getattr(m, name)(scores)), name
    assert m.final_accuracy(scores) == m.average_incremental_accuracy(scores) == m.learning_accuracy(scores) == 0.8


def test_over_time_starts_with_nan_and_ends_with_the_value():
    curve = m.over_time(m.forgetting_max, worked())
    assert math.isnan(curve[0])
    np.testing.assert_allclose(curve[1:], [0.9 - 0.7, 0.35])


def test_tasks_learned_together_or_never():
    """Two tasks learned after step 1, one after step 2, one never: four columns, two rows."""
    values = np.array([[0.0, 0.0, 0.0, 0.0], [0.9, 0.7, 0.2, 0.1], [0.5, 0.6, 0.8, 0.1]])
    scores = m.ScoreMatrix.of(values, learned=[1, 1, 2, 3], sizes=[10, 10, 20, 40])
    assert m.forgetting_first(scores) == pytest.approx((0.4 + 0.1) / 2)
    assert m.learning_accuracy(scores) == pytest.approx((0.9 + 0.7 + 0.8) / 3)
    assert m.final_accuracy(scores) == pytest.approx((5 + 6 + 16) / 40)
    assert m.forward_transfer_raw(scores) == pytest.approx(0.2)


def test_shapes_are_refused_in_words():
    with pytest.raises(ConfigurationError, match="give 'learned'"):
        m.ScoreMatrix.of(np.zeros((5, 2)))
    with pytest.raises(ConfigurationError, match="'sizes' needs"):
        m.ScoreMatrix.of(np.zeros((3, 2)), sizes=[1, 2, 3])
    with pytest.raises(ConfigurationError, match="shape"):
        m.ScoreMatrix.of(np.zeros(3))
    with pytest.raises(ConfigurationError, match="row 1 or later"):
        m.ScoreMatrix.of(np.zeros((3, 2)), learned=[0, 1])
