"""Runs as processes of this machine: one per GPU, or a share of the cores each."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import IO

from clframe.errors import ClframeError
from clframe.launch.executors.base import Executor, Update, Work
from clframe.launch.sweep_run import SweepRun

__all__ = ["Local"]

_PATIENCE = 10.0
"""Seconds that an interrupted run is given to end by itself."""
_MOMENT = 0.05
"""Seconds between two looks at the processes."""


@dataclass(frozen=True)
class _Started:
    process: subprocess.Popen[bytes]
    gpu: str | None
    said: IO[bytes]


class Local(Executor):
    """Runs as processes of this machine.

    A run has one CPU thread, unless the plan's `threads` says otherwise: runs side by side use the cores better than
    threads, which wait for each other and crawl where something else is busy, and a result doesn't depend on how many
    runs there are at a time. As many run at a time as the plan's `processes` says; by default one per GPU where runs
    use GPUs, else as many as have their threads on the cores. Each run sees one GPU, the one with the fewest runs.
    """

    def run(self, work: Work) -> Generator[Update | None]:
        """Do the runs; they end with this process, however it ends."""
        gpus = visible_gpus() if any(_pinned(run) for run in work.runs) else []
        count = work.processes or len(gpus) or max(1, len(os.sched_getaffinity(0)) // work.threads)
        waiting = list(work.runs)
        active: dict[SweepRun, _Started] = {}
        try:
            while waiting or active:
                while waiting and len(active) < count:
                    run = waiting.pop(0)
                    gpu = _freest(gpus, active.values()) if _pinned(run) else None
                    active[run] = _start(run, work, gpu)
                    yield Update(run, "running")
                ended = [run for run, started in active.items() if started.process.poll() is not None]
                for run in ended:
                    yield _outcome(run, active.pop(run))
                if not ended:
                    yield None
                    time.sleep(_MOMENT)
        finally:
            _stop(list(active.values()))


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(count)] if named is None else [n.strip() for n in named.split(",")]
    return names[:count]


def _pinned(run: SweepRun) -> bool:
    """Whether a run takes a GPU of our choice: not where it names one, or the CPU."""
    return run.record.get("device", "auto") in ("auto", "cuda")


def _freest(gpus: Sequence[str], active: Iterable[_Started]) -> str | None:
    """The GPU with the fewest runs, the first of several."""
    taken = Counter(started.gpu for started in active)
    return min(gpus, key=lambda gpu: taken[gpu], default=None)


def _start(run: SweepRun, work: Work, gpu: str | None) -> _Started:
    environment = {**os.environ, "OMP_NUM_THREADS": str(work.threads)}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    said = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended; it has no name to be left behind
    process = subprocess.Popen(
        [*work.command(run), "--parent", str(os.getpid())],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=said,
        process_group=0,  # Ctrl-C reaches this process alone, which stops the others in order
    )
    return _Started(process, gpu, said)


def _outcome(run: SweepRun, started: _Started) -> Update:
    """Say how a process ended; of one that couldn't keep what it said, keep that."""
    code = started.process.returncode
    with started.said as stream:
        stream.seek(0)
        said = stream.read().decode(errors="replace")
    if code == 0:
        return Update(run, "finished")
    if run.state == "failed":
        return Update(run, "failed", run.complaint)
    ended = f"ended by signal {signal.Signals(-code).name}" if code < 0 else ""
    try:
        run.keep_log(said, None if code < 0 else code, ended)
    except (ClframeError, OSError):  # no space for it
        lines = [line.removeprefix("clframe: ") for line in said.split("\n") if line.strip()]
        return Update(run, "failed", ended or (lines[-1] if lines else f"ended with exit code {code}"))
    return Update(run, "failed", run.complaint)


def _stop(active: Sequence[_Started]) -> None:
    """Ask processes to end, wait for them, and end those that don't."""
    for started in active:
        with contextlib.suppress(ProcessLookupError):
            started.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + _PATIENCE
    for started in active:
        try:
            started.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            started.process.kill()
            started.process.wait()
        started.said.close()
