"""Where the errors lie: wrong task or wrong class within the task, and the bias towards new classes.

With the task partition known, a prediction is right when it lies in the right task and is right within it:
A_i = TID_i · WTA_i, exactly, because both are ratios of the same counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clframe.errors import DataError
from clframe.metrics.cube import Pairs
from clframe.metrics.predictions import Predictions, Tasks

__all__ = ["Decomposition", "decompose", "head_norm_ratio", "task_confusion"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Counts over the test samples of everything seen, after each experience i = 1..T; every array is `(T,)`.

    Attributes:
        evaluated: Whether every such sample has a prediction; elsewhere the counts are 0 and the ratios NaN.
        samples: Samples of seen classes.
        right_task: Of these, predicted as a class of the sample's own task.
        correct: Of these, predicted right.
        predicted_new: Samples predicted as a class that experience i brought.
        truly_new: Samples of such a class.
        has_new: Whether experience i brought classes.
        confusion: `(J, J)` counts of the last evaluated experience, see `task_confusion`; None without one.
    """

    evaluated: NDArray[np.bool_]
    samples: Int
    right_task: Int
    correct: Int
    predicted_new: Int
    truly_new: Int
    has_new: NDArray[np.bool_]
    confusion: Int | None = None

    @property
    def accuracy(self) -> Float:
        """A_i, the fraction predicted right."""
        return _ratio(self.correct, self.samples)

    @property
    def task_identification(self) -> Float:
        """TID_i, the fraction predicted as a class of the right task."""
        return _ratio(self.right_task, self.samples)

    @property
    def within_task_accuracy(self) -> Float:
        """WTA_i, the accuracy given the right task; NaN where no sample got the right task."""
        return _ratio(self.correct, self.right_task)

    @property
    def new_class_bias(self) -> Float:
        """B_i = (fraction predicted as classes of experience i) - (fraction truly of them); NaN without new ones."""
        bias = _ratio(self.predicted_new, self.samples) - _ratio(self.truly_new, self.samples)
        return np.where(self.has_new, bias, np.nan)

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON types."""
        result = {name: value.tolist() for name, value in vars(self).items() if name != "confusion"}
        return {**result, "confusion": None if self.confusion is None else self.confusion.tolist()}


def _ratio(part: Int, whole: Int) -> Float:
    result: Float = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return result


def _membership(tasks: Tasks) -> NDArray[np.bool_]:
    """`(J, C)`: whether a class belongs to a task."""
    member = np.zeros((tasks.num_tasks, tasks.num_classes), dtype=bool)
    for j, classes in enumerate(tasks.classes):
        member[j, list(classes)] = True
    return member


def decompose(predictions: Mapping[int, Predictions], tasks: Tasks) -> Decomposition:
    """Count the kept predictions of one head.

    Args:
        predictions: Per number of experiences trained; row 0 isn't used.
        tasks: The evaluation tasks of the stream.

    Raises:
        DataError: The predictions don't belong to these tasks.
    """
    pairs, member, steps = Pairs.of(tasks), _membership(tasks), tasks.num_experiences
    places = {i: pairs.locate(given) for i, given in predictions.items()}
    sizes = np.zeros(len(pairs.task), dtype=np.int64)
    for place in places.values():
        sizes = np.maximum(sizes, np.bincount(place, minlength=len(sizes)))
    counts = np.zeros((5, steps), dtype=np.int64)
    evaluated = np.zeros(steps, dtype=bool)
    last: int | None = None
    for i in sorted(set(predictions) & set(range(1, steps + 1))):
        given = predictions[i]
        if given.predicted is None:
            continue
        chosen = (pairs.seen_at[places[i]] <= i) & (given.predicted >= 0)
        if int(chosen.sum()) != int(sizes[pairs.seen_at <= i].sum()):
            continue
        _check_classes(given, tasks)
        evaluated[i - 1], last = True, i
        task, target, predicted = given.task[chosen], given.target[chosen], given.predicted[chosen]
        new = tasks.new_classes(i)
        counts[:, i - 1] = (
            len(target),
            np.sum(member[task, predicted]),
            np.sum(predicted == target),
            np.sum((predicted >= new.start) & (predicted < new.stop)),
            np.sum((target >= new.start) & (target < new.stop)),
        )
    return Decomposition(
        evaluated=evaluated,
        samples=counts[0],
        right_task=counts[1],
        correct=counts[2],
        predicted_new=counts[3],
        truly_new=counts[4],
        has_new=np.array([len(tasks.new_classes(i)) > 0 for i in range(1, steps + 1)]),
        confusion=None if last is None else task_confusion(predictions[last], tasks, last),
    )


def _check_classes(given: Predictions, tasks: Tasks) -> None:
    if given.predicted is not None and given.predicted.max(initial=-1) >= tasks.num_classes:
        raise DataError(
            f"The stream has {tasks.num_classes} classes, but class {given.predicted.max()} was predicted; "
            "use the predictions and the tasks of the same run."
        )


def task_confusion(predictions: Predictions, tasks: Tasks, i: int) -> Int:
    """Counts `(J, J)` of test samples by true task (rows) and task of the predicted class (columns).

    Only samples of what was seen after experience i count. A class that several tasks have counts for the sample's own
    task if that has it, else for the first one; a class of no task isn't counted.

    Raises:
        DataError: There are no predicted classes, or they don't belong to these tasks.
    """
    if predictions.predicted is None:
        raise DataError(
            "A confusion of tasks needs predicted classes, but these predictions hold scores; none is made."
        )
    _check_classes(predictions, tasks)
    pairs, member = Pairs.of(tasks), _membership(tasks)
    chosen = (pairs.seen_at[pairs.locate(predictions)] <= i) & (predictions.predicted >= 0)
    own, label = predictions.task[chosen].astype(np.int64), predictions.predicted[chosen]
    first = np.where(member.any(axis=0), member.argmax(axis=0), -1)
    other = np.where(member[own, label], own, first[label])
    count = tasks.num_tasks
    return np.bincount((own * count + other)[other >= 0], minlength=count * count).reshape(count, count)


def head_norm_ratio(norms: ArrayLike, num_old: int) -> float:
    """ρ_i = mean_{c∈C_i}‖w_c‖ / mean_{c old}‖w_c‖; NaN without old or new classes.

    Args:
        norms: `(K_i,)` norm of the head's weight vector per class seen after experience i.
        num_old: Number of classes seen before experience i.
    """
    values = np.asarray(norms, dtype=np.float64)
    if not 0 < num_old < len(values):
        return float("nan")
    return float(values[num_old:].mean() / values[:num_old].mean())
