"""Runs side by side: grouped over seeds, ranked only within one scenario and only as far as the seeds support it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from clframe.errors import ConfigurationError
from clframe.metrics.aggregate import MIN_SEEDS, Difference, paired_difference, summarise
from clframe.metrics.catalogue import CATALOGUE, Metric
from clframe.report.tables import Cell, Column, Estimate, Table

__all__ = ["DEFAULT_METRICS", "RunSummary", "compare"]

DEFAULT_METRICS = ("final_accuracy", "average_incremental_accuracy", "forgetting_max")
"""Metrics that a comparison shows; the first one ranks."""


@dataclass(frozen=True)
class RunSummary:
    """What a comparison needs to know about one run.

    Attributes:
        directory: Run directory.
        scenario: Name of the scenario.
        scenario_hash: Hash of its full specification; runs are ranked together only where it is the same.
        strategy: Name of the strategy.
        backbone: Name of the backbone.
        seed: Seed of the run.
        metrics: `{head: {restriction: {metric: value}}}` as in `MetricReport.values`, primary head first.
        finished: Whether the run came to its end.
        settings: Everything else that was configured, nested or with dotted names, without seed and directory.
        label: Name that the user gave the run's strategy; empty for the strategy's own.
        progress: How far an unfinished run came, in words, for instance `3 of 10 experiences`.
        score: Name of the scenario's score.
        higher_is_better: Whether a larger score is a better one.
        restriction: The primary restriction: `local` where the setting gives task ids, else `global`.
    """

    directory: str | Path
    scenario: str
    scenario_hash: str
    strategy: str
    backbone: str
    seed: int
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    finished: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    progress: str = ""
    score: str = "accuracy"
    higher_is_better: bool = True
    restriction: str = "global"

    @property
    def name(self) -> str:
        """The label, or the strategy's name."""
        return self.label or self.strategy

    def head(self, asked: str | None = None) -> str:
        """The head asked for, or the primary one; empty when there is none."""
        return asked or next(iter(self.metrics), "")

    def number(self, metric: str, head: str | None = None, restriction: str | None = None) -> float | None:
        """One scalar metric, or None when the run doesn't have it."""
        value = (
            self.metrics.get(self.head(head), {})
            .get(restriction or self.restriction, {})
            .get(metric.replace("accuracy", self.score))
        )
        return float(value) if isinstance(value, (int, float)) else None

    def flat_settings(self) -> dict[str, Any]:
        """The settings with dotted names."""
        return dict(_flatten(self.settings))


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@dataclass
class _Group:
    """Runs that are the same in everything but the seed."""

    runs: list[RunSummary]

    @property
    def first(self) -> RunSummary:
        return self.runs[0]

    @property
    def finished(self) -> dict[int, RunSummary]:
        """Finished runs by seed, the first of each."""
        found: dict[int, RunSummary] = {}
        for run in self.runs:
            if run.finished:
                found.setdefault(run.seed, run)
        return dict(sorted(found.items()))

    @property
    def unfinished(self) -> list[RunSummary]:
        return [run for run in self.runs if not run.finished and run.seed not in self.finished]

    def values(self, metric: str, head: str | None, restriction: str | None) -> dict[int, float | None]:
        return {seed: run.number(metric, head, restriction) for seed, run in self.finished.items()}


def _key(run: RunSummary) -> str:
    parts = [run.scenario, run.scenario_hash, run.strategy, run.label, run.backbone, run.flat_settings()]
    return json.dumps(parts, sort_keys=True, default=str)


