"""All metrics of a run at once, and the reason for each that can't be given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from numpy.typing import ArrayLike

from clframe.errors import ConfigurationError, DataError, did_you_mean
from clframe.metrics.catalogue import CATALOGUE
from clframe.metrics.cube import RESTRICTIONS, AccuracyCube
from clframe.metrics.decomposition import Decomposition, decompose
from clframe.metrics.evaluators import Inputs
from clframe.metrics.measured import Measured, compute_run
from clframe.metrics.metric import Metric
from clframe.metrics.predictions import Predictions, Tasks
from clframe.metrics.scores import Absent

__all__ = ["MetricReport", "compute_all", "compute_from_predictions"]


@dataclass(frozen=True)
class MetricReport:
    """Every metric that one run can give; JSON types only.

    Attributes:
        values: `{head: {restriction: {metric: value}}}`, primary head first. A curve is a list over the experiences
            1..T, with None where it has no value. Numbers aren't rounded.
        absent: Reason, in one sentence, for each metric that no head and restriction gives, by its name; where only
            some can't give it, by `head/restriction/metric`.
        gaps: Reason for the first None of a curve, by `head/restriction/metric`.
        run: Metrics of the run as a whole by name: numbers, curves, or curves by layer, phase or purpose.
    """

    values: dict[str, dict[str, dict[str, Any]]]
    absent: dict[str, str] = field(default_factory=dict)
    gaps: dict[str, str] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    def get(self, metric: str, head: str | None = None, restriction: str = "global") -> Any:
        """One value; without `head` that of the primary head. A metric of the run as a whole belongs to every head.

        Raises:
            ConfigurationError: There is no such value; the message has the reason.
        """
        head = next(iter(self.values), "") if head is None else head
        found = self.values.get(head, {}).get(restriction, {})
        for given in (found, self.run):
            if metric in given:
                return given[metric]
        why = self.absent.get(metric) or self.absent.get(f"{head}/{restriction}/{metric}")
        why = why or f"There is no such metric, head or restriction.{did_you_mean(metric, found)}"
        raise ConfigurationError(f"The metric {metric!r} of head {head!r} ({restriction}) was asked for. {why}")

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            DataError: A part is missing or unknown.
        """
        try:
            return cls(**data)
        except TypeError as error:
            raise DataError(f"A metric report has an unexpected form ({error}); recompute it.") from None


def compute_from_predictions(
    predictions: Mapping[str, Mapping[int, Predictions]],
    tasks: Tasks,
    *,
    score: str = "accuracy",
    higher_is_better: bool = True,
    joint: AccuracyCube | None = None,
    fresh: AccuracyCube | None = None,
    decathlon_baseline: Sequence[float] | None = None,
    head_norms: Mapping[str, Mapping[int, ArrayLike]] | None = None,
    measured: Measured | None = None,
) -> MetricReport:
    """All metrics of the kept predictions of one stream.

    Args:
        predictions: `{head: {experiences trained: predictions}}`, primary head first.
        tasks: The evaluation tasks of the stream.
        score: Name of the score, where the predictions hold one.
        higher_is_better: Whether a larger score is a better one.
        joint: Cube of the joint reference of the same stream.
        fresh: Cube of its fresh reference, for `fresh_gap`; see `clframe.fresh_reference`.
        decathlon_baseline: Error of the baseline per evaluation task.
        head_norms: `{head: {i: (K_i,)}}` norms of the head's weight vectors.
        measured: What the run measured of itself.
    """
    cubes = {
        head: AccuracyCube.from_predictions(given, tasks, score=score, higher_is_better=higher_is_better)
        for head, given in predictions.items()
    }
    decompositions = {
        head: decompose(given, tasks)
        for head, given in predictions.items()
        if any(p.predicted is not None for p in given.values())
    }
    report = compute_all(
        cubes,
        decompositions=decompositions,
        joint=joint,
        fresh=fresh,
        decathlon_baseline=decathlon_baseline,
        head_norms=head_norms,
        predictions=predictions,
    )
    values, absent = compute_run(measured or Measured(tasks.num_experiences, {}))
    return replace(report, run=values, absent={**report.absent, **absent})


def compute_all(
    cubes: Mapping[str, AccuracyCube],
    *,
    decompositions: Mapping[str, Decomposition] | None = None,
    joint: AccuracyCube | None = None,
    fresh: AccuracyCube | None = None,
    decathlon_baseline: Sequence[float] | None = None,
    head_norms: Mapping[str, Mapping[int, ArrayLike]] | None = None,
    predictions: Mapping[str, Mapping[int, Predictions]] | None = None,
) -> MetricReport:
    """All metrics of the cubes of one stream.

    Args:
        cubes: Per head, primary head first.
        decompositions: Error decomposition per head.
        joint: Cube of the joint reference of the same stream, for intransigence and deficits.
        fresh: Cube of its fresh reference, for `fresh_gap`; see `clframe.fresh_reference`.
        decathlon_baseline: Error of the baseline per evaluation task.
        head_norms: `{head: {i: (K_i,)}}` norms of the head's weight vectors after experience i.
        predictions: What the cubes count, for what reads its confidence.
    """
    values: dict[str, dict[str, dict[str, Any]]] = {}
    reasons: dict[tuple[str, str, str], str] = {}
    gaps: dict[str, str] = {}
    for head, cube in cubes.items():
        values[head] = {}
        for restriction in RESTRICTIONS:
            inputs = Inputs(
                cube=cube,
                restriction=restriction,
                decomposition=(decompositions or {}).get(head),
                joint=joint,
                fresh=fresh,
                decathlon_baseline=decathlon_baseline,
                head_norms=(head_norms or {}).get(head, {}),
                predictions=(predictions or {}).get(head, {}),
            )
            found: dict[str, Any] = {}
            for metric in CATALOGUE.values():
                if restriction not in metric.restrictions:
                    continue
                name = metric.named(cube.score)
                try:
                    found[name], gap = _evaluate(metric, inputs)
                except Absent as why:
                    reasons[head, restriction, name] = str(why)
                    continue
                if gap:
                    gaps[f"{head}/{restriction}/{name}"] = gap
            if restriction in cube.restrictions:
                values[head][restriction] = found
    return MetricReport(values=values, absent=_merge(reasons, values), gaps=gaps)


def _evaluate(metric: Metric, inputs: Inputs) -> tuple[Any, str]:
    """A metric's value in JSON types, and the reason for a gap in its curve.

    Raises:
        Absent: There is no value at all.
    """
    if inputs.restriction not in inputs.cube.restrictions:
        raise Absent(f"There are no {inputs.restriction} predictions.")
    if not metric.curve:
        value = metric.function(inputs)
        if isinstance(value, float) and math.isnan(value):
            raise Absent("A value that it needs is not a number.")
        return value, ""
    curve: list[float | None] = []
    gap = ""
    for i in range(1, inputs.cube.tasks.num_experiences + 1):
        try:
            curve.append(metric.function(inputs, i))
        except Absent as why:
            curve.append(None)
            gap = gap or str(why)
    if all(value is None for value in curve):
        raise Absent(gap)
    return curve, gap


def _merge(reasons: Mapping[tuple[str, str, str], str], values: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """One entry for a metric that nothing gives, else one for each head and restriction that can't give it."""
    given = {name for by_restriction in values.values() for found in by_restriction.values() for name in found}
    merged: dict[str, str] = {}
    for (head, restriction, name), why in reasons.items():
        if name not in given:
            merged.setdefault(name, why)
        elif restriction in values[head]:
            merged[f"{head}/{restriction}/{name}"] = why
    return merged
