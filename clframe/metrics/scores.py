"""The score matrix that the metrics of an accuracy matrix read, and how a metric says that it can't be given."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clframe.errors import ClframeError, ConfigurationError

__all__ = ["Absent", "ScoreMatrix", "as_scores", "nan_if_absent"]

P = ParamSpec("P")
Float = NDArray[np.float64]
Int = NDArray[np.int64]


class Absent(ClframeError):
    """A metric can't be given; the message is the reason, in one sentence."""


def nan_if_absent(function: Callable[P, float]) -> Callable[P, float]:
    """Let a metric return NaN where the wrapped one raises `Absent` (which `inspect.unwrap` gives back)."""

    @functools.wraps(function)
    def value(*args: P.args, **kwargs: P.kwargs) -> float:
        try:
            return function(*args, **kwargs)
        except Absent:
            return math.nan

    return value


@dataclass(frozen=True, eq=False)
class ScoreMatrix:
    """Scores `a[i, j]` on task j after i steps of the stream, with what is needed to average them.

    Attributes:
        values: `(T + 1, J)`; row 0 is before any training, NaN is a cell that was not evaluated.
        sizes: `(J,)` test samples n_j per task.
        learned: `(J,)` row after which a task counts as learned: the diagonal. T + 1 for a task never learned.
        class_counts: `(J,)` classes |C_j| per task.
        higher_is_better: False for a score such as the mean squared error. Metrics of loss and gain (forgetting,
            transfer, intransigence) then change sign, so that larger still means more forgetting, or more gain;
            metrics of level (such as `final_accuracy`) keep the score's own value.
        experiences: `(T + 1,)` experiences trained, per row; differs from the row number in online streams.
        tasks: `(J,)` number of each task, from 1; tasks without classes have no column.
    """

    values: Float
    sizes: Int
    learned: Int
    class_counts: Int
    higher_is_better: bool = True
    experiences: tuple[int, ...] = ()
    tasks: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        values: ArrayLike,
        *,
        sizes: ArrayLike | None = None,
        learned: ArrayLike | None = None,
        class_counts: ArrayLike | None = None,
        higher_is_better: bool = True,
    ) -> Self:
        """Read a plain matrix.

        Args:
            values: `(T + 1, J)` with the row before training, or `(J, J)` without it.
            sizes: `(J,)` test samples per task; equal by default.
            learned: `(J,)` row after which each task counts as learned; 1..J by default.
            class_counts: `(J,)` classes per task; equal by default.
            higher_is_better: Whether a larger score is a better one.

        Raises:
            ConfigurationError: The shapes don't fit one another.
        """
        matrix = np.array(values, dtype=np.float64)
        if matrix.ndim != 2 or matrix.shape[1] == 0:
            raise ConfigurationError(
                f"A score matrix has the shape (T + 1, J), but this has {matrix.shape}; correct it."
            )
        if matrix.shape[0] == matrix.shape[1]:
            matrix = np.vstack([np.full((1, matrix.shape[1]), np.nan), matrix])
        rows, columns = matrix.shape
        if learned is None and rows != columns + 1:
            raise ConfigurationError(
                f"A score matrix of the shape {matrix.shape} doesn't tell when a task was learned; give 'learned'."
            )
        vectors = {
            "sizes": np.ones(columns) if sizes is None else np.asarray(sizes),
            "learned": np.arange(1, columns + 1) if learned is None else np.asarray(learned),
            "class_counts": np.ones(columns) if class_counts is None else np.asarray(class_counts),
        }
        for name, vector in vectors.items():
            if vector.shape != (columns,) or vector.min() < 0:
                raise ConfigurationError(
                    f"{name!r} needs a number from 0 on for each of {columns} tasks, but is {vector}; correct it."
                )
        return cls(
            values=matrix,
            sizes=vectors["sizes"].astype(np.int64),
            learned=vectors["learned"].astype(np.int64),
            class_counts=vectors["class_counts"].astype(np.int64),
            higher_is_better=higher_is_better,
        )

    def __post_init__(self) -> None:
        rows, columns = self.values.shape
        object.__setattr__(self, "experiences", self.experiences or tuple(range(rows)))
        object.__setattr__(self, "tasks", self.tasks or tuple(range(1, columns + 1)))
        if self.learned.size and self.learned.min() < 1:
            raise ConfigurationError(
                f"A task is learned in row 1 or later, but 'learned' is {self.learned}; correct it."
            )

    @property
    def last(self) -> int:
        """Number T of the last row."""
        return len(self.values) - 1

    @property
    def sign(self) -> float:
        """1 where a larger score is better, else -1."""
        return 1.0 if self.higher_is_better else -1.0

    @property
    def known(self) -> Int:
        """Columns of the tasks that were learned at all, in the order of the tasks."""
        return np.flatnonzero(self.learned <= self.last)

    @property
    def earlier(self) -> Int:
        """Columns of the tasks learned before the last row: `j < T`."""
        return np.flatnonzero(self.learned < self.last)

    def cells(self, rows: ArrayLike, columns: ArrayLike) -> Float:
        """Cells by (broadcast) row and column.

        Raises:
            Absent: A cell was not evaluated.
        """
        rows, columns = np.broadcast_arrays(np.asarray(rows), np.asarray(columns))
        chosen: Float = self.values[rows, columns]
        missing = np.isnan(chosen)
        if missing.any():
            first = int(np.flatnonzero(missing.ravel())[0])
            raise Absent(self.describe(int(rows.ravel()[first]), int(columns.ravel()[first])))
        return chosen

    def describe(self, row: int, column: int) -> str:
        """The sentence that names a cell which was not evaluated."""
        when = f"after experience {self.experiences[row]}" if row else "before training"
        return f"It needs the score on task {self.tasks[column]} {when}, which was not evaluated."

    def diagonal(self, columns: Int) -> Float:
        """`a[j, j]`: each task right after it was learned."""
        return self.cells(self.learned[columns], columns)

    def until(self, row: int) -> ScoreMatrix:
        """The matrix as it was after `row` steps, with the tasks learned by then; the others drop out."""
        keep = np.flatnonzero(self.learned <= row)
        return ScoreMatrix(
            values=self.values[: row + 1, keep],
            sizes=self.sizes[keep],
            learned=self.learned[keep],
            class_counts=self.class_counts[keep],
            higher_is_better=self.higher_is_better,
            experiences=self.experiences[: row + 1],
            tasks=tuple(self.tasks[j] for j in keep),
        )


def as_scores(matrix: ScoreMatrix | ArrayLike | Any) -> ScoreMatrix:
    """Take a `ScoreMatrix` as it is, and read anything else with `ScoreMatrix.of`."""
    return matrix if isinstance(matrix, ScoreMatrix) else ScoreMatrix.of(matrix)
