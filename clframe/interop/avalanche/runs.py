"""A whole Avalanche strategy, trained in Avalanche's own loop and scored as a clframe run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clframe.config import resolve
from clframe.errors import ConfigurationError, ContractError
from clframe.evaluation import Columns, class_masks, classification_columns
from clframe.interop.avalanche.benchmark import to_avalanche
from clframe.interop.avalanche.library import quietly, require
from clframe.launch.build import open_stream, stream_record
from clframe.results import Run, metrics_of, result_of
from clframe.stream import EvaluationTask, Stream
from clframe.tracking.environment import environment
from clframe.tracking.files import write_json
from clframe.tracking.progress import Progress
from clframe.tracking.recorder import RunRecorder
from clframe.tracking.rundir import RunDirectory, Tracker, run_name
from clframe.training.seeds import isolated

__all__ = ["run_avalanche"]

_HEAD = "classifier"


def run_avalanche(
    make: Callable[[Stream], Any],
    *,
    scenario: Any = "split_digits",
    seed: int = 0,
    name: str | None = None,
    augmentation: Any = "auto",
    run_dir: str | Path | None = None,
    data_root: str | Path | None = None,
    download: bool = False,
    trackers: Sequence[Tracker] = (),
    progress: bool = True,
) -> Run:
    """Train an Avalanche strategy, and keep what it predicts as a run of clframe's.

    For strategies that are no plugins, and to compare Avalanche's own training with clframe's in one table: every metric is
    computed from the kept predictions, as of any run. After every experience the test images of the tasks seen are scored
    in Avalanche's evaluation loop; the global generators are put back afterwards, so that scoring doesn't change the
    training. Of the outputs only those of classes seen count.

    Such a run can't be resumed, and no model is kept.

    Args:
        make: Makes the strategy (its model, optimiser, plugins) for a stream; called under the seed. The model gives logits
            (B, K) in the order of the stream's labels. Give it `evaluator=EvaluationPlugin(loggers=[])`, or Avalanche prints
            its own numbers.
        scenario: As for `clframe.run`.
        seed: Of the global generators, from which everything in Avalanche draws.
        name: What tables call the strategy; by default `avalanche.` and its class.
        augmentation: Of training images; auto: what the scenario states, as in a run of clframe's.
        run_dir: Where to keep it; by default `runs/<scenario>-<strategy>-<seed>-<hash>`.
        data_root: Folders to look for data in, before the environment's and the cache.
        download: Whether a missing data set may be fetched.
        trackers: Watch the run.
        progress: Show a line per experience.

    Raises:
        ConfigurationError: Avalanche isn't installed, or the stream has something that it has no form for.
        ContractError: The strategy's outputs aren't logits of the classes seen.
        RunDirectoryError: The directory exists or can't be written.
    """
    resolved = resolve({"scenario": scenario, "seed": seed})
    stream = open_stream(resolved, data_root, download)
    benchmark = to_avalanche(stream, augmentation=stream.augmentation if augmentation == "auto" else augmentation)
    with isolated(seed), quietly():
        strategy = make(stream)
        if not isinstance(strategy, require("avalanche.training.templates").BaseSGDTemplate):
            raise ConfigurationError(
                f"Expected the function to return an Avalanche strategy, received {type(strategy).__name__}: return, for "
                "instance, avalanche.training.Naive(...)."
            )
        record = {
            **{part: resolved.record[part] for part in ("schema", "scenario", "seed")},
            "strategy": {"name": name or f"avalanche.{type(strategy).__name__}", "epochs": strategy.train_epochs},
            "backbone": {"name": f"python:{type(strategy.model).__name__}"},
            "batch_size": strategy.train_mb_size,
            "augmentation": augmentation,
        }
        directory = _create(record, stream, str(strategy.device), run_dir)
        recorder = RunRecorder(directory, [*trackers, *([Progress(live=False)] if progress else [])], _no_checkpoint)
        try:
            counters = _train(strategy, benchmark, stream, recorder)
            report = metrics_of(directory)
            recorder.event("finished", counters)
            write_json(directory.path / "result.json", result_of(directory, report, counters))
        finally:
            recorder.close()
    return Run(RunDirectory(directory.path))


def _create(record: Mapping[str, Any], stream: Stream, device: str, run_dir: str | Path | None) -> RunDirectory:
    path = Path(run_dir) if run_dir is not None else Path("runs") / run_name(record)
    here = environment(device, stream.data_fingerprint)
    return RunDirectory.create(
        path, {"config.yaml": dict(record), "stream.json": stream_record(stream), "environment.json": here}, {}
    )


def _no_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Keep none."""


