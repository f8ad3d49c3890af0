"""The accuracy cube: counts per evaluation, evaluation task and class, for the three restrictions of the prediction.

One cube holds one evaluation stream and one report head. It keeps the counts (correct, total), not percentages, per
pair (task, class): a pair is a class of an evaluation task, and most classes belong to one task, so that a cube over
1,000 experiences stays small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clframe.errors import ConfigurationError, DataError, did_you_mean
from clframe.metrics.predictions import Predictions, Tasks
from clframe.metrics.scores import Absent, ScoreMatrix

__all__ = ["RESTRICTIONS", "AccuracyCube", "Pairs"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]

RESTRICTIONS = ("global", "local", "upto")
"""Classes that a prediction chooses among: all seen; those of the sample's task; those of the tasks up to it."""

_COLUMN = {"global": "predicted", "local": "predicted_local", "upto": "predicted_upto"}


@dataclass(frozen=True, eq=False)
class Pairs:
    """The P pairs (task, class) of a stream, sorted, and when each of them was seen.

    Attributes:
        task: `(P,)` evaluation task, from 0.
        label: `(P,)` class.
        seen_at: `(P,)` experience (from 1) that brought the pair; T + 1 if none did.
    """

    task: Int
    label: Int
    seen_at: Int

    @classmethod
    def of(cls, tasks: Tasks) -> Self:
        """All pairs of the evaluation tasks."""
        pairs = [(j, c) for j, classes in enumerate(tasks.classes) for c in sorted(classes)]
        task, label = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        seen_at = np.searchsorted(np.asarray(tasks.seen), label, side="right") + 1
        if tasks.introduced is not None:
            seen_at = np.maximum(seen_at, np.asarray(tasks.introduced, dtype=np.int64)[task])
        return cls(task=task, label=label, seen_at=seen_at)

    def locate(self, predictions: Predictions) -> Int:
        """Position `(N,)` of each sample's pair.

        Raises:
            DataError: A sample's class isn't one of its task's classes.
        """
        width = 1 + max(int(self.label.max(initial=0)), int(predictions.target.max(initial=0)))
        keys = self.task * width + self.label
        wanted = predictions.task.astype(np.int64) * width + predictions.target
        place: Int = np.searchsorted(keys, wanted)
        wrong = (place >= len(keys)) | (keys[np.minimum(place, len(keys) - 1)] != wanted) if len(keys) else wanted >= 0
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            task, label = int(predictions.task[first]), int(predictions.target[first])
            raise DataError(
                f"Evaluation task {task + 1} of the stream has no class {label}, "
                f"but sample {predictions.sample[first]} of the predictions says so; "
                "use the predictions and the tasks of the same run."
            )
        return place


