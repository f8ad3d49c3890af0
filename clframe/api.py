"""The Python API: `run`, `plan`, `resume`, `load`, `compare`, `pretrain`, `sweep`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clframe.config import RunConfig, resolve
from clframe.errors import ConfigurationError, RunDirectoryError
from clframe.launch.build import build_setup, check_same_stream, load_strategy, open_stream, stream_record
from clframe.launch.follow import remembered, watchers
from clframe.launch.pretrain import pretraining, provenance_of, shared_classes, weights_record
from clframe.launch.sweep import Sweep
from clframe.launch.sweep_plan import read_plan
from clframe.models.weights import read_provenance, save_weights
from clframe.report import Comparison, RunSummary
from clframe.report import compare as compare_summaries
from clframe.results import Run, metrics_of, open_run, result_of, summary_of
from clframe.stream import Stream
from clframe.tracking.choice import Choice, choices
from clframe.tracking.environment import environment
from clframe.tracking.files import write_json, write_text
from clframe.tracking.progress import Progress
from clframe.tracking.recorder import RunRecorder, Unwritten
from clframe.tracking.rundir import RunDirectory, run_name
from clframe.training.checkpoint import export_weights, read_checkpoint, write_checkpoint
from clframe.training.context import Setup
from clframe.training.plan import memory_bytes, plan_phases
from clframe.training.ranks import join_ranks
from clframe.training.trainer import Trainer

__all__ = ["Plan", "compare", "load", "open_scenario", "plan", "pretrain", "resume", "run", "sweep"]


def run(
    *,
    run_dir: str | Path | None = None,
    data_root: str | Path | None = None,
    download: bool = False,
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
        progress: Show a progress bar (on a terminal) and a line per experience.
        stop_after: Stop with `Stopped` after so many optimiser steps; `resume` continues.
        **config: The configuration: `scenario`, `strategy`, `backbone`, `head`, `optimizer`, `first_optimizer` as names,
            mappings or objects; `epochs`, `seed`, `batch_size` and the other run options. `track` names what watches the
            run, such as `["wandb", "tensorboard"]`, with options as mappings, or gives `Tracker` objects.

    Raises:
        ConfigurationError: Something can't be run; raised before anything is computed.
        DataError: The data is missing or damaged.
        RunDirectoryError: The directory exists, is in use, or can't be written.
        TrainingError: A loss became NaN; the last checkpoint is kept.
    """
    resolved = resolve(config)
    ranks = join_ranks(resolved.options.device)
    path = Path(run_dir) if run_dir is not None else Path("runs") / run_name(resolved.record)
    if ranks.from_first(lambda: run_dir is None and (path / "result.json").is_file()):
        if ranks.first:
            _say_how_to_log(path, resolved.track)
        return Run(RunDirectory.open(path))
    if ranks.first and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunDirectoryError(
            f"The run directory {path} exists already: continue it with `clframe resume {path}`, or choose another --run-dir."
        )
    with ranks.first_then_others():  # the first one fills the caches
        stream = open_stream(resolved, data_root, download)
    setup = build_setup(resolved, stream, ranks=ranks)
    trainer = Trainer(setup, Unwritten())  # refuses what can't be run before the directory is made
    weights = weights_record(resolved.backbone)
    _warn_of_shared_classes(weights, stream)
    here = {
        **environment(str(setup.device), stream.data_fingerprint),
        **weights,
        "resolved": {**setup.described(), **trainer.context.described()},
    }
    files = {"config.yaml": resolved.record, "stream.json": stream_record(stream), "environment.json": here}
    directory = RunDirectory.create(path, files, resolved.sources) if ranks.first else RunDirectory(path)
    return _train(trainer, directory, resolved, progress, stop_after)


