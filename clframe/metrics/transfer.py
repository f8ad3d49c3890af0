"""Metrics of the score matrix: level, forgetting, transfer, learning.

Each function takes a `ScoreMatrix`, or a plain matrix that `ScoreMatrix.of` can read, and returns a number, or one
number per row i = 1..T for a curve. A metric that needs a cell which was not evaluated is NaN; it is never averaged
over fewer cells.

Written for one evaluation task per experience, as in the formulas. In general "j" runs over the tasks that were learned
at all, `a[j, j]` is the score right after task j was learned, "j < T" are the tasks learned before the last row, and
T - 1 is their number.

`forgetting_max`: Chaudhry et al. 2018, "Riemannian Walk for Incremental Learning"; `backward_transfer` and forward
transfer: Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory"; `in_domain`, `backward`, `forward`: Garg et al. 2024,
"TiC-CLIP"; global and local forgetting: Smith et al. 2023, "A Closer Look at Rehearsal-Free Continual Learning".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clframe.metrics.scores import Absent, ScoreMatrix, as_scores, nan_if_absent

__all__ = [
    "average_incremental_accuracy",
    "backward",
    "backward_transfer",
    "final_accuracy",
    "forgetting_first",
    "forgetting_global",
    "forgetting_local",
    "forgetting_max",
    "forgetting_max_incl",
    "forward",
    "forward_transfer_minus_init",
    "forward_transfer_raw",
    "fresh_gap",
    "fresh_gap_mean",
    "in_domain",
    "intransigence",
    "learning_accuracy",
    "learning_accuracy_slope",
    "over_time",
    "seen_accuracy",
    "seen_accuracy_macro",
]

Matrix = ScoreMatrix | ArrayLike
Float = NDArray[np.float64]
Int = NDArray[np.int64]


def over_time(metric: Callable[[ScoreMatrix], float], matrix: Matrix) -> Float:
    """What a metric would have said after each row i = 1..T, with the tasks learned by then.

    Returns:
        `(T,)`; NaN where the metric can't be given, as for forgetting after one task.
    """
    scores = as_scores(matrix)
    return np.array([metric(scores.until(i)) for i in range(1, scores.last + 1)])


@nan_if_absent
def seen_at(matrix: Matrix, row: int) -> float:
    """A_i of one row: the sample-weighted mean over the tasks learned by then."""
    scores = as_scores(matrix)
    columns = _learned_by(scores, row)
    sizes = scores.sizes[columns]
    if sizes.sum() == 0:
        raise Absent("No task that was learned has test samples.")
    return float(np.dot(scores.cells(row, columns), sizes) / sizes.sum())


@nan_if_absent
def seen_macro_at(matrix: Matrix, row: int) -> float:
    """The plain mean of one row over the tasks learned by then."""
    scores = as_scores(matrix)
    return float(scores.cells(row, _learned_by(scores, row)).mean())


def _learned_by(scores: ScoreMatrix, row: int) -> Int:
    columns = np.flatnonzero(scores.learned <= row)
    if columns.size == 0:
        raise Absent(f"No evaluation task was learned by experience {scores.experiences[row]}.")
    return columns


def seen_accuracy(matrix: Matrix) -> Float:
    """A_i = Σ_{j≤i} n_j a[i,j] / Σ_{j≤i} n_j, for i = 1..T."""
    scores = as_scores(matrix)
    return np.array([seen_at(scores, i) for i in range(1, scores.last + 1)])


def seen_accuracy_macro(matrix: Matrix) -> Float:
    """mean_{j≤i} a[i,j], for i = 1..T: every task counts the same, whatever its size."""
    scores = as_scores(matrix)
    return np.array([seen_macro_at(scores, i) for i in range(1, scores.last + 1)])


def final_accuracy(matrix: Matrix) -> float:
    """A_T, the sample-weighted accuracy on all tasks at the end."""
    scores = as_scores(matrix)
    return seen_at(scores, scores.last)


def average_incremental_accuracy(matrix: Matrix) -> float:
    """(1/T) Σ_i A_i, the base step included."""
    return float(np.mean(seen_accuracy(matrix)))


def _need(columns: Int, why: str) -> Int:
    if columns.size == 0:
        raise Absent(why)
    return columns


def _earlier(scores: ScoreMatrix) -> Int:
    return _need(scores.earlier, "It needs a task that was learned before the last experience.")


def _forgetting(matrix: Matrix, best: Callable[[Float], Float | np.float64], *, include_last: bool) -> float:
    """Mean over j < T of (best of the rows since j was learned) - (last row), in the direction of better."""
    scores = as_scores(matrix)
    losses = []
    for j in _earlier(scores):
        stop = scores.last + 1 if include_last else scores.last
        history = scores.sign * scores.cells(np.arange(scores.learned[j], stop), j)
        losses.append(best(history) - scores.sign * scores.cells(scores.last, j))
    return float(np.mean(losses))


@nan_if_absent
def forgetting_max(matrix: Matrix) -> float:
    """(1/(T-1)) Σ_{j<T} ( max_{j≤i<T} a[i,j] - a[T,j] ); may be negative."""
    return _forgetting(matrix, np.max, include_last=False)


@nan_if_absent
def forgetting_max_incl(matrix: Matrix) -> float:
    """As `forgetting_max` with the maximum over j≤i≤T, the last row included; never negative."""
    return _forgetting(matrix, np.max, include_last=True)


@nan_if_absent
def backward_transfer(matrix: Matrix) -> float:
    """(1/(T-1)) Σ_{j<T} ( a[T,j] - a[j,j] )."""
    scores = as_scores(matrix)
    columns = _earlier(scores)
    return float(scores.sign * np.mean(scores.cells(scores.last, columns) - scores.diagonal(columns)))


@nan_if_absent
def forgetting_first(matrix: Matrix) -> float:
    """(1/(T-1)) Σ_{j<T} ( a[j,j] - a[T,j] ) = -`backward_transfer`."""
    scores = as_scores(matrix)
    columns = _earlier(scores)
    return float(scores.sign * np.mean(scores.diagonal(columns) - scores.cells(scores.last, columns)))


def _later(scores: ScoreMatrix) -> Int:
    columns = scores.known
    return _need(columns[scores.learned[columns] > 1], "It needs a task that was learned after the first experience.")


@nan_if_absent
def forward_transfer_minus_init(matrix: Matrix) -> float:
    """(1/(T-1)) Σ_{j>1} ( a[j-1,j] - a[0,j] ), a[0,j] being the untrained model's score."""
    scores = as_scores(matrix)
    columns = _later(scores)
    before = scores.cells(scores.learned[columns] - 1, columns)
    return float(scores.sign * np.mean(before - scores.cells(0, columns)))


