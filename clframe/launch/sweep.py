"""Sweeps: a plan of strategies, scenarios and seeds, run as one process each; finished runs are skipped."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from clframe.config import merged, resolve
from clframe.errors import ClframeError, ConfigurationError, RunDirectoryError, did_you_mean
from clframe.report import Column, Table
from clframe.tracking.choice import plain
from clframe.tracking.files import read_config, read_json, write_text, write_yaml
from clframe.tracking.rundir import run_name

__all__ = ["State", "Sweep", "SweepRun", "sweep"]

State = Literal["finished", "failed", "unfinished", "missing"]

_AXES = {"strategies": "strategy", "scenarios": "scenario", "backbones": "backbone"}
_KEYS = ("out", "base", *_AXES, "seeds", "grid", "processes")
_PATIENCE = 10.0
"""Seconds that an interrupted run is given to end by itself."""


@dataclass(frozen=True, eq=False)
class SweepRun:
    """One run of a sweep.

    Attributes:
        record: Its resolved configuration, as `config.yaml` holds it.
        directory: Its run directory, `<scenario>-<strategy>-<seed>-<hash>` under the plan's `out`.
        track: Trackers by name, as a configuration names them.
    """

    record: Mapping[str, Any]
    directory: Path
    track: Sequence[Mapping[str, Any]] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.directory.name

    @property
    def log(self) -> Path:
        """What the run said when it failed; it lies beside the run directory."""
        return self.directory.with_name(f"{self.name}.log")

    @property
    def state(self) -> State:
        """What has become of it: finished, failed, unfinished (stopped on the way) or missing (never begun)."""
        if (self.directory / "result.json").is_file():
            return "finished"
        if self.log.is_file():
            return "failed"
        return "unfinished" if (self.directory / "config.yaml").is_file() else "missing"

    @property
    def headline(self) -> tuple[str, float] | None:
        """Name and value of the final score of the primary report head, once the run has finished."""
        if self.state != "finished":
            return None
        result = read_json(self.directory / "result.json")
        try:
            primary = result["primary"]
            values = result["values"][primary["head"]][primary["restriction"]]
            return next(((n, float(v)) for n, v in values.items() if n.startswith("final_") and v is not None), None)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise RunDirectoryError(
                f"{self.directory / 'result.json'} is damaged: delete that file, and the sweep makes it again."
            ) from None

    @property
    def complaint(self) -> str:
        """The last line that a failed run said."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n") if self.log.is_file() else []
        return next((line.removeprefix("clframe: ") for line in reversed(lines) if line.strip()), "it said nothing")


