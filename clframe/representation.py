"""The stability-plasticity report of a run's extractors, made after the fact from the models that the run kept.

Source: Kim & Han 2023, "On the Stability-Plasticity Dilemma of Class-Incremental Learning", CVPR. What is measured is in
`clframe.metrics` (`probe`, `cka`, `drift`, `stability_plasticity`); what a report holds, in `clframe.report.representation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clframe import spec
from clframe.errors import ConfigurationError, did_you_mean
from clframe.kept_models import (
    Extractor,
    Samples,
    choose_samples,
    context_of,
    extract,
    in_batches,
    kept_models,
    layers_of,
    passes,
)
from clframe.metrics import AccuracyCube, Predictions, Tasks
from clframe.metrics.cka import Alignments
from clframe.metrics.drift import Drift
from clframe.metrics.probe import MAX_ITERATIONS, NEIGHBOURS, STRENGTHS, LinearProbe, NeighbourProbe, fit_probe
from clframe.metrics.scores import Absent
from clframe.metrics.stability_plasticity import (
    joint_probe_gap,
    plasticity,
    probe_accuracy,
    representation_gain,
    stability,
)
from clframe.report.representation import FILE, SCHEMA, Representation
from clframe.spec import Configurable
from clframe.stream import Stream
from clframe.tracking.files import write_json
from clframe.tracking.progress import Progress
from clframe.tracking.rundir import RunDirectory, Tracker
from clframe.training.seeds import isolated

__all__ = ["RepresentationOptions", "represent"]

Float = NDArray[np.float64]


class RepresentationOptions(Configurable):
    """What a report is made with."""

    probe: Literal["logistic", "knn"] = spec.field(
        default="logistic",
        help="logistic: a logistic regression of a fixed recipe; knn: a vote of the 20 nearest neighbours by cosine.",
    )
    train_per_class: int | None = spec.field(
        default=None, ge=1, unit="samples", help="Training samples of each class for probe and prototypes; none: all."
    )
    layers: list[str] | None = spec.field(
        default=None, help="Layers to align: stage1, stage2, …, features; none: all that the backbone shows."
    )
    cka_samples: int = spec.field(default=2000, ge=4, unit="samples", help="Test samples of each alignment, at most.")


def represent(
    directory: RunDirectory,
    *,
    again: bool = False,
    data_root: str | Path | None = None,
    device: str = "auto",
    progress: bool = True,
    objects: Mapping[str, Any] | None = None,
    **options: Any,
) -> Representation:
    """Return the report of a run: the one that it has, or a new one, which is then kept as `representation.json`.

    Args:
        directory: A finished run with `keep_models`.
        again: Make the report anew.
        data_root: Folders to look for data in.
        device: Where features are computed.
        progress: Show a bar (on a terminal) and a line per model.
        objects: `scenario`, `strategy` or `backbone`, where the run was given an object that has no name.
        **options: See `RepresentationOptions`; what isn't given may be anything in a report that is there.

    Raises:
        ConfigurationError: The run can't give a report, an option is wrong, or the report that is there was made with
            other options.
        RunDirectoryError: The run hasn't finished or has kept no models, or a file is damaged or can't be written.
        DataError: The data is missing or damaged.
    """
    settings = spec.build(RepresentationOptions, options, "representation")
    config, path = directory.config, directory.path / FILE
    title = f"{config['strategy']['name']} on {config['scenario']['name']}, seed {config['seed']}"
    if path.is_file() and not again:
        found = Representation.read(path, title)
        _check_settings(found, {name: getattr(settings, name) for name in options}, path)
        return found
    score = directory.stream["score"]
    if score != "accuracy":
        raise ConfigurationError(
            f"A representation report needs classes to probe, but {directory.path} is scored by {score}: choose a run of a "
            "classification stream."
        )
    models = kept_models(directory)
    watch = Progress() if progress else Tracker()
    try:
        with isolated():
            write_json(path, _make(directory, models, settings, watch, data_root, device, objects or {}))
    finally:
        watch.close()
    return Representation.read(path, title)


def _check_settings(found: Representation, wanted: Mapping[str, Any], path: Path) -> None:
    other = [f"{n} {found.settings.get(n)}, not {v}" for n, v in wanted.items() if found.settings.get(n) != v]
    if other:
        raise ConfigurationError(
            f"{path} was made with {' and '.join(other)}: add --again (in Python: again=True) to make it anew."
        )


def _make(
    directory: RunDirectory,
    models: Sequence[Path],
    settings: RepresentationOptions,
    watch: Tracker,
    data_root: Any,
    device: str,
    objects: Mapping[str, Any],
) -> dict[str, Any]:
    """Pass the samples through every model, and return the content of the report."""
    context = context_of(directory, data_root, device, objects)
    tasks = Tasks.from_dict(directory.stream["tasks"])
    samples = choose_samples(context.stream, tasks, settings.train_per_class, settings.cka_samples)
    layers = _layers(settings.layers, layers_of(context, samples))
    compared = _Comparison(context.stream, tasks, samples)
    before: Extractor | None = None
    probe: LinearProbe | NeighbourProbe | None = None
    linear = settings.probe == "logistic"

    def tick() -> None:
        watch.event("steps", {"steps": 1})

    def begin(i: int) -> None:
        watch.event("experience", {"experience": i, "steps": passes(samples) + linear * (len(STRENGTHS) + 1)})

    watch.event("run", {"experiences": len(models)})
    begin(1)
    for i, found in enumerate(extract(models, context, samples, layers, tick), 1):
        if probe is None or found is not before:
            probe = (
                fit_probe(found.train, samples.labels, tick=tick)
                if linear
                else NeighbourProbe(found.train, samples.labels)
            )
        before = found
        compared.add(found, probe)
        watch.event("evaluation", {"experience": i, "seen_accuracy": {"probe": compared.latest}})
        if i < len(models):
            begin(i + 1)
    recipe = {"strengths": list(STRENGTHS), "max_iterations": MAX_ITERATIONS} if linear else {"neighbours": NEIGHBOURS}
    return {
        "schema": SCHEMA,
        "settings": spec.to_dict(settings),
        "recipe": recipe,
        "samples": {name: len(getattr(samples, name)) for name in ("train", "test", "first", "seen")},
        **compared.content(*_reached(directory, len(models))),
    }


def _layers(asked: Sequence[str] | None, shown: Sequence[str]) -> list[str]:
    """Return the layers to align, in the order of the computation.

    Raises:
        ConfigurationError: There are none, or the backbone doesn't show one of them.
    """
    if asked is not None and not asked:
        raise ConfigurationError(f"layers: expected some of {', '.join(shown)}, received none: leave it out for all.")
    for layer in asked or ():
        if layer not in shown:
            raise ConfigurationError(
                f"layers: this backbone shows {', '.join(shown)}, received {layer!r}.{did_you_mean(layer, shown)}"
            )
    return [layer for layer in shown if asked is None or layer in asked]


def _reached(directory: RunDirectory, count: int) -> tuple[str, Float]:
    """Return the primary head, and its accuracy among all classes seen after every experience."""
    result = directory.result
    head = str(result["primary"]["head"])
    curve = result["values"].get(head, {}).get("global", {}).get("seen_accuracy")
    return head, np.array([np.nan] * count if curve is None else curve, dtype=np.float64)


class _Comparison:
    """What one model after the other adds to the report."""

    def __init__(self, stream: Stream, tasks: Tasks, samples: Samples) -> None:
        self.stream, self.tasks, self.samples = stream, tasks, samples
        self.taught = [tasks.first_seen(c) for c in range(stream.num_classes)]
        self.drift = Drift(self.taught)
        self.alignments = {
            "first": Alignments(),
            "seen": Alignments([part.numpy() for part in in_batches(samples.seen_at)]),
        }
        self.everywhere: dict[int, Predictions] = {}
        self.among_seen: dict[int, Predictions] = {}
        self.strengths: list[float] = []

    @property
    def latest(self) -> float:
        """The last probe's accuracy on all test samples."""
        found = self.everywhere[len(self.everywhere)]
        return float(np.mean(found.predicted == found.target))

    def add(self, found: Extractor, probe: LinearProbe | NeighbourProbe) -> None:
        """Take in the next model."""
        i = len(self.strengths) + 1
        self.strengths.append(probe.strength)
        self.everywhere[i] = self._predictions(probe.predict(found.test))
        self.among_seen[i] = self._predictions(probe.predict(found.test, self.tasks.seen[i - 1]))
        kept = self.samples.prototypes
        self.drift.add(found.train[kept], self.samples.labels[kept])
        for name, grams in found.grams.items():
            self.alignments[name].add(grams)

    def _predictions(self, predicted: NDArray[np.int64]) -> Predictions:
        rows = self.samples.rows
        ids = self.samples.test[rows]
        return Predictions(
            sample=ids.numpy(),
            task=self.samples.owners.astype(np.int32),
            target=self.stream.test.targets[ids].numpy().astype(np.int32),
            predicted=predicted[rows].astype(np.int32),
        )

    def content(self, head: str, reached: Float) -> dict[str, Any]:
        """Return the report's numbers.

        Args:
            head: The run's primary report head.
            reached: (T,) its accuracy on everything seen.
        """
        cube = AccuracyCube.from_predictions(self.everywhere, self.tasks)
        restricted = AccuracyCube.from_predictions(self.among_seen, self.tasks)
        possible = [_seen_accuracy(restricted, i) for i in self.among_seen]
        scores = cube.scores()
        columns = np.array(scores.tasks) - 1
        found = {name: np.full(self.tasks.num_tasks, np.nan) for name in ("stability", "plasticity")}
        found["stability"][columns], found["plasticity"][columns] = stability(scores), plasticity(scores)
        gaps = joint_probe_gap(reached, possible)
        aligned = {
            what: {name: getattr(of, what) for name, of in self.alignments.items()}
            for what in ("to_first", "to_previous")
        }
        moved = {name: [row.tolist() for row in getattr(self.drift, name)] for name in ("distance", "cosine")}
        return {
            "tasks": {"sizes": cube.task_sizes().tolist(), "taught": list(self.tasks.learned)},
            "probe": {
                "matrix": cube.matrix()[1:].tolist(),
                "accuracy": probe_accuracy(scores).tolist(),
                "seen_accuracy": possible,
                "strength": self.strengths,
            },
            "classifier": {"head": head, "seen_accuracy": reached.tolist()},
            "derived": {
                **{name: values.tolist() for name, values in found.items()},
                "gain": representation_gain(scores),
                "joint_probe_gap": gaps.tolist(),
            },
            "cka": aligned,
            "drift": {"taught": self.taught, **moved},
        }


def _seen_accuracy(cube: AccuracyCube, i: int) -> float:
    try:
        return cube.seen_at("global", i)
    except Absent:
        return float("nan")
