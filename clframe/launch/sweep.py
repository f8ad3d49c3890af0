"""Sweeps: a plan of strategies, scenarios, seeds and hyperparameters, done run by run; finished runs are skipped."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clframe.config import merged, resolve
from clframe.errors import ClframeError, ConfigurationError, RunDirectoryError
from clframe.launch.executors import Work, executor_for
from clframe.launch.search import Search, unknown_options
from clframe.launch.sweep_plan import Plan, read_plan
from clframe.launch.sweep_progress import SweepProgress
from clframe.launch.sweep_run import SweepRun
from clframe.report import Cell, Column, Table
from clframe.stream import Stream
from clframe.tracking.choice import plain
from clframe.tracking.lock import lock_folder
from clframe.tracking.recorder import Unwritten
from clframe.tracking.rundir import run_name

__all__ = ["Sweep", "SweepRun"]

_OWN = ".sweep"
"""The sweep's own folder under `out`: its lock, the configurations of runs, the scheduler's files."""


@dataclass(frozen=True, eq=False)
class _Group:
    """The runs that differ in nothing but the seed.

    Attributes:
        config: Their configuration.
        search: What chooses the rest of it first; None: nothing is to be chosen.
    """

    config: Mapping[str, Any]
    search: Search | None

    @property
    def settled(self) -> Mapping[str, Any] | None:
        """The configuration with what was chosen; None while that isn't known."""
        if self.search is None:
            return self.config
        return None if self.search.chosen is None else self.search.with_values(self.search.chosen)