def resume(
    directory: str | Path,
    *,
    data_root: str | Path | None = None,
    track: Any = None,
    progress: bool = True,
    stop_after: int | None = None,
    **objects: Any,
) -> Run:
    """Continue a run that was stopped, from its last checkpoint; a finished one is returned as it is.

    Args:
        directory: The run directory.
        data_root: Folders to look for data in.
        track: What watches the run, as for `run`; None means the named trackers that have watched it before, `[]` none.
        progress: Show progress.
        stop_after: Stop again after so many optimiser steps.
        **objects: `scenario`, `strategy` or `backbone`, where the run was given an object that has no name.

    Raises:
        RunDirectoryError: There is no run, it is in use, or its files are damaged.
    """
    opened = RunDirectory.open(Path(directory))
    if opened.finished:
        _say_how_to_log(opened.path, choices(track))
        return Run(opened)
    watched = remembered(opened) if track is None else track
    resolved = resolve({**opened.config, **objects, "track": watched})
    ranks = join_ranks(resolved.options.device)
    if ranks.first:
        opened.lock()
    try:
        with ranks.first_then_others():
            stream = open_stream(resolved, data_root, False)
        check_same_stream(opened, stream)
        trainer = Trainer(build_setup(resolved, stream, ranks=ranks), Unwritten())
        latest = opened.checkpoints / "latest.pt"
        state = read_checkpoint(latest, trainer.setup.device) if latest.is_file() else None
        ranks.wait()  # all have read it before the first one replaces it
        if ranks.first:
            opened.cut_events(0 if state is None else int(state["events_size"]))
        if state is not None:
            trainer.load_state(state)
        return _train(trainer, opened, resolved, progress, stop_after)
    finally:
        opened.close()


