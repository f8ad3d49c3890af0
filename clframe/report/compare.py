"""Runs side by side: grouped over seeds, ranked only within one scenario and only as far as the seeds support it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clframe.errors import ConfigurationError, RunDirectoryError, did_you_mean
from clframe.metrics.catalogue import CATALOGUE
from clframe.report import boards, panels
from clframe.report.extractor_panels import REPRESENTATION
from clframe.report.groups import grouped
from clframe.report.notes import notes_of
from clframe.report.ranking import Pair, ScenarioComparison, pairs_of, ranked
from clframe.report.summary import RunSummary
from clframe.report.tables import Estimate, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DEFAULT_METRICS", "TABLES", "Comparison", "compare"]

DEFAULT_METRICS = ("final_accuracy", "average_incremental_accuracy", "forgetting_max")
"""Metrics that a comparison shows; the first one ranks."""
TABLES = ("leaderboard", "pairwise", "settings", "runs", "environments")
"""The tables of a comparison."""


def compare(
    results: Sequence[RunSummary],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    head: str | None = None,
    restriction: str | None = None,
    damaged: Mapping[str, str] | None = None,
) -> Comparison:
    """Group runs by everything but the seed and rank the groups of every scenario by the first metric.

    A group's rank is one more than the number of groups that are better with the support of the seeds: paired over equal
    seeds, p values corrected for the number of pairs in the scenario (`clframe.metrics.corrected`). Groups that the seeds
    don't tell apart may share a rank. Unlike scenarios are never ranked against each other.

    Args:
        results: The runs.
        metrics: Scalar metrics by their full names.
        head: Report head; each run's primary one by default.
        restriction: `global`, `local` or `upto`; each run's primary one by default (`local` where task ids are given).
        damaged: Runs that can't be read, and why; they are shown and count nowhere.

    Raises:
        ConfigurationError: There are no runs or no metrics, or a metric is unknown or no scalar.
    """
    if not results or not metrics:
        raise ConfigurationError(
            f"A comparison needs runs and metrics, but received {len(results)} runs and {len(metrics)} metrics; name some."
        )
    for metric in metrics:
        _check_metric(metric, results, head, restriction)
    found = grouped(results, head, restriction)
    scenarios = [
        ranked(name, digest, f"{name} ({digest[:8]})" if len(found) > 1 else name, groups, metrics[0])
        for (name, digest), groups in found.items()
    ]
    return Comparison(scenarios, metrics, damaged or {})


def _check_metric(metric: str, results: Sequence[RunSummary], head: str | None, restriction: str | None) -> None:
    values = [value for run in results if (value := run.value(metric, head, restriction)) is not None]
    if values and not any(isinstance(value, (int, float)) for value in values):
        raise ConfigurationError(
            f"A column of a comparison needs one number per run, but {metric!r} has several; name a scalar metric, "
            "for instance final_accuracy."
        )
    own = {n for run in results for by in run.metrics.values() for found in by.values() for n in found}
    known = [*CATALOGUE, *sorted(own | {name for run in results for name in run.measured})]
    if not values and metric not in known:
        raise ConfigurationError(
            f"Expected a metric by its full name, received {metric!r}: `clframe list metrics` names them."
            f"{did_you_mean(metric, known)}"
        )


class Comparison:
    """Runs side by side, from which every output is made: tables in every form, figures, and a page.

    Get one from `clframe.compare`. In Jupyter it shows its tables.

    Attributes:
        scenarios: The scenarios, each with its groups ranked and compared.
        metrics: The metrics of the leaderboard; the first one ranks.
        damaged: Runs that can't be read, and why.
        notes: What a reader must know, a sentence each.
    """

    def __init__(
        self, scenarios: Sequence[ScenarioComparison], metrics: Sequence[str], damaged: Mapping[str, str]
    ) -> None:
        self.scenarios = tuple(scenarios)
        self.metrics = tuple(metrics)
        self.damaged = dict(damaged)
        self.notes = notes_of(self.scenarios, self.metrics, self.damaged)

    @property
    def summaries(self) -> list[RunSummary]:
        """Every run that could be read."""
        return [run for scenario in self.scenarios for run in scenario.runs]

    # -- tables ------------------------------------------------------------------------------------------------------

    @property
    def table(self) -> Table:
        """The leaderboard, with every note."""
        return boards.leaderboard(self.scenarios, self.metrics, self.notes)

    def pairwise(self, metric: str | None = None) -> Table:
        """Every pair of groups of a scenario, with the support of the seeds for their difference.

        Args:
            metric: By its full name; the one that ranks by default. Corrections are for the pairs of one metric.
        """
        chosen = metric or self.metrics[0]
        _check_metric(chosen, self.summaries, None, None)
        pairs: dict[ScenarioComparison, Sequence[Pair]] = {
            s: s.pairs if chosen == s.metric else pairs_of(s.groups, chosen) for s in self.scenarios
        }
        return boards.pairwise_table(pairs, chosen)

    def settings(self, scenario: str | None = None) -> Table:
        """The settings in which the groups of a scenario differ.

        Args:
            scenario: Its name or hash; not needed where there is only one.
        """
        return boards.settings_table(self._one(scenario))

    def runs(self) -> Table:
        """A row per run, unfinished and damaged ones too."""
        return boards.runs_table(self.scenarios, self.metrics, self.damaged)

    def environments(self) -> Table:
        """What the runs ran on, and where that differs."""
        return boards.environments_table(self.summaries)

    def render(self, form: str = "text", table: str | None = None) -> str:
        """The comparison as text.

        Args:
            form: `text`, `markdown`, `latex`, `csv` or `html`.
            table: One of `TABLES` alone. By default leaderboard and pairwise differences; of CSV the leaderboard, of HTML a
                page with every table and figure.

        Raises:
            ConfigurationError: There is no such form or table, or it is of one scenario and there are several.
        """
        if table is not None:
            made = {"leaderboard": lambda: self.table, "pairwise": self.pairwise, "settings": self.settings,
                    "runs": self.runs, "environments": self.environments}  # fmt: skip
            if table not in made:
                raise ConfigurationError(
                    f"There is no table {table!r}; there are: {', '.join(TABLES)}.{did_you_mean(table, TABLES)}"
                )
            return made[table]().render(form)
        if form == "html":
            from clframe.report.page import page  # here, since it needs jinja2 and matplotlib

            return page(self)
        shown = [self.table]
        if form != "csv" and any(s.pairs for s in self.scenarios):
            shown.append(self.pairwise())
        return "\n".join(table.render(form) for table in shown)

    def save(self, path: str | Path, form: str | None = None, table: str | None = None) -> Path:
        """Write the comparison to a file.

        Args:
            path: The file.
            form: As for `render`; by default what the file's ending says (.html, .md, .tex, .csv, else text).
            table: As for `render`.

        Raises:
            RunDirectoryError: The file can't be written.
        """
        target = Path(path)
        endings = {".html": "html", ".htm": "html", ".md": "markdown", ".tex": "latex", ".csv": "csv"}
        text = self.render(form or endings.get(target.suffix.lower(), "text"), table)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        except OSError as error:
            raise RunDirectoryError(
                f"{target} can't be written ({error.strerror or error}): choose another file."
            ) from error
        return target

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON types, unscaled: leaderboard, pairs, curves, notes and damaged runs."""
        return {
            **_plain(self.table),
            "pairwise": _plain(self.pairwise()),
            "curves": {s.shown: panels.curves_of(s, "seen_accuracy") for s in self.scenarios},
            "notes": self.notes,
            "damaged": self.damaged,
        }

    def __str__(self) -> str:
        return self.render("text")

    def _repr_html_(self) -> str:
        return self.table.to_html() + self.pairwise().to_html()

    # -- figures -----------------------------------------------------------------------------------------------------

    def plot_curves(self, metric: str = "seen_accuracy", scenario: str | None = None) -> Figure:
        """Draw a metric over the experiences: a line per group, with a band of one standard deviation over seeds."""
        return self._figure(panels.curves(self._one(scenario), metric))

    def plot_matrices(self, scenario: str | None = None) -> Figure:
        """Draw the accuracy matrix of every group, the mean over seeds."""
        return self._figure(panels.matrices(self._one(scenario)))

    def plot_differences(self, scenario: str | None = None) -> Figure:
        """Draw every pair's difference with its interval; filled where the seeds support it."""
        return self._figure(panels.differences(self._one(scenario)))

    def plot_tradeoff(self, scenario: str | None = None) -> Figure:
        """Draw forgetting against plasticity (`learning_accuracy`), a point per group."""
        return self._figure(panels.tradeoff(self._one(scenario)))

    def plot_cost(self, scenario: str | None = None) -> Figure:
        """Draw the ranking metric against the cost of training, with the Pareto front."""
        return self._figure(panels.cost(self._one(scenario)))

    def plot_confusion(self, scenario: str | None = None) -> Figure:
        """Draw which task the samples of each task were taken for at the end, per group."""
        return self._figure(panels.confusion(self._one(scenario)))

    def plot_plasticity(self, quantity: str, scenario: str | None = None) -> Figure:
        """Draw a measure of plasticity over the experiences, for instance `effective_rank`."""
        return self._figure(panels.plasticity(self._one(scenario), quantity))

    def plot_representation(self, what: str = "probe", scenario: str | None = None) -> Figure:
        """Draw a part of the representation reports: `probe`, `probe_matrices`, `layers` (CKA) or `drift`."""
        if what not in REPRESENTATION:
            raise ConfigurationError(
                f"There is no figure {what!r} of representations; there are: {', '.join(REPRESENTATION)}."
                f"{did_you_mean(what, REPRESENTATION)}"
            )
        return self._figure(REPRESENTATION[what](self._one(scenario)))

    def _figure(self, panel: panels.Panel) -> Figure:
        if panel.draw is None:
            raise ConfigurationError(f"{panel.title} can't be drawn: {panel.missing}")
        return panel.draw()

    def _one(self, wanted: str | None) -> ScenarioComparison:
        """The scenario of that name or hash; the only one when None."""
        found = [
            s for s in self.scenarios if wanted is None or wanted in (s.name, s.shown) or s.digest.startswith(wanted)
        ]
        if len(found) != 1:
            names = ", ".join(s.shown for s in self.scenarios)
            raise ConfigurationError(
                f"Expected one scenario, received {wanted!r}, which fits {len(found)} of {names}: name one, or compare the "
                "runs of one scenario."
            )
        return found[0]


def _plain(table: Table) -> dict[str, Any]:
    def cell(value: Any) -> Any:
        if isinstance(value, Estimate):
            return {"mean": value.mean, "std": value.std}
        return None if isinstance(value, float) and math.isnan(value) else value

    return {"columns": [c.title for c in table.heads], "rows": [[cell(c) for c in row] for row in table.rows]}
