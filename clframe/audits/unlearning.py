"""Unlearning: what is left of the samples that a model was asked to forget, beside models that never learnt them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clframe.audits.base import SCHEMA, Audit
from clframe.audits.models import AuditedRun, KeptModel
from clframe.audits.relearn import Lesson
from clframe.errors import ConfigurationError
from clframe.metrics.unlearning import klom, margins, steps_to_regain
from clframe.report import Column, Table
from clframe.spec import field
from clframe.stream import Experience, SampleTable

__all__ = ["SETS", "UnlearningAudit"]

Float = NDArray[np.float64]
SETS = ("forget", "retain", "test", "test_kept")
"""Samples to forget; training samples seen that stay; test samples; those of classes that keep a training sample."""

_MODELS = 2
"""Models on either side that a divergence of their margins needs."""


class UnlearningAudit(Audit):
    """Accuracy on what was to be forgotten and on the rest, steps to learn it again, and the distance to retraining.

    For runs on a stream that asks to forget samples (the scenario `unlearning`). References are runs that never learnt
    them: the same command with `--scenario.retrain true`. The gap is a run's accuracy less the references' mean. Relearning
    counts the optimiser steps on the samples to forget until the classifier has a share (`regain`) of the accuracy that it
    had on them before the event; that needs the model from before it (`keep_models`). The divergence of margins (KLoM)
    compares all runs with all references, two of each at least.
    """

    file: ClassVar[str] = "unlearning.json"
    takes_references: ClassVar[bool] = True
    takes_several: ClassVar[bool] = True

    regain: float = field(
        default=0.9, gt=0, le=1, help="Share of the accuracy before the event that relearning aims at."
    )
    relearn_limit: int = field(default=200, ge=1, unit="steps", help="Relearning stops here.")
    relearn_samples: int = field(
        default=512,
        ge=1,
        unit="samples",
        help="Samples to forget, at most, whose accuracy is measured after every step.",
    )

    def make(self, runs: Sequence[AuditedRun], references: Sequence[AuditedRun]) -> list[dict[str, Any]]:
        """Audit all runs."""
        for run in runs:
            _check_run(run, runs[0])
        for reference in references:
            _check_reference(reference, runs[0])
        found = [self._run(run) for run in runs]
        beside = [self._reference(reference, runs[0], found[0].target) for reference in references]
        shared = {"references": [r.path for r in references], "klom": _divergences(found, beside)}
        mean = {s: float(np.mean([b.accuracy[s] for b in beside])) for s in found[0].accuracy} if beside else None
        results = []
        for run, one in zip(runs, found, strict=True):
            gap = None if mean is None else {s: one.accuracy[s] - mean[s] for s in mean}
            aim: dict[str, Any] = {"share": self.regain, "limit": self.relearn_limit, "target": one.target}
            relearn = {**aim, "steps": one.steps, "reference_steps": [b.steps for b in beside]}
            head = {"schema": SCHEMA, "audit": "unlearning", "run": run.title}
            results.append({**head, "events": one.events, "reference": mean, "gap": gap, "relearn": relearn, **shared})
        return results

    @classmethod
    def tables(cls, found: Sequence[Mapping[str, Any]]) -> list[Table]:
        """Accuracies with gaps and steps, and the divergence of margins."""
        sets = list(found[0]["events"][-1]["accuracy"])
        percent = [Column(s, "%", 100.0, right=True) for s in sets]
        head = [Column("model"), Column("event", right=True), *percent]
        head += [Column("exemplars to forget", right=True), Column("relearn steps", right=True)]
        rows: list[list[Any]] = []
        for data in found:
            relearn, last = data["relearn"], data["events"][-1]
            for event in data["events"]:
                if event["before"]:
                    shown = [event["before"][s] for s in sets]
                    rows.append([f"{data['run']}, before", event["experience"], *shown, None, None])
                steps = _steps(relearn, relearn["steps"]) if event is last else None
                shown = [event["accuracy"][s] for s in sets]
                rows.append([data["run"], event["experience"], *shown, event["exemplars_left"], steps])
            if data["gap"]:
                rows.append(["  gap to retrained", last["experience"], *(data["gap"][s] for s in sets), None, None])
        first = found[0]
        if first["reference"]:
            taken = [_steps(first["relearn"], s) for s in first["relearn"]["reference_steps"]]
            steps = ", ".join(t for t in taken if t is not None) or None
            shown = [first["reference"][s] for s in sets]
            rows.append([f"retrained (n = {len(first['references'])})", None, *shown, None, steps])
        tables = [Table(head, rows, title="Unlearning", notes=_notes(first))]
        if first["klom"]["sets"]:
            columns = [
                Column("points"),
                Column("n", right=True),
                *(Column(c, right=True) for c in ("mean", "95th percentile")),
            ]
            cells = [[s, v["points"], v["mean"], v["p95"]] for s, v in first["klom"]["sets"].items()]
            tables.append(Table(columns, cells, title="KLoM: divergence of margins from retrained models"))
        return tables

    # -- one model ------------------------------------------------------------------------------------------------------

    def _run(self, run: AuditedRun) -> _Found:
        kept = set(run.kept())
        asked = [e for e in run.stream.experiences if len(e.forget) and e.index + 1 in kept]
        if not asked:
            raise ConfigurationError(
                f"Expected the model from after an event, but {run.path} went on afterwards and kept none: train it with "
                "--keep-models true."
            )
        events = [_event(run, event, kept) for event in asked]
        target, steps = self._relearnt(run, asked[-1]) if asked[-1].index in kept else (None, None)
        last = events[-1][1]
        accuracy, ahead = ({s: getattr(v, name) for s, v in last.items()} for name in ("accuracy", "margins"))
        return _Found([values for values, _ in events], accuracy, ahead, target, steps)

    def _relearnt(self, run: AuditedRun, event: Experience) -> tuple[float, int | None]:
        """Return the accuracy that relearning aims at, and the steps that it takes."""
        forget = _samples_of(run, event)["forget"]
        lesson = self._lesson(run, forget)
        target = self.regain * lesson.accuracy(run.model(event.index), forget.labels)
        return target, steps_to_regain(lesson.curve(run.model(event.index + 1), forget.labels, target), target)

    def _reference(self, reference: AuditedRun, run: AuditedRun, target: float | None) -> _Found:
        event = [e for e in run.stream.experiences if len(e.forget)][-1]
        samples, renumbered = _samples_of(run, event), _renumbered(run, reference)
        judged = _judged(reference.model(reference.last), samples, renumbered)
        steps = None
        if target is not None:
            model = reference.model(reference.last)
            labels = renumbered[samples["forget"].labels]
            unknown = labels < 0
            fresh = torch.unique(samples["forget"].labels[unknown], return_inverse=True)[1]
            labels[unknown] = model.network.num_classes + fresh  # classes that it never heard of get new units
            steps = steps_to_regain(self._lesson(run, samples["forget"]).curve(model, labels, target), target)
        return _Found(
            [], {s: v.accuracy for s, v in judged.items()}, {s: v.margins for s, v in judged.items()}, None, steps
        )

    def _lesson(self, run: AuditedRun, forget: _Samples) -> Lesson:
        limits = {"limit": self.relearn_limit, "measured": self.relearn_samples}
        return Lesson(forget.table, forget.ids, run.setup.recipe, run.setup.batch_size, **limits)


@dataclass(frozen=True, eq=False)
class _Samples:
    """Samples of a set with their labels in the audited run's stream."""

    table: SampleTable
    ids: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class _Judged:
    """What a model says of a set: accuracy, and the margin of every point; NaN where the model lacks the class."""

    accuracy: float
    margins: Float


