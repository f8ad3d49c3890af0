"""Compatibility: may the features of an old gallery be searched with the features of a newer model?"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from clframe.audits.base import SCHEMA, Audit
from clframe.audits.models import AuditedRun
from clframe.errors import ConfigurationError, RunDirectoryError
from clframe.metrics.compatibility import (
    average_accuracy,
    average_compatibility,
    compatibility_gain,
    compatibility_price,
    paired_similarities,
    search,
    verification_accuracy,
)
from clframe.report import Column, Table
from clframe.stream import Retrieval

__all__ = ["MEASURES", "CompatibilityAudit"]

Float = NDArray[np.float64]
MEASURES = ("verification", "top1", "mean_average_precision")
"""Accuracy on pairs; whether the nearest gallery image is of the query's identity; the mean average precision."""
RULE = "features truncated to the shorter length, then of unit norm"


class CompatibilityAudit(Audit):
    """Queries by every model against the gallery of every model before it: M[i, j], i ≥ j.

    For runs on a stream with a gallery (the scenario `compatibility`) that have kept their models. The gallery of each
    model is computed once and kept in `galleries/`, as it would be where images can't be embedded again. With references,
    runs on the same stream whose models were each trained independently (such as `cumulative` from scratch), gain and
    price are given; several of them are averaged.
    """

    file: ClassVar[str] = "compatibility.json"
    takes_references: ClassVar[bool] = True

    def make(self, runs: Sequence[AuditedRun], references: Sequence[AuditedRun]) -> list[dict[str, Any]]:
        """Audit one run."""
        (run,) = runs
        shown = _retrieval_of(run)
        for other in references:
            if other.directory.stream["fingerprint"] != run.directory.stream["fingerprint"]:
                raise ConfigurationError(
                    f"A reference needs the very same stream, but {other.path} is on another one than {run.path}: train it "
                    "with the same scenario options."
                )
            other.all_kept()
        matrices, dims = _matrices(run, shown)
        independent = [_diagonals(other, _retrieval_of(other)) for other in references]
        found: dict[str, Any] = {"schema": SCHEMA, "audit": "compatibility", "run": run.title, "rule": RULE}
        found |= {"gallery": len(shown.gallery), "queries": len(shown.queries), "pairs": len(shown.pairs)}
        found |= {"feature_dims": dims, "references": [other.path for other in references]}
        for measure in MEASURES:
            best = np.mean([d[measure] for d in independent], axis=0) if independent else None
            found[measure] = _derived(matrices[measure], best)
        return [found]

    @classmethod
    def tables(cls, found: Sequence[Mapping[str, Any]]) -> list[Table]:
        """The matrices, and what follows from them."""
        (data,) = found
        count = len(data["feature_dims"])
        columns = [Column("queries by"), *(Column(f"gallery {j}", "%", 100.0, right=True) for j in range(1, count + 1))]
        tables = [
            Table(
                columns,
                [[f"model {i}", *row] for i, row in enumerate(data[m]["matrix"], 1)],
                title=f"{data['run']}: {m}",
            )
            for m in MEASURES
        ]
        head = [
            Column("measure"),
            *(Column(t, "%", 100.0, right=True) for t in ("AC", "AM", "median gain", "median price")),
        ]
        rows = [
            [
                m,
                data[m]["average_compatibility"],
                data[m]["average_accuracy"],
                _median(data[m]["gain"]),
                _median(data[m]["price"]),
            ]
            for m in MEASURES
        ]
        notes = [
            "AC is the share of pairs with M[i, j] > M[j, j]; a tie doesn't count. AM is the mean of the triangle.",
            f"Features: {data['rule']}.",
        ]
        if data["references"]:
            notes.append(
                "Gain is (M[i, j] - M[j, j]) / (M* - M[j, j]), where an independent model improves on the old one, and price "
                "M[i, i] - M*, M* of independent models."
            )
        return [*tables, Table(head, rows, title="Compatibility", notes=notes)]


def _median(values: Any) -> float | None:
    """Median of the numbers in a nested list, None without one."""
    flat = [v for v in np.ravel(np.array(values, dtype=object)) if v is not None] if values is not None else []
    return float(np.median(flat)) if flat else None