class Sweep:
    """The runs of a plan.

    Args:
        runs: The runs, in the order in which they are started.
        processes: How many run at a time.
        data_root: Folders to look for data in.
    """

    def __init__(self, runs: Sequence[SweepRun], processes: int = 1, data_root: str | Path | None = None) -> None:
        self.runs = tuple(runs)
        self.processes = processes
        self.data_root = data_root

    @classmethod
    def read(cls, path: str | Path, data_root: str | Path | None = None) -> Sweep:
        """Read a plan from a YAML file.

        Raises:
            ConfigurationError: Every problem of the plan and of its runs.
        """
        return cls.from_plan(read_config(Path(path), "a sweep's options"), data_root)

    @classmethod
    def from_plan(cls, plan: Mapping[str, Any], data_root: str | Path | None = None) -> Sweep:
        """Make the runs of a plan; nothing is started.

        Args:
            plan: `out` (a folder, as seen from the current one), `base` (a run's configuration), `strategies`,
                `scenarios`, `backbones` (lists of names or mappings), `seeds` (a list), `grid` (values by dotted
                option, such as `optimizer.lr`), `processes`. Runs are made for every combination.
            data_root: Folders to look for data in.

        Raises:
            ConfigurationError: Every problem of the plan and of its runs.
        """
        checked = _checked(plan)
        problems: dict[str, None] = {}
        runs: dict[Path, SweepRun] = {}
        for config in _combinations(checked):
            try:
                resolved = resolve(config)
                track = plain(resolved.track)
            except ConfigurationError as error:
                problems.update(dict.fromkeys(str(error).split("\n")))
                continue
            directory = Path(str(checked["out"])) / run_name(resolved.record)
            runs.setdefault(directory, SweepRun(resolved.record, directory, track))
        if problems:
            raise ConfigurationError("\n".join(problems))
        return cls(list(runs.values()), checked.get("processes", 1), data_root)

    def table(self) -> Table:
        """Return a row per run: its state and its final score."""
        rows = []
        notes = []
        for run in self.runs:
            record, headline = run.record, run.headline
            values = (str(record[part]["name"]) for part in ("strategy", "scenario", "backbone"))
            accuracy = headline is not None and headline[0] == "final_accuracy"
            score = None if headline is None else f"{100 * headline[1]:.2f} %" if accuracy else f"{headline[1]:.4g}"
            rows.append([run.name, *values, int(record["seed"]), run.state, score])
            if run.state == "failed":
                notes.append(f"{run.name}: {run.complaint} (see {run.log})")
        titles = ["run", "strategy", "scenario", "backbone", "seed", "state", "final score"]
        columns = [Column(title, right=title in ("seed", "final score")) for title in titles]
        return Table(columns, rows, notes=notes)

    def check(self) -> None:
        """Make the stream and the objects of every run that is still to be done, without training.

        Raises:
            ClframeError: Every problem found, one sentence each, of the kind of the first.
        """
        found: dict[str, ClframeError] = {}
        streams: dict[str, Any] = {}
        for run in self.runs:
            if run.state == "finished":
                continue
            try:
                _check_run(run.record, streams, self.data_root)
            except ClframeError as error:
                found.setdefault(str(error), error)
        if found:
            raise type(next(iter(found.values())))("\n".join(found))

    def run(self, processes: int | None = None) -> int:
        """Do what is missing and return the number of runs that failed.

        Finished runs are skipped and unfinished ones resumed. A failed run doesn't stop the rest; what it said is kept
        beside its directory.

        Args:
            processes: Runs at a time; None means the plan's.

        Raises:
            ClframeError: A run can't be done; raised before the first one starts.
        """
        count = self.processes if processes is None else processes
        if count < 1:
            raise ConfigurationError(f"processes: expected int ≥ 1, received {count}.")
        waiting = [run for run in self.runs if run.state != "finished"]
        self.check()
        failed = 0
        with tempfile.TemporaryDirectory(prefix="clframe-sweep-") as folder, _progress(len(waiting)) as report:
            for run, code in _processes(waiting, count, Path(folder), self.data_root):
                failed += code != 0
                report(run, code)
        return failed


def sweep(plan: Mapping[str, Any], *, data_root: str | Path | None = None, processes: int | None = None) -> Sweep:
    """Run a plan from Python and return it with the runs' states.

    Args:
        plan: As `Sweep.from_plan` takes it.
        data_root: Folders to look for data in.
        processes: Runs at a time; None means the plan's.
    """
    made = Sweep.from_plan(plan, data_root)
    made.run(processes)
    return made


