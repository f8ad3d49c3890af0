"""What a comparison draws: figures with their captions from the groups of one scenario, or why one can't be drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clframe.errors import ClframeError
from clframe.metrics.aggregate import summarise_curves
from clframe.report.boards import fitting_unit
from clframe.report.groups import Group
from clframe.report.plots import plot_curve, plot_matrices
from clframe.report.points import pareto_front, plot_differences, plot_points
from clframe.report.ranking import ScenarioComparison, better_sign, in_percent
from clframe.report.style import PAGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PLASTICITY", "Panel", "Picture", "confusion", "cost", "curves", "curves_of", "differences", "matrices",
           "plasticity", "tradeoff"]  # fmt: skip

Float = NDArray[np.float64]
_MOST_PAIRS = 45
PLASTICITY = {
    "dormant_units": "share of dormant units",
    "effective_rank": "effective rank of the features",
    "weight_magnitude": "mean weight magnitude",
}
"""Measures of plasticity that a page shows where runs have them, and how an axis calls them."""


@dataclass(frozen=True)
class Picture:
    """One figure of a panel.

    Attributes:
        draw: Makes the figure.
        alt: What it shows, in words, for readers who don't see it.
    """

    draw: Callable[[], Figure]
    alt: str


@dataclass(frozen=True)
class Panel:
    """A figure with what a reader needs to read it.

    Attributes:
        key: Short name.
        title: Heading.
        caption: What is drawn, in sentences.
        pictures: The figures as a page shows them, one or one per group.
        draw: Makes one figure of all; None where nothing can be drawn.
        missing: Why something, or all of it, is left out; empty when nothing is.
    """

    key: str
    title: str
    caption: str
    pictures: tuple[Picture, ...] = ()
    draw: Callable[[], Figure] | None = None
    missing: str = ""


def _panel(key: str, title: str, caption: str, draw: Callable[[], Figure], alt: str, missing: str = "") -> Panel:
    return Panel(key, title, caption, (Picture(draw, alt),), draw, missing)


def without(groups: Sequence[Group], chosen: Mapping[str, Any], why: str) -> str:
    """Name the finished groups that are not drawn."""
    left = [g.label for g in groups if g.finished and g.label not in chosen]
    return f"{', '.join(left)}: {why}." if left else ""


# -- curves --------------------------------------------------------------------------------------------------------------


def curves_of(scenario: ScenarioComparison, metric: str) -> dict[str, list[list[float | None]]]:
    """A metric over the experiences: `{label: a curve per seed}` for the groups of which every finished seed has it."""
    found = {}
    for group in scenario.groups:
        values = list(group.value(metric).values())
        if values and all(isinstance(v, list) and v for v in values) and len({len(v) for v in values}) == 1:
            found[group.label] = values
    return found


def curves(scenario: ScenarioComparison, metric: str = "seen_accuracy") -> Panel:
    """A metric after every experience."""
    named = scenario.first.named(metric)
    label = f"{scenario.first.score.replace('_', ' ')} on all classes seen" if metric == "seen_accuracy" else named
    title = "Accuracy curves" if named == "seen_accuracy" else f"Curves of {named}"
    found = curves_of(scenario, metric)
    if not found:
        return Panel("curves", title, "", missing=f"No finished run has {named}.")
    caption = (
        f"{named} after every experience, the first included. Lines are means over seeds, bands one sample standard deviation; a "
        "single point is a method that was scored only there."
    )
    limits = (0.0, 1.0) if in_percent(metric, scenario.first) else None
    missing = without(scenario.groups, found, f"no {named} in every seed")
    return line_panel(scenario, "curves", title, caption, found, label, limits, missing)


def line_panel(
    scenario: ScenarioComparison,
    key: str,
    title: str,
    caption: str,
    found: Mapping[str, Sequence[Sequence[float | None]]],
    label: str,
    limits: tuple[float, float] | None,
    missing: str,
) -> Panel:
    """A line per group over the experiences."""
    alt = f"Line chart of {label} after each experience. " + " ".join(
        f"{name}: {_known(mean)}." for name, seeds in found.items() for mean in [summarise_curves(seeds)[0]]
    )
    draw = partial(plot_curve, found, ylabel=label, limits=limits, order=scenario.labels)
    return _panel(key, title, caption, draw, alt, missing)


def _known(mean: Float) -> str:
    known = mean[np.isfinite(mean)]
    return f"{known[0]:.3g} to {known[-1]:.3g}" if known.size else "nothing"


# -- heat maps -----------------------------------------------------------------------------------------------------------


def matrices_of(scenario: ScenarioComparison) -> tuple[dict[str, Float], dict[str, str]]:
    """The mean accuracy matrix of every group over its seeds, and why a group has none."""
    found: dict[str, Float] = {}
    why: dict[str, str] = {}
    for group in scenario.groups:
        read = [r.read_matrix for r in group.finished.values() if r.read_matrix is not None]
        if not read or len(read) < len(group.finished):
            if group.finished:
                why[group.label] = "no predictions were kept"
            continue
        try:
            found[group.label] = np.mean([one(group.asked_head, group.restriction) for one in read], axis=0)
        except (ClframeError, ValueError) as error:
            why[group.label] = str(error).rstrip(".")
    return found, why


def matrices(scenario: ScenarioComparison) -> Panel:
    """The accuracy matrix of every group."""
    found, why = matrices_of(scenario)
    missing = " ".join(f"{name}: {reason}." for name, reason in why.items())
    if not found:
        return Panel("matrices", "Accuracy matrices", "", missing=missing or "No run has finished.")
    score = scenario.first.score
    limits = (0.0, 1.0) if score == "accuracy" else None
    options: dict[str, Any] = {"label": score, "limits": limits}
    caption = (
        f"Row i, column j: {score} on the test samples of task j after i experiences, the mean over seeds. Blank cells were not "
        "evaluated."
    )
    pictures = tuple(
        Picture(
            partial(plot_matrices, {name: m}, **options), f"Heat map of the {score} matrix of {name}: {_diagonal(m)}"
        )
        for name, m in found.items()
    )
    draw = partial(plot_matrices, found, width=PAGE if len(found) > 1 else None, **options)
    return Panel("matrices", "Accuracy matrices", caption, pictures, draw, missing)


def _diagonal(matrix: Float) -> str:
    last = matrix[-1][np.isfinite(matrix[-1])]
    return (
        f"after the last experience {', '.join(f'{v:.2f}' for v in last)}." if last.size else "nothing evaluated last."
    )


def confusion(scenario: ScenarioComparison) -> Panel:
    """Which task the samples of each task were taken for at the end."""
    found: dict[str, Float] = {}
    for group in scenario.groups:
        values = list(group.value("task_confusion").values())
        if values and None not in values:
            counts = np.sum([np.asarray(v, dtype=np.float64) for v in values], axis=0)
            whole = counts.sum(axis=1, keepdims=True)
            found[group.label] = np.divide(counts, whole, out=np.full_like(counts, np.nan), where=whole > 0)
    title = "Confusion by task"
    if not found or max(len(m) for m in found.values()) < 2:
        return Panel("confusion", title, "", missing="It needs the task_confusion of two tasks, which no run has.")
    options: dict[str, Any] = {
        "label": "share of samples", "xlabel": "task of the predicted class", "ylabel": "true task", "before": False,
    }  # fmt: skip
    caption = (
        "At the end, the share of each task's test samples (rows) that was predicted as a class of each task (columns), over all "
        "seeds. A bright last column is a bias towards the newest classes."
    )
    pictures = tuple(
        Picture(
            partial(plot_matrices, {name: m}, **options),
            f"Heat map of the task confusion of {name}: right task for {', '.join(f'{v:.2f}' for v in np.diag(m))}.",
        )
        for name, m in found.items()
    )
    draw = partial(plot_matrices, found, width=PAGE if len(found) > 1 else None, **options)
    return Panel("confusion", title, caption, pictures, draw, without(scenario.groups, found, "no task_confusion"))


# -- points --------------------------------------------------------------------------------------------------------------


def _both(
    scenario: ScenarioComparison, x: Callable[[Group], Mapping[int, float | None]], metric: str
) -> dict[str, tuple[dict[int, float], dict[int, float]]]:
    """Groups that have both numbers in every finished seed."""
    found = {}
    for group in scenario.groups:
        xs, ys = x(group), group.numbers(metric)
        if xs and None not in xs.values() and None not in ys.values():
            found[group.label] = (
                {seed: float(v) for seed, v in xs.items() if v is not None},
                {seed: float(v) for seed, v in ys.items() if v is not None},
            )
    return found


def _mean(values: Mapping[int, float]) -> float:
    return sum(values.values()) / len(values)


def tradeoff(scenario: ScenarioComparison) -> Panel:
    """Forgetting against plasticity."""
    level = scenario.first.named("learning_accuracy")
    found = _both(scenario, lambda group: group.numbers("learning_accuracy"), "forgetting_max")
    title = "Forgetting against plasticity"
    why = f"no {level} and forgetting_max in every seed"
    if not found:
        return Panel("tradeoff", title, "", missing=f"No finished run has both {level} and forgetting_max.")
    caption = (
        f"Right is better at learning each task ({level}), down is better at keeping it (forgetting_max). Points are means over "
        "seeds, bars one sample standard deviation."
    )
    alt = "Scatter plot. " + " ".join(
        f"{name}: {level} {_mean(xs):.3f}, forgetting {_mean(ys):.3f}." for name, (xs, ys) in found.items()
    )
    draw = partial(plot_points, found, xlabel=f"{level} (plasticity)", ylabel="forgetting_max", order=scenario.labels)
    return _panel("tradeoff", title, caption, draw, alt, without(scenario.groups, found, why))


def cost_of(scenario: ScenarioComparison) -> tuple[str, Callable[[Group], dict[int, float | None]]]:
    """What training cost: floating-point operations where every finished run counted them, else seconds."""
    finished = [run for group in scenario.groups for run in group.finished.values()]

    def operations(group: Group) -> dict[int, float | None]:
        return group.each(lambda run: _total(run.measured.get("train_flops")))

    def seconds(group: Group) -> dict[int, float | None]:
        return group.each(lambda run: run.counters.get("train_seconds"))

    counted = finished and all(_total(run.measured.get("train_flops")) is not None for run in finished)
    return ("train_flops", operations) if counted else ("train_seconds", seconds)


def _total(value: Any) -> float | None:
    """The sum over experiences; None where one is unknown."""
    parts = value if isinstance(value, list) else [value]
    return float(sum(parts)) if parts and all(isinstance(p, (int, float)) for p in parts) else None


def cost(scenario: ScenarioComparison) -> Panel:
    """The ranking metric against the cost of training."""
    metric = scenario.first.named(scenario.metric)
    name, of = cost_of(scenario)
    found = _both(scenario, of, scenario.metric)
    title = f"{metric} against cost"
    if not found:
        return Panel("cost", title, "", missing=f"No finished run has both {metric} and a cost of training.")
    unit, scale = fitting_unit("", name, max(_mean(xs) for xs, _ in found.values()))
    scaled = {n: ({s: scale * v for s, v in xs.items()}, ys) for n, (xs, ys) in found.items()}
    larger = better_sign(scenario.metric, scenario.first) >= 0
    means = {n: (_mean(xs), _mean(ys)) for n, (xs, ys) in scaled.items()}
    front = pareto_front(means, larger_y=larger)
    clock = (
        "Seconds are wall-clock time of training on whatever machine a run had, since not every run counted its operations."
        if name == "train_seconds"
        else "Thin lines lead from the first experience to the last: cost so far, and the accuracy on all classes seen then."
    )
    caption = f"Filled: no other method costs less and scores better (the Pareto front: {', '.join(front)}). {clock}"
    alt = "Scatter plot. " + " ".join(f"{n}: {x:.3g} {unit}, {metric} {y:.3f}." for n, (x, y) in means.items())
    words = {"train_flops": "operations of training", "train_seconds": "time of training"}
    draw = partial(
        plot_points, scaled, xlabel=f"{words[name]} [{unit}]", ylabel=metric, front=True, larger_y=larger,
        paths=_paths(scenario, scale) if name == "train_flops" else None, order=scenario.labels,
    )  # fmt: skip
    why = f"no {metric} and {name} in every seed"
    return _panel("cost", title, caption, draw, alt, without(scenario.groups, found, why))


def _paths(scenario: ScenarioComparison, scale: float) -> dict[str, tuple[list[float], list[float]]]:
    """Cost so far and the score on all classes seen, after every experience: the means over seeds."""
    scores = curves_of(scenario, "seen_accuracy")
    found = {}
    for group in scenario.groups:
        spent = list(group.each(lambda run: run.measured.get("train_flops")).values())
        whole = spent and all(isinstance(s, list) and None not in s for s in spent)
        if group.label in scores and whole and {len(s) for s in spent} == {len(scores[group.label][0])}:
            mean = summarise_curves(scores[group.label])[0]
            along = scale * np.cumsum(np.mean(spent, axis=0))
            found[group.label] = (along.tolist(), mean.tolist())
    return found


def differences(scenario: ScenarioComparison) -> Panel:
    """Every pair's difference and its support."""
    title = "Differences between methods"
    pairs = scenario.pairs
    if not pairs:
        return Panel("differences", title, "", missing="It needs two methods with finished runs.")
    if len(pairs) > _MOST_PAIRS:
        return Panel("differences", title, "", missing=f"{len(pairs)} pairs are too many for a figure: see the table.")
    percent = in_percent(scenario.metric, scenario.first)
    named = scenario.first.named(scenario.metric)
    found = {f"{p.first.label} − {p.second.label}": p.difference for p in pairs}
    caption = (
        "Mean difference and 95 % interval of Student's t, seed by seed. Filled and blue: supported, p < 0.05 after Holm's "
        f"correction for {pairs[0].difference.comparisons} comparisons; the interval is not corrected."
    )
    alt = "Interval plot. " + " ".join(
        f"{name}: {'supported' if gap.supported else 'not supported'}." for name, gap in found.items()
    )
    draw = partial(
        plot_differences, found, scale=100.0 if percent else 1.0,
        xlabel=f"difference in {named}" + (" [points]" if percent else ""),
    )  # fmt: skip
    return _panel("differences", title, caption, draw, alt)


