"""How every figure looks: column width, readable type, colours that colour-blind readers tell apart; no global state."""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLUMN",
    "INK",
    "PAGE",
    "colour_bar",
    "legend_below",
    "look",
    "named",
    "places",
    "plain",
    "seeds_title",
    "sized_figure",
    "styled",
    "ticks",
    "to_png",
]

COLUMN = 3.4
"""Width in inches of one column of a two-column paper."""
PAGE = 7.0
"""Width in inches of a page."""
INK = "#1a1a1a"
"""Colour of text and lines; a page shows it in its own text colour."""

# Colours that stay apart for colour-blind readers: Okabe and Ito 2008.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
_MARKERS = "osD^vPX"
_LINES = ("-", "--", ":")
_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "legend.borderaxespad": 0.2,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.2,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "figure.dpi": 200,
}


def styled() -> AbstractContextManager[None]:
    """Matplotlib's settings while a figure is made; they are what they were afterwards."""
    import matplotlib  # here, since it is heavy and only pictures need it

    style: AbstractContextManager[None] = matplotlib.rc_context(_STYLE)
    return style


def sized_figure(
    width: float,
    height: float,
    *,
    rows: int = 1,
    columns: int = 1,
    ratios: Sequence[float] | None = None,
) -> tuple[Figure, Any]:
    """Make a figure of axes in rows and columns.

    Args:
        width: In inches.
        height: In inches.
        rows: Axes one above the other.
        columns: Axes side by side.
        ratios: Of the rows' heights.
    """
    figure = _figure_type()(figsize=(width, height), layout="constrained")
    made = figure.subplots(rows, columns, height_ratios=ratios)
    for axes in figure.axes:
        _plain_ticks(axes)
    return figure, made


@functools.cache
def _figure_type() -> type[Figure]:
    """Matplotlib's figure, which Jupyter shows also where nobody has imported pyplot."""
    from matplotlib.figure import Figure  # here, since it is heavy and only pictures need it

    class ShownFigure(Figure):
        def _repr_png_(self) -> bytes:
            return to_png(self)

    return ShownFigure


def _plain_ticks(axes: Any) -> None:
    """Set the look of ticks for good: they are made when a figure is drawn, at which time the settings are others."""
    axes.tick_params(labelsize=7, width=0.6, length=2.5, color=INK, labelcolor=INK)


def look(k: int) -> dict[str, Any]:
    """Colour, marker and line of the k-th of several things."""
    place, turn = k % len(_COLOURS), k // len(_COLOURS)
    return {"color": _COLOURS[place], "marker": _MARKERS[place], "linestyle": _LINES[turn % len(_LINES)]}


def places(names: Sequence[str], order: Sequence[str] | None = None) -> dict[str, int]:
    """The place of every name among all that a comparison has, so that it looks the same in every figure."""
    fixed = list(order or names)
    return {name: fixed.index(name) if name in fixed else k for k, name in enumerate(names)}


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str], title: str = "") -> None:
    """Put a legend below the axes and make the figure taller by as much, so that long names cover nothing."""
    columns = _legend_columns(labels, figure.get_figwidth())
    shown = [named(label, int(24 * figure.get_figwidth() / COLUMN * 2 / columns)) for label in labels]
    lines = sum(
        max(label.count("\n") + 1 for label in shown[start : start + columns])
        for start in range(0, len(shown), columns)
    )
    figure.set_figheight(figure.get_figheight() + 0.145 * (lines + bool(title)) + 0.08)
    figure.legend(handles, shown, loc="outside lower center", ncols=columns, title=title or None, alignment="left")


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """As many columns as the longest name leaves room for, at about 17 characters and a marker per inch."""
    longest = max((len(label) for label in labels), default=1)
    return max(1, min(len(labels), 4, int(width * 17 / (longest + 7))))


def named(label: str, width: int = 48) -> str:
    """A name as a figure shows it: no formula, no name that a legend would leave out, broken where it is too long."""
    broken = "\n".join(textwrap.wrap(plain(label), max(12, width), break_on_hyphens=False)) or " "
    return " " + broken if broken.startswith("_") else broken


def plain(text: str) -> str:
    """Text of which Matplotlib makes no formula and a font can show every sign."""
    return "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")


def colour_bar(figure: Figure, image: Any, axes: Any, label: str) -> None:
    """Say beside the axes what the colours of an image stand for."""
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.03, aspect=25)
    bar.set_label(plain(label))
    bar.outline.set_visible(False)
    _plain_ticks(bar.ax)


def ticks(axis: Any, names: Sequence[str], most: int = 20) -> None:
    """Name the places 0, 1, … of an axis; of many only every so many-th."""
    step = max(1, -(-len(names) // most))
    axis.set_ticks(range(0, len(names), step), labels=names[::step])


def to_png(figure: Figure, dpi: int = 200) -> bytes:
    """A figure as the bytes of a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi)
    return out.getvalue()


def seeds_title(numbers: Mapping[str, int]) -> tuple[str, bool]:
    """What a legend says of the seeds, and whether the names must say how many each has."""
    counts = set(numbers.values())
    if counts <= {1}:
        return "", False
    if len(counts) == 1:
        return f"mean ± standard deviation over {counts.pop()} seeds", False
    return "mean ± standard deviation over n seeds", True
