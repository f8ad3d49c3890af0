"""What a comparison draws of `representation.json`: the probe's accuracy, the alignment of layers, the drift of prototypes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clframe.report.panels import Panel, Picture, line_panel, without
from clframe.report.plots import plot_matrices
from clframe.report.ranking import ScenarioComparison
from clframe.report.style import PAGE

__all__ = ["REPRESENTATION", "drift", "layers", "probe", "probe_matrices"]

Float = NDArray[np.float64]
_NONE = "No row has a representation.json for every seed; `clframe representation DIR` makes that of a run which kept its models."


def _read(scenario: ScenarioComparison, what: Callable[[Mapping[str, Any]], Any]) -> dict[str, list[Any]]:
    """Something of every seed's report: `{label: one per seed}` for the groups of which every finished seed has it."""
    found = {}
    for group in scenario.groups:
        parts = [_part(run.representation, what) for run in group.finished.values()]
        if parts and all(part is not None for part in parts):
            found[group.label] = parts
    return found


def _part(report: Mapping[str, Any] | None, what: Callable[[Mapping[str, Any]], Any]) -> Any:
    try:
        return None if report is None else what(report)
    except (KeyError, TypeError, IndexError):  # of another version
        return None


def _array(values: Any) -> Float:
    return np.array(values, dtype=np.float64)


def _left_out(scenario: ScenarioComparison, found: Mapping[str, Any]) -> str:
    return without(scenario.groups, found, "no such report of every seed")


def probe(scenario: ScenarioComparison) -> Panel:
    """What a classifier fitted on the frozen features of every extractor reaches among all classes."""
    title = "Probe of the extractor"
    found = _read(scenario, lambda report: [*report["probe"]["accuracy"]])
    if not found:
        return Panel("probe", title, "", missing=_NONE)
    caption = (
        "Accuracy among all classes of a classifier fitted on the frozen features after every experience, with the training data "
        "of all tasks, those to come included. A flat line is an extractor that learns no more."
    )
    return line_panel(
        scenario, "probe", title, caption, found, "probe accuracy", (0.0, 1.0), _left_out(scenario, found)
    )


def probe_matrices(scenario: ScenarioComparison) -> Panel:
    """The probe's accuracy on every task, per group."""
    found = _read(scenario, lambda report: _array(report["probe"]["matrix"]))
    caption = (
        "Row i, column j: accuracy of the probe of the extractor after i experiences on task j, among all classes."
    )
    return _heat_maps(
        scenario, "probe-matrices", "Probe matrices", caption, found, {"label": "probe accuracy", "before": False}
    )


def layers(scenario: ScenarioComparison) -> Panel:
    """How alike every layer is to what it was after the first experience, per group."""
    title = "Alignment of layers with the first extractor (CKA)"
    names = _read(scenario, lambda report: [*report["cka"]["to_first"]["first"]])
    found = _read(scenario, lambda report: _array([*report["cka"]["to_first"]["first"].values()]))
    caption = (
        "Centred kernel alignment of each layer after every experience with the same layer after the first, on test samples of the "
        "first experience: 1 where nothing has changed but the basis."
    )
    options = {"label": "CKA", "xlabel": "after experience", "ylabel": "layer", "before": False}
    own = {label: {"rows": seeds[0]} for label, seeds in names.items()}
    return _heat_maps(scenario, "layers", title, caption, found, options, own)


def drift(scenario: ScenarioComparison) -> Panel:
    """How far the prototypes of old classes have moved."""
    title = "Drift of prototypes"
    found = _read(scenario, lambda report: _known_means(_array(report["drift"]["distance"])))
    if not found:
        return Panel("drift", title, "", missing=_NONE)
    caption = (
        "How far the mean features of old classes have moved since the experience that taught them, the mean over classes; 1 is as "
        "far as a class's own samples lie from their mean."
    )
    missing = _left_out(scenario, found)
    return line_panel(scenario, "drift", title, caption, found, "prototype drift", None, missing)


def _known_means(by_class: Float) -> list[float | None]:
    """The mean of every row over what is known of it; None where nothing is."""
    return [float(row[np.isfinite(row)].mean()) if np.isfinite(row).any() else None for row in by_class]


def _heat_maps(
    scenario: ScenarioComparison,
    key: str,
    title: str,
    caption: str,
    found: Mapping[str, list[Float]],
    options: Mapping[str, Any],
    own: Mapping[str, Mapping[str, Any]] | None = None,
) -> Panel:
    """A heat map per group: the mean over seeds."""
    alike = {
        label: seeds for label, seeds in found.items() if len({s.shape for s in seeds}) == 1 and seeds[0].ndim == 2
    }
    if not alike:
        return Panel(key, title, "", missing=_NONE)
    means = {label: np.mean(seeds, axis=0) for label, seeds in alike.items()}
    pictures = tuple(
        Picture(
            partial(plot_matrices, {label: mean}, **options, **(own or {}).get(label, {})),
            f"Heat map, {title}, {label}: at the end {', '.join(f'{v:.2f}' for v in mean[:, -1])}.",
        )
        for label, mean in means.items()
    )
    shared = next(iter((own or {}).values()), {})
    draw = partial(plot_matrices, means, width=PAGE if len(means) > 1 else None, **options, **shared)
    return Panel(key, title, caption, pictures, draw, _left_out(scenario, alike))


REPRESENTATION = {"probe": probe, "drift": drift, "probe_matrices": probe_matrices, "layers": layers}
"""What a page shows of representations."""
