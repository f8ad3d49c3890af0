"""How each metric of the catalogue reads a head's cube, decomposition and references; `Absent` says why it can't."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clframe.errors import ConfigurationError
from clframe.metrics import per_class, transfer
from clframe.metrics.calibration import seen_reliability
from clframe.metrics.cube import AccuracyCube
from clframe.metrics.decomposition import Decomposition, head_norm_ratio
from clframe.metrics.open_set import known_score
from clframe.metrics.predictions import Predictions
from clframe.metrics.scores import Absent, ScoreMatrix

__all__ = [
    "Inputs",
    "anytime",
    "average_incremental",
    "calibration",
    "class_last",
    "confusion",
    "decathlon",
    "decomposed",
    "deficit",
    "final",
    "final_calibration",
    "harmonic",
    "macro",
    "norm_ratio",
    "of_matrix",
    "open_set",
    "skipped",
    "versus_fresh",
    "versus_fresh_mean",
    "versus_joint",
    "weighted",
]

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the metrics of one head under one restriction may read.

    Attributes:
        cube: The head's counts.
        restriction: `global`, `local` or `upto`.
        decomposition: The head's error decomposition, where there are predicted classes.
        joint: Cube of the joint reference of the same stream.
        fresh: Cube of its fresh reference, whose network is a new one in every experience.
        decathlon_baseline: Error of the baseline per evaluation task.
        head_norms: `{i: (K_i,)}` norms of the head's weight vectors after experience i.
        predictions: The head's kept predictions after experience i, for what reads their confidence.
    """

    cube: AccuracyCube
    restriction: str = "global"
    decomposition: Decomposition | None = None
    joint: AccuracyCube | None = None
    fresh: AccuracyCube | None = None
    decathlon_baseline: Sequence[float] | None = None
    head_norms: Mapping[int, ArrayLike] = field(default_factory=dict)
    predictions: Mapping[int, Predictions] = field(default_factory=dict)

    @cached_property
    def scores(self) -> ScoreMatrix:
        """The matrix that most metrics read."""
        return self.cube.scores(self.restriction)

    @cached_property
    def seen(self) -> dict[int, float]:
        """A_i after every experience i, NaN where it can't be given."""
        return {
            i: _or_nan(self.cube.seen_at, self.restriction, i) for i in range(1, self.cube.tasks.num_experiences + 1)
        }

    def seen_over(self, experiences: Sequence[int]) -> Float:
        """A_i of several experiences.

        Raises:
            Absent: One of them has none; the reason is that of the first.
        """
        for i in experiences:
            if math.isnan(self.seen[i]):
                self.cube.seen_at(self.restriction, i)
        return np.array([self.seen[i] for i in experiences])


def _or_nan(function: Callable[..., float], *args: Any) -> float:
    try:
        return function(*args)
    except Absent:
        return math.nan


def _strict(metric: Callable[..., float]) -> Callable[..., float]:
    """The form of a metric that raises `Absent` instead of returning NaN."""
    strict: Callable[..., float] = inspect.unwrap(metric)
    return strict


def final(inputs: Inputs) -> float:
    """A_T."""
    return float(inputs.seen_over([inputs.cube.tasks.num_experiences])[0])


def average_incremental(inputs: Inputs) -> float:
    """Mean of A_i over the ends of tasks."""
    return float(inputs.seen_over(inputs.cube.tasks.ends).mean())


def weighted(inputs: Inputs, i: int) -> float:
    """A_i."""
    return float(inputs.seen_over([i])[0])


def of_matrix(metric: Callable[[ScoreMatrix], float]) -> Callable[[Inputs], float]:
    """A metric of the score matrix."""
    strict = _strict(metric)
    return lambda inputs: strict(inputs.scores)


def macro(inputs: Inputs, i: int) -> float:
    """The plain mean over the tasks learned."""
    return _strict(transfer.seen_macro_at)(inputs.scores, _row(inputs, i))


def _row(inputs: Inputs, i: int) -> int:
    """The row of the score matrix after experience i."""
    if i not in inputs.scores.experiences:
        raise Absent(f"Experience {i} doesn't end a task of the stream.")
    return inputs.scores.experiences.index(i)


def anytime(inputs: Inputs) -> float:
    """Mean of A_i over all evaluations of an online stream."""
    tasks = inputs.cube.tasks
    if tasks.evaluation_interval is None:
        raise Absent("It needs an online stream, evaluated every so many samples.")
    return per_class.anytime_accuracy(inputs.seen_over(range(1, tasks.num_experiences + 1)))