@nan_if_absent
def forward_transfer_raw(matrix: Matrix) -> float:
    """(1/(T-1)) Σ_{j>1} a[j-1,j], without a baseline."""
    scores = as_scores(matrix)
    columns = _later(scores)
    return float(np.mean(scores.cells(scores.learned[columns] - 1, columns)))


@nan_if_absent
def learning_accuracy(matrix: Matrix) -> float:
    """(1/T) Σ_j a[j,j]."""
    scores = as_scores(matrix)
    return float(np.mean(scores.diagonal(_need(scores.known, "It needs a task that was learned."))))


@nan_if_absent
def learning_accuracy_slope(matrix: Matrix) -> float:
    """Least-squares slope of a[j,j] over j, per task; falling accuracy points to a loss of plasticity."""
    scores = as_scores(matrix)
    if scores.known.size < 2:
        raise Absent("It needs two tasks that were learned.")
    order = scores.known[np.argsort(scores.learned[scores.known], kind="stable")]
    position = np.arange(order.size) - (order.size - 1) / 2
    return float(np.dot(position, scores.diagonal(order)) / np.dot(position, position))


@nan_if_absent
def intransigence(matrix: Matrix, reference: ArrayLike) -> float:
    """(1/T) Σ_j ( a*_j - a[j,j] ).

    Args:
        matrix: The scores of the run.
        reference: `(J,)`, a*_j: score on task j of the joint reference trained on the tasks 1..j.
    """
    scores = as_scores(matrix)
    columns = _need(scores.known, "It needs a task that was learned.")
    return float(np.mean(_behind(scores, columns, reference, "joint")))


