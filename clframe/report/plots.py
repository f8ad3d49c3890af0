"""Figures of curves and matrices, for one run as for many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clframe.errors import ConfigurationError
from clframe.metrics.aggregate import summarise_curves
from clframe.report.style import (
    COLUMN,
    INK,
    colour_bar,
    legend_below,
    look,
    named,
    places,
    plain,
    seeds_title,
    sized_figure,
    styled,
    ticks,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_curve", "plot_matrices", "plot_matrix"]

Float = NDArray[np.float64]
_MOST_VALUES = 25  # a larger matrix shows colours only: its numbers would overlap


def plot_curve(
    curves: Mapping[str, Sequence[Sequence[float | None]]],
    *,
    title: str = "",
    xlabel: str = "after experience",
    ylabel: str = "accuracy on all classes seen",
    limits: tuple[float, float] | None = (0.0, 1.0),
    order: Sequence[str] | None = None,
    width: float = COLUMN,
) -> Figure:
    """Mean curves over seeds, with a band of one sample standard deviation.

    Args:
        curves: `{label: one curve over the experiences 1..T per seed}`; None or NaN leaves a gap.
        title: Above the plot.
        xlabel: What the points are.
        ylabel: Name of the value.
        limits: Of the value axis; None fits them.
        order: All names of a comparison; a name looks the same in every figure that has the same ones.
        width: In inches.

    Raises:
        ConfigurationError: There is no curve, or the seeds of one label differ in length.
    """
    if not curves:
        raise ConfigurationError("A plot needs at least one curve, but received none; name a finished run.")
    about, count = seeds_title({label: len(seeds) for label, seeds in curves.items()})
    with styled():
        figure, axes = sized_figure(width, 0.62 * width)
        lines, labels = [], []
        for label, k in places(list(curves), order).items():
            seeds = curves[label]
            mean, std = summarise_curves(seeds)
            steps = np.arange(1, len(mean) + 1)
            line = axes.plot(steps, mean, **look(k), gid=f"series-{k}")[0]
            if not np.isnan(std).all():
                axes.fill_between(
                    steps,
                    mean - std,
                    mean + std,
                    color=look(k)["color"],
                    alpha=0.15,
                    linewidth=0,
                    gid=f"series-{k}",
                )
            lines.append(line)
            labels.append(f"{label} (n = {len(seeds)})" if count else label)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(plain(ylabel))
        if limits is not None:
            axes.set_ylim(*limits)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(visible=True, color=INK, alpha=0.12, linewidth=0.5)
        if title:
            axes.set_title(named(title))
        legend_below(figure, lines, labels, about)
    return figure


def plot_matrix(matrix: ArrayLike, *, title: str = "", **options: Any) -> Figure:
    """A heat map of the score matrix with its values; cells that were not evaluated stay blank.

    Args:
        matrix: `(T + 1, J)`, row 0 before training; left out when nothing of it was evaluated.
        title: Above the plot.
        **options: As for `plot_matrices`.

    Raises:
        ConfigurationError: The matrix has another form.
    """
    return plot_matrices({title: matrix}, **options)


def plot_matrices(
    matrices: Mapping[str, ArrayLike],
    *,
    label: str = "accuracy",
    xlabel: str = "task",
    ylabel: str = "after experience",
    limits: tuple[float, float] | None = (0.0, 1.0),
    digits: int = 2,
    before: bool = True,
    rows: Sequence[str] | None = None,
    columns: int = 3,
    width: float | None = None,
) -> Figure:
    """Heat maps with their values side by side, in the same colours; what was not evaluated stays blank.

    Args:
        matrices: `{title: (rows, columns) values}`.
        label: Name of the values.
        xlabel: What the columns are.
        ylabel: What the rows are.
        limits: Of the colours; None fits them.
        digits: Decimals of the values.
        before: Whether row 0 is the one before training, which is left out when nothing of it was evaluated.
        rows: Names of the rows, where they aren't numbered.
        columns: Most heat maps in a row.
        width: In inches; by default so that every value has room.

    Raises:
        ConfigurationError: There is no matrix, or one has another form.
    """
    arrays = {title: np.array(matrix, dtype=np.float64) for title, matrix in matrices.items()}
    for values in arrays.values():
        if values.ndim != 2 or 0 in values.shape:
            raise ConfigurationError(
                f"A score matrix has the shape (T + 1, J), but this has {values.shape}; correct it."
            )
    if not arrays:
        raise ConfigurationError("A heat map needs a matrix, but received none; name a finished run.")
    blank = before and all(len(v) > 1 and np.isnan(v[0]).all() for v in arrays.values())
    shown = {title: v[1:] if blank else v for title, v in arrays.items()}
    tall, wide = (max(v.shape[axis] for v in shown.values()) for axis in (0, 1))
    low, high = limits if limits is not None else _range(list(shown.values()))
    across = min(columns, len(shown))
    down = -(-len(shown) // across)
    cell = 0.36 if len(shown) == 1 else 0.28
    size = width or across * (0.6 + cell * min(max(wide, 3), 16)) + 0.6
    with styled():
        figure, made = sized_figure(
            size, down * (0.55 + 0.8 * cell * min(max(tall, 3), 16)) + 0.1, rows=down, columns=across
        )
        every = np.atleast_1d(made).ravel()
        for axes, (title, values) in zip(every, shown.items(), strict=False):
            image = _heat(axes, values, (low, high), digits)
            first = int(blank or not before)
            numbered = [str(i) if i else "none" for i in range(first, first + len(values))]
            ticks(axes.yaxis, [plain(name) for name in rows or numbered])
            ticks(axes.xaxis, [str(j) for j in range(1, values.shape[1] + 1)])
            axes.set_title(named(title, int(17 * size / across) - 8) if title else "")
        for axes in every[len(shown) :]:
            axes.set_visible(False)
        figure.supxlabel(xlabel, fontsize=8)
        figure.supylabel(ylabel, fontsize=8)
        colour_bar(figure, image, list(every), label)
    return figure


def _range(values: Sequence[Float]) -> tuple[float, float]:
    known = np.concatenate([v[np.isfinite(v)] for v in values])
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def _heat(axes: Any, values: Float, limits: tuple[float, float], digits: int) -> Any:
    low, high = limits
    masked = np.ma.masked_invalid(values)
    if max(values.shape) <= _MOST_VALUES:  # cells as shapes stay sharp at any size
        edges = [np.arange(n + 1) - 0.5 for n in values.T.shape]
        image = axes.pcolormesh(*edges, masked, cmap="viridis", vmin=low, vmax=high, edgecolors="face", linewidth=0.2)
        axes.invert_yaxis()
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "black" if value > (low + high) / 2 else "white"
                text = f"{value:.{digits}f}"
                small = max(values.shape) > 12  # then .87 leaves more room than 0.87
                text = text.removeprefix("0") if small and digits else text
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=5 if small else 6.5)
    else:
        image = axes.imshow(masked, cmap="viridis", vmin=low, vmax=high, aspect="auto", interpolation="none")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image