@dataclass(frozen=True, eq=False)
class _Found:
    """What a run, or a reference, gives."""

    events: list[dict[str, Any]]
    accuracy: dict[str, float]
    margins: dict[str, Float]
    target: float | None
    steps: int | None


def _event(run: AuditedRun, event: Experience, kept: set[int]) -> tuple[dict[str, Any], dict[str, _Judged]]:
    """Return what is kept of an event, and what the model after it says."""
    samples, before = _samples_of(run, event), None
    if event.index in kept:
        before = {s: v.accuracy for s, v in _judged(run.model(event.index), samples).items()}
    model = run.model(event.index + 1)
    judged = _judged(model, samples)
    left = torch.isin(samples["forget"].ids, model.strategy.exemplars())
    values = {
        "experience": event.index + 1,
        "forgotten": len(event.forget),
        "before": before,
        "accuracy": {s: v.accuracy for s, v in judged.items()},
        "exemplars_left": int(left.sum()),
    }
    return values, judged


def _samples_of(run: AuditedRun, event: Experience) -> dict[str, _Samples]:
    """Return the sets of an event; `test_kept` only where whole classes are to be forgotten."""
    stream = run.stream
    until = stream.experiences[: event.index + 1]
    forget = torch.unique(torch.cat([e.forget for e in until]))
    seen = torch.unique(torch.cat([e.train for e in until[:-1]]))
    retain = seen[~torch.isin(seen, forget)]
    test = torch.unique(torch.cat([t.test for t in stream.tasks if t.available_after <= event.index + 1]))
    stays = torch.isin(stream.test.targets[test], stream.train.targets[retain])
    chosen = {"forget": (stream.train, forget), "retain": (stream.train, retain), "test": (stream.test, test)}
    if not bool(stays.all()):
        chosen["test_kept"] = (stream.test, test[stays])
    return {s: _Samples(table, ids, table.targets[ids]) for s, (table, ids) in chosen.items() if len(ids)}