def pretrain(
    *,
    out: str | Path,
    run_dir: str | Path | None = None,
    data_root: str | Path | None = None,
    download: bool = False,
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
    how: dict[str, Any] = {"progress": progress, "stop_after": stop_after, "data_root": data_root}
    if (path / "config.yaml").is_file():
        if RunDirectory.open(path).config != record:
            raise RunDirectoryError(f"The run directory {path} holds another run: choose another --run-dir.")
        objects = {n: v for n, v in given.items() if n in ("scenario", "backbone")}
        finished = resume(path, track=given.get("track"), **how, **objects)
    else:
        finished = run(run_dir=path, download=download, **how, **given)
    provenance = provenance_of(finished)
    strategy, _ = load_strategy(finished.directory, given.get("backbone"))
    branch: Any = strategy.network.branches[0]
    save_weights(branch.weights_target(), target, provenance)
    return provenance


def load(directory: str | Path) -> Run:
    """Open a run directory: its numbers, plots and model, without its data.

    Args:
        directory: The run directory.

    Raises:
        RunDirectoryError: There is no run.
    """
    return open_run(directory)


def compare(runs: Sequence[Run | str | Path], **options: Any) -> Comparison:
    """Put runs side by side: grouped over seeds, ranked within a scenario as far as the seeds support it.

    Args:
        runs: Runs, or their directories; unfinished and damaged ones are shown as such.
        **options: `metrics` (full names, the first one ranks), `head` and `restriction`.

    Raises:
        ConfigurationError: There is nothing to compare, or an option doesn't fit.
        RunDirectoryError: There is no run, or none of them can be read.
    """
    summaries: list[RunSummary] = []
    damaged: dict[str, str] = {}
    for run in runs:
        directory = run.directory if isinstance(run, Run) else RunDirectory.open(Path(run))
        try:
            summaries.append(summary_of(directory))
        except RunDirectoryError as error:
            damaged[str(directory.path)] = str(error)
    if damaged and not summaries:
        raise RunDirectoryError("\n".join(damaged.values()))
    return compare_summaries(summaries, damaged=damaged, **options)


def sweep(
    plan: Mapping[str, Any] | str | Path,
    *,
    data_root: str | Path | None = None,
    processes: int | None = None,
    executor: str | None = None,
    progress: bool = True,
) -> Sweep:
    """Do the runs of a plan that are missing, and return it with the runs' states.

    Args:
        plan: A mapping, as `clframe.launch.sweep.Sweep.from_plan` takes it, or the path of a YAML or Python file.
        data_root: Folders to look for data in.
        processes: Runs at a time; None means the plan's.
        executor: `local`, `slurm` or `print`; None means the plan's.
        progress: Show a table on a terminal, elsewhere a line per run that ended.

    Raises:
        ClframeError: Something can't be run, raised before the first run starts; or another sweep uses the folder.
    """
    given = plan if isinstance(plan, Mapping) else read_plan(plan)
    made = Sweep.from_plan(given, data_root, executor)
    made.run(processes, progress)
    compare_sweep(made)
    return made


def compare_sweep(made: Sweep) -> Comparison | None:
    """Compare the finished runs of a sweep, None when there are none, and write the tables into its folder.

    What its searches took is written there too.
    """
    finished = [run.directory for run in made.runs if run.state == "finished"]
    if not finished:
        return None
    comparison, searches = compare(finished), made.search_table()
    parts = [comparison.render("markdown"), *([] if searches is None else [searches.render("markdown")])]
    write_text(made.plan.out / "comparison.md", "\n\n".join(part.rstrip("\n") for part in parts) + "\n")
    return comparison


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
    """Return what a run would do, without training: for `--dry-run`.

    Args:
        data_root: Folders to look for data in.
        download: Whether a missing data set may be fetched.
        **config: The configuration, as for `run`.

    Raises:
        ConfigurationError: Something can't be run.
        DataError: The data is missing or damaged.
    """
    resolved = resolve(config)
    stream = open_stream(resolved, data_root, download)
    setup = build_setup(resolved, stream, dry=True)
    trainer = Trainer(setup, Unwritten())
    phases = plan_phases(trainer)
    return Plan(resolved.record, stream.describe(), phases, memory_bytes(trainer))


def _train(
    trainer: Trainer,
    directory: RunDirectory,
    config: RunConfig,
    progress: bool,
    stop_after: int | None,
) -> Run:
    """Run a trainer to its end and write the result; of several ranks the first one writes."""
    trainer.checkpoint_seconds = 60 * config.options.checkpoint_minutes
    trainer.keep_models = config.options.keep_models
    trainer.valid = any(len(t.valid) for t in trainer.setup.stream.tasks)
    trainer.stop_after = stop_after
    if not trainer.ranks.first:
        trainer.run()
        trainer.ranks.wait()
        return Run(RunDirectory(directory.path))
    watching = [*watchers(config.track, quiet=not progress), *([Progress()] if progress else [])]
    recorder = RunRecorder(directory, watching, write_checkpoint)
    trainer.recorder = recorder
    try:
        recorder.begin(Run(directory))
        trainer.run()
        report = metrics_of(directory)
        export_weights(trainer.strategy.network, directory.checkpoints / "model.safetensors")
        recorder.event("finished", dict(trainer.counters))
        write_json(directory.path / "result.json", result_of(directory, report, trainer.counters))
    finally:
        recorder.close()
    trainer.ranks.wait()
    return Run(RunDirectory(directory.path))


def _say_how_to_log(path: Path, track: Sequence[Any]) -> None:
    """Tell who asks for trackers of a run that isn't repeated."""
    names = [choice.name for choice in track if isinstance(choice, Choice)]
    if names:
        warnings.warn(
            f"The run in {path} has finished already: `clframe log {path} --to {','.join(names)}` sends it.",
            stacklevel=3,
        )


def _warn_of_shared_classes(weights: Mapping[str, Any], stream: Any) -> None:
    shared = shared_classes(weights, stream.data_fingerprint, stream.class_names)
    if shared:
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        warnings.warn(
            f"The weights were pretrained on {len(shared)} classes of this very stream ({', '.join(shared[:5])}{more}): "
            "what it measures is not new to the network.",
            stacklevel=3,
        )


def setup_of(run_config: RunConfig, data_root: str | Path | None = None) -> Setup:
    """Return the objects of a run, for benchmarks and tests that drive a trainer themselves."""
    return build_setup(run_config, open_stream(run_config, data_root, False))
