"""Reference runs beside a run: what a freshly initialised network learns of every task, for `fresh_gap`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clframe.api import resume, run
from clframe.errors import ConfigurationError
from clframe.results import FRESH, Run, metrics_of, open_run, result_of
from clframe.tracking.files import write_json
from clframe.tracking.rundir import RunDirectory

__all__ = ["fresh_reference"]


def fresh_reference(
    of: Run | str | Path,
    *,
    data_root: str | Path | None = None,
    progress: bool = True,
    stop_after: int | None = None,
    **objects: Any,
) -> Run:
    """Train the fresh reference of a finished run beside it, in its folder `fresh`, and add `fresh_gap` to its result.

    Every experience of the same stream is learned alone by a newly initialised network of the same architecture: the
    strategy `fresh` with the run's optimiser, schedule, batch size, augmentation and seed, and exactly as many optimiser
    steps as the run took in that experience, in all its phases together. Asked again, it goes on where it was stopped, and a
    finished one isn't repeated. What it costs, about as much as the run itself, is added to the counters of the run's
    result as `fresh_steps`, `fresh_presentations` and `fresh_train_seconds`.

    Args:
        of: The run, or its directory.
        data_root: Folders to look for data in.
        progress: Show progress.
        stop_after: Stop with `Stopped` after so many optimiser steps.
        **objects: `scenario` or `backbone`, where the run was given an object that has no name.

    Returns:
        The reference; `clframe.load` of the run's directory has the gap.

    Raises:
        ConfigurationError: The run isn't finished, or took no steps.
    """
    own = of if isinstance(of, Run) else open_run(of)
    if not own.finished:
        raise ConfigurationError(
            f"A fresh reference is expected of a finished run, received {own.path}, which isn't: resume it first."
        )
    how: dict[str, Any] = {"data_root": data_root, "progress": progress, "stop_after": stop_after, **objects}
    path = own.path / FRESH
    started = (path / "config.yaml").is_file()
    reference = resume(path, **how) if started else run(run_dir=path, **{**fresh_config(own), **how})
    counters = own.result["counters"] | {f"{FRESH}_{n}": v for n, v in reference.result["counters"].items()}
    write_json(own.path / "result.json", result_of(own.directory, metrics_of(own.directory), counters))
    return reference


def fresh_config(own: Run) -> dict[str, Any]:
    """Return the configuration of a run's fresh reference.

    Raises:
        ConfigurationError: The run took no steps.
    """
    config, steps = own.config, steps_of(own.directory)
    if not any(steps):
        raise ConfigurationError(
            f"A fresh reference takes as many optimiser steps as its run, but the run in {own.path} took none: choose a "
            "strategy that trains by steps."
        )
    given = config["strategy"]
    epochs = min(int(given["epochs"]), *(n for n in steps if n))
    strategy = {"name": "fresh", "epochs": epochs, "loss_over": given["loss_over"]}
    online = bool(own.directory.stream.get("online"))  # a pass over such a stream is as many steps for every method
    budget = None if online else [max(n, epochs) for n in steps]
    return {**config, "strategy": strategy, "steps_per_experience": budget, "keep_models": False}


def steps_of(directory: RunDirectory) -> list[int]:
    """Return the optimiser steps of every experience of a run, over all its phases."""
    steps = [0] * len(directory.stream["experiences"])
    for event in directory.events():
        if event["event"] == "epoch":
            steps[event["experience"] - 1] += int(event["steps"])
    return steps
