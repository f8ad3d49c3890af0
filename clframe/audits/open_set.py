"""Open set: which score of a model tells what it has learnt from tasks to come, and from another data set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clframe import registry
from clframe.audits.base import SCHEMA, Audit
from clframe.audits.models import AuditedRun, KeptModel
from clframe.config import RunOptions
from clframe.data import DataRoot, find_source
from clframe.data.joined import JoinedReader
from clframe.errors import ConfigurationError
from clframe.evaluation import classification_columns
from clframe.launch.services import EngineServices
from clframe.metrics.open_set import Weibull, auroc, fpr_at_tpr
from clframe.report import Column, Table
from clframe.spec import field
from clframe.stream import SampleTable

__all__ = ["SCORES", "OpenSet"]

Float = NDArray[np.float64]
SCORES = ("confidence", "entropy", "energy", "distance", "weibull")
"""Max softmax; minus the entropy; minus the energy; minus the distance to the nearest class mean; minus the Weibull CDF of
such distances, of the class for which it is least. The larger, the more a sample looks known."""

_LEAST = 2
"""Samples that a class mean needs."""


class OpenSet(Audit):
    """Known against unknown: AUROC and FPR@95 of five scores, for every model that is there.

    Known are the test samples of everything seen, the positive side. Unknown are those of the tasks to come, all together
    and task by task, and with `foreign` the test images of another data set. Scores of the softmax are of the primary
    report head. Class means, and a Weibull fit of the largest distances to each (Bendale and Boult 2016, "Towards Open Set
    Deep Networks"), are of the features of the training samples seen that the model predicts right (of all those of a class
    of which it predicts fewer than two right), as in Mundt et al. 2022, "Unified Probabilistic Deep Continual Learning
    through Generative Replay and Open Set Recognition".
    """

    file: ClassVar[str] = "open_set.json"

    foreign: str | None = field(
        default=None, help="A data set or scenario whose test images are unknown to every model, brought to the shape."
    )
    final_only: bool = field(default=False, help="Audit the final model alone, which needs foreign images.")
    tail: int = field(
        default=20, ge=2, unit="samples", help="Largest distances of a class that its Weibull is fitted to."
    )

    def make(self, runs: Sequence[AuditedRun], references: Sequence[AuditedRun]) -> list[dict[str, Any]]:
        """Audit one run."""
        (run,) = runs
        record = run.directory.stream
        if record["setting"] == "task" or record["score"] != "accuracy":
            raise ConfigurationError(
                f"Known and unknown are told apart among all classes, but {run.path} is on a stream that "
                f"{'gives task ids' if record['setting'] == 'task' else 'has no classes'}: audit a run of another setting."
            )
        after = [run.last] if self.final_only else run.kept()
        if self.foreign is None and after == [run.last]:
            raise ConfigurationError(
                f"After the last experience no task is to come, and {run.path} has kept no earlier model: give --foreign NAME, "
                "or train with --keep-models true."
            )
        foreign = None if self.foreign is None else _foreign(self.foreign, run)
        rows = [row for i in after for row in self._rows(run, run.model(i), foreign)]
        return [{"schema": SCHEMA, "audit": "open-set", "run": run.title, "foreign": self.foreign, "rows": rows}]

    @classmethod
    def tables(cls, found: Sequence[Mapping[str, Any]]) -> list[Table]:
        """A table of each measure: all that comes, the next task, the foreign images."""
        titles = {
            "auroc": "AUROC, a known sample above an unknown one",
            "fpr95": "FPR@95, unknown samples accepted when 95 % of the known are",
        }
        head = [Column("after", right=True), Column("unknown"), Column("known n", right=True)]
        head += [Column("unknown n", right=True), *(Column(s, "%", 100.0, right=True) for s in SCORES)]
        tables = []
        for measure, title in titles.items():
            for data in found:
                cells = [
                    [r["after"], r["unknown"], r["known_samples"], r["unknown_samples"]]
                    + [r[measure][s] for s in SCORES]
                    for r in _shown(data["rows"])
                ]
                tables.append(Table(head, cells, title=f"{data['run']}: {title}"))
        return tables

    def _rows(self, run: AuditedRun, model: KeptModel, foreign: _Samples | None) -> Iterator[dict[str, Any]]:
        tested = _tested(run)
        known = tested.seen_at <= model.after
        if not known.any():
            return
        judge = _Judge(model, run, self.tail)
        inside = judge.scores(run.stream.test, tested.ids[torch.from_numpy(known)])

        def row(name: str, outside: Mapping[str, Float]) -> dict[str, Any]:
            return {
                "after": model.after,
                "unknown": name,
                "known_samples": int(known.sum()),
                "unknown_samples": len(outside["confidence"]),
                "auroc": {s: _number(auroc(inside[s], outside[s])) if s in inside else None for s in SCORES},
                "fpr95": {s: _number(fpr_at_tpr(inside[s], outside[s])) if s in inside else None for s in SCORES},
            }

        if not known.all():
            later = judge.scores(run.stream.test, tested.ids[torch.from_numpy(~known)])
            yield row("all to come", later)
            owners = tested.task[~known]
            for task in np.unique(owners).tolist():
                yield row(f"task {task + 1}", {s: v[owners == task] for s, v in later.items()})
        if foreign is not None:
            yield row(str(self.foreign), judge.scores(foreign.table, foreign.ids))


def _shown(rows: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Of the tasks to come only the next one, named so."""
    told: set[int] = set()
    for row in rows:
        if row["unknown"].startswith("task "):
            if row["after"] in told:
                continue
            told.add(row["after"])
            row = {**row, "unknown": f"{row['unknown']} (next)"}
        yield row


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclass(frozen=True, eq=False)
class _Samples:
    table: SampleTable
    ids: Tensor


