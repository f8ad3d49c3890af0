"""Trackers in a process of their own: they read the run directory, and can neither change, slow nor stop the run.

A dashboard's client may wait for a server for minutes, when it begins, when it ends and when Python exits; a thread would
hold the run's process then. So the process of a tracker is waited for, a while, and left behind otherwise: what it has
missed can be sent later from the run directory, which has everything.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from clframe.errors import ClframeError, ConfigurationError, RunDirectoryError, TrackerError
from clframe.results import Run, open_run
from clframe.tracking.choice import Choice, choices, plain
from clframe.tracking.files import read_json, write_json
from clframe.tracking.rundir import RunDirectory, Tracker

__all__ = ["Follower", "Record", "log", "remembered", "send", "watchers"]

_PATIENCE = 60.0
"""Seconds that a tracker's process is given once the run has ended."""

_PAUSE = 0.3
"""Seconds between two looks at the events."""

_COUNTED = ("epoch", "evaluation", "measured", "finished")
"""Events that a resumed run logs exactly as one that was never stopped; the others say where it begins again."""

WARNING = "clframe: warning: "


class Record:
    """What the run directory keeps about a tracker: its options, how much it has taken, and what it wants to know again.

    Attributes:
        choice: The tracker.
        live: Whether it watches the run, and goes on when the run is resumed.
        sent: How many counted events it has taken for good.
        kept: The tracker's own.
    """

    def __init__(self, directory: Path, choice: Choice, live: bool = False) -> None:
        self.path = directory / "tracking" / f"{choice.file_name}.json"
        self.choice, self.live = choice, live
        self.sent = 0
        self.kept: dict[str, Any] = {}

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read it again.

        Raises:
            RunDirectoryError: The file is damaged.
        """
        found = read_json(path)
        try:
            options = dict(found["options"])
            made = cls(path.parent.parent, Choice(found["name"], options), bool(found["live"]))
            made.path, made.sent, made.kept = path, int(found["sent"]), dict(found["kept"])
        except (KeyError, TypeError, ValueError):
            raise RunDirectoryError(f"{path} is damaged: delete it, and the tracker begins anew.") from None
        return made

    def write(self) -> None:
        """Keep it."""
        self.path.parent.mkdir(exist_ok=True)
        about = {"schema": 1, **{n: getattr(self.choice, n) for n in ("name", "options")}}
        write_json(self.path, {**about, "live": self.live, "sent": self.sent, "kept": self.kept})

    @contextlib.contextmanager
    def locked(self, wait: bool) -> Iterator[None]:
        """Be the only one that tells this tracker of this run.

        Raises:
            RunDirectoryError: Another process is, and is not waited for.
        """
        self.path.parent.mkdir(exist_ok=True)
        with self.path.with_suffix(".lock").open("a", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise RunDirectoryError(
                    f"The tracker {self.choice.name} is watching the run in {self.path.parent.parent} already: wait until "
                    "that has ended."
                ) from None
            yield


def remembered(directory: RunDirectory) -> list[dict[str, Any]]:
    """Return the trackers that have watched a run, as a configuration names them; one that is gone becomes a warning."""
    found: list[dict[str, Any]] = []
    for path in sorted((directory.path / "tracking").glob("*.json")):
        try:
            record = Record.read(path)
            if record.live:
                found += plain([record.choice.checked()])
        except ClframeError as error:
            warnings.warn(f"The run goes on without the tracker of {path}: {error}", stacklevel=3)
    return found


def watchers(chosen: Sequence[Choice | Tracker], quiet: bool) -> list[Tracker]:
    """Return what is told of a run: objects as they are, and a process for every other choice."""
    return [Follower(one, quiet) if isinstance(one, Choice) else one for one in chosen]


class Follower(Tracker):
    """Starts the process of a tracker, and waits for it at the end.

    Args:
        choice: The tracker.
        quiet: Show its warnings alone.
    """

    def __init__(self, choice: Choice, quiet: bool) -> None:
        self.choice, self.quiet = choice, quiet
        self._process: subprocess.Popen[str] | None = None
        self._listener: threading.Thread | None = None

    def begin(self, run: Run) -> None:
        """Start the process."""
        record = Record(run.path, self.choice)
        if record.path.is_file():
            record = Record.read(record.path)
            record.choice = self.choice
        record.live = True
        record.write()
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)  # noqa: PTH109 - as text
        self._process = subprocess.Popen(
            [sys.executable, "-m", "clframe.launch.follow", str(run.path), str(record.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C reaches the run, which ends the tracker in order
        )
        self._listener = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._listener.start()

    def _listen(self, said: IO[str]) -> None:
        """Show what the process says, a line at a time, between progress bars."""
        for line in said:
            if line.startswith(WARNING) or (line.startswith("clframe: ") and not self.quiet):
                tqdm.write(line.rstrip("\n"), file=sys.stderr)

    def close(self) -> None:
        """Tell the process that the run has ended, and wait until it has taken everything."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            with contextlib.suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
            process.wait(_PATIENCE)
            if process.returncode < 0:
                self._warn(f"was ended by {signal.Signals(-process.returncode).name}")
        except subprocess.TimeoutExpired:
            self._warn(f"has not taken everything after {_PATIENCE:.0f} s and is left behind")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            listener, said = self._listener, process.stderr
            if listener is not None and said is not None:
                listener.join(1.0)
                if not listener.is_alive():  # a client's own child may still hold the other end
                    said.close()

    def _warn(self, what: str) -> None:
        tqdm.write(f"{WARNING}The tracker {self.choice.name} {what}; `clframe log` sends the rest.", file=sys.stderr)


