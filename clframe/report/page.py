"""A comparison as one self-contained HTML page: tables that sort, figures as SVG, and nothing that needs a network."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clframe._version import __version__
from clframe.metrics.catalogue import CATALOGUE
from clframe.metrics.differences import Difference
from clframe.report import boards, panels
from clframe.report.extractor_panels import REPRESENTATION
from clframe.report.panels import Panel
from clframe.report.ranking import ScenarioComparison, in_percent
from clframe.report.style import INK, look
from clframe.report.svg import inline_svg
from clframe.report.tables import Cell, Column, Estimate, Table
from clframe.tracking.files import to_json

if TYPE_CHECKING:
    from clframe.report.compare import Comparison

__all__ = ["page"]

_MORE_METRICS = ("learning_accuracy",)
_LARGE = 4.5
"""Inches from which on a figure needs more room than a third of a page."""
_ENDS = (
    {"id": "runs", "title": "Runs"},
    {"id": "environments", "title": "Environments"},
    {"id": "reading", "title": "How to read this page"},
)
_HOW_DIFFERENT = (
    "A line is the 95 % interval, a stroke marks 0, and a filled point says that the seeds support the difference: its p value, "
    "corrected for the number of pairs by Holm's method, is below 0.05."
)
_READING = (
    "A row of the leaderboard is a method: runs that differ in nothing but the seed. Its numbers are the mean over the finished "
    "seeds ± the sample standard deviation. A method's rank is one more than the number of methods that are better with the support "
    "of the seeds, so methods that the seeds don't tell apart may share a rank; with fewer than three seeds a method has none.",
    "A difference is taken seed by seed and tested with Student's t. It is supported when at least three seeds stand behind it and "
    "its p value, corrected for the number of pairs by Holm's method, is below 0.05: then the chance that any difference of the "
    "table is called supported without being there stays below 5 %. The interval shown is the 95 % interval of the one difference, "
    "not corrected.",
    "A seed sets the initialisation, the order of training samples and every other random choice of a run; the stream with its order "
    "of classes is part of the scenario, and only runs on the very same stream are compared.",
    "Below, T is the number of experiences, a[i,j] the accuracy on task j after i of them, and A_i that on everything seen by then.",
)


def page(comparison: Comparison) -> str:
    """Return the page.

    Text from users (names, labels, paths) is escaped and never becomes markup.
    """
    import jinja2  # here, since only a page needs it

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    safe = _Safe(jinja2)
    script = _text("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    scenarios = [_scenario(comparison, s, f"s{k}", safe) for k, s in enumerate(comparison.scenarios)]
    content = {
        **_front(comparison),
        "scenarios": scenarios,
        "contents": [*(entry for s in scenarios for entry in s["contents"]), *_ENDS],
        "runs": _board("runs", comparison.runs(), "Every run with its seed and state", head="run"),
        "environments": _board("environments", comparison.environments(), "What the runs ran on", head="environment"),
        "reading": _READING,
        "metrics": [_metric(m) for m in _shown_metrics(comparison, comparison.scenarios[0])],
        "style": safe(_text("page.css")),
        "script": safe(script),
        "script_hash": safe(f"sha256-{digest}"),
        "data": safe(_json(comparison.to_dict())),
        "version": __version__,
    }
    return environment.from_string(_text("page.html")).render(content)


class _Safe:
    """Marks text of this package's own making, which holds markup; everything else is escaped."""

    def __init__(self, jinja2: Any) -> None:
        self._mark = jinja2.utils.markupsafe.Markup

    def __call__(self, text: str) -> str:
        marked: str = self._mark(text)
        return marked


