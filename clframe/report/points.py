"""Figures of points and intervals: one number against another, the Pareto front, and differences with their support."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clframe.errors import ConfigurationError
from clframe.metrics.differences import Difference
from clframe.report.style import (
    COLUMN,
    INK,
    legend_below,
    look,
    named,
    places,
    plain,
    seeds_title,
    sized_figure,
    styled,
)
from clframe.report.tables import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["pareto_front", "plot_differences", "plot_points"]

Points = Mapping[str, tuple[Mapping[int, float], Mapping[int, float]]]


def pareto_front(points: Mapping[str, tuple[float, float]], *, larger_y: bool = True) -> list[str]:
    """Names of the points that no other beats, from the cheapest to the dearest.

    A point is beaten by one that costs no more (x) and scores no worse (y), and is better in one of the two.

    Args:
        points: `{name: (cost, score)}`.
        larger_y: Whether a larger score is the better one.

    >>> pareto_front({"a": (1, 0.5), "b": (2, 0.4), "c": (3, 0.9)})
    ['a', 'c']
    """
    sign = 1.0 if larger_y else -1.0

    def beaten(name: str) -> bool:
        x, y = points[name]
        return any(
            (px <= x and sign * py >= sign * y) and (px < x or sign * py > sign * y) for px, py in points.values()
        )

    return sorted((name for name in points if not beaten(name)), key=lambda name: points[name])


def plot_points(
    points: Points,
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    front: bool = False,
    larger_y: bool = True,
    paths: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    order: Sequence[str] | None = None,
    width: float = COLUMN,
) -> Figure:
    """A point per name, the mean over seeds of two numbers, with bars of one sample standard deviation.

    Args:
        points: `{name: ({seed: x}, {seed: y})}`.
        xlabel: Name of x.
        ylabel: Name of y.
        title: Above the plot.
        front: Whether to draw the Pareto front of small x and good y; names that are not on it are drawn hollow. The x axis
            is logarithmic then where the values span a factor of ten.
        larger_y: Whether a larger y is the better one.
        paths: Points on the way to the last one, `{name: (x, y)}`, drawn as thin lines.
        order: All names of a comparison; a name looks the same in every figure that has the same ones.
        width: In inches.

    Raises:
        ConfigurationError: There is no point.
    """
    if not points:
        raise ConfigurationError("A plot needs at least one point, but received none; name a finished run.")
    middle = {n: (Estimate.over(xs), Estimate.over(ys)) for n, (xs, ys) in points.items()}
    best = pareto_front({n: (x.mean, y.mean) for n, (x, y) in middle.items()}, larger_y=larger_y) if front else []
    about, count = seeds_title({n: len(xs) for n, (xs, _) in points.items()})
    with styled():
        figure, axes = sized_figure(width, 0.66 * width)
        handles, labels = [], []
        for name, k in places(list(points), order).items():
            filled = not front or name in best
            handles.append(_draw_point(axes, middle[name], k, filled, (paths or {}).get(name)))
            labels.append(f"{name} (n = {len(points[name][0])})" if count else name)
        axes.margins(0.12)
        if front:
            _draw_front(axes, [(middle[n][0].mean, middle[n][1].mean) for n in best], handles, labels)
            _fit_costs(axes, [x.mean for x, _ in middle.values()])
        axes.set_xlabel(plain(xlabel))
        axes.set_ylabel(plain(ylabel))
        axes.grid(visible=True, color=INK, alpha=0.12, linewidth=0.5)
        if title:
            axes.set_title(named(title))
        legend_below(figure, handles, labels, about)
    return figure


def _draw_point(
    axes: Any,
    middle: tuple[Estimate, Estimate],
    k: int,
    filled: bool,
    path: tuple[Sequence[float], Sequence[float]] | None,
) -> Any:
    (x, y), colour = middle, look(k)["color"]
    if path is not None:
        axes.plot(*path, color=colour, alpha=0.45, linewidth=0.8, marker=".", markersize=2.5, zorder=1)
    bars = axes.errorbar(
        x.mean, y.mean, xerr=_bar(x), yerr=_bar(y), color=colour, marker=look(k)["marker"], linestyle="none",
        markersize=5, elinewidth=0.9, markerfacecolor=colour if filled else "none",
    )  # fmt: skip
    for part in bars.get_children():
        part.set_gid(f"series-{k}")
    return bars


def _fit_costs(axes: Any, means: Sequence[float]) -> None:
    """Make the axis of costs logarithmic where they span a factor of ten; bars that reach 0 leave the plot there."""
    if min(means) > 0 and max(means) / min(means) >= 10:
        axes.set_xscale("log")
        axes.set_xlim(min(means) / 2, max(means) * 2)


def _bar(value: Estimate) -> float | None:
    return None if math.isnan(value.std) else value.std


def _draw_front(axes: Any, best: Sequence[tuple[float, float]], handles: list[Any], labels: list[str]) -> None:
    """Join the best points by steps: what the money spent so far buys."""
    if len(best) > 1:
        xs, ys = zip(*best, strict=True)
        handles += axes.step(xs, ys, where="post", color=INK, alpha=0.6, linestyle="--", linewidth=0.8, zorder=0)
        labels.append("Pareto front")


def plot_differences(
    differences: Mapping[str, Difference],
    *,
    xlabel: str,
    scale: float = 1.0,
    title: str = "",
    width: float = COLUMN,
) -> Figure:
    """A line per difference: its mean and interval; filled where the seeds support it, hollow where they don't.

    Args:
        differences: By name.
        xlabel: Name of the metric.
        scale: Factor of the values, 100 for points of percent.
        title: Above the plot.
        width: In inches.

    Raises:
        ConfigurationError: There is no difference.
    """
    if not differences:
        raise ConfigurationError("A plot needs at least one difference, but received none; compare two methods.")
    with styled():
        figure, axes = sized_figure(width, 0.55 + 0.26 * len(differences))
        axes.axvline(0, color=INK, alpha=0.5, linewidth=0.8)
        for k, (name, gap) in enumerate(differences.items()):
            colour = look(0)["color"] if gap.supported else "#808080"
            bar = [[scale * (gap.mean - gap.low)], [scale * (gap.high - gap.mean)]] if not math.isnan(gap.low) else None
            axes.errorbar(
                scale * gap.mean, k, xerr=bar, color=colour, marker="o", linestyle="none", elinewidth=1.1, markersize=4,
                markerfacecolor=colour if gap.supported else "none",
            )  # fmt: skip
            axes.text(0, k - 0.42, plain(name), transform=axes.get_yaxis_transform(), fontsize=6.5, va="center")
        axes.set_yticks([])
        axes.set_ylim(len(differences) - 0.5, -0.8)
        axes.set_xlabel(plain(xlabel))
        axes.grid(visible=True, axis="x", color=INK, alpha=0.12, linewidth=0.5)
        axes.spines["left"].set_visible(False)
        if title:
            axes.set_title(named(title))
    return figure
