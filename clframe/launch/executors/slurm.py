"""Runs as jobs of a Slurm cluster, through submitit: one array, requeued when preempted or out of time, watched."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import time
import warnings
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from clframe.errors import ClframeError, ConfigurationError, RunDirectoryError, did_you_mean
from clframe.launch.executors.base import Executor, Update, Work
from clframe.launch.sweep_run import SweepRun
from clframe.spec import field
from clframe.tracking.files import read_json, write_json

__all__ = ["Slurm"]

_MOMENT = 0.5
"""Seconds between two moments in which nothing happens."""
_POLL = 5.0
"""Seconds between two questions to Slurm."""
_MISSES = 2
"""Questions in a row in which a job must be absent before it counts as gone: files may arrive late."""
_PROGRAMS = ("sbatch", "squeue", "sinfo", "scontrol")
_DAYS = re.compile(r"(?:(?P<days>\d+)-)?(?:(?:(?P<hours>\d+):)?(?P<minutes>\d+):)?(?P<seconds>\d+)")


class Slurm(Executor):
    """Runs as jobs of a Slurm cluster, an array of them, through submitit.

    A job that is preempted or runs out of time is put into the queue again and goes on from the run's last checkpoint.
    The sweep watches the queue until all are done. Ctrl-C ends the watching alone: the jobs stay, and the same command
    watches them again without submitting any twice.
    """

    elsewhere: ClassVar[bool] = True

    partition: str | None = field(default=None, help="Where jobs run; none: the cluster's default.")
    minutes: int = field(default=60, ge=2, unit="minutes", help="Time limit of a job; a run may take several in a row.")
    gpus: int = field(default=0, ge=0, help="GPUs of a run.")
    cpus: int | None = field(default=None, ge=1, help="CPU cores of a run; none: as many as the plan's threads.")
    memory_gb: float | None = field(default=None, gt=0, unit="GB", help="Memory of a run; none: the cluster's default.")
    account: str | None = field(default=None, help="Who pays.")
    qos: str | None = field(default=None, help="Quality of service.")
    constraint: str | None = field(default=None, help="Features that a node must have.")
    setup: list[str] = field(default_factory=list, help="Lines of shell before the run, such as `module load cuda`.")
    requeues: int = field(default=10, ge=0, help="How often a run may go on in a new job after it ran out of time.")

    def check(self, work: Work) -> None:
        """Refuse what the cluster hasn't, by asking it.

        Raises:
            ConfigurationError: submitit or Slurm isn't there, or an option isn't to be had.
        """
        if importlib.util.find_spec("submitit") is None:
            raise ConfigurationError(
                "The executor slurm needs submitit, which isn't installed: run `pip install 'clframe[slurm]'`, or choose "
                "executor: local."
            )
        missing = [program for program in _PROGRAMS if shutil.which(program) is None]
        if missing:
            raise ConfigurationError(
                f"The executor slurm needs Slurm's {missing[0]}, which isn't on this machine: start the sweep on a login "
                "node of the cluster, or choose executor: local."
            )
        self._check_partition()
        self._check_request(work)

    def _check_partition(self) -> None:
        lines = _ask("sinfo", "--noheader", "--format=%R|%l").splitlines()
        limits = {name: limit for name, _, limit in (line.partition("|") for line in lines)}
        if self.partition is None:
            return
        if self.partition not in limits:
            hint = did_you_mean(self.partition, limits)
            raise ConfigurationError(
                f"executor.partition: expected one of {', '.join(limits)}, received {self.partition!r}.{hint}"
            )
        most = _minutes(limits[self.partition])
        if most is not None and self.minutes > most:
            raise ConfigurationError(
                f"executor.minutes: expected at most the {most:g} minutes of the partition {self.partition}, received "
                f"{self.minutes}: a run that takes longer goes on in a new job."
            )

    def _check_request(self, work: Work) -> None:
        """Let Slurm judge the request as a whole, without submitting it."""
        flags = {
            "partition": self.partition,
            "time": self.minutes,
            "cpus-per-task": self.cpus or work.threads,
            "mem": None if self.memory_gb is None else f"{int(1024 * self.memory_gb)}M",
            "gpus-per-node": self.gpus or None,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
        }
        _ask("sbatch", "--test-only", *(f"--{k}={v}" for k, v in flags.items() if v is not None), "--wrap=true")

    def run(self, work: Work) -> Generator[Update | None]:
        """Submit what isn't in the queue yet, and watch all until they end."""
        jobs = self._submitted(work)
        waiting = {jobs[run.name]: run for run in work.runs}
        absent = dict.fromkeys(waiting, 0)
        while waiting:
            queue = _queue()
            for job, run in list(waiting.items()):
                absent[job] = 0 if queue is None or job in queue else absent[job] + 1
                update = _judge(work, job, run, (queue or {}).get(job, ""), absent[job] >= _MISSES)
                if update.ended:
                    del waiting[job]
                yield update
            asked = time.monotonic()
            while waiting and time.monotonic() - asked < _POLL:
                yield None
                time.sleep(_MOMENT)

    def interrupted(self, work: Work) -> str:
        """Say how to go on, or how to end the jobs too."""
        known: dict[str, str] = read_json(_jobs_file(work)) if _jobs_file(work).is_file() else {}
        left = " ".join(known[run.name] for run in work.runs if run.name in known and run.state != "finished")
        return f"the jobs stay in Slurm's queue, and the same command watches them again (`scancel {left}` ends them)"

    # -- jobs --------------------------------------------------------------------------------------------------------------

    def _submitted(self, work: Work) -> dict[str, str]:
        """Return the job of every run, those of an earlier start that are still in the queue as they are."""
        file = _jobs_file(work)
        known: dict[str, str] = read_json(file) if file.is_file() else {}
        queue = _queue()
        if queue is None:
            raise ConfigurationError("Slurm's squeue doesn't answer, so that jobs can't be watched: try again later.")
        kept = {run.name: known[run.name] for run in work.runs if known.get(run.name) in queue}
        new = [run for run in work.runs if run.name not in kept]
        made = {run.name: job for run, job in zip(new, self._submit(work, new), strict=True)}
        try:
            write_json(file, {**known, **kept, **made})
        except RunDirectoryError:
            if made:  # nobody would know of them
                subprocess.run(["scancel", *made.values()], check=False)
            raise
        return {**kept, **made}

    def _submit(self, work: Work, runs: list[SweepRun]) -> list[str]:
        if not runs:
            return []
        import submitit

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = submitit.AutoExecutor(_folder(work), cluster="slurm", slurm_max_num_timeout=self.requeues)
            made.update_parameters(**self._parameters(work))
            try:
                with made.batch():
                    jobs = [
                        made.submit(_Task(work.config(run).absolute(), run.directory.absolute(), work.data_root))
                        for run in runs
                    ]
            except Exception as error:  # submitit has no root of its own
                raise ConfigurationError(
                    f"Slurm refused the jobs ({' '.join(str(error).split())}): correct `executor` in the plan."
                ) from error
        return [str(job.job_id) for job in jobs]

    def _parameters(self, work: Work) -> dict[str, Any]:
        given = {
            "name": "clframe",
            "timeout_min": self.minutes,
            "cpus_per_task": self.cpus or work.threads,
            "gpus_per_node": self.gpus or None,
            "mem_gb": self.memory_gb,
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "slurm_qos": self.qos,
            "slurm_constraint": self.constraint,
            "slurm_array_parallelism": work.processes,
            "slurm_setup": [*self.setup, f"export OMP_NUM_THREADS={work.threads}"],
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class _Task:
    """What a job does; submitit calls it again in the next job after a preemption or the end of the time."""

    config: Path
    directory: Path
    data_root: str | None

    def __call__(self) -> int:
        """Begin the run or go on."""
        from clframe.launch.worker import do

        return do(self.config, self.directory, self.data_root)

    def checkpoint(self) -> Any:
        """Say how to go on: as at the beginning, since a run keeps its own checkpoints."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _judge(work: Work, job: str, run: SweepRun, state: str, gone: bool) -> Update:
    """Say what has become of a run, by its directory once its job is gone."""
    if run.state == "finished":
        return Update(run, "finished")
    if not gone:
        return Update(run, "running" if state in ("RUNNING", "COMPLETING") else "waiting")
    if run.state != "failed":
        said = ""
        file = _folder(work) / f"{job}_0_log.err"
        with contextlib.suppress(OSError):
            said = file.read_text(encoding="utf-8", errors="replace")
        with contextlib.suppress(ClframeError):
            run.keep_log(said, ended=f"Slurm's job {job} ended as {_end_of(job)} before the run did (its log: {file})")
    return Update(run, "failed", run.complaint)


def _folder(work: Work) -> Path:
    """Where scripts and logs of jobs lie."""
    return work.folder / "slurm"


def _jobs_file(work: Work) -> Path:
    """Says which job does which run."""
    return work.folder / "jobs.json"


def _queue() -> dict[str, str] | None:
    """Return the user's jobs in the queue and their states; None when Slurm doesn't answer."""
    try:
        lines = _ask("squeue", "--noheader", "--array", "--me", "--format=%i|%T").splitlines()
    except ConfigurationError:
        return None
    return dict(line.split("|", 1) for line in lines if "|" in line)


def _end_of(job: str) -> str:
    """Slurm's word for how a job ended, where it still knows."""
    with contextlib.suppress(ConfigurationError):
        found = re.search(r"JobState=(\w+)", _ask("scontrol", "show", "job", "--oneliner", job))
        if found is not None:
            return found[1]
    return "unknown"


def _ask(*command: str) -> str:
    """Ask Slurm.

    Raises:
        ConfigurationError: It refuses; with its reason.
    """
    environment: Mapping[str, str] = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    except subprocess.CalledProcessError as error:
        lines = [line.split("error: ")[-1] for line in error.stderr.splitlines() if line.strip()]
        reason = "; ".join(dict.fromkeys(lines)) or f"exit code {error.returncode}"
        raise ConfigurationError(
            f"Slurm's {command[0]} refuses this sweep ({reason}): correct `executor` in the plan."
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"Slurm's {command[0]} doesn't answer ({error}): try again later.") from None
    return done.stdout


def _minutes(limit: str) -> float | None:
    """Read a time limit such as 2-00:30:00; None for infinite ones."""
    found = _DAYS.fullmatch(limit.strip())
    if found is None:
        return None
    parts = {name: int(value or 0) for name, value in found.groupdict().items()}
    return 1440 * parts["days"] + 60 * parts["hours"] + parts["minutes"] + parts["seconds"] / 60