def compare(
    results: Sequence[RunSummary],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    head: str | None = None,
    restriction: str | None = None,
) -> Table:
    """Group runs by everything but the seed and show mean and sample standard deviation over seeds.

    Groups are ranked by the first metric within one scenario: a group's rank is one more than the number of groups
    that are better with the support of the seeds (95 % interval, see `paired_difference`), so groups that the seeds
    don't tell apart may share a rank. Unlike scenarios are never ranked against each other.

    Args:
        results: The runs.
        metrics: Scalar metrics by their full names.
        head: Report head; each run's primary one by default.
        restriction: `global`, `local` or `upto`; each run's primary one by default (`local` where task ids are given).

    Raises:
        ConfigurationError: There are no runs, or no metrics.
    """
    if not results or not metrics:
        raise ConfigurationError(
            f"A comparison needs runs and metrics, but received {len(results)} runs and {len(metrics)} metrics; name some."
        )
    groups: dict[str, _Group] = {}
    for run in results:
        groups.setdefault(_key(run), _Group([])).runs.append(run)
    scenarios: dict[tuple[str, str], list[_Group]] = {}
    for group in groups.values():
        scenarios.setdefault((group.first.scenario, group.first.scenario_hash), []).append(group)
    labels = _labels(list(groups.values()))
    rows: list[list[Cell]] = []
    notes: list[str] = []
    for (scenario, digest), members in scenarios.items():
        ranks, unsupported = _rank(members, labels, metrics[0], head, restriction)
        members.sort(key=lambda g: ranks.get(id(g), (len(members) + 1, 0.0)))
        shown = f"{scenario} ({digest[:8]})" if len(scenarios) > 1 else scenario
        rows += [_row(g, shown, labels[id(g)], ranks, metrics, head, restriction) for g in members]
        notes += unsupported
    notes = [
        *_scenario_notes(scenarios),
        *_setting_notes(scenarios, labels),
        *notes,
        *_other_notes(list(groups.values()), labels, metrics, head, restriction),
    ]
    numbers = [_column(metric, results[0]) for metric in metrics]
    fixed = [Column("scenario"), Column("strategy"), Column("backbone"), Column("head")]
    return Table(
        [*fixed, *numbers, Column("n", right=True), Column("rank", right=True), Column("state")], rows, notes=notes
    )


def _column(metric: str, run: RunSummary) -> Column:
    known: Metric | None = CATALOGUE.get(metric)
    percent = known is not None and known.unit.startswith("fraction") and run.score == "accuracy"
    name = metric.replace("accuracy", run.score)
    scale, digits = (100.0, 2) if percent else (1.0, 4)
    return Column(name, unit="%" if percent else "", scale=scale, digits=digits, right=True)


def _row(
    group: _Group,
    scenario: str,
    label: str,
    ranks: Mapping[int, tuple[int, float]],
    metrics: Sequence[str],
    head: str | None,
    restriction: str | None,
) -> list[Cell]:
    cells: list[Cell] = [scenario, label, group.first.backbone, group.first.head(head) or None]
    for metric in metrics:
        values = group.values(metric, head, restriction)
        summary = summarise(values) if values else None
        cells.append(Estimate(summary.mean, summary.std) if summary else None)
    rank = ranks.get(id(group))
    waiting = [f"seed {run.seed}" + (f": {run.progress}" if run.progress else "") for run in group.unfinished]
    state = f"unfinished ({'; '.join(waiting)})" if waiting else "finished"
    return [*cells, len(group.finished), rank[0] if rank else None, state]


def _rank(
    members: Sequence[_Group], labels: Mapping[int, str], metric: str, head: str | None, restriction: str | None
) -> tuple[dict[int, tuple[int, float]], list[str]]:
    """Rank (and sorting value) per group, and a note for each difference that the seeds don't support."""
    known = CATALOGUE.get(metric)
    if known is not None and known.higher_is_better is None:
        return {}, [f"{metric} has no better direction, so nothing is ranked."]
    values = {id(g): g.values(metric, head, restriction) for g in members}
    usable = [g for g in members if values[id(g)] and all(v is not None for v in values[id(g)].values())]
    sign = _sign(known, usable[0].first) if usable else 1.0
    worse = {id(g): 0 for g in usable}
    notes = []
    for a, b in combinations(usable, 2):
        gap = paired_difference(values[id(a)], values[id(b)])
        if gap.supported:
            worse[id(b) if sign * gap.mean > 0 else id(a)] += 1
        elif min(len(values[id(a)]), len(values[id(b)])) >= MIN_SEEDS:
            notes.append(_unsupported(metric, labels[id(a)], labels[id(b)], gap, known, a.first.score))
    if len(usable) < 2:
        return {}, notes
    means = {id(g): -sign * summarise(values[id(g)]).mean for g in usable}
    return {key: (1 + worse[key], means[key]) for key in worse}, notes


def _sign(metric: Metric | None, run: RunSummary) -> float:
    """1 where larger values are better; metrics of level follow the scenario's score."""
    better = metric is None or bool(metric.higher_is_better)
    if metric is not None and metric.level and not run.higher_is_better:
        better = not better
    return 1.0 if better else -1.0