def harmonic(inputs: Inputs, i: int) -> float:
    """Harmonic mean of seen and unseen."""
    if not inputs.cube.higher_is_better:
        raise Absent("It is defined only for scores of which larger is better.")
    seen, unseen = inputs.cube.seen_at(inputs.restriction, i), inputs.cube.unseen_at(inputs.restriction, i)
    return per_class.seen_unseen_harmonic_mean(seen, unseen)


def _joint(inputs: Inputs) -> AccuracyCube:
    return _reference(inputs, inputs.joint, "joint")


def _reference(inputs: Inputs, given: AccuracyCube | None, kind: str, how: str = "") -> AccuracyCube:
    """The cube of a reference that fits; `how` says how one is made."""
    if given is None:
        raise Absent(f"It needs the {kind} reference of the same stream, which was not given{how}.")
    if given.tasks != inputs.cube.tasks:
        raise Absent(f"The {kind} reference belongs to another stream.")
    if inputs.restriction not in given.restrictions:
        raise Absent(f"The {kind} reference has no {inputs.restriction} predictions.")
    return given


def _diagonal(reference: AccuracyCube, restriction: str) -> Float:
    """A reference's score on every task right after it, NaN where there is none."""
    scores = reference.scores(restriction)
    diagonal = np.full(len(scores.learned), np.nan)
    diagonal[scores.known] = scores.values[scores.learned[scores.known], scores.known]
    return diagonal


def versus_joint(inputs: Inputs) -> float:
    """Intransigence versus the joint reference."""
    return _strict(transfer.intransigence)(inputs.scores, _diagonal(_joint(inputs), inputs.restriction))


def _fresh(inputs: Inputs) -> Float:
    given = _reference(inputs, inputs.fresh, "fresh", ": `clframe.fresh_reference(run)` makes it")
    return _diagonal(given, inputs.restriction)


def versus_fresh(inputs: Inputs, i: int) -> float:
    """Gap to a fresh model on the tasks that experience i completed."""
    return _strict(transfer.fresh_gap_at)(inputs.scores, _fresh(inputs), _row(inputs, i))


def versus_fresh_mean(inputs: Inputs) -> float:
    """Mean gap to a fresh model over the tasks."""
    return _strict(transfer.fresh_gap_mean)(inputs.scores, _fresh(inputs))


def _class_matrix(cube: AccuracyCube, restriction: str) -> Float:
    if not cube.per_class:
        raise Absent("It needs scores per class, which were not kept.")
    if not cube.higher_is_better:
        raise Absent("It is defined only for scores of which larger is better.")
    return cube.class_matrix(restriction)


def class_last(inputs: Inputs) -> float:
    """Best minus last score per class."""
    tasks = inputs.cube.tasks
    rows = _class_matrix(inputs.cube, inputs.restriction)[[0, *tasks.ends]]
    labels = np.arange(rows.shape[1])
    tested = np.isin(labels, inputs.cube.pairs.label[inputs.cube.sizes > 0])
    first = np.full(labels.size, tasks.num_experiences + 1)
    np.minimum.at(first, inputs.cube.pairs.label, inputs.cube.pairs.seen_at)
    first = np.where(tested, np.searchsorted(tasks.ends, first) + 1, len(rows))
    return _strict(per_class.forgetting_class_last)(rows, first)


def _last_classes(inputs: Inputs, *, new: bool) -> list[int]:
    """Tested classes that the last task brought, or those seen before it."""
    tasks = inputs.cube.tasks
    before = tasks.seen[tasks.ends[-2] - 1] if len(tasks.ends) > 1 else 0
    chosen = range(before, tasks.seen[-1]) if new else range(before)
    return [c for c in chosen if c in set(inputs.cube.pairs.label[inputs.cube.sizes > 0].tolist())]


def deficit(inputs: Inputs, *, new: bool) -> float:
    """RSD, or RPD for the new classes."""
    joint = _class_matrix(_joint(inputs), inputs.restriction)[-1]
    final = _class_matrix(inputs.cube, inputs.restriction)[-1]
    metric = _strict(per_class.rpd if new else per_class.rsd)
    return metric(final, joint, _last_classes(inputs, new=new))


