"""What a run cost as a table, by itself or against joint training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clframe.errors import ConfigurationError
from clframe.metrics.cost import compute_ratio, cumulative_retrain_ratio
from clframe.report.boards import fitting_unit
from clframe.report.tables import Cell, Column, Table

__all__ = ["cost_table"]

DEARER = "Dearer than retraining once"

_BYTES = ("deployed_bytes", "training_only_bytes", "exemplar_bytes", "statistics_bytes")


def cost_table(measured: Mapping[str, Any], joint: Mapping[str, Any] | None = None, *, title: str = "") -> Table:
    """A row per experience: operations, steps, seconds, bytes kept, and the ratio to joint training.

    Args:
        measured: Metrics of the run as a whole, as in `result.json` under `run`.
        joint: Those of a run of joint training on the same stream, trained after every experience or at the end.
        title: Above the table.

    Raises:
        ConfigurationError: One of the runs didn't measure its cost.
    """
    for whose, found in (("run", measured), ("joint run", joint)):
        if found is not None and "train_flops" not in found:
            raise ConfigurationError(
                f"The {whose} didn't measure its cost: run it again with `measure` at `default`, or naming `cost`."
            )
    train: Sequence[float | None] = measured["train_flops"]
    kept = [
        float(sum(sizes)) if None not in sizes else None for sizes in zip(*(measured[n] for n in _BYTES), strict=True)
    ]
    given = {
        "train_flops": train,
        "evaluation_flops": measured["evaluation_flops"],
        "inference_flops": measured["inference_flops"],
        "steps": measured["steps"],
        "train_cpu_seconds": measured["train_cpu_seconds"],
        "kept_bytes": kept,
    }
    if joint is not None:
        given["compute_ratio"] = compute_ratio(train, joint["train_flops"])
    columns = [Column("experience", right=True), *(_column(name, values) for name, values in given.items())]
    scaled = [[_number(v, column) for v in values] for column, values in zip(columns[1:], given.values(), strict=True)]
    rows: list[list[Cell]] = [[i, *row] for i, row in enumerate(zip(*scaled, strict=True), 1)]
    return Table(columns, rows, title, [] if joint is None else _verdict(train, joint["train_flops"]))


def _column(name: str, values: Sequence[float | None]) -> Column:
    unit, scale = fitting_unit("", name, max((v for v in values if v is not None), default=0.0))
    return Column(name, unit=unit, scale=scale, right=True)


def _number(value: float | None, column: Column) -> float | None:
    """Whole numbers are shown as they are; those of a unit must be scaled."""
    return float(value) if value is not None and column.unit else value


def _verdict(train: Sequence[float | None], joint: Sequence[float | None]) -> list[str]:
    """What the ratios to joint training say."""
    last = compute_ratio(train, joint)[-1]
    if last is None:
        return ["The joint run didn't train after the last experience, or an experience's cost is unknown: no ratio."]
    compared = DEARER if last > 1 else "Not dearer than retraining once"
    notes = [f"{compared}: κ_T = {last:.3g}, operations of training over those of joint training on all data."]
    retrained = cumulative_retrain_ratio(train, joint)
    if retrained is not None:
        notes.append(f"κ^cum = {retrained:.3g}, over those of joint training after every experience.")
    return notes
