"""The Python API: `run`, `plan`, `resume`, `load`, `compare`, `audit`, `pretrain`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clframe.audits import audit as audit_directories
from clframe.audits.base import AuditResult
from clframe.config import RunConfig, resolve
from clframe.errors import ConfigurationError, RunDirectoryError
from clframe.launch.build import build_setup, check_same_stream, load_strategy, open_stream, stream_record
from clframe.launch.pretrain import pretraining, provenance_of, shared_classes, weights_record
from clframe.models.weights import read_provenance, save_weights
from clframe.report import Table
from clframe.report import compare as compare_summaries
from clframe.results import Run, metrics_of, open_run, result_of, summary_of
from clframe.stream import Stream
from clframe.tracking.environment import environment
from clframe.tracking.files import write_json
from clframe.tracking.progress import Progress
from clframe.tracking.recorder import RunRecorder
from clframe.tracking.rundir import RunDirectory, Tracker, run_name
from clframe.training.checkpoint import export_weights, read_checkpoint, write_checkpoint
from clframe.training.context import Setup
from clframe.training.plan import memory_bytes, plan_phases
from clframe.training.trainer import Trainer

__all__ = ["Plan", "audit", "compare", "load", "open_scenario", "plan", "pretrain", "resume", "run"]


def run(
    *,
    run_dir: str | Path | None = None,
    data_root: str | Path | None = None,
    download: bool = False,
    trackers: Sequence[Tracker] = (),
    progress: bool = True,
    stop_after: int | None = None,
    **config: Any,
) -> Run:
    """Run an experiment and return it.

    Args:
        run_dir: Where to keep it; by default `runs/<scenario>-<strategy>-<seed>-<hash>`. There, the very same run that
            has finished already is returned instead of repeated.
        data_root: Folders to look for data in, before the environment's and the cache.
        download: Whether a missing data set may be fetched.
        trackers: Watch the run.
        progress: Show a progress bar (on a terminal) and a line per experience.
        stop_after: Stop with `Stopped` after so many optimiser steps; `resume` continues.
        **config: The configuration: `scenario`, `strategy`, `backbone`, `head`, `optimizer`, `first_optimizer` as names,
            mappings or objects; `epochs`, `seed`, `batch_size` and the other run options.

    Raises:
        ConfigurationError: Something can't be run; raised before anything is computed.
        DataError: The data is missing or damaged.
        RunDirectoryError: The directory exists, is in use, or can't be written.
        TrainingError: A loss became NaN; the last checkpoint is kept.
    """
    resolved = resolve(config)
    path = Path(run_dir) if run_dir is not None else Path("runs") / run_name(resolved.record)
    if run_dir is None and (path / "result.json").is_file():
        return Run(RunDirectory.open(path))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunDirectoryError(
            f"The run directory {path} exists already: continue it with `clframe resume {path}`, or choose another --run-dir."
        )
    stream = open_stream(resolved, data_root, download)
    setup = build_setup(resolved, stream)
    trainer = Trainer(setup, _Unwritten())  # refuses what can't be run before the directory is made
    weights = weights_record(resolved.backbone)
    _warn_of_shared_classes(weights, stream)
    here = {
        **environment(str(setup.device), stream.data_fingerprint),
        **weights,
        "resolved": {**setup.described(), **trainer.context.described()},
    }
    files = {"config.yaml": resolved.record, "stream.json": stream_record(stream), "environment.json": here}
    directory = RunDirectory.create(path, files, resolved.sources)
    return _train(trainer, directory, resolved, trackers, progress, stop_after)


def resume(
    directory: str | Path,
    *,
    data_root: str | Path | None = None,
    trackers: Sequence[Tracker] = (),
    progress: bool = True,
    stop_after: int | None = None,
    **objects: Any,
) -> Run:
    """Continue a run that was stopped, from its last checkpoint; a finished one is returned as it is.

    Args:
        directory: The run directory.
        data_root: Folders to look for data in.
        trackers: Watch the run.
        progress: Show progress.
        stop_after: Stop again after so many optimiser steps.
        **objects: `scenario`, `strategy` or `backbone`, where the run was given an object that has no name.

    Raises:
        RunDirectoryError: There is no run, it is in use, or its files are damaged.
    """
    opened = RunDirectory.open(Path(directory))
    if opened.finished:
        return Run(opened)
    opened.lock()
    try:
        resolved = resolve({**opened.config, **objects})
        stream = open_stream(resolved, data_root, False)
        check_same_stream(opened, stream)
        trainer = Trainer(build_setup(resolved, stream), _Unwritten())
        latest = opened.checkpoints / "latest.pt"
        if latest.is_file():
            state = read_checkpoint(latest, trainer.setup.device)
            opened.cut_events(int(state["events_size"]))
            trainer.load_state(state)
        else:
            opened.cut_events(0)
        return _train(trainer, opened, resolved, trackers, progress, stop_after)
    finally:
        opened.close()


def pretrain(
    *,
    out: str | Path,
    run_dir: str | Path | None = None,
    data_root: str | Path | None = None,
    download: bool = False,
    trackers: Sequence[Tracker] = (),
    progress: bool = True,
    stop_after: int | None = None,
    **config: Any,
) -> dict[str, Any]:
    """Train a backbone with a classifier on a data set and write it as a file for `backbone.weights`.

    The training is a run as any other, of plain training on one experience, and keeps its run directory. Asked again, it
    goes on where it was stopped; what is finished isn't repeated.

    Args:
        out: The file to write, ending in `.safetensors`. It holds the backbone without the classifier, and in its
            metadata where it comes from: clframe's version, data and classes, recipe, seed, accuracy on the test images,
            backbone with options, and the run's whole configuration.
        run_dir: Where to keep the run; by default `runs/<scenario>-joint-<seed>-<hash>`.
        data_root: Folders to look for data in, before the environment's and the cache.
        download: Whether a missing data set may be fetched.
        trackers: Watch the run.
        progress: Show a progress bar (on a terminal) and a line per experience.
        stop_after: Stop with `Stopped` after so many optimiser steps.
        **config: As for `run`, without a strategy. `scenario.classes` and `scenario.exclude` choose the classes.

    Returns:
        What the file says of itself.

    Raises:
        ConfigurationError: Something can't be run, or `out` is taken by a file that was made otherwise.
        DataError: The data is missing or damaged.
        RunDirectoryError: The run directory is taken by another run or in use, or a file can't be written.
        TrainingError: A loss became NaN.
    """
    target = Path(out).expanduser()
    if target.suffix != ".safetensors":
        raise ConfigurationError(f"Expected a file name ending in .safetensors for --out, received {out}.")
    given = pretraining(config)
    record = resolve(given).record
    if target.exists():
        found = read_provenance(target) or {}
        if found.get("config") != record:
            raise ConfigurationError(
                f"The file {target} exists and was made otherwise: choose another --out, or delete it first."
            )
        return found
    path = Path(run_dir) if run_dir is not None else Path("runs") / run_name(record)
    how: dict[str, Any] = {"trackers": trackers, "progress": progress, "stop_after": stop_after, "data_root": data_root}
    if (path / "config.yaml").is_file():
        if RunDirectory.open(path).config != record:
            raise RunDirectoryError(f"The run directory {path} holds another run: choose another --run-dir.")
        objects = {n: v for n, v in given.items() if n in ("scenario", "backbone")}
        finished = resume(path, **how, **objects)
    else:
        finished = run(run_dir=path, download=download, **how, **given)
    provenance = provenance_of(finished)
    strategy, _ = load_strategy(finished.directory, given.get("backbone"))
    branch: Any = strategy.network.branches[0]
    save_weights(branch.weights_target(), target, provenance)
    return provenance


def load(directory: str | Path) -> Run:
    """Open a run directory: its numbers, plots and model, without its data.

    Raises:
        RunDirectoryError: There is no run.
    """
    return open_run(directory)


def compare(runs: Sequence[Run | str | Path], **options: Any) -> Table:
    """Return a table of runs: mean and deviation over seeds, a row per method."""
    return compare_summaries([summary_of(_directory_of(r)) for r in runs], **options)


def audit(
    kind: str,
    runs: Run | str | Path | Sequence[Run | str | Path],
    *,
    references: Sequence[Run | str | Path] = (),
    data_root: str | Path | None = None,
    device: str = "auto",
    objects: Mapping[str, Any] | None = None,
    **options: Any,
) -> AuditResult:
    """Audit finished runs by the models that they kept, and keep in each run's directory what was found.

    Args:
        kind: `open-set`, `compatibility` or `unlearning`.
        runs: What is audited; several runs only for `unlearning`.
        references: Runs to compare with.
        data_root: Folders to look for data in.
        device: Where models compute.
        objects: `scenario`, `strategy` or `backbone`, where the runs were given an object that has no name.
        **options: Of the kind: fields of `clframe.audits.open_set.OpenSet` and its siblings.

    Raises:
        ConfigurationError: The runs can't be audited so, or an option is wrong.
        RunDirectoryError: A run hasn't finished, or lacks a model.
        DataError: Data is missing or damaged.
    """
    given = [runs] if isinstance(runs, (Run, str, Path)) else list(runs)
    directories, others = ([_directory_of(r) for r in side] for side in (given, references))
    how: dict[str, Any] = {"data_root": data_root, "device": device, "objects": objects}
    return audit_directories(kind, directories, references=others, **how, **options)


def _directory_of(run: Run | str | Path) -> RunDirectory:
    return run.directory if isinstance(run, Run) else RunDirectory.open(Path(run))


def open_scenario(
    scenario: Any, *, data_root: str | Path | None = None, download: bool = False, **options: Any
) -> Stream:
    """Build the stream of a scenario, for instance to look at it with `plot_stream`; nothing is trained.

    Args:
        scenario: A name, a mapping of a name and options, or an object.
        data_root: Folders to look for data in.
        download: Whether a missing data set may be fetched.
        **options: Of a scenario that is given by its name.

    Raises:
        ConfigurationError: There is no such scenario, or its options don't fit.
        DataError: The data is missing or damaged.
    """
    given = {"name": scenario, **options} if isinstance(scenario, str) else scenario
    return open_stream(resolve({"scenario": given}), data_root, download)


class Plan:
    """What a run would do: its stream, phases, steps and memory.

    Attributes:
        config: The resolved configuration.
        stream: A row per experience.
        phases: A row per phase of every experience.
        memory: Bytes by purpose.
    """

    def __init__(
        self, config: dict[str, Any], stream: list[dict[str, Any]], phases: list[dict[str, Any]], memory: dict[str, int]
    ) -> None:
        self.config = config
        self.stream = stream
        self.phases = phases
        self.memory = memory


def plan(*, data_root: str | Path | None = None, download: bool = False, **config: Any) -> Plan:
    """Return what a run would do, without training: for `--dry-run`."""
    resolved = resolve(config)
    stream = open_stream(resolved, data_root, download)
    setup = build_setup(resolved, stream, dry=True)
    trainer = Trainer(setup, _Unwritten())
    phases = plan_phases(trainer)
    return Plan(resolved.record, stream.describe(), phases, memory_bytes(trainer))


def _train(
    trainer: Trainer,
    directory: RunDirectory,
    config: RunConfig,
    trackers: Sequence[Tracker],
    progress: bool,
    stop_after: int | None,
) -> Run:
    """Run a trainer to its end and write the result."""
    watching = [*trackers, *([Progress()] if progress else [])]
    recorder = RunRecorder(directory, watching, write_checkpoint)
    trainer.recorder = recorder
    trainer.checkpoint_seconds = 60 * config.options.checkpoint_minutes
    trainer.keep_models = config.options.keep_models
    trainer.valid = any(len(t.valid) for t in trainer.setup.stream.tasks)
    trainer.stop_after = stop_after
    try:
        trainer.run()
        report = metrics_of(directory)
        export_weights(trainer.strategy.network, directory.checkpoints / "model.safetensors")
        recorder.event("finished", dict(trainer.counters))
        write_json(directory.path / "result.json", result_of(directory, report, trainer.counters))
    finally:
        recorder.close()
    return Run(RunDirectory(directory.path))


def _warn_of_shared_classes(weights: Mapping[str, Any], stream: Any) -> None:
    shared = shared_classes(weights, stream.data_fingerprint, stream.class_names)
    if shared:
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        warnings.warn(
            f"The weights were pretrained on {len(shared)} classes of this very stream ({', '.join(shared[:5])}{more}): "
            "what it measures is not new to the network.",
            stacklevel=3,
        )


class _Unwritten:
    """Takes nothing: the recorder of a trainer that has not been given its directory yet."""

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Ignore."""

    def predictions(self, split: str, after: int, heads: Mapping[str, Any]) -> dict[str, Any]:
        """Ignore."""
        return {}

    def checkpoint(self, state: Mapping[str, Any], keep_as: str | None) -> None:
        """Ignore."""


def setup_of(run_config: RunConfig, data_root: str | Path | None = None) -> Setup:
    """Return the objects of a run, for benchmarks and tests that drive a trainer themselves."""
    return build_setup(run_config, open_stream(run_config, data_root, False))