@nan_if_absent
def fresh_gap_mean(matrix: Matrix, reference: ArrayLike) -> float:
    """(1/T) Σ_j ( a_fresh[j] - a[j,j] ); positive where the network learned less than a fresh one.

    Args:
        matrix: The scores of the run.
        reference: `(J,)`, a_fresh[j]: score on task j of a freshly initialised model that was trained on task j alone, with
            as many steps and the same augmentation.
    """
    scores = as_scores(matrix)
    columns = _need(scores.known, "It needs a task that was learned.")
    return float(np.mean(_behind(scores, columns, reference, "fresh")))


@nan_if_absent
def fresh_gap_at(matrix: Matrix, reference: ArrayLike, row: int) -> float:
    """The mean of a_fresh[j] - a[j,j] over the tasks that were learned in one row; see `fresh_gap_mean`."""
    scores = as_scores(matrix)
    columns = _need(
        np.flatnonzero(scores.learned == row),
        f"No evaluation task was learned in experience {scores.experiences[row]}.",
    )
    return float(np.mean(_behind(scores, columns, reference, "fresh")))


def fresh_gap(matrix: Matrix, reference: ArrayLike) -> Float:
    """a_fresh[j] - a[j,j] after each row i = 1..T; see `fresh_gap_mean`.

    Returns:
        `(T,)`; NaN where no task was learned, or a score is missing.
    """
    scores = as_scores(matrix)
    return np.array([fresh_gap_at(scores, reference, i) for i in range(1, scores.last + 1)])


def _behind(scores: ScoreMatrix, columns: Int, reference: ArrayLike, kind: str) -> Float:
    """By how much some tasks, right after they were learned, are worse than those of a reference."""
    best = np.asarray(reference, dtype=np.float64)[columns]
    if np.isnan(best).any():
        task = scores.tasks[int(columns[np.flatnonzero(np.isnan(best))[0]])]
        raise Absent(f"The {kind} reference has no score on task {task} right after that task.")
    return np.asarray(scores.sign * (best - scores.diagonal(columns)), dtype=np.float64)


def in_domain(matrix: Matrix) -> float:
    """mean_i a[i,i]; the same number as `learning_accuracy`."""
    return learning_accuracy(matrix)


def _triangle(scores: ScoreMatrix, *, lower: bool) -> float:
    rows, columns = np.meshgrid(np.arange(1, scores.last + 1), scores.known, indexing="ij")
    chosen = rows > scores.learned[columns] if lower else rows < scores.learned[columns]
    if not chosen.any():
        raise Absent("It needs at least two experiences with tasks learned at different times.")
    return float(np.mean(scores.cells(rows[chosen], columns[chosen])))


@nan_if_absent
def backward(matrix: Matrix) -> float:
    """mean_{i>j} a[i,j]: scores on past tasks."""
    return _triangle(as_scores(matrix), lower=True)


@nan_if_absent
def forward(matrix: Matrix) -> float:
    """mean_{i<j} a[i,j]: scores on tasks yet to come, the row before training not counted."""
    return _triangle(as_scores(matrix), lower=False)


@nan_if_absent
def forgetting_global(matrix_upto: Matrix) -> float:
    """F^G = (1/(T-1)) Σ_{i=2}^{T} Σ_{n<i} (|C_n|/|C_{1:i}|) (R[n,n] - R[i,n]).

    |C_{1:i}| is the sum of the |C_n| learned by i, so that the weights add up where classes come back.

    Args:
        matrix_upto: R: the sample's class is predicted among the classes of the tasks up to its own.
    """
    scores = as_scores(matrix_upto)
    _earlier(scores)
    total = 0.0
    rows = range(int(scores.learned.min()) + 1, scores.last + 1)
    for i in rows:
        weights = scores.class_counts / scores.class_counts[scores.learned <= i].sum()
        past = np.flatnonzero(scores.learned < i)
        total += float(np.dot(weights[past], scores.diagonal(past) - scores.cells(i, past)))
    return scores.sign * total / len(rows)


@nan_if_absent
def forgetting_local(matrix_local: Matrix) -> float:
    """F^L = (1/(T-1)) Σ_{n<T} (a^L[n,n] - a^L[T,n]), predicted among the classes of the sample's own task."""
    scores = as_scores(matrix_local)
    columns = _earlier(scores)
    return float(scores.sign * np.mean(scores.diagonal(columns) - scores.cells(scores.last, columns)))