def _retrieval_of(run: AuditedRun) -> Retrieval:
    """Return a run's gallery and queries.

    Raises:
        ConfigurationError: Its stream has none.
        RunDirectoryError: It hasn't kept its models.
    """
    shown = run.stream.retrieval
    if shown is None:
        raise ConfigurationError(
            f"Compatibility is audited on a stream with a gallery and queries, but {run.path} is on "
            f"{run.directory.config['scenario']['name']}: run the scenario compatibility."
        )
    run.all_kept()
    return shown


def _measures(queries: Float, gallery: Float, shown: Retrieval) -> dict[str, float]:
    """Return every measure of queries by one model against the gallery of another."""
    wanted, there = (shown.table.targets[ids].numpy() for ids in (shown.queries, shown.gallery))
    first, second = shown.pairs.numpy().T
    similarity = paired_similarities(queries[first], gallery[second])
    top, precision = search(queries, gallery, wanted, there)
    verified = verification_accuracy(similarity, wanted[first] == there[second])
    return dict(zip(MEASURES, (verified, top, precision), strict=True))


def _matrices(run: AuditedRun, shown: Retrieval) -> tuple[dict[str, Float], list[int]]:
    """Return M[i, j] of every measure, NaN above the diagonal, and the length of every model's features."""
    matrices = {measure: np.full((run.last, run.last), np.nan) for measure in MEASURES}
    galleries: list[Float] = []
    for i in run.all_kept():
        queries, gallery = _embedded(run, i, shown)
        galleries.append(gallery)
        for j, stored in enumerate(galleries):
            for measure, value in _measures(queries, stored, shown).items():
                matrices[measure][i - 1, j] = value
    return matrices, [gallery.shape[1] for gallery in galleries]


def _diagonals(run: AuditedRun, shown: Retrieval) -> dict[str, Float]:
    """Return M[i, i] of every measure."""
    found = [_measures(*_embedded(run, i, shown), shown) for i in run.all_kept()]
    return {measure: np.array([values[measure] for values in found]) for measure in MEASURES}


def _embedded(run: AuditedRun, after: int, shown: Retrieval) -> tuple[Float, Float]:
    """Return a model's features of the queries, and of the gallery, which are computed only where they aren't kept."""
    model = run.model(after)
    queries = model.embed(shown.table, shown.queries).double().numpy()
    path = run.directory.path / "galleries" / f"{after:03d}.safetensors"
    if not path.exists():
        _write(path, model.embed(shown.table, shown.gallery), shown)
    return queries, _read(path, shown)


def _write(path: Path, features: torch.Tensor, shown: Retrieval) -> None:
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        save_file({"features": features.contiguous()}, temporary, {"protocol": shown.fingerprint})
        temporary.replace(path)
    except Exception as error:  # safetensors raises its own kind for a full disk
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunDirectoryError(
            f"The gallery {path} can't be written ({error}): free some space and repeat."
        ) from error


def _read(path: Path, shown: Retrieval) -> Float:
    """Read a kept gallery.

    Raises:
        RunDirectoryError: It is damaged, or of another gallery.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            protocol, features = (file.metadata() or {}).get("protocol"), file.get_tensor("features")
    except Exception as error:
        raise RunDirectoryError(
            f"The gallery {path} is damaged ({error}): bring it back from a copy, or delete it so that it is made anew."
        ) from error
    if protocol != shown.fingerprint or len(features) != len(shown.gallery):
        raise RunDirectoryError(f"The gallery {path} is of other images than the run's stream has: delete it.")
    found: Float = features.double().numpy()
    return found


def _derived(matrix: Float, best: Float | None) -> dict[str, Any]:
    """Return a measure's matrix with everything that follows from it."""
    return {
        "matrix": _listed(matrix),
        "average_compatibility": _listed(average_compatibility(matrix)),
        "average_accuracy": average_accuracy(matrix),
        "independent": None if best is None else _listed(best),
        "gain": None if best is None else _listed(compatibility_gain(matrix, best)),
        "price": None if best is None else _listed(compatibility_price(matrix, best)),
    }


def _listed(values: Any) -> Any:
    """Turn numbers into lists, NaN into None."""
    if isinstance(values, np.ndarray):
        return [_listed(v) for v in values]
    return None if np.isnan(values) else float(values)