def send(run: Run, record: Record, events: Iterator[dict[str, Any]]) -> None:
    """Tell a tracker of a run: what it has taken already as `past`, the rest as new.

    Whatever the tracker raises is raised; it is told everything again then, the next time.
    """
    tracker = record.choice.make()
    tracker.kept = record.kept
    tracker.begin(run)
    record.write()
    count = 0
    for event in events:
        kind = event["event"]
        known = count < record.sent
        count += kind in _COUNTED
        values = {k: v for k, v in event.items() if k not in ("schema", "time", "event")}
        (tracker.past if known else tracker.event)(kind, values)
    tracker.close()
    record.sent = max(count, record.sent)
    record.write()


def log(directory: str | Path, to: Any, *, again: bool = False) -> list[str]:
    """Send a run, finished or not, to trackers: what they haven't taken of it, under the keys that it has while it trains.

    Args:
        directory: The run directory.
        to: Trackers by name, as in `track` of `run`.
        again: Send everything anew.

    Returns:
        What was done, a sentence for each.

    Raises:
        ConfigurationError: There is no such tracker, or it has no name.
        RunDirectoryError: There is no run.
        TrackerError: A tracker failed.
    """
    run = open_run(directory)
    chosen = choices(to)
    if not chosen or not all(isinstance(one, Choice) for one in chosen):
        raise ConfigurationError(f"Expected trackers by name, such as wandb or tensorboard, received {to!r}.")
    return [_log_run(run, one, again) for one in chosen if isinstance(one, Choice)]


def _log_run(run: Run, choice: Choice, again: bool) -> str:
    record = Record(run.path, choice)
    if record.path.is_file() and not again:
        record = Record.read(record.path)
        record.choice = Choice(choice.name, {**record.choice.options, **choice.options})
    missed = sum(event["event"] in _COUNTED for event in run.directory.events()) - record.sent
    if missed <= 0:
        return f"{choice.name} has everything of {run.path} already; --again sends it anew."
    try:
        with record.locked(wait=False):
            send(run, record, run.directory.events())
    except ClframeError:
        raise
    except Exception as error:
        raise TrackerError(
            f"The tracker {choice.name} failed ({type(error).__name__}: {' '.join(str(error).split())}): the same command "
            "tries again."
        ) from error
    return f"{choice.name} took {missed} events of {run.path}."


def follow(directory: RunDirectory, ended: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Yield the events of a run that trains, as they come, until it has ended and all are told.

    Raises:
        RunDirectoryError: A line is damaged.
    """
    file = directory.path / "events.jsonl"
    place, rest = 0, b""
    last = False
    while True:
        if file.exists():
            with file.open("rb") as log:
                log.seek(place)
                new = log.read()
            place += len(new)
            *lines, rest = (rest + new).split(b"\n")
            for line in lines:
                yield json.loads(line)
        if last:
            return
        last = ended()


def _told_by_pipe() -> bool:
    """Wait a moment, and say whether the run's process has closed the pipe, or is no more."""
    ready, _, _ = select.select([sys.stdin], [], [], _PAUSE)
    return bool(ready)


def main(arguments: Sequence[str]) -> int:
    """Be the process of a tracker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(10)  # training comes first
    place, file = arguments
    record = Record.read(Path(file))
    try:
        run = open_run(place)
        with record.locked(wait=True):  # one that a killed run has left may not be done yet
            send(run, Record.read(Path(file)), follow(run.directory, _told_by_pipe))
    except (Exception, SystemExit) as error:
        said = str(error) if isinstance(error, ClframeError) else f"{type(error).__name__}: {error}"
        print(
            f"{WARNING}The tracker {record.choice.name} failed ({' '.join(said.split())}) and is dropped; the run goes on. "
            f"`clframe log {place} --to {record.choice.name}` sends what it has missed.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # whatever a client does when Python exits, the run waits for
