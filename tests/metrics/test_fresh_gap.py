"""The gap to a freshly initialised network: by hand, its signs, its laws, and its reasons."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clframe import metrics as m

LAW = settings(derandomize=True, deadline=None, max_examples=60)
SCORES = st.floats(0, 1, width=32)


def test_it_is_the_reference_minus_the_diagonal() -> None:
    matrix = np.array([[0.9, 0, 0], [0.5, 0.6, 0], [0.4, 0.5, 0.8]])
    assert m.fresh_gap(matrix, [0.9, 0.8, 0.5]) == pytest.approx([0.0, 0.2, -0.3])
    assert m.fresh_gap_mean(matrix, [0.9, 0.8, 0.5]) == pytest.approx(-0.1 / 3)


def test_of_an_error_a_larger_one_is_the_gap() -> None:
    scores = m.ScoreMatrix.of([[2.0, 9], [3, 4]], higher_is_better=False)
    assert m.fresh_gap(scores, [1.5, 5.0]) == pytest.approx([0.5, -1.0])
    assert m.fresh_gap_mean(scores, [1.5, 5.0]) == pytest.approx(-0.25)


def test_tasks_that_one_experience_completes_count_together() -> None:
    scores = m.ScoreMatrix.of([[np.nan] * 4, [0.5, 0.1, 0.1, 0], [0.4, 0.6, 0.2, 0]], learned=[1, 2, 2, 3])
    assert m.fresh_gap(scores, [0.7, 0.9, 0.3, 0.9]) == pytest.approx([0.2, (0.3 + 0.1) / 2])
    assert m.fresh_gap_mean(scores, [0.7, 0.9, 0.3, 0.9]) == pytest.approx((0.2 + 0.3 + 0.1) / 3)


def test_a_task_that_was_never_learned_and_a_missing_score_have_no_gap() -> None:
    never = m.ScoreMatrix.of([[np.nan] * 3, [0.5, 0.1, 0.1]], learned=[1, 2, 2])
    assert m.fresh_gap(never, [0.7, 0.9, 0.9]) == pytest.approx([0.2])
    assert m.fresh_gap_mean(never, [0.7, np.nan, np.nan]) == pytest.approx(0.2)
    both = m.ScoreMatrix.of([[0.5, 0.1], [0.4, 0.6]])
    assert m.fresh_gap(both, [0.7, np.nan]) == pytest.approx([0.2, np.nan], nan_ok=True)
    assert np.isnan(m.fresh_gap_mean(both, [0.7, np.nan]))


@LAW
@given(st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=6))
def test_a_run_has_no_gap_to_itself_and_the_opposite_gap_from_the_other_side(pairs: list[tuple[float, float]]) -> None:
    own, other = (np.diag(values) for values in zip(*pairs, strict=True))
    assert m.fresh_gap(own, np.diag(own)) == pytest.approx(np.zeros(len(pairs)))
    assert m.fresh_gap(own, np.diag(other)) == pytest.approx(-m.fresh_gap(other, np.diag(own)))
    assert m.fresh_gap_mean(own, np.diag(other)) == pytest.approx(
        m.learning_accuracy(other) - m.learning_accuracy(own), abs=1e-12
    )


def cube(tasks: m.Tasks, rows: list[list[float]]) -> m.AccuracyCube:
    """Counts of ten samples a task, of which a share is right."""
    kept = {}
    for i, row in enumerate(rows, start=1):
        target = np.repeat(np.arange(len(row)) * 2, 10)
        right = np.concatenate([np.arange(10) < round(10 * a) for a in row])
        task = np.repeat(np.arange(len(row)), 10)
        kept[i] = m.Predictions(
            sample=np.arange(len(target)), task=task, target=target, predicted=np.where(right, target, target + 1)
        )
    return m.AccuracyCube.from_predictions(kept, tasks)


TASKS = m.Tasks(classes=((0, 1), (2, 3)), seen=(2, 4), introduced=(1, 2))
OWN = cube(TASKS, [[0.9], [0.2, 0.5]])


def test_a_report_has_the_gap_of_every_experience_and_their_mean() -> None:
    fresh = cube(TASKS, [[0.8], [0.1, 0.9]])
    values = m.compute_all({"classifier": OWN}, fresh=fresh).values["classifier"]["global"]
    assert values["fresh_gap"] == pytest.approx([-0.1, 0.4])
    assert values["fresh_gap_mean"] == pytest.approx(0.15)


@pytest.mark.parametrize("name", ["fresh_gap", "fresh_gap_mean"])
def test_a_reference_that_is_missing_or_does_not_fit_has_its_reason(name: str) -> None:
    def reason(fresh: m.AccuracyCube | None) -> str:
        return m.compute_all({"classifier": OWN}, fresh=fresh).absent[name]

    assert reason(None) == (
        "It needs the fresh reference of the same stream, which was not given: `clframe.fresh_reference(run)` makes it."
    )
    other = m.Tasks(classes=((0, 1), (2, 3)), seen=(2, 4), introduced=(1, 1))
    assert reason(cube(other, [[0.8, 0.7]])) == "The fresh reference belongs to another stream."


def test_a_reference_without_an_experience_leaves_a_gap_in_the_curve() -> None:
    report = m.compute_all({"classifier": OWN}, fresh=cube(TASKS, [[0.8]]))
    assert report.values["classifier"]["global"]["fresh_gap"] == [pytest.approx(-0.1), None]
    why = "The fresh reference has no score on task 2 right after that task."
    assert report.gaps["classifier/global/fresh_gap"] == report.absent["fresh_gap_mean"] == why