def _judged(model: KeptModel, samples: Mapping[str, _Samples], renumbered: Tensor | None = None) -> dict[str, _Judged]:
    """Return what a model says of every set.

    Args:
        model: The model.
        samples: The sets.
        renumbered: The model's own label of every label of the sets, -1 for a class that it never heard of.
    """
    found = {}
    for name, part in samples.items():
        scores = model.scores(part.table, part.ids)
        labels = part.labels if renumbered is None else renumbered[part.labels]
        known = (labels >= 0) & (labels < scores.shape[1])
        ahead = np.full(len(labels), np.nan)
        ahead[known.numpy()] = margins(scores[known].numpy(), labels[known].numpy())
        right = scores.argmax(dim=1) == labels
        found[name] = _Judged(float(right.double().mean()), ahead)
    return found


def _renumbered(run: AuditedRun, reference: AuditedRun) -> Tensor:
    """Return the reference's label of every label of the run, -1 for a class that it never heard of."""
    theirs = {source: label for label, source in enumerate(reference.directory.stream["class_order"])}
    return torch.tensor([theirs.get(source, -1) for source in run.directory.stream["class_order"]])


def _divergences(runs: Sequence[_Found], references: Sequence[_Found]) -> dict[str, Any]:
    """Return KLoM of every set, and why there is none of some."""
    if min(len(runs), len(references)) < _MODELS:
        reason = (
            f"KLoM needs at least {_MODELS} runs and {_MODELS} references, received {len(runs)} and {len(references)}."
        )
        return {"sets": {}, "absent": dict.fromkeys(runs[0].margins, reason)}
    sets, absent = {}, {}
    for name in runs[0].margins:
        mine, theirs = (np.stack([f.margins[name] for f in side]) for side in (runs, references))
        known = ~np.isnan(mine).any(axis=0) & ~np.isnan(theirs).any(axis=0)
        if not known.any():
            absent[name] = f"Retrained models have no margin for {name}: they never heard of these classes."
            continue
        values = klom(mine[:, known], theirs[:, known])
        sets[name] = {"points": len(values), "mean": float(values.mean()), "p95": float(np.percentile(values, 95))}
    return {"sets": sets, "absent": absent}


def _steps(relearn: Mapping[str, Any], steps: int | None) -> str | None:
    """Show a number of steps; None where there was nothing to aim at."""
    if steps is not None:
        return str(steps)
    return None if relearn["target"] is None else f"> {relearn['limit']}"


def _notes(data: Mapping[str, Any]) -> list[str]:
    relearn = data["relearn"]
    notes = list(dict.fromkeys(data["klom"]["absent"].values()))
    if relearn["target"] is None:
        notes.append(
            "Relearning needs the model from before the event, which was not kept: train with --keep-models true."
        )
    else:
        notes.append(f"Relearning aims at {100 * relearn['target']:.2f} % on what was to be forgotten.")
    if not data["references"]:
        notes.append(
            "The gap needs runs that never learnt it: the same command with --scenario.retrain true, as --reference."
        )
    return notes


def _check_run(run: AuditedRun, first: AuditedRun) -> None:
    """Refuse a run that was never asked to forget, or another stream than the first run's.

    Raises:
        ConfigurationError: In one sentence.
    """
    run.kept()
    if run.directory.stream["fingerprint"] != first.directory.stream["fingerprint"]:
        raise ConfigurationError(
            f"The runs of an audit need the very same stream, but {run.path} is on another one than {first.path}: audit it by "
            "itself."
        )
    if run.directory.config["scenario"].get("retrain") is True:
        raise ConfigurationError(
            f"{run.path} never learnt what is to be forgotten, so there is nothing to audit: give it as --reference of a run "
            "that did."
        )
    if not any(len(e.forget) for e in run.stream.experiences):
        raise ConfigurationError(
            f"Unlearning is audited on a stream that asks to forget samples, but {run.path} is on "
            f"{run.directory.config['scenario']['name']}, which doesn't: run the scenario unlearning."
        )


def _check_reference(reference: AuditedRun, run: AuditedRun) -> None:
    """Refuse a reference that isn't the run's own scenario, retrained.

    Raises:
        ConfigurationError: In one sentence.
    """
    reference.kept()
    theirs, mine = (dict(r.directory.config["scenario"]) for r in (reference, run))
    if theirs.get("retrain") is not True:
        raise ConfigurationError(
            f"A reference must never have learnt what is to be forgotten, but {reference.path} is not on such a stream: train "
            "it with the same scenario options and --scenario.retrain true."
        )
    differing = [n for n in mine if n != "retrain" and theirs.get(n) != mine[n]]
    if differing or reference.directory.stream["data_fingerprint"] != run.directory.stream["data_fingerprint"]:
        what = f"in scenario.{differing[0]}" if differing else "in the data"
        raise ConfigurationError(
            f"A reference needs the run's own scenario, but {reference.path} differs from {run.path} {what}: train it with the "
            "same options."
        )
