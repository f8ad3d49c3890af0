"""How a run shows itself in a notebook."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from clframe.metrics.catalogue import CATALOGUE
from clframe.report.compare import DEFAULT_METRICS
from clframe.report.summary import RunSummary

__all__ = ["html_card"]


def html_card(
    summary: RunSummary,
    *,
    metrics: Sequence[str] = (*DEFAULT_METRICS, "learning_accuracy", "backward_transfer"),
    png: bytes | None = None,
) -> str:
    """A small HTML snippet about one run; every text is escaped.

    Args:
        summary: The run.
        metrics: Scalar metrics of the primary head to show, where the run has them.
        png: A picture to show below, as `to_png` makes it.
    """
    state = "finished" if summary.finished else f"unfinished{': ' + summary.progress if summary.progress else ''}"
    facts = [
        ("scenario", f"{summary.scenario} ({summary.scenario_hash[:8]})"),
        ("backbone", summary.backbone),
        ("seed", str(summary.seed)),
        ("state", state),
        ("directory", str(summary.directory)),
    ]
    head = summary.head()
    if head:
        facts.insert(3, ("head", head))
    for metric in metrics:
        value = summary.number(metric)
        if value is not None:
            facts.append((metric, _shown(metric, value, summary.score)))
    rows = "".join(
        f'<tr><th style="text-align:left">{html.escape(k)}</th><td style="text-align:left">{html.escape(v)}</td></tr>'
        for k, v in facts
    )
    picture = ""
    if png is not None:
        picture = f'<img alt="results" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}"/>'
    return (
        f'<div style="border:1px solid #ccc;border-radius:4px;padding:0.5em 1em;display:inline-block">'
        f"<b>{html.escape(summary.name)}</b><table>{rows}</table>{picture}</div>"
    )


def _shown(metric: str, value: float, score: str) -> str:
    known = CATALOGUE.get(metric)
    if known is not None and known.unit.startswith("fraction") and score == "accuracy":
        return f"{100 * value:.2f} %"
    return f"{value:.4g}"