@dataclass(frozen=True, eq=False)
class _Tested:
    """The test samples of all tasks: ids, their task, and the experience (from 1) that taught them."""

    ids: Tensor
    task: NDArray[np.int64]
    seen_at: NDArray[np.int64]


def _tested(run: AuditedRun) -> _Tested:
    stream, tasks = run.stream, run.tasks
    first = np.array([tasks.first_seen(c) for c in range(stream.num_classes)])
    ids = torch.cat([t.test for t in stream.tasks])
    task = np.concatenate([np.full(len(t.test), t.index) for t in stream.tasks])
    introduced = np.array([t.available_after for t in stream.tasks])
    return _Tested(ids, task, np.maximum(first[stream.test.targets[ids].numpy()], introduced[task]))


def _foreign(name: str, run: AuditedRun) -> _Samples:
    """Open the test images of another data set, or of another scenario.

    Raises:
        ConfigurationError: There is nothing of that name, or the run's samples are no images.
        DataError: It is missing, or its images can't be brought to the run's shape.
    """
    shape = run.stream.shape
    if len(shape) != 3:
        raise ConfigurationError(
            f"--foreign expects a run on images, but {run.path} learns from features: leave it out."
        )
    root = DataRoot.resolve(run.data_root)
    if name in registry.available("scenario"):
        stream = EngineServices(RunOptions()).open(name, root)
        table, ids = stream.test, torch.unique(torch.cat([t.test for t in stream.tasks]))
    else:
        data = find_source(name).open(root)
        table, ids = SampleTable(data.test.images, data.test.targets), torch.arange(len(data.test.targets))
    if tuple(table.images.shape) == shape:
        return _Samples(table, ids)
    if table.transforms:
        raise ConfigurationError(
            f"--foreign expects images that can be brought to {tuple(shape)}, but {name} changes images of "
            f"{tuple(table.images.shape)}: give a data set."
        )
    images = JoinedReader([table.images], (shape[0], shape[1], shape[2]))
    return _Samples(SampleTable(images, table.targets, table.rows), ids)


class _Judge:
    """Scores samples by a model, with the class means and Weibull fits of what it has learnt.

    Args:
        model: The model.
        run: Its run.
        tail: Of the Weibull fits.
    """

    def __init__(self, model: KeptModel, run: AuditedRun, tail: int) -> None:
        self.model = model
        train = run.stream.train
        seen = [e.train for e in run.stream.experiences[: model.after]]
        ids = torch.unique(torch.cat(seen))
        labels = train.targets[ids]
        right = model.scores(train, ids).argmax(dim=1) == labels
        features = model.embed(train, ids).double()
        means, fits = [], []
        for label in torch.unique(labels).tolist():
            own = labels == label
            chosen = features[own & right if int((own & right).sum()) >= _LEAST else own]
            means.append(chosen.mean(dim=0))
            distances = (chosen - means[-1]).norm(dim=1).numpy()
            fits.append(Weibull(distances, tail) if int((distances > 0).sum()) >= _LEAST else None)
        self.means, self.fits = torch.stack(means), fits

    def scores(self, table: SampleTable, ids: Tensor) -> dict[str, Float]:
        """Return every score (N,), larger for what looks known; no `weibull` where no class could be fitted."""
        logits = self.model.scores(table, ids)
        everything = torch.ones_like(logits, dtype=torch.bool)
        *_, confidence, energy, entropy = classification_columns(logits, everything, everything)
        distances = torch.cdist(self.model.embed(table, ids).double(), self.means).numpy()
        hazards = [f.log_hazard(distances[:, c]) for c, f in enumerate(self.fits) if f is not None]
        found = {
            "confidence": confidence.double().numpy(),
            "entropy": -entropy.double().numpy(),
            "energy": -energy.double().numpy(),
            "distance": -distances.min(axis=1),
        }
        # The logarithm of the cumulative hazard has the order of the CDF, and doesn't saturate.
        return {**found, "weibull": -np.min(hazards, axis=0)} if hazards else found