@dataclass(frozen=True, eq=False)
class AccuracyCube:
    """Counts or scores of one evaluation stream and one head.

    Attributes:
        tasks: The evaluation tasks.
        pairs: The pairs (task, class) that the columns below stand for.
        sizes: `(P,)` test samples per pair.
        correct: Per restriction `(T + 1, P)`: correct predictions, or the sum of the scores.
        total: Per restriction `(T + 1, P)`: samples with a prediction; a task's cell counts as evaluated when all its
            samples have one.
        score: Name of the score, `accuracy` for counts of correct predictions.
        higher_is_better: Whether a larger score is a better one.
        per_class: Whether the values per class are known; not so for a cube made from a matrix.
    """

    tasks: Tasks
    pairs: Pairs
    sizes: Int
    correct: Mapping[str, NDArray[Any]]
    total: Mapping[str, Int]
    score: str = "accuracy"
    higher_is_better: bool = True
    per_class: bool = True
    given: Mapping[str, Float] = field(default_factory=dict, repr=False)

    @classmethod
    def from_predictions(
        cls,
        predictions: Mapping[int, Predictions],
        tasks: Tasks,
        *,
        score: str = "accuracy",
        higher_is_better: bool = True,
    ) -> Self:
        """Count the kept predictions of one head.

        Args:
            predictions: Per number of experiences trained, 0 = before training.
            tasks: The evaluation tasks of the stream.
            score: Name of the score, where predictions hold a `score` column.
            higher_is_better: Whether a larger score is a better one.

        Raises:
            DataError: Predictions don't belong to these tasks, or mix accuracy and another score.
        """
        pairs, rows = Pairs.of(tasks), tasks.num_experiences + 1
        width = len(pairs.task)
        with_score = {given.score is not None for given in predictions.values()}
        if len(with_score) > 1:
            raise DataError("All predictions of a head hold classes or all hold scores, but these mix; separate them.")
        restrictions = ("global",) if True in with_score else RESTRICTIONS
        dtype = np.float64 if True in with_score else np.int64
        correct = {r: np.zeros((rows, width), dtype=dtype) for r in restrictions}
        total = {r: np.zeros((rows, width), dtype=np.int64) for r in restrictions}
        sizes = np.zeros(width, dtype=np.int64)
        for i, given in predictions.items():
            if not 0 <= i < rows:
                raise DataError(
                    f"The stream has {rows - 1} experiences, but there are predictions after experience {i}; "
                    "use the predictions and the tasks of the same run."
                )
            place = pairs.locate(given)
            sizes = np.maximum(sizes, np.bincount(place, minlength=width))
            for r in restrictions:
                _count(given, r, place, correct[r][i], total[r][i])
        kept = [r for r in restrictions if total[r].any()]
        return cls(
            tasks=tasks,
            pairs=pairs,
            sizes=sizes,
            correct={r: correct[r] for r in kept},
            total={r: total[r] for r in kept},
            score=score,
            higher_is_better=higher_is_better,
        )

    @classmethod
    def from_matrix(
        cls,
        matrix: ArrayLike,
        sizes: ArrayLike | None = None,
        *,
        tasks: Tasks | None = None,
        score: str = "accuracy",
        higher_is_better: bool = True,
        restriction: str = "global",
    ) -> Self:
        """A cube from scores per task, for scores that aren't means over samples (AUROC, mAP) and for tests.

        Args:
            matrix: `(T + 1, J)` with the row before training, NaN for cells not evaluated.
            sizes: `(J,)` test samples per task; equal by default.
            tasks: The evaluation tasks; by default one per experience, with one class each.
            score: Name of the score.
            higher_is_better: Whether a larger score is a better one. See `ScoreMatrix` for what forgetting then means.
            restriction: The restriction that the scores were made with.

        Raises:
            ConfigurationError: The shapes don't fit one another.
        """
        _check_restriction(restriction, RESTRICTIONS)
        values = np.array(matrix, dtype=np.float64)
        if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 1:
            raise ConfigurationError(f"The matrix has the shape (T + 1, J), but this has {values.shape}; correct it.")
        rows, columns = values.shape
        if tasks is None and rows == columns + 1:
            tasks = Tasks.split([1] * columns)
        if tasks is None or (rows, columns) != (tasks.num_experiences + 1, tasks.num_tasks):
            raise ConfigurationError(
                f"A matrix of the shape {values.shape} needs tasks with as many experiences and tasks; give 'tasks'."
            )
        counts = np.ones(columns, dtype=np.int64) if sizes is None else np.asarray(sizes, dtype=np.int64)
        if counts.shape != (columns,) or counts.min() < 0:
            raise ConfigurationError(
                f"'sizes' needs a number for each of {columns} tasks, but is {sizes!r}; correct it."
            )
        index = np.arange(columns)
        return cls(
            tasks=tasks,
            pairs=Pairs(task=index, label=index, seen_at=np.array(tasks.learned, dtype=np.int64)),
            sizes=counts,
            correct={restriction: np.nan_to_num(values) * counts},
            total={restriction: np.where(np.isnan(values), 0, counts)},
            score=score,
            higher_is_better=higher_is_better,
            per_class=False,
            given={restriction: values},
        )

    @property
    def restrictions(self) -> tuple[str, ...]:
        """Restrictions for which there are predictions."""
        return tuple(r for r in RESTRICTIONS if r in self.correct)

    def task_sizes(self) -> Int:
        """Test samples n_j per task, `(J,)`."""
        return np.bincount(self.pairs.task, weights=self.sizes, minlength=self.tasks.num_tasks).astype(np.int64)

    def matrix(self, restriction: str = "global") -> Float:
        """Scores `(T + 1, J)`; row 0 is before training, NaN a cell of which some sample was not evaluated.

        Raises:
            ConfigurationError: There are no predictions of that restriction.
        """
        _check_restriction(restriction, self.restrictions)
        if restriction in self.given:
            return self.given[restriction].copy()
        return _mean_by(
            self.pairs.task, self.tasks.num_tasks, self.correct[restriction], self.total[restriction], self.sizes
        )

    def class_matrix(self, restriction: str = "global") -> Float:
        """Scores `(T + 1, C)` per class, over all tasks that have it; NaN where some sample was not evaluated.

        Raises:
            ConfigurationError: There are no predictions of that restriction, or none per class.
        """
        _check_restriction(restriction, self.restrictions)
        if not self.per_class:
            raise ConfigurationError("A cube made from a matrix has no scores per class; make it from predictions.")
        label, count = self.pairs.label, self.tasks.num_classes
        return _mean_by(label, count, self.correct[restriction], self.total[restriction], self.sizes)

    def scores(self, restriction: str = "global") -> ScoreMatrix:
        """The matrix as the metrics read it: rows at the ends of tasks, a column for each task that has classes."""
        ends = np.array(self.tasks.ends)
        columns = np.flatnonzero([len(classes) > 0 for classes in self.tasks.classes])
        learned = np.array(self.tasks.learned, dtype=np.int64)[columns]
        return ScoreMatrix(
            values=self.matrix(restriction)[np.concatenate([[0], ends])][:, columns],
            sizes=self.task_sizes()[columns],
            learned=np.searchsorted(ends, learned) + 1,
            class_counts=np.array([len(self.tasks.classes[j]) for j in columns], dtype=np.int64),
            higher_is_better=self.higher_is_better,
            experiences=(0, *self.tasks.ends),
            tasks=tuple(int(j) + 1 for j in columns),
        )

    def seen_at(self, restriction: str, i: int) -> float:
        """A_i: score on the test samples of everything seen after experience i, each sample counting the same.

        Where evaluation tasks and experiences are the same, this is Σ_{j≤i} n_j a[i,j] / Σ_{j≤i} n_j. Of a task that is
        only partly seen, the classes that were seen count.

        Raises:
            Absent: Nothing was seen yet, or some of it was not evaluated.
        """
        return self._pooled(restriction, i, self.pairs.seen_at <= i, "seen by then")

    def unseen_at(self, restriction: str, i: int) -> float:
        """Score on the test samples of everything not seen yet after experience i.

        Raises:
            Absent: Everything was seen, or the rest was not evaluated.
        """
        return self._pooled(restriction, i, self.pairs.seen_at > i, "not seen by then")

    def _pooled(self, restriction: str, i: int, chosen: NDArray[np.bool_], which: str) -> float:
        correct, total = self.correct[restriction][i, chosen], self.total[restriction][i, chosen]
        wanted = int(self.sizes[chosen].sum())
        if wanted == 0:
            raise Absent(f"No test sample has a class {which} (after experience {i}).")
        if int(total.sum()) != wanted or bool(np.isnan(correct).any()):
            raise Absent(f"Test samples of classes {which} were not evaluated after experience {i}.")
        return float(correct.sum() / wanted)

    def to_dict(self) -> dict[str, Any]:
        """The cube as JSON types, NaN as None."""
        return {
            "tasks": self.tasks.to_dict(),
            "score": self.score,
            "higher_is_better": self.higher_is_better,
            "per_class": self.per_class,
            "sizes": self.sizes.tolist(),
            "correct": {r: _to_json(self.correct[r]) for r in self.restrictions},
            "total": {r: self.total[r].tolist() for r in self.restrictions},
            "matrix": {r: _to_json(self.given[r]) for r in self.given},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            DataError: A part is missing or of the wrong form.
        """
        try:
            tasks = Tasks.from_dict(data["tasks"])
            settings = {name: data[name] for name in ("score", "higher_is_better")}
            if not data["per_class"]:
                ((restriction, matrix),) = data["matrix"].items()
                given = np.array(matrix, dtype=np.float64)
                return cls.from_matrix(given, data["sizes"], tasks=tasks, restriction=restriction, **settings)
            return cls(
                tasks=tasks,
                pairs=Pairs.of(tasks),
                sizes=np.array(data["sizes"], dtype=np.int64),
                correct={r: _from_json(values) for r, values in data["correct"].items()},
                total={r: np.array(values, dtype=np.int64) for r, values in data["total"].items()},
                **settings,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"A kept accuracy cube has an unexpected form ({error!r}); make it from the predictions."
            ) from None


def _count(given: Predictions, restriction: str, place: Int, correct: NDArray[Any], total: Int) -> None:
    """Add one evaluation to its row of the cube."""
    width = len(total)
    if given.score is not None:
        correct += np.bincount(place, weights=given.score.astype(np.float64), minlength=width)
        total += np.bincount(place, minlength=width)
        return
    predicted = getattr(given, _COLUMN[restriction])
    if predicted is not None:
        total += np.bincount(place[predicted >= 0], minlength=width)
        correct += np.bincount(place[predicted == given.target], minlength=width)


def _mean_by(group: Int, count: int, correct: NDArray[Any], total: Int, sizes: Int) -> Float:
    """Mean score `(rows, count)` per group of pairs; NaN unless every sample of the group has a prediction."""
    sums, totals, wanted = np.zeros((count, len(correct))), np.zeros((count, len(correct))), np.zeros((count, 1))
    np.add.at(sums, group, correct.T)
    np.add.at(totals, group, total.T)
    np.add.at(wanted[:, 0], group, sizes)
    complete = (totals == wanted) & (wanted > 0)
    mean: Float = np.divide(sums, totals, out=np.full_like(sums, np.nan), where=complete)
    return mean.T


def _check_restriction(restriction: str, choices: tuple[str, ...]) -> None:
    if restriction not in choices:
        raise ConfigurationError(
            f"A restriction with predictions is one of {list(choices)}, but received {restriction!r}; choose one."
            + did_you_mean(restriction, choices)
        )


def _to_json(values: NDArray[Any]) -> list[Any]:
    if values.dtype.kind != "f":
        return list(values.tolist())
    return [[None if np.isnan(v) else v for v in row] for row in values.tolist()]


def _from_json(rows: list[list[Any]]) -> NDArray[Any]:
    if all(isinstance(v, int) for row in rows for v in row):
        return np.array(rows, dtype=np.int64)
    return np.array(rows, dtype=np.float64)
