"""Figures of a run's curve and matrix, made without any global state of Matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from clframe.errors import ConfigurationError
from clframe.metrics.aggregate import summarise_curves
from clframe.metrics.calibration import Reliability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plain", "plot_curve", "plot_matrix", "plot_reliability", "sized_figure", "ticks", "to_png"]

# Colours that stay apart for colour-blind readers: Okabe and Ito 2008.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_MOST_VALUES = 25  # a larger matrix shows colours only: its numbers would overlap


def plot_curve(
    curves: Mapping[str, Sequence[Sequence[float | None]]],
    *,
    title: str = "",
    ylabel: str = "accuracy on all classes seen",
    limits: tuple[float, float] | None = (0.0, 1.0),
) -> Figure:
    """Mean curves over seeds, with a band of one sample standard deviation.

    Args:
        curves: `{label: one curve over the experiences 1..T per seed}`; None or NaN leaves a gap.
        title: Above the plot.
        ylabel: Name of the value.
        limits: Of the value axis; None fits them.

    Raises:
        ConfigurationError: There is no curve, or the seeds of one label differ in length.
    """
    if not curves:
        raise ConfigurationError("A plot needs at least one curve, but received none; name a finished run.")
    figure, axes = sized_figure(6.0, 3.8)
    for k, (label, seeds) in enumerate(curves.items()):
        mean, std = summarise_curves(seeds)
        steps = np.arange(1, len(mean) + 1)
        colour, marker = _COLOURS[k % len(_COLOURS)], _MARKERS[k % len(_MARKERS)]
        shown = f"{plain(label)} (n = {len(seeds)})"
        shown = " " + shown if shown.startswith("_") else shown  # legends leave out names with a leading underscore
        axes.plot(steps, mean, color=colour, marker=marker, markersize=4, linewidth=1.6, label=shown)
        if not np.isnan(std).all():
            axes.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.18, linewidth=0)
    axes.set_xlabel("after experience")
    axes.set_ylabel(plain(ylabel))
    if limits is not None:
        axes.set_ylim(*limits)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    if title:
        axes.set_title(plain(title))
    return figure


def plot_matrix(
    matrix: ArrayLike,
    *,
    title: str = "",
    label: str = "accuracy",
    limits: tuple[float, float] | None = (0.0, 1.0),
    digits: int = 2,
) -> Figure:
    """A heat map of the score matrix with its values; cells that were not evaluated stay blank.

    Args:
        matrix: `(T + 1, J)`, row 0 before training; left out when nothing of it was evaluated.
        title: Above the plot.
        label: Name of the score.
        limits: Of the colours; None fits them.
        digits: Decimals of the values.

    Raises:
        ConfigurationError: The matrix has another form.
    """
    values = np.array(matrix, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ConfigurationError(f"A score matrix has the shape (T + 1, J), but this has {values.shape}; correct it.")
    first = 1 if len(values) > 1 and np.isnan(values[0]).all() else 0
    values = values[first:]
    rows, columns = values.shape
    low, high = limits if limits is not None else _range(values)
    figure, axes = sized_figure(1.8 + 0.55 * min(columns, 16), 1.2 + 0.45 * min(rows, 16))
    image = axes.imshow(np.ma.masked_invalid(values), cmap="viridis", vmin=low, vmax=high, aspect="auto")
    if max(rows, columns) <= _MOST_VALUES:
        _write_values(axes, values, (low + high) / 2, digits)
    ticks(axes.xaxis, [str(j) for j in range(1, columns + 1)])
    ticks(axes.yaxis, [str(i) if i else "none" for i in range(first, first + rows)])
    axes.set_xlabel("task")
    axes.set_ylabel("after experience")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.03)
    bar.set_label(plain(label))
    bar.outline.set_visible(False)
    if title:
        axes.set_title(plain(title))
    return figure


def plot_reliability(diagram: Reliability, *, title: str = "") -> Figure:
    """A reliability diagram: accuracy over confidence, with the diagonal of perfect calibration, and the samples below.

    Args:
        diagram: The bins.
        title: Above the plot.

    Raises:
        ConfigurationError: There is no sample in it.
    """
    if not diagram.counts.any():
        raise ConfigurationError(
            "A reliability diagram needs samples, but received none; name an evaluated experience."
        )
    filled = diagram.counts > 0
    left, width = diagram.edges[:-1][filled], np.diff(diagram.edges)[filled]
    accuracy, confidence = diagram.accuracy[filled], diagram.confidence[filled]
    figure, (upper, lower) = sized_figure(4.6, 5.0, rows=2, ratios=(4, 1))
    style: dict[str, Any] = {"align": "edge", "edgecolor": "white", "linewidth": 0.8}
    upper.bar(left, accuracy, width, color=_COLOURS[0], alpha=0.75, label="accuracy", **style)
    upper.hlines(confidence, left, left + width, color=_COLOURS[1], linewidth=2.5, label="mean confidence")
    upper.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="calibrated")
    upper.set_ylabel("accuracy")
    upper.set_ylim(0, 1)
    upper.legend(
        framealpha=0.8, edgecolor="none", fontsize=9, loc="upper left", title=f"ECE {100 * diagram.error:.2f} %"
    )
    lower.bar(left, diagram.counts[filled], width, color="0.55", **style)
    lower.set_xlabel("confidence")
    lower.set_ylabel("samples")
    for axes in (upper, lower):
        axes.set_xlim(0, 1)
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        upper.set_title(plain(title))
    return figure


def to_png(figure: Figure, dpi: int = 120) -> bytes:
    """A figure as the bytes of a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi)
    return out.getvalue()


def sized_figure(
    width: float, height: float, *, rows: int = 1, ratios: Sequence[float] | None = None
) -> tuple[Figure, Any]:
    """Make a figure of `rows` axes, one above the other, of the given inches and ratios of height."""
    from matplotlib.figure import Figure  # here, since it is heavy and only pictures need it

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, 1, height_ratios=ratios)


def plain(text: str) -> str:
    """Text whose dollar signs don't start a formula."""
    return text.replace("$", r"\$")


def _range(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def _write_values(axes: Any, values: np.ndarray[Any, np.dtype[np.float64]], middle: float, digits: int) -> None:
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "black" if value > middle else "white"
            axes.text(j, i, f"{value:.{digits}f}", ha="center", va="center", color=colour, fontsize=7)


def ticks(axis: Any, names: list[str]) -> None:
    """Name the places 0, 1, … of an axis; of many only every so many-th."""
    step = max(1, -(-len(names) // 20))
    axis.set_ticks(range(0, len(names), step), labels=names[::step])
