"""A picture of a stream: how many samples of each class (or domain) every experience brings, and what else it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from clframe.report.style import colour_bar, plain, sized_figure, styled, ticks
from clframe.stream import Stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_stream", "stream_counts"]

_KINDS = {
    "train": ("labelled", "#0072B2"),
    "unlabelled": ("unlabelled", "#56B4E9"),
    "pool": ("pool", "#E69F00"),
    "valid": ("set aside", "#999999"),
    "forget": ("to forget", "#D55E00"),
}
"""Index sets of an experience: how the legend calls them, and a colour that colour-blind readers can tell apart."""


def stream_counts(stream: Stream) -> tuple[str, NDArray[np.int64]]:
    """Count the labelled training samples of every experience.

    Returns:
        What the rows are, `class` or `domain`, and the (rows, T) counts. Domains are counted where the training table has
        some, and where the setting is domain-incremental: there every experience is a domain of its own unless the table
        says otherwise. A regression stream has a single row.
    """
    experiences = stream.experiences
    domains = stream.train.domains
    if domains is not None:
        what, labels, rows = "domain", domains, len(stream.train.transforms)
    elif stream.score != "accuracy":
        what, labels, rows = "domain", torch.zeros(len(stream.train), dtype=torch.int64), 1
    else:
        what, labels, rows = "class", stream.train.targets, stream.num_classes
    columns = [torch.bincount(labels[e.train], minlength=rows) for e in experiences]
    return what, torch.stack(columns, dim=1).numpy()


def plot_stream(stream: Stream) -> Figure:
    """Draw a stream: above, the samples of every class (or domain) in every experience; below, what each experience holds.

    Args:
        stream: As `clframe.open_scenario` returns it.
    """
    what, counts = stream_counts(stream)
    rows, columns = counts.shape
    with styled():
        figure, (upper, lower) = sized_figure(
            2.6 + 0.3 * min(max(columns, 8), 30),
            2.6 + 0.16 * min(rows, 40),
            rows=2,
            ratios=[max(2.0, min(rows, 40) / 6), 1],
        )
        image = upper.imshow(
            np.ma.masked_equal(counts, 0), cmap="viridis_r", vmin=0, aspect="auto", interpolation="nearest"
        )
        names = stream.class_names if what == "class" and rows <= 25 else [str(k) for k in range(rows)]
        ticks(upper.yaxis, [plain(n if len(n) <= 18 else n[:17] + "…") for n in names])
        upper.set_ylabel(what)
        upper.set_title(_title(stream))
        colour_bar(figure, image, upper, "samples")
        _bars(lower, stream)
        for axes in (upper, lower):
            axes.set_xlim(-0.5, columns - 0.5)
        ticks(upper.xaxis, [str(i) for i in range(1, columns + 1)])
        ticks(lower.xaxis, [str(i) for i in range(1, columns + 1)])
        lower.set_xlabel("experience")
    return figure


def _title(stream: Stream) -> str:
    title, shown = plain(f"{stream.name} ({stream.setting}-incremental)"), stream.retrieval
    if shown is None:
        return title
    return f"{title}\nafter each: {len(shown.queries)} queries search a gallery of {len(shown.gallery)}"


def _bars(axes: Any, stream: Stream) -> None:
    """Stack the index sets of every experience."""
    places = np.arange(len(stream.experiences))
    below = np.zeros(len(places))
    for name, (label, colour) in _KINDS.items():
        sizes = np.array([len(getattr(e, name)) for e in stream.experiences])
        if sizes.any():
            axes.bar(places, sizes, bottom=below, color=colour, label=label, width=0.85, linewidth=0)
            below = below + sizes
    axes.set_ylabel("samples")
    if len(axes.containers) > 1:
        axes.legend(ncols=len(axes.containers), loc="upper left", bbox_to_anchor=(0, 1.25))