def _train(strategy: Any, benchmark: Any, stream: Stream, recorder: RunRecorder) -> dict[str, Any]:
    """Train one experience after the other and score the tasks seen; returns the counters."""
    watch = _Watch()
    strategy.plugins.append(watch)
    seconds = 0.0
    recorder.event("run", {"experiences": len(stream.experiences), "resumed": False})
    for experience, trained in zip(stream.experiences, benchmark.train_stream, strict=True):
        recorder.event("experience", {"experience": experience.index + 1, "steps": 0})
        started = time.monotonic()
        strategy.train(trained, eval_streams=[])
        seconds += time.monotonic() - started
        tasks = [t for t in stream.tasks if t.available_after <= experience.index + 1]
        with isolated():
            scores = watch.scores(strategy, [benchmark.test_stream[t.index] for t in tasks])
        columns = _columns(dict(zip(tasks, scores, strict=True)), stream, experience.num_seen_classes)
        summary = recorder.predictions("test", experience.index + 1, {_HEAD: columns})
        recorder.event("evaluation", {"experience": experience.index + 1, "heads": [_HEAD], **summary})
    strategy.plugins.remove(watch)
    return {"steps": watch.steps, "presentations": watch.presentations, "train_seconds": seconds}


class _Watch:
    """A plugin that counts, and keeps what the strategy says when it evaluates."""

    def __init__(self) -> None:
        self.steps = 0
        self.presentations = 0
        self._outputs: list[list[Tensor]] = []

    def after_training_iteration(self, strategy: Any, **_: Any) -> None:
        """Count a step and the samples that it presented."""
        self.steps += 1
        self.presentations += len(strategy.mb_y)

    def before_eval_exp(self, strategy: Any, **_: Any) -> None:
        """Begin with another experience."""
        self._outputs.append([])

    def after_eval_iteration(self, strategy: Any, **_: Any) -> None:
        """Keep the outputs, after all plugins have changed them."""
        self._outputs[-1].append(strategy.mb_output.detach().float().cpu())

    def scores(self, strategy: Any, experiences: Sequence[Any]) -> list[Tensor]:
        """Return what the strategy says of the test images of each of some experiences, (N, K)."""
        self._outputs = []
        strategy.eval(list(experiences))
        return [torch.cat(parts) for parts in self._outputs]


def _columns(parts: Mapping[EvaluationTask, Tensor], stream: Stream, seen: int) -> Columns:
    """Reduce the scores of every task to what is kept of predictions."""
    found: dict[str, list[Any]] = {}
    names = ("predicted", "predicted_local", "predicted_upto", "confidence", "energy", "entropy")
    local, upto = class_masks(stream)
    for task, scores in parts.items():
        if scores.ndim != 2 or scores.shape[1] < seen or len(scores) != len(task.test):
            raise ContractError(
                f"Expected outputs ({len(task.test)}, {seen} or more), logits of the classes seen, received "
                f"{tuple(scores.shape)}: let the model give them in the order of the stream's labels."
            )
        masks = [m[task.index, :seen].expand(len(scores), seen) for m in (local, upto)]
        fixed = {
            "sample": task.test,
            "task": torch.full((len(scores),), task.index),
            "target": stream.test.targets[task.test],
        }
        columns = dict(zip(names, classification_columns(scores[:, :seen], *masks), strict=True))
        for name, column in {**fixed, **columns}.items():
            found.setdefault(name, []).append(column.numpy())
    return {name: np.concatenate(columns) for name, columns in found.items()}