def _text(name: str) -> str:
    return importlib.resources.files("clframe.report").joinpath(name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that can't end the element that it stands in."""
    return to_json(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _front(comparison: Comparison) -> dict[str, Any]:
    """Title, facts in a line, and notes."""
    names = [s.shown for s in comparison.scenarios]
    methods = sum(len(s.groups) for s in comparison.scenarios)
    runs = comparison.summaries
    finished = sum(run.finished for run in runs)
    what = f"{methods} method{'s' if methods > 1 else ''}" if len(names) == 1 else f"{len(names)} scenarios"
    on = f" on {names[0]}" if len(names) == 1 else ""
    facts = [f"{len(runs) + len(comparison.damaged)} runs", f"{finished} finished"]
    facts += [f"{len(runs) - finished} unfinished"] if finished < len(runs) else []
    facts += [f"{len(comparison.damaged)} damaged"] if comparison.damaged else []
    facts.append("seeds " + ", ".join(map(str, sorted({run.seed for run in runs}))))
    facts.append(f"ranked by {comparison.metrics[0]}")
    return {"title": f"{what}{on}", "facts": facts, "notes": comparison.notes}


def _shown_metrics(comparison: Comparison, scenario: ScenarioComparison) -> list[str]:
    """The metrics asked for, and further ones that the runs have."""
    more = [m for m in _MORE_METRICS if any(g.mean(m) is not None for g in scenario.groups)]
    return list(dict.fromkeys([*comparison.metrics, *more]))


def _metric(name: str) -> dict[str, str]:
    known = CATALOGUE.get(name)
    if known is None:
        return {"name": name, "arrow": "", "definition": "", "reference": ""}
    arrow = {True: "↑ higher is better", False: "↓ lower is better", None: "neither is better"}[known.higher_is_better]
    return {"name": name, "arrow": arrow, "definition": known.definition, "reference": known.reference}


# -- a scenario ----------------------------------------------------------------------------------------------------------


def _scenario(comparison: Comparison, scenario: ScenarioComparison, key: str, safe: _Safe) -> dict[str, Any]:
    def drawn(panel: Panel) -> dict[str, Any]:
        return _drawn(panel, key, safe)

    plasticity = [drawn(panels.plasticity(scenario, quantity)) for quantity in panels.PLASTICITY]
    main = [drawn(panels.curves(scenario)), drawn(panels.tradeoff(scenario)), drawn(panels.cost(scenario))]
    wide = [drawn(panels.matrices(scenario)), drawn(panels.confusion(scenario))]
    extractors = [drawn(make(scenario)) for make in REPRESENTATION.values()]
    families = [
        _family(f"{key}-plasticity", "Plasticity", plasticity),
        _family(f"{key}-representation", "Representation", extractors),
    ]
    differences = {"id": f"{key}-differences", "title": "Differences between methods"}
    board = {"id": f"{key}-leaderboard", "title": "Leaderboard"}
    settings = {"id": f"{key}-settings", "title": "Settings"}
    several = len(comparison.scenarios) > 1  # then a reader finds the scenario, and from there the rest
    contents = (
        [{"id": key, "title": scenario.shown}] if several else [board, *main, differences, *wide, *families, settings]
    )
    return {
        "id": key,
        "name": scenario.shown,
        "contents": contents,
        "leaderboard": _leaderboard(key, scenario, _shown_metrics(comparison, scenario)),
        "main": main,
        "differences": differences,
        "support": _HOW_DIFFERENT,
        "pairwise": _pairwise(key, scenario, safe),
        "wide": wide,
        "families": families,
        "settings": _board(
            f"{key}-settings", boards.settings_table(scenario), "A dash: no such setting.", head="setting"
        ),
    }


def _drawn(panel: Panel, key: str, safe: _Safe) -> dict[str, Any]:
    """A panel with its figures as SVG."""
    name = f"{key}-{panel.key}"
    made = [picture.draw() for picture in panel.pictures]
    svgs = [
        safe(inline_svg(f, f"{name}-{k}", p.alt)) for k, (f, p) in enumerate(zip(made, panel.pictures, strict=True))
    ]
    size = "many" if len(made) > 1 else ""
    size += " large" if any(figure.get_figwidth() > _LARGE for figure in made) else ""
    words = {"title": panel.title, "caption": panel.caption, "missing": panel.missing}
    return {"id": name, **words, "figures": svgs, "size": size.strip()}


def _family(key: str, title: str, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Panels of one topic: those with figures, and why the others have none."""
    shown = [p for p in found if p["figures"]]
    return {
        "id": key,
        "title": title,
        "narrow": [p for p in shown if len(p["figures"]) == 1],
        "wide": [p for p in shown if len(p["figures"]) > 1],
        "missing": list(dict.fromkeys(p["missing"] for p in found if not p["figures"])),
    }


# -- tables --------------------------------------------------------------------------------------------------------------


def _board(key: str, table: Table, caption: str, *, head: str, marks: Sequence[str] = ()) -> dict[str, Any]:
    """A table as the template wants it; `head` names the column that names the rows."""
    columns = [{"title": c.shown, "right": c.right, "help": _help(c)} for c in table.heads]
    rows = [
        {
            "cells": [_cell(c, cell, head) for c, cell in zip(table.heads, row, strict=True)],
            "series": None,
            "mark": mark,
        }
        for row, mark in zip(table.rows, marks or [""] * len(table.rows), strict=True)
    ]
    return {"id": key, "caption": caption, "columns": columns, "rows": rows}


def _help(column: Column) -> str:
    known = CATALOGUE.get(column.title)
    return known.definition if known is not None else ""


def _kind(column: Column, cell: Cell) -> str:
    """How a cell is set: numbers to the right, long texts in several lines, bad news in another colour."""
    if column.right:
        return "right"
    if isinstance(cell, str) and cell.startswith(("damaged", "unfinished")):
        return "words bad"
    return "words" if isinstance(cell, str) and len(cell) > 30 else ""


def _cell(column: Column, cell: Cell, head: str) -> dict[str, Any]:
    value = cell.mean if isinstance(cell, Estimate) else cell
    empty = value is None or (isinstance(value, float) and math.isnan(value))
    return {
        "text": column.text(cell),
        "sort": "" if empty else repr(value) if isinstance(value, float) else str(value),
        "kind": _kind(column, cell),
        "head": column.title == head,
        "share": None,
    }


def _leaderboard(key: str, scenario: ScenarioComparison, metrics: Sequence[str]) -> dict[str, Any]:
    """The leaderboard without the columns in which every row is the same, which the caption names instead."""
    table = boards.leaderboard([scenario], metrics)
    columns = list(zip(*table.rows, strict=True))
    same = {
        c.title: str(cells[0]) for c, cells in zip(table.heads, columns, strict=True) if len(set(map(str, cells))) == 1
    }
    dropped = {name: same[name] for name in ("scenario", "backbone", "head") if name in same and same[name] != "None"}
    order = ["rank", *(c.title for c in table.heads if c.title != "rank")]
    kept = [place for name in order for place, c in enumerate(table.heads) if c.title == name and name not in dropped]
    narrow = Table([table.heads[k] for k in kept], [[row[k] for k in kept] for row in table.rows])
    shared = ", ".join(f"{name} {value}" for name, value in dropped.items() if name != "scenario")
    caption = f"Mean ± sample standard deviation over n seeds{'; ' + shared if shared else ''}. Press a head to sort."
    board = _board(f"{key}-leaderboard", narrow, caption, head="strategy")
    place = next(k for k, c in enumerate(narrow.heads) if c.title == scenario.first.named(metrics[0]))
    for k, (row, cells) in enumerate(zip(board["rows"], narrow.rows, strict=True)):
        row |= {"series": k, "colour": look(k)["color"].replace(INK, "currentColor")}
        value = cells[place]
        if in_percent(metrics[0], scenario.first) and isinstance(value, Estimate) and not math.isnan(value.mean):
            row["cells"][place]["share"] = f"{min(1.0, max(0.0, value.mean)):.3f}"
    return board


def _pairwise(key: str, scenario: ScenarioComparison, safe: _Safe) -> dict[str, Any]:
    """The pairwise differences: a drawing of each interval in place of its two ends, which its words tell."""
    table = boards.pairwise_table({scenario: scenario.pairs}, scenario.metric)
    gaps = [pair.difference for pair in scenario.pairs]
    marks = ["supported" if gap.supported else "" for gap in gaps]
    named = scenario.first.named(scenario.metric)
    board = _board(
        f"{key}-pairwise", table, f"Differences in {named}, the better method first", head="strategy", marks=marks
    )
    board["columns"][3]["title"] = "95 % interval"
    board["columns"][4] = {"title": "", "right": False, "help": ""}
    span = _span(gaps)
    for row, gap in zip(board["rows"], gaps, strict=True):
        low, high = row["cells"][3:5]
        low["text"] = f"{low['text']} … {high['text']}" if low["sort"] else low["text"]
        row["cells"][4] = {**high, "text": safe(_interval(gap, span)), "kind": "drawing"}
    return board


def _span(gaps: Sequence[Difference]) -> tuple[float, float]:
    """Ends of a common scale with 0 in it; intervals of too few seeds may leave it."""
    reach = 2 * max((abs(g.mean) for g in gaps), default=0.0) or 1.0
    ends = [end for g in gaps for end in (g.low, g.high, g.mean, 0.0) if not math.isnan(end)]
    return max(min(ends, default=0.0), -reach), min(max(ends, default=0.0), reach) or 1.0


def _interval(gap: Difference, span: tuple[float, float]) -> str:
    """A drawing of one interval: a line, a point on it (filled where supported), and a stroke at 0."""

    def place(value: float) -> str:
        inside = min(max(value, span[0]), span[1])
        return f"{6 + 168 * (inside - span[0]) / (span[1] - span[0]):.1f}"

    colour = "var(--mark)" if gap.supported else "var(--soft)"
    ends = () if math.isnan(gap.low) else (place(gap.low), place(gap.high))
    line = f'<path d="M{ends[0]} 9H{ends[1]}" stroke="{colour}" stroke-width="2"/>' if ends else ""
    fill = colour if gap.supported else "var(--back)"
    return (
        f'<svg viewBox="0 0 180 18" aria-hidden="true"><path d="M{place(0)} 0V18" stroke="currentColor" opacity=".4"/>{line}'
        f'<circle cx="{place(gap.mean)}" cy="9" r="4" fill="{fill}" stroke="{colour}" stroke-width="1.5"/></svg>'
    )
