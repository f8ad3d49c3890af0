"""The reliability diagram: how often a model is right, over how sure it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from clframe.errors import ConfigurationError
from clframe.metrics.calibration import Reliability
from clframe.report.style import COLUMN, INK, legend_below, look, named, sized_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_reliability"]


def plot_reliability(diagram: Reliability, *, title: str = "", width: float = COLUMN) -> Figure:
    """Accuracy over confidence, with the diagonal of perfect calibration, and the number of samples below.

    Args:
        diagram: The bins.
        title: Above the plot.
        width: In inches.

    Raises:
        ConfigurationError: There is no sample in it.
    """
    filled = diagram.counts > 0
    if not filled.any():
        raise ConfigurationError(
            "A reliability diagram needs samples, but received none; name an evaluated experience."
        )
    left, wide = diagram.edges[:-1][filled], np.diff(diagram.edges)[filled]
    bars: dict[str, Any] = {"align": "edge", "edgecolor": "white", "linewidth": 0.5}
    with styled():
        figure, (upper, lower) = sized_figure(width, 1.1 * width, rows=2, ratios=(4, 1))
        accuracy = upper.bar(left, diagram.accuracy[filled], wide, color=look(0)["color"], alpha=0.75, **bars)
        confidence = upper.hlines(diagram.confidence[filled], left, left + wide, color=look(1)["color"], linewidth=2)
        (even,) = upper.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=0.8)
        upper.set_ylabel("accuracy")
        upper.set_ylim(0, 1)
        upper.tick_params(labelbottom=False)
        lower.bar(left, diagram.counts[filled], wide, color="0.55", **bars)
        lower.set_xlabel("confidence")
        lower.set_ylabel("samples")
        for axes in (upper, lower):
            axes.set_xlim(0, 1)
        if title:
            upper.set_title(named(title))
        shown = ["accuracy", "mean confidence", "calibrated"]
        legend_below(figure, [accuracy, confidence, even], shown, f"calibration error {100 * diagram.error:.2f} %")
    return figure
