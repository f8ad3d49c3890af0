"""What a reader of a comparison must be told: one sentence each, in plain text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clframe.metrics.differences import MIN_SEEDS
from clframe.report.groups import Group, differing
from clframe.report.ranking import ScenarioComparison, better_sign
from clframe.report.summary import RunSummary

__all__ = ["by_value", "environment_differences", "notes_of", "scenario_differences"]


def notes_of(scenarios: Sequence[ScenarioComparison], metrics: Sequence[str], damaged: Mapping[str, str]) -> list[str]:
    """Every note of a comparison, the gravest first."""
    runs = [run for scenario in scenarios for run in scenario.runs]
    notes = [f"{place} counts nowhere: {reason}" for place, reason in damaged.items()]
    notes += _unlike_scenarios(scenarios)
    for scenario in scenarios:
        notes += _settings(scenario)
        notes += _support(scenario)
    for scenario in scenarios:
        for group in scenario.groups:
            notes += _missing(group, metrics)
            notes += _seeds(group, metrics)
    notes += _environments(runs)
    notes += _heads(scenarios)
    if any(len(g.finished) > 1 for s in scenarios for g in s.groups):
        notes.append("Numbers are mean ± sample standard deviation over the n finished seeds.")
    return notes


def scenario_differences(scenarios: Sequence[ScenarioComparison]) -> dict[str, list[Any]]:
    """The settings in which scenarios differ: `{name: value in each}`."""
    firsts = [{"scenario": s.name} | s.first.flat_settings() for s in scenarios]
    names = [n for n in differing(firsts) if n == "scenario" or n.startswith("scenario.")]
    return {name: [one.get(name, "unset") for one in firsts] for name in names}


def _unlike_scenarios(scenarios: Sequence[ScenarioComparison]) -> list[str]:
    if len(scenarios) < 2:
        return []
    found = scenario_differences(scenarios).items()
    what = "; ".join(f"{name}: {', '.join(dict.fromkeys(map(str, values)))}" for name, values in found)
    return [
        f"These are {len(scenarios)} unlike scenarios, which aren't ranked against each other; they differ in "
        f"{what or 'their specification, though in no setting that was kept'}."
    ]


def _settings(scenario: ScenarioComparison) -> list[str]:
    """What differs within a scenario besides the strategies' own settings."""
    settings = [g.first.flat_settings() for g in scenario.groups]
    labels = [g.label for g in scenario.groups]
    notes: list[str] = []
    without: dict[tuple[str, ...], list[str]] = {}
    for name in (n for n in differing(settings) if not n.startswith(("strategy.", "scenario."))):
        having = [{name: one[name]} for one in settings if name in one]
        if len(having) == len(settings) or differing(having):
            values = by_value(labels, [one.get(name, "unset") for one in settings])
            notes.append(f"Rows of {scenario.name} differ in {name} ({values}).")
        else:
            lacking = tuple(label for label, one in zip(labels, settings, strict=True) if name not in one)
            without.setdefault(lacking, []).append(name)
    for lacking, names in without.items():
        notes.append(
            f"Other rows of {scenario.name} have settings that {', '.join(lacking)} haven't: {', '.join(names)}."
        )
    return notes


def by_value(labels: Iterable[str], values: Iterable[Any]) -> str:
    """Say who has which value.

    >>> by_value(["ewc", "lwf", "replay"], [1, 5, 1])
    '1: ewc, replay; 5: lwf'
    """
    who: dict[str, list[str]] = {}
    for label, value in zip(labels, values, strict=True):
        who.setdefault(str(value), []).append(label)
    return "; ".join(f"{value}: {', '.join(names)}" for value, names in who.items())


def _support(scenario: ScenarioComparison) -> list[str]:
    """What the seeds leave open."""
    notes = []
    metric = scenario.first.named(scenario.metric)
    if better_sign(scenario.metric, scenario.first) == 0:
        return [f"{metric} has no better direction, so nothing is ranked."]
    unpaired = [p.names for p in scenario.pairs if not set(p.first.finished) & set(p.second.finished)]
    if unpaired:
        notes.append(
            f"{'; '.join(unpaired)} have no seed in common, so their difference can't be taken seed by seed and is harder "
            "to support: run them on equal seeds."
        )
    open_ = [p.names for p in scenario.pairs if not p.difference.supported and p.difference.n >= MIN_SEEDS]
    if open_:
        notes.append(f"The seeds support no difference in {metric} between {'; '.join(open_)}.")
    return notes


def _missing(group: Group, metrics: Sequence[str]) -> list[str]:
    """Which numbers a group lacks, and why: one sentence for those of the same reason."""
    by_reason: dict[str, list[str]] = {}
    for metric in metrics:
        name = group.first.named(metric)
        lacking = [run for seed, run in group.finished.items() if group.numbers(metric)[seed] is None]
        if lacking:
            by_reason.setdefault(lacking[0].absent.get(name, ""), []).append(name)
    return [
        f"{group.label} has no {' and no '.join(names)}{': ' + reason if reason else '.'}"
        for reason, names in by_reason.items()
    ]


def _seeds(group: Group, metrics: Sequence[str]) -> list[str]:
    notes = []
    seeds = [run.seed for run in group.runs if run.finished]
    for seed in sorted({s for s in seeds if seeds.count(s) > 1}):
        twins = [run for run in group.runs if run.finished and run.seed == seed]
        same = len({tuple(_numbers(run, group, metrics)) for run in twins}) == 1
        how = "with equal results" if same else "with different results, which the seed doesn't explain"
        notes.append(f"{group.label} has seed {seed} more than once, {how}; the first one counts.")
    if 0 < len(group.finished) < MIN_SEEDS:
        notes.append(
            f"{group.label} has {len(group.finished)} finished seed(s), and {MIN_SEEDS} are the least: "
            "no difference to it is supported."
        )
    return notes


def _numbers(run: RunSummary, group: Group, metrics: Sequence[str]) -> list[float | None]:
    found = [run.number(m, group.asked_head, group.asked_restriction) for m in metrics]
    return [None if value is not None and math.isnan(value) else value for value in found]


def environment_differences(runs: Sequence[RunSummary]) -> dict[str, list[str]]:
    """What differs between the environments of runs: `{name: distinct values}`."""
    known = [RunSummary.flat_environment(run) for run in runs if run.environment]
    return {n: list(dict.fromkeys(str(one.get(n, "unknown")) for one in known)) for n in differing(known)}


def _environments(runs: Sequence[RunSummary]) -> list[str]:
    found = environment_differences(runs)
    if not found:
        return []
    what = "; ".join(f"{name}: {', '.join(values)}" for name, values in found.items())
    return [f"The runs were made in different environments ({what})."]


def _heads(scenarios: Sequence[ScenarioComparison]) -> list[str]:
    groups = [g for s in scenarios for g in s.groups]
    heads = sorted({g.head for g in groups if g.head})
    notes = []
    if len(heads) > 1:
        notes.append(f"The rows report different heads ({', '.join(heads)}), whose numbers differ within one run.")
    restricted = sorted({g.restriction for g in groups} - {"global"})
    notes += [f"Predictions are restricted ({name}): they use the task of the sample." for name in restricted]
    return notes