# -- plasticity ----------------------------------------------------------------------------------------------------------


def plasticity(scenario: ScenarioComparison, quantity: str) -> Panel:
    """A measure of plasticity over the experiences; of one per layer, the mean over layers."""
    title = PLASTICITY.get(quantity, quantity.replace("_", " "))
    found = {}
    layers = False
    for group in scenario.groups:
        values = list(group.each(lambda run: run.measured.get(quantity)).values())
        layers = layers or any(isinstance(v, Mapping) for v in values)
        seeds = [layer_mean(v) if isinstance(v, Mapping) else v for v in values]
        if seeds and all(isinstance(s, list) and s for s in seeds) and len({len(s) for s in seeds}) == 1:
            found[group.label] = seeds
    if not found:
        return Panel(quantity, title, "", missing=f"No finished run has {quantity}.")
    caption = f"{quantity} after every experience{', the mean over layers' if layers else ''}."
    missing = without(scenario.groups, found, f"no {quantity} in every seed")
    return line_panel(scenario, quantity, title, caption, found, title, None, missing)


def layer_mean(by_layer: Mapping[str, Sequence[float | None]]) -> list[float | None]:
    """The mean over layers of a measure that has a value per layer; None where a layer has none."""
    found: list[float | None] = []
    for values in zip(*by_layer.values(), strict=True):
        known = [v for v in values if v is not None]
        found.append(sum(known) / len(known) if len(known) == len(values) else None)
    return found