def _checked(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Check the plan's own form.

    Raises:
        ConfigurationError: Every problem.
    """
    given = {str(k): v for k, v in plan.items() if v is not None}
    problems = [f"{k} is not an option of a sweep.{did_you_mean(k, _KEYS)}" for k in given if k not in _KEYS]
    if not given.get("out"):
        problems.append("out must be given: the folder for the runs.")
    problems += [
        f"{key}: expected a list of at least one, received {given[key]!r}: write [{given[key]!r}]."
        for key in (*_AXES, "seeds")
        if key in given and (not isinstance(given[key], list) or not given[key])
    ]
    problems += [
        f"{key}: expected a mapping, received {given[key]!r}: write it as name: value."
        for key in ("base", "grid")
        if not isinstance(given.get(key, {}), Mapping)
    ]
    grid = given.get("grid", {})
    problems += [
        f"grid.{option}: expected a list of values, received {values!r}: write [{values!r}]."
        for option, values in (grid.items() if isinstance(grid, Mapping) else ())
        if not isinstance(values, list) or not values
    ]
    number = given.get("processes", 1)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        problems.append(f"processes: expected int ≥ 1, received {number!r}.")
    if problems:
        raise ConfigurationError("\n".join(problems))
    return given


def _combinations(plan: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the plan's axes; seeds change fastest, so that the first results can be compared."""
    axes: list[list[dict[str, Any]]] = [
        [{section: {"name": v} if isinstance(v, str) else v} for v in plan[key]]
        for key, section in _AXES.items()
        if key in plan
    ]
    axes += [[_nested(str(option), v) for v in values] for option, values in plan.get("grid", {}).items()]
    if "seeds" in plan:
        axes.append([{"seed": s} for s in plan["seeds"]])
    for choices in itertools.product(*axes):
        config = dict(plan.get("base", {}))
        for change in choices:
            config = merged(config, change)
        yield config


def _nested(option: str, value: Any) -> dict[str, Any]:
    """`optimizer.lr` and a value as a configuration."""
    found: Any = value
    for part in reversed(option.replace("-", "_").split(".")):
        found = {part: found}
    return dict(found)


class _Silent:
    """Takes what a trainer that never trains would say."""

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Ignore."""

    def predictions(self, split: str, after: int, heads: Mapping[str, Any]) -> dict[str, Any]:
        """Ignore."""
        return {}

    def checkpoint(self, state: Mapping[str, Any], keep_as: str | None) -> None:
        """Ignore."""


def _check_run(record: Mapping[str, Any], streams: dict[str, Any], data_root: str | Path | None) -> None:
    """Make everything of a run but its directory; a stream that several runs share is made once."""
    from clframe.launch.build import build_setup, open_stream
    from clframe.training.trainer import Trainer

    config = resolve({**record, "threads": None})  # this process keeps its threads
    key = json.dumps(record["scenario"], sort_keys=True)
    if key not in streams:
        try:
            streams[key] = open_stream(config, data_root, False)
        except ClframeError as error:
            streams[key] = error
    if isinstance(streams[key], ClframeError):
        raise streams[key]
    Trainer(build_setup(config, streams[key], dry=True), _Silent())


def _processes(
    runs: Sequence[SweepRun], count: int, folder: Path, data_root: str | Path | None
) -> Iterator[tuple[SweepRun, int]]:
    """Run every one in a process of its own, `count` at a time, and yield each with its exit code when it ends."""
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    waiting = list(runs)
    active: dict[SweepRun, subprocess.Popen[bytes]] = {}
    running = 0
    try:
        while waiting or active:
            while waiting and running < count:
                run = waiting.pop(0)
                active[run] = _start(run, folder, data_root, environment)
                running += 1
            ended = [run for run, process in active.items() if process.poll() is not None]
            for run in ended:
                process = active.pop(run)
                running -= 1
                _keep_log(run, folder, process.returncode)
                yield run, process.returncode
            if not ended:
                time.sleep(0.05)
    finally:
        _stop(list(active.values()))


def _start(
    run: SweepRun, folder: Path, data_root: str | Path | None, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    if (run.directory / "config.yaml").is_file():
        task = ["resume", str(run.directory)]
    else:
        file = folder / f"{run.name}.yaml"
        write_yaml(file, {**run.record, "track": list(run.track)})
        task = ["run", "--config", str(file), "--run-dir", str(run.directory)]
    place = [] if data_root is None else ["--data-root", str(data_root)]
    with (folder / f"{run.name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "clframe", *task, *place, "--quiet"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment,
            process_group=0,  # Ctrl-C reaches this process alone, which stops the others in order
        )


def _keep_log(run: SweepRun, folder: Path, code: int) -> None:
    """Put what a failed run said beside its directory; a run that succeeded takes its old log away."""
    if code == 0:
        run.log.unlink(missing_ok=True)
        return
    text = (folder / f"{run.name}.log").read_text(encoding="utf-8", errors="replace")
    ended = f"ended by signal {signal.Signals(-code).name}" if code < 0 else ""
    run.log.parent.mkdir(parents=True, exist_ok=True)
    write_text(run.log, "\n".join(part for part in (text.rstrip("\n"), ended) if part) + "\n")


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask processes to end, wait for them, and end those that don't."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + _PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar over the runs on a terminal, a line per run otherwise; failures are always told."""
    live = sys.stderr.isatty()
    done = 0
    with tqdm(total=total, unit="run", disable=not live, file=sys.stderr) as bar:

        def report(run: SweepRun, code: int) -> None:
            nonlocal done
            done += 1
            bar.update()
            line = f"{done}/{total} {run.name}: " + (
                "finished" if code == 0 else f"failed: {run.complaint} (see {run.log})"
            )
            if not live:
                print(line, file=sys.stderr)
            elif code:
                tqdm.write(line, file=sys.stderr)

        yield report
