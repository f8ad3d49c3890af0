"""Groups of one scenario ranked as far as their seeds support it, after correction for the number of comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from clframe.metrics.aggregate import summarise
from clframe.metrics.catalogue import CATALOGUE
from clframe.metrics.differences import MIN_SEEDS, Difference, corrected, paired_difference
from clframe.metrics.metric import Metric
from clframe.report.groups import Group
from clframe.report.summary import RunSummary

__all__ = ["Pair", "ScenarioComparison", "better_sign", "in_percent", "pairs_of", "ranked"]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two groups and the difference of one metric, first minus second.

    Attributes:
        first: The group with the better mean.
        second: The other one.
        difference: First minus second, corrected for the number of pairs in the scenario.
    """

    first: Group
    second: Group
    difference: Difference

    @property
    def names(self) -> str:
        """Both labels."""
        return f"{self.first.label} and {self.second.label}"


@dataclass(frozen=True, eq=False)
class ScenarioComparison:
    """The groups of one scenario.

    Attributes:
        name: Name of the scenario.
        digest: Hash of its full specification.
        shown: The name, with the start of the hash where several scenarios are compared.
        groups: The groups, the best first.
        ranks: The rank of each group, in their order; None where a group isn't ranked.
        metric: The metric that ranks.
        pairs: Every pair of ranked groups.
    """

    name: str
    digest: str
    shown: str
    groups: tuple[Group, ...]
    ranks: tuple[int | None, ...]
    metric: str
    pairs: tuple[Pair, ...]

    @property
    def first(self) -> RunSummary:
        """A run of the scenario."""
        return self.groups[0].first

    @property
    def labels(self) -> list[str]:
        """The name of every group, the best first."""
        return [group.label for group in self.groups]

    @property
    def runs(self) -> list[RunSummary]:
        """Every run of the scenario."""
        return [run for group in self.groups for run in group.runs]


def ranked(name: str, digest: str, shown: str, groups: Sequence[Group], metric: str) -> ScenarioComparison:
    """Rank the groups of a scenario by one metric.

    A group's rank is one more than the number of groups that are better with the support of the seeds, so groups that
    the seeds don't tell apart may share a rank. A group with fewer than three seeds has none, and nothing is ranked by a
    metric that has no better direction.
    """
    pairs = pairs_of(groups, metric)
    sign = better_sign(metric, groups[0].first)
    enough = [g for pair in pairs for g in (pair.first, pair.second) if len(g.finished) >= MIN_SEEDS]
    places = {id(g): 1 for g in enough}
    for pair in pairs:
        if pair.difference.supported:
            places[id(pair.second if sign * pair.difference.mean > 0 else pair.first)] += 1

    def order(group: Group) -> tuple[float, float]:
        mean = group.mean(metric)
        return places.get(id(group), len(groups) + 1), 0.0 if mean is None else -sign * mean

    best_first = tuple(sorted(groups, key=order))
    return ScenarioComparison(
        name, digest, shown, best_first, tuple(places.get(id(g)) for g in best_first), metric, tuple(pairs)
    )


def pairs_of(groups: Sequence[Group], metric: str) -> list[Pair]:
    """Compare every pair of groups that have the metric in all finished seeds; p values corrected for their number."""
    sign = better_sign(metric, groups[0].first) if groups else 0.0
    usable = [g for g in groups if sign and g.mean(metric) is not None]
    usable.sort(key=lambda g: -sign * summarise(g.numbers(metric)).mean)
    chosen = list(combinations(usable, 2))
    gaps = corrected([paired_difference(a.numbers(metric), b.numbers(metric)) for a, b in chosen])
    return [Pair(a, b, gap) for (a, b), gap in zip(chosen, gaps, strict=True)]


def better_sign(metric: str, run: RunSummary) -> float:
    """1 where larger values are better, -1 where smaller ones are, 0 where neither; levels follow the scenario's score."""
    known: Metric | None = CATALOGUE.get(metric)
    if known is None:
        return 1.0
    if known.higher_is_better is None:
        return 0.0
    better = known.higher_is_better
    if known.level and not run.higher_is_better:
        better = not better
    return 1.0 if better else -1.0


def in_percent(metric: str, run: RunSummary) -> bool:
    """Whether a metric is a fraction that is shown in percent."""
    known = CATALOGUE.get(metric)
    return known is not None and known.unit.startswith("fraction") and run.score == "accuracy"
