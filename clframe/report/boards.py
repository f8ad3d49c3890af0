"""The tables of a comparison: leaderboard, pairwise differences, settings that differ, environments, runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from clframe.metrics.catalogue import CATALOGUE
from clframe.metrics.differences import MIN_SEEDS, Difference
from clframe.report.groups import differing
from clframe.report.notes import environment_differences
from clframe.report.ranking import Pair, ScenarioComparison, in_percent
from clframe.report.summary import RunSummary
from clframe.report.tables import Cell, Column, Estimate, Table

__all__ = [
    "environments_table",
    "leaderboard",
    "metric_column",
    "pairwise_table",
    "runs_table",
    "settings_table",
    "support",
]


def leaderboard(scenarios: Sequence[ScenarioComparison], metrics: Sequence[str], notes: Sequence[str] = ()) -> Table:
    """A row per group: mean and sample standard deviation of every metric over the finished seeds, and the rank."""
    rows: list[list[Cell]] = []
    for scenario in scenarios:
        for group, rank in zip(scenario.groups, scenario.ranks, strict=True):
            cells: list[Cell] = [scenario.shown, group.label, group.first.backbone, group.head or None]
            cells += [group.estimate(metric) for metric in metrics]
            rows.append([*cells, len(group.finished), rank, group.state])
    fixed = [Column("scenario"), Column("strategy"), Column("backbone"), Column("head")]
    means = [[row[4 + k] for row in rows] for k in range(len(metrics))]
    numbers = [metric_column(m, scenarios[0].first, cells) for m, cells in zip(metrics, means, strict=True)]
    last = [Column("n", right=True), Column("rank", right=True), Column("state")]
    return Table([*fixed, *numbers, *last], rows, notes=notes)


def metric_column(metric: str, run: RunSummary, cells: Sequence[Cell] = ()) -> Column:
    """How numbers of a metric are shown: fractions in percent, bytes and floating-point operations in fitting units."""
    name = run.named(metric)
    if in_percent(metric, run):
        return Column(name, unit="%", scale=100.0, right=True)
    means = [c.mean if isinstance(c, Estimate) else c for c in cells if isinstance(c, (Estimate, int, float))]
    largest = max((abs(m) for m in means if not math.isnan(m)), default=0.0)
    known = CATALOGUE.get(metric)
    unit, scale = fitting_unit(known.unit if known is not None else "", metric, largest)
    return Column(name, unit=unit, scale=scale, digits=2 if unit else 4, right=True)


def fitting_unit(unit: str, metric: str, largest: float) -> tuple[str, float]:
    """A unit in which a number is easily read, and the factor to it.

    >>> fitting_unit("", "train_flops", 3.2e12)
    ('TFLOP', 1e-12)
    >>> fitting_unit("", "peak_memory_bytes", 5 * 2**20)
    ('MiB', 9.5367431640625e-07)
    """
    if "bytes" in metric or unit == "bytes":
        power = min(4, max(0, int(math.log2(largest) // 10))) if largest >= 1 else 0
        return ("bytes", "KiB", "MiB", "GiB", "TiB")[power], 2.0 ** (-10 * power)
    if "flops" in metric or unit.upper() in ("FLOP", "FLOPS"):
        power = min(6, max(0, int(math.log10(largest) // 3))) if largest >= 1 else 0
        return ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP")[power], float(f"1e-{3 * power}")
    return ("s" if "seconds" in metric or unit == "seconds" else ""), 1.0


def pairwise_table(pairs: Mapping[ScenarioComparison, Sequence[Pair]], metric: str) -> Table:
    """A row per pair of groups: difference, interval, p value before and after correction, and whether it is supported."""
    first = next(iter(pairs))
    percent = in_percent(metric, first.first)
    scale, unit = (100.0, "points") if percent else (1.0, "")
    rows: list[list[Cell]] = []
    for scenario, found in pairs.items():
        for pair in found:
            gap = pair.difference
            where: list[Cell] = [scenario.shown] if len(pairs) > 1 else []
            values: list[Cell] = [gap.mean, gap.low, gap.high, gap.p, gap.adjusted, gap.n, support(gap)]
            rows.append([*where, pair.first.label, pair.second.label, *values])
    numbers = [
        Column(n, unit=unit, scale=scale, digits=2 if percent else 4, right=True, signed=True)
        for n in ("difference", "95 % low", "95 % high")
    ]
    chances = [Column(n, right=True, show=lambda p: "< 0.001" if p < 0.001 else f"{p:.3f}") for n in ("p", "p (Holm)")]
    names = [Column("scenario")] if len(pairs) > 1 else []
    columns = [*names, Column("strategy"), Column("versus"), *numbers, *chances, Column("seeds", right=True)]
    return Table(
        [*columns, Column("supported")], rows, title=f"Differences in {first.first.named(metric)}", notes=[_HOW]
    )


_HOW = (
    "Differences are taken seed by seed where seeds are shared; the interval is Student's t, not corrected. Supported: p below 0.05 "
    f"after Holm's correction for the pairs of the scenario, and at least {MIN_SEEDS} seeds."
)


def support(gap: Difference) -> str:
    """Whether the seeds support a difference, and where they don't and it isn't plain from the numbers, why."""
    if gap.supported:
        return "yes"
    if gap.n < MIN_SEEDS:
        return f"no: {gap.n} seed{'s' if gap.n > 1 else ''}"
    if gap.low > 0 or gap.high < 0:
        return f"no: one of {gap.comparisons} pairs"
    return "no"


def settings_table(scenario: ScenarioComparison) -> Table:
    """The settings in which the groups of a scenario differ, a column per group."""
    settings = [g.first.flat_settings() for g in scenario.groups]
    names = [n for n in differing(settings) if n not in ("strategy.name", "strategy.version")]
    rows = [[n, *(str(one[n]) if n in one else None for one in settings)] for n in names]
    return Table(["setting", *(g.label for g in scenario.groups)], rows)


def environments_table(runs: Sequence[RunSummary]) -> Table:
    """What the runs ran on: what they share, and where they differ every value."""
    known = [run.flat_environment() for run in runs if run.environment]
    differ = environment_differences(runs)
    names = list(dict.fromkeys(n for one in known for n in one))
    rows: list[list[Cell]] = [
        [n, "; ".join(differ.get(n, [str(next(one[n] for one in known if n in one))])), "yes" if n in differ else ""]
        for n in names
    ]
    return Table(["environment", "value", "differs"], rows)


def runs_table(scenarios: Sequence[ScenarioComparison], metrics: Sequence[str], damaged: Mapping[str, str]) -> Table:
    """A row per run: what it is, its state and its numbers; unfinished and damaged ones without numbers."""
    several = len(scenarios) > 1
    rows: list[list[Cell]] = []
    for scenario in scenarios:
        for group in scenario.groups:
            for run in group.runs:
                state = "finished" if run.finished else f"unfinished{': ' + run.progress if run.progress else ''}"
                numbers = [run.number(m, group.asked_head, group.asked_restriction) for m in metrics]
                where: list[Cell] = [str(run.directory), *([scenario.shown] if several else [])]
                rows.append([*where, group.label, run.seed, state, *numbers, run.counters.get("train_seconds")])
    for place, reason in damaged.items():
        where = [place, *([None] if several else [])]
        rows.append([*where, None, None, f"damaged: {reason}", *[None] * len(metrics), None])
    fixed = [Column("run"), *([Column("scenario")] if several else []), Column("strategy"), Column("seed", right=True)]
    fixed.append(Column("state"))
    columns = [
        metric_column(m, scenarios[0].first, [row[len(fixed) + k] for row in rows]) for k, m in enumerate(metrics)
    ]
    return Table([*fixed, *columns, Column("training", unit="s", digits=1, right=True)], rows)