class Sweep:
    """The runs of a plan.

    Args:
        plan: The plan.
        data_root: Folders to look for data in.

    Raises:
        ConfigurationError: Every problem of its runs.
    """

    def __init__(self, plan: Plan, data_root: str | Path | None = None) -> None:
        self.plan = plan
        self.data_root = None if data_root is None else str(data_root)
        self.groups = _groups(plan)
        self._settled = -1
        self._runs: tuple[SweepRun, ...] = ()
        _ = self.runs  # refuses what can't be run

    @classmethod
    def read(cls, path: str | Path, data_root: str | Path | None = None, executor: str | None = None) -> Sweep:
        """Read a plan from a YAML or Python file.

        Raises:
            ConfigurationError: Every problem of the plan and of its runs.
        """
        return cls.from_plan(read_plan(path), data_root, executor)

    @classmethod
    def from_plan(
        cls, plan: Mapping[str, Any], data_root: str | Path | None = None, executor: str | None = None
    ) -> Sweep:
        """Make the runs of a plan; nothing is started.

        Args:
            plan: `out` (a folder, as seen from the current one), `base` (a run's configuration, `track` too), `strategies`,
                `scenarios`, `backbones` (lists of names, mappings or objects), `seeds` (a list), `grid` (values by dotted
                option, such as `optimizer.lr`), `search` (see `clframe.launch.search.SearchOptions`), `processes` (runs
                at a time), `threads` (of a run), `executor` (a name, or a mapping of a name and options). Runs are
                made for every combination.
            data_root: Folders to look for data in.
            executor: Chosen instead of the plan's.

        Raises:
            ConfigurationError: Every problem of the plan and of its runs.
        """
        return cls(Plan.of(plan, executor), data_root)

    @classmethod
    def of_configs(
        cls,
        configs: Sequence[Mapping[str, Any]],
        out: str | Path,
        processes: int | None = None,
        data_root: str | Path | None = None,
    ) -> Sweep:
        """Make the runs of configurations that were put together elsewhere, one each; done by processes of this machine.

        Args:
            configs: Configurations of runs, seed included.
            out: The folder for their directories.
            processes: Runs at a time; None leaves it to the machine.
            data_root: Folders to look for data in.

        Raises:
            ConfigurationError: Every problem of the runs.
        """
        plan = Plan(Path(out), tuple(map(dict, configs)), (), None, processes, 1, executor_for("local"))
        return cls(plan, data_root)

    @property
    def runs(self) -> tuple[SweepRun, ...]:
        """The runs, in the order in which they are started; those that wait for a search are left out."""
        settled = [group.settled for group in self.groups]
        if sum(config is not None for config in settled) != self._settled:
            self._runs = self._make(settled)
            self._settled = sum(config is not None for config in settled)
        return self._runs

    def _make(self, configs: Sequence[Mapping[str, Any] | None]) -> tuple[SweepRun, ...]:
        """Make the runs of some configurations.

        Raises:
            ConfigurationError: Every problem.
        """
        problems: dict[str, None] = {}
        found: dict[Path, SweepRun] = {}
        for config in configs:
            for given in () if config is None else _seeded(config, self.plan.seeds):
                try:
                    resolved = resolve(given)
                    track = plain(resolved.track)
                except ConfigurationError as error:
                    problems.update(dict.fromkeys(str(error).split("\n")))
                    continue
                directory = self.plan.out / run_name(resolved.record)
                found.setdefault(directory, SweepRun(resolved.record, directory, track))
        if problems:
            raise ConfigurationError("\n".join(problems))
        return tuple(found.values())

    @property
    def searches(self) -> tuple[Search, ...]:
        """The searches, each with what it has tried and chosen."""
        return tuple(group.search for group in self.groups if group.search is not None and group.search.space)

    # -- tables --------------------------------------------------------------------------------------------------------------

    def table(self) -> Table:
        """Return a row per run: its state and its final score."""
        rows: list[list[Cell]] = []
        notes = []
        for run in self.runs:
            values = [str(run.record[part]["name"]) for part in ("strategy", "scenario", "backbone")]
            rows.append([run.name, *values, int(run.record["seed"]), run.state, run.score_text])
            if run.state == "failed":
                notes.append(f"{run.name}: {run.complaint} (see {run.log})")
        for search in self.searches:
            if search.chosen is None:
                values = [str(search.record[part]["name"]) for part in ("strategy", "scenario", "backbone")]
                rows += [[None, *values, seed, "waits for its search", None] for seed in self.plan.seeds or (None,)]
        titles = ["run", "strategy", "scenario", "backbone", "seed", "state", "final score"]
        columns = [Column(title, right=title in ("seed", "final score")) for title in titles]
        return Table(columns, rows, notes=notes)

    def search_table(self) -> Table | None:
        """Return a row per search: what was chosen, how good it was on validation samples, and what that took."""
        if not self.searches:
            return None
        columns = [
            Column("search"),
            Column("backbone"),
            Column("chosen"),
            Column("validation score", right=True),
            Column("trials", right=True),
            Column("steps", right=True),
            Column("seconds", right=True),
        ]
        rows: list[list[Cell]] = []
        notes = []
        for search in self.searches:
            search.advance()
            record, cost, score = search.record, search.cost, search.score
            chosen = ", ".join(f"{n}={_short(v)}" for n, v in (search.chosen or {}).items())
            name = f"{record['strategy']['name']} on {record['scenario']['name']}"
            shown = chosen or ("no trial could be scored" if search.failed else None)
            numbers = [int(cost["trials"]), int(cost["steps"]), round(cost["seconds"], 1)]
            rows.append(
                [name, str(record["backbone"]["name"]), shown, None if score is None else f"{score:.4g}", *numbers]
            )
            notes += [
                f"{name}: trial {t.run.name}: {t.run.complaint} (see {t.run.log})"
                for t in search.trials
                if not t.told and t.run.state == "failed"
            ]
        options = self.searches[0].options
        notes.append(
            f"Scores are {options.metric} on validation samples after the first {options.experiences} experiences. Steps and "
            "seconds of the trials belong to the cost of the method, beside those of its runs."
        )
        return Table(columns, rows, notes=notes)

    # -- running -------------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Make the stream and the objects of every run that is still to be done, without training.

        Raises:
            ClframeError: Every problem found, one sentence each, of the kind of the first.
        """
        checker = _Checker(self.data_root, self.plan.executor.elsewhere)
        for run in self.runs:
            if run.state != "finished":
                checker.tried(checker.run, run.record)
        for search in self.searches:
            if search.chosen is None:
                checker.tried(checker.search, search)
        if checker.found:
            raise type(next(iter(checker.found.values())))("\n".join(checker.found))

    def run(self, processes: int | None = None, progress: bool = True) -> int:
        """Do what is missing and return how many runs, trials and searches failed.

        Finished runs are skipped and unfinished ones resumed. A failed run doesn't stop the rest; what it said is kept
        beside its directory.

        Args:
            processes: Runs at a time; None means the plan's.
            progress: Show a table on a terminal, elsewhere a line per run that ended.

        Raises:
            ClframeError: A run can't be done, raised before the first one starts; or another sweep uses the folder.
            KeyboardInterrupt: Ctrl-C; says how to go on.
        """
        if processes is not None and processes < 1:
            raise ConfigurationError(f"processes: expected int ≥ 1, received {processes}.")
        count = self.plan.processes if processes is None else processes
        for search in self.searches:
            search.check()
        self.plan.executor.check(self._work([], count))
        self.check()
        with self._locked():
            failed = self._do_searches(count, progress)
            missing = [run for run in self.runs if run.state != "finished"]
            return failed + len(self._do(missing, count, "", progress))

    def _do_searches(self, count: int | None, progress: bool) -> int:
        """Do the trials of all searches, round by round; a search whose trial broke waits for the next start."""
        broken: set[Path] = set()
        while todo := self._trials(broken):
            if self.plan.executor.only_writes:
                raise ConfigurationError(
                    "A search reads the scores of its trials as they come, so an executor that only writes commands can't do "
                    "it: do the search with executor local or slurm first."
                )
            broken |= {run.directory for run in self._do(todo, count, "search ", progress) if not run.diverged}
            for search in self.searches:
                search.keep()
        for search in self.searches:
            search.keep()
        return len(broken) + sum(search.failed for search in self.searches)

    def _trials(self, broken: Set[Path]) -> list[SweepRun]:
        """The trials to do next, each once."""
        todo = [run for search in self.searches for run in search.advance() if run.directory not in broken]
        return list({run.directory: run for run in todo}.values())

    def _do(self, runs: Sequence[SweepRun], count: int | None, stage: str, progress: bool) -> list[SweepRun]:
        """Do some runs and return those that failed."""
        if not runs:
            return []
        work = self._work(runs, count)
        work.prepare()
        failed = []
        try:
            shown = SweepProgress(runs, stage) if progress else contextlib.nullcontext()
            with shown as watching, contextlib.closing(self.plan.executor.run(work)) as updates:
                for update in updates:
                    if update is not None and update.state == "failed":
                        failed.append(update.run)
                    if watching is not None:
                        watching.show(update)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self.plan.executor.interrupted(work)) from None
        return failed

    def _work(self, runs: Sequence[SweepRun], count: int | None) -> Work:
        return Work(runs, self.plan.out / _OWN, count, self.plan.threads, self.data_root)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Be the only sweep in the folder.

        Raises:
            RunDirectoryError: It is another's, or can't be made.
        """
        folder = self.plan.out / _OWN
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(
                f"The folder {self.plan.out} of the sweep can't be made ({error.strerror or error}): choose another `out`."
            ) from error
        try:
            lock = lock_folder(folder, "The sweep's folder", "give the plan another `out`")
        except RunDirectoryError as error:
            raise RunDirectoryError(str(error).replace(str(folder), str(self.plan.out))) from None
        with lock:
            yield


