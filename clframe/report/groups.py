"""Runs grouped over seeds: runs that are the same in everything but the seed, named by what tells groups apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clframe.metrics.aggregate import summarise
from clframe.report.summary import RunSummary
from clframe.report.tables import Estimate

__all__ = ["Group", "differing", "grouped"]


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that are the same in everything but the seed, seen through one head and restriction.

    Attributes:
        runs: The runs in the order given.
        label: Name that tells the group from the others of its scenario.
        asked_head: Head asked for; None for each run's primary one.
        asked_restriction: Restriction asked for; None for each run's primary one.
    """

    runs: tuple[RunSummary, ...]
    label: str
    asked_head: str | None = None
    asked_restriction: str | None = None

    @property
    def first(self) -> RunSummary:
        """The first run, which stands for what the runs share."""
        return self.runs[0]

    @property
    def head(self) -> str:
        """The head that numbers are of; empty when no run has one."""
        return next((h for run in self.runs if (h := run.head(self.asked_head))), "")

    @property
    def restriction(self) -> str:
        """The restriction that numbers are of."""
        return self.asked_restriction or self.first.restriction

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
        """Unfinished runs of seeds that no finished run has."""
        return [run for run in self.runs if not run.finished and run.seed not in self.finished]

    @property
    def state(self) -> str:
        """Whether every run has finished, in words."""
        waiting = [f"seed {run.seed}" + (f": {run.progress}" if run.progress else "") for run in self.unfinished]
        return f"unfinished ({'; '.join(waiting)})" if waiting else "finished"

    def each(self, what: Callable[[RunSummary], Any]) -> dict[int, Any]:
        """Something of every finished run, by seed."""
        return {seed: what(run) for seed, run in self.finished.items()}

    def value(self, metric: str) -> dict[int, Any]:
        """A metric of every finished run as the result file has it, by seed; None where a run doesn't have it."""
        return self.each(lambda run: run.value(metric, self.asked_head, self.asked_restriction))

    def numbers(self, metric: str) -> dict[int, float | None]:
        """A scalar metric of every finished run, by seed; None where a run doesn't have it."""
        return self.each(lambda run: run.number(metric, self.asked_head, self.asked_restriction))

    def estimate(self, metric: str) -> Estimate | None:
        """Mean and sample standard deviation over the finished seeds; None without any, NaN where a seed lacks it."""
        values = self.numbers(metric)
        return Estimate.over(values) if values else None

    def mean(self, metric: str) -> float | None:
        """The mean over finished seeds; None where there is none or a seed lacks the metric."""
        values = self.numbers(metric)
        return None if not values or None in values.values() else summarise(values).mean


def grouped(
    results: Sequence[RunSummary], head: str | None, restriction: str | None
) -> dict[tuple[str, str], list[Group]]:
    """Group runs: by scenario and its hash, then by everything but the seed."""
    members: dict[str, list[RunSummary]] = {}
    for run in results:
        members.setdefault(_key(run), []).append(run)
    scenarios: dict[tuple[str, str], list[list[RunSummary]]] = {}
    for runs in members.values():
        scenarios.setdefault((runs[0].scenario, runs[0].scenario_hash), []).append(runs)
    return {
        scenario: [
            Group(tuple(runs), label, head, restriction)
            for runs, label in zip(found, _labels([runs[0] for runs in found]), strict=True)
        ]
        for scenario, found in scenarios.items()
    }


def _key(run: RunSummary) -> str:
    parts = [run.scenario, run.scenario_hash, run.strategy, run.label, run.backbone, run.flat_settings()]
    return json.dumps(parts, sort_keys=True, default=str)


def _labels(runs: Sequence[RunSummary]) -> list[str]:
    """A name per group of one scenario: the strategy's, and where it isn't alone, the backbone and settings that differ."""
    labels = []
    for run in runs:
        namesakes = [other for other in runs if other.name == run.name]
        rivals = [other for other in namesakes if other.backbone == run.backbone]
        names = differing([_settings(other) for other in rivals])
        own = _settings(run)
        extra = [run.backbone] if len({other.backbone for other in namesakes}) > 1 else []
        short = [name.rpartition(".")[2] for name in names]
        shown = [s if short.count(s) == 1 else name for s, name in zip(short, names, strict=True)]
        extra += [f"{s}={own.get(name, 'unset')}" for s, name in zip(shown, names, strict=True)]
        labels.append(f"{run.name} ({', '.join(extra)})" if extra else run.name)
    return labels


def _settings(run: RunSummary) -> Mapping[str, Any]:
    return run.flat_settings() | {"strategy": run.strategy}


def differing(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the settings that aren't the same everywhere."""
    given = list(settings)
    names = sorted({name for one in given for name in one})
    return [n for n in names if len({_stable(one.get(n, "unset")) for one in given}) > 1]


def _stable(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