def _unsupported(metric: str, first: str, second: str, gap: Difference, known: Metric | None, score: str) -> str:
    percent = known is not None and known.unit.startswith("fraction") and score == "accuracy"
    shown = gap.statement(100.0 if percent else 1.0, 2)
    return f"{first} versus {second} on {metric}{' [%]' if percent else ''}: {shown}."


def _labels(groups: Sequence[_Group]) -> dict[int, str]:
    """A name per group that tells it from every other of the same name, by the settings that differ."""
    by_name: dict[tuple[str, ...], list[_Group]] = {}
    for group in groups:
        first = group.first
        by_name.setdefault((first.scenario, first.scenario_hash, first.name, first.backbone), []).append(group)
    labels = {}
    for group in groups:
        first = group.first
        rivals = by_name[first.scenario, first.scenario_hash, first.name, first.backbone]
        differing = _differing([g.first.flat_settings() | {"strategy": g.first.strategy} for g in rivals])
        own = first.flat_settings() | {"strategy": first.strategy}
        extra = ", ".join(f"{name}={own.get(name, 'unset')}" for name in differing)
        labels[id(group)] = f"{first.name} ({extra})" if extra else first.name
    return labels


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the settings that aren't the same everywhere."""
    names = sorted({name for one in settings for name in one})
    return [
        n for n in names if len({json.dumps(one.get(n, "unset"), sort_keys=True, default=str) for one in settings}) > 1
    ]


def _scenario_notes(scenarios: Mapping[tuple[str, str], Sequence[_Group]]) -> list[str]:
    if len(scenarios) < 2:
        return []
    firsts = [{"scenario": name} | members[0].first.flat_settings() for (name, _), members in scenarios.items()]
    names = [n for n in _differing(firsts) if n == "scenario" or n.startswith("scenario.")]
    what = "; ".join(f"{n}: {', '.join(dict.fromkeys(str(one.get(n, 'unset')) for one in firsts))}" for n in names)
    return [
        f"These are {len(scenarios)} unlike scenarios, which aren't ranked against each other; they differ in "
        f"{what or 'their specification, though in no setting that was kept'}."
    ]


def _setting_notes(scenarios: Mapping[tuple[str, str], Sequence[_Group]], labels: Mapping[int, str]) -> list[str]:
    """What differs within a scenario besides the strategies' own settings."""
    notes = []
    for (scenario, _), members in scenarios.items():
        settings = [g.first.flat_settings() for g in members]
        for name in _differing(settings):
            if not name.startswith(("strategy.", "scenario.")):
                pairs = zip(members, settings, strict=True)
                each = "; ".join(f"{labels[id(g)]}: {one.get(name, 'unset')}" for g, one in pairs)
                notes.append(f"Rows of {scenario} differ in {name} ({each}).")
    return notes


def _other_notes(
    groups: Sequence[_Group],
    labels: Mapping[int, str],
    metrics: Sequence[str],
    head: str | None,
    restriction: str | None,
) -> list[str]:
    notes = []
    heads = sorted({h for g in groups if (h := g.first.head(head))})
    if len(heads) > 1:
        notes.append(f"The rows report different heads ({', '.join(heads)}), whose numbers differ within one run.")
    shown = {restriction} if restriction else {r.restriction for g in groups for r in g.runs}
    restricted = sorted(shown - {"global"})
    notes += [f"Predictions are restricted ({name}): they use the task of the sample." for name in restricted]
    for group in groups:
        seeds = [run.seed for run in group.runs if run.finished]
        for seed in sorted({s for s in seeds if seeds.count(s) > 1}):
            same = {
                tuple(_stable(r.number(m, head, restriction)) for m in metrics) for r in group.runs if r.seed == seed
            }
            how = "with equal results" if len(same) == 1 else "with different results, which the seed doesn't explain"
            notes.append(f"{labels[id(group)]} has seed {seed} more than once, {how}; the first one counts.")
        if 0 < len(group.finished) < MIN_SEEDS:
            notes.append(
                f"{labels[id(group)]} has {len(group.finished)} finished seed(s), and {MIN_SEEDS} are the least: "
                "no difference to it is supported."
            )
    if any(len(g.finished) > 1 for g in groups):
        notes.append("Numbers are mean ± sample standard deviation over the n finished seeds.")
    return notes


def _stable(value: float | None) -> float | None:
    return None if value is not None and math.isnan(value) else value