def skipped(inputs: Inputs, *, new: bool) -> int:
    """Classes that RSD or RPD leave out."""
    deficit(inputs, new=new)
    joint = _class_matrix(_joint(inputs), inputs.restriction)[-1]
    return per_class.skipped_classes(joint, _last_classes(inputs, new=new))


def decathlon(inputs: Inputs) -> float:
    """Visual Decathlon score of the final row."""
    if inputs.decathlon_baseline is None:
        raise Absent("It needs the baseline's error on every task, which was not given.")
    if not inputs.cube.higher_is_better or inputs.cube.score != "accuracy":
        raise Absent("It is defined only for accuracies.")
    final = inputs.cube.matrix(inputs.restriction)[-1]
    return _strict(per_class.visual_decathlon_score)(final, inputs.decathlon_baseline)


def decomposed(name: str) -> Callable[[Inputs, int], float]:
    """A curve of the error decomposition."""

    def value(inputs: Inputs, i: int) -> float:
        found = inputs.decomposition
        if found is None:
            raise Absent("It needs the predicted classes, which were not given.")
        if not found.evaluated[i - 1]:
            raise Absent(f"Test samples of classes seen by then were not evaluated after experience {i}.")
        number = float(getattr(found, name)[i - 1])
        if math.isnan(number):
            raise Absent(f"After experience {i} there is no sample or no new class that it could count.")
        return number

    return value


def confusion(inputs: Inputs) -> list[list[int]]:
    """Task confusion at the end."""
    if inputs.decomposition is None or inputs.decomposition.confusion is None:
        raise Absent("It needs the predicted classes of all test samples seen, which were not given.")
    return [[int(n) for n in row] for row in inputs.decomposition.confusion]


def norm_ratio(inputs: Inputs, i: int) -> float:
    """Head-norm ratio."""
    if i not in inputs.head_norms:
        raise Absent("It needs the norms of the head's weight vectors, which were not given.")
    tasks, norms = inputs.cube.tasks, np.asarray(inputs.head_norms[i], dtype=np.float64)
    if norms.shape != (tasks.seen[i - 1],):
        raise ConfigurationError(
            f"The head norms after experience {i} need one value for each of {tasks.seen[i - 1]} classes, "
            f"but have the shape {norms.shape}; give those of the same run."
        )
    ratio = head_norm_ratio(norms, tasks.new_classes(i).start)
    if math.isnan(ratio):
        raise Absent(f"After experience {i} there are no old or no new classes.")
    return ratio


def calibration(inputs: Inputs, i: int) -> float:
    """ECE on the samples of everything seen."""
    inputs.cube.seen_at(inputs.restriction, i)  # says why where they were not all evaluated
    kept = inputs.predictions.get(i)
    if kept is None or kept.confidence is None or kept.predicted is None:
        raise Absent("It needs the confidence of every prediction, which was not kept.")
    return seen_reliability(kept, inputs.cube.tasks, i).error


def final_calibration(inputs: Inputs) -> float:
    """ECE at the end."""
    return calibration(inputs, inputs.cube.tasks.num_experiences)


def open_set(score: str, measure: Callable[[ArrayLike, ArrayLike], float]) -> Callable[[Inputs, int], float]:
    """A curve of how well a score tells the samples of everything seen from those of everything not seen yet."""

    def value(inputs: Inputs, i: int) -> float:
        kept = inputs.predictions.get(i)
        scores = None if kept is None else known_score(kept, score)
        if kept is None or scores is None:
            raise Absent(f"It needs the {score} of every prediction, which was not kept.")
        seen, later = _seen_samples(inputs, kept, i), inputs.cube.pairs.seen_at > i
        if not inputs.cube.sizes[~later].any():
            raise Absent(f"No test sample has a class seen by then (after experience {i}).")
        if not inputs.cube.sizes[later].any():
            raise Absent(f"After experience {i} nothing comes that was not seen.")
        if int((~seen).sum()) != int(inputs.cube.sizes[later].sum()):
            raise Absent(
                f"Test samples of what comes later were not evaluated after experience {i}: it needs evaluate_future, on a "
                "stream without task ids."
            )
        return measure(scores[seen], scores[~seen])

    return value


def _seen_samples(inputs: Inputs, kept: Predictions, i: int) -> NDArray[np.bool_]:
    """Which samples `(N,)` of an evaluation belong to what was seen after experience i."""
    pairs = inputs.cube.pairs
    seen: NDArray[np.bool_] = pairs.seen_at[pairs.locate(kept)] <= i
    return seen