def _groups(plan: Plan) -> list[_Group]:
    """Every combination but the seeds, with the search of those that have one.

    Raises:
        ConfigurationError: Every problem.
    """
    if plan.search is None:
        return [_Group(config, None) for config in plan.configs]
    problems: dict[str, None] = {}
    searches: dict[Path, Search] = {}
    for config in plan.configs:
        try:
            search = Search(config, plan.search, plan.out / "search")
            searches.setdefault(search.file, search)
        except ConfigurationError as error:
            problems.update(dict.fromkeys(str(error).split("\n")))
    problems.update(dict.fromkeys(unknown_options(list(searches.values()))))
    if problems:
        raise ConfigurationError("\n".join(problems))
    return [_Group(search.config, search) for search in searches.values()]


def _seeded(config: Mapping[str, Any], seeds: Sequence[Any]) -> list[dict[str, Any]]:
    """A configuration per seed; seeds change fastest, so that the first results can be compared."""
    return [merged(config, {"seed": seed}) for seed in seeds] or [dict(config)]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class _Checker:
    """Makes everything of runs but their directories; a stream that several runs share is made once."""

    def __init__(self, data_root: str | None, elsewhere: bool) -> None:
        self.data_root = data_root
        self.here = {"device": "cpu", "precision": "fp32"} if elsewhere else {}
        self.found: dict[str, ClframeError] = {}
        self._streams: dict[str, Any] = {}

    def tried(self, check: Callable[[Any], object], what: Any) -> None:
        """Check something, and keep what is wrong with it."""
        try:
            check(what)
        except ClframeError as error:
            self.found.setdefault(str(error), error)

    def run(self, record: Mapping[str, Any]) -> Stream:
        """Check a run, and return its stream."""
        from clframe.launch.build import build_setup, open_stream
        from clframe.training.trainer import Trainer

        config = resolve({**record, **self.here, "threads": None})  # this process keeps its threads
        key = json.dumps([record[name] for name in ("scenario", "first_experiences", "scored_on")], sort_keys=True)
        if key not in self._streams:
            try:
                self._streams[key] = open_stream(config, self.data_root, False)
            except ClframeError as error:
                self._streams[key] = error
        stream: Stream | ClframeError = self._streams[key]
        if isinstance(stream, ClframeError):
            raise stream
        Trainer(build_setup(config, stream, dry=True), Unwritten())
        return stream

    def search(self, search: Search) -> None:
        """Check a search, whose trials must not see the whole stream."""
        whole, first = self.run(search.record), search.options.experiences
        if first >= len(whole.experiences):
            raise ConfigurationError(
                f"search.experiences: expected fewer than the {len(whole.experiences)} experiences of the scenario "
                f"{whole.name!r}, received {first}: a search that sees the whole stream chooses by what counts."
            )
        for run in search.advance():
            self.run(run.record)
