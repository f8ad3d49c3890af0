"""Figures of how extractors change: alignment by layer, and drift of prototypes, over the experiences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clframe.errors import ConfigurationError
from clframe.report.style import plain, sized_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["known_means", "plot_cka", "plot_drift"]

Float = NDArray[np.float64]
_MARKERS = "osD^vPX"


def plot_cka(layers: Mapping[str, Sequence[float] | Float], *, to: str = "first", title: str = "") -> Figure:
    """A line per layer over the experiences 1..T, the deeper the darker.

    Args:
        layers: By name, shallowest first: the alignment (T,); NaN leaves a gap.
        to: What extractors are compared with: `first` or `previous`.
        title: Above the plot.

    Raises:
        ConfigurationError: There is no layer.
    """
    if not layers:
        raise ConfigurationError("A plot of alignments needs a layer, but received none; name one.")
    figure, axes = sized_figure(6.0, 3.8)
    for k, (layer, values) in enumerate(layers.items()):
        colour = _shade(1 - k / max(1, len(layers) - 1))
        steps = np.arange(1, len(values) + 1)
        axes.plot(
            steps,
            values,
            color=colour,
            marker=_MARKERS[k % len(_MARKERS)],
            markersize=4,
            linewidth=1.6,
            label=plain(layer),
        )
    lowest = float(np.nanmin([np.nanmin(v, initial=1.0) for v in layers.values()]))
    axes.set_ylim(min(0.0, lowest), 1.03)
    axes.set_ylabel(f"CKA with the {'first' if to == 'first' else 'previous'} extractor")
    axes.legend(frameon=False, fontsize=9 if len(layers) <= 7 else 7, ncols=1 if len(layers) <= 7 else 2)
    _finish(axes, title)
    return figure


def plot_drift(values: ArrayLike, taught: Sequence[int], *, what: str = "distance", title: str = "") -> Figure:
    """A line per group of classes that were taught together, and the mean over all old classes.

    Args:
        values: (T, K) drift of every class after every experience; NaN where there is none.
        taught: (K,) experience that taught each class.
        what: `distance` or `cosine`.
        title: Above the plot.

    Raises:
        ConfigurationError: The shapes don't fit one another.
    """
    drift, groups = np.array(values, dtype=np.float64), np.asarray(taught)
    if drift.ndim != 2 or drift.shape[1] != len(groups):
        raise ConfigurationError(f"Drift has the shape (T, {len(groups)}), but this has {drift.shape}; correct it.")
    figure, axes = sized_figure(6.0, 3.8)
    steps = np.arange(1, len(drift) + 1)
    present = [g for g in np.unique(groups).tolist() if np.isfinite(drift[:, groups == g]).any()]
    for g in present:
        curve = known_means(drift[:, groups == g])
        alone = np.isfinite(curve).sum() == 1
        axes.plot(
            steps, curve, color=_shade(_place(g, present)), linewidth=1.3, marker="o", markersize=4 if alone else 2.5
        )
    axes.plot(steps, known_means(drift), color="black", linewidth=2.2, linestyle="--", label="mean of old classes")
    axes.set_xlim(0.8, len(drift) + 0.2)
    if what == "distance":
        axes.set_ylim(bottom=0)
    axes.set_ylabel("prototype drift [class spreads]" if what == "distance" else "cosine with the prototype as taught")
    axes.legend(frameon=False, fontsize=9)
    if present:
        _bar_of_groups(figure, axes, present)
    _finish(axes, title)
    return figure


def known_means(values: Float) -> Float:
    """Mean (T,) of every row over what is known; NaN where nothing is."""
    known = np.isfinite(values)
    found: Float = np.divide(
        np.where(known, values, 0).sum(axis=1),
        known.sum(axis=1),
        out=np.full(len(values), np.nan),
        where=known.any(axis=1),
    )
    return found


def _place(group: int, groups: Sequence[int]) -> float:
    return (group - groups[0]) / max(1, groups[-1] - groups[0])


def _shade(place: float) -> Any:
    """A colour of viridis, whose palest end would be lost on white."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.88 * place)


def _bar_of_groups(figure: Figure, axes: Any, groups: Sequence[int]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    edges = [groups[0] - 0.5, *(b - 0.5 for b in groups[1:]), groups[-1] + 0.5]
    colours = ListedColormap([_shade(_place(g, groups)) for g in groups])
    bar = figure.colorbar(ScalarMappable(BoundaryNorm(edges, len(groups)), colours), ax=axes, fraction=0.05, pad=0.02)
    bar.set_label("classes taught in experience")
    step = max(1, -(-len(groups) // 12))
    bar.set_ticks(groups[::step], labels=[str(g) for g in groups[::step]])
    bar.ax.tick_params(length=0)
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)


def _finish(axes: Any, title: str) -> None:
    axes.set_xlabel("after experience")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(plain(title))
