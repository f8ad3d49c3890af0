"""The run directory: everything that is known about a run, readable at any moment, written by one process at a time."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from clframe.errors import RunDirectoryError
from clframe.registry import split_names
from clframe.tracking.files import read_json, read_yaml, to_json, write_json, write_text, write_yaml
from clframe.tracking.lock import lock_folder

if TYPE_CHECKING:
    from clframe.results import Run

__all__ = ["RunDirectory", "Tracker", "group_name", "run_name", "short_name", "spec_hash"]

SCHEMA = 1


def spec_hash(record: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits that stand for a resolved configuration.

    >>> spec_hash({"seed": 0}) == spec_hash({"seed": 1})
    False
    """
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:8]


def group_name(record: Mapping[str, Any]) -> str:
    """Return what runs that differ in nothing but their seeds have in common: `<scenario>/<strategy>/<hash>`."""
    shared = {k: v for k, v in record.items() if k not in ("seed", "init_seed", "data_seed")}
    names = [short_name(str(record[part]["name"])) for part in ("scenario", "strategy")]
    return f"{names[0]}/{names[1]}/{spec_hash(shared)}"


def run_name(record: Mapping[str, Any]) -> str:
    """Return the readable folder name of a run: `<scenario>-<strategy>-<seed>-<hash>`."""
    names = [short_name(str(record[part]["name"])) for part in ("scenario", "strategy")]
    return f"{names[0]}-{names[1]}-{record['seed']}-{spec_hash(record)}"


def short_name(name: str) -> str:
    """Return a name for folders: of a user's class only the class."""
    parts = (n.rpartition(":")[2] for n in split_names(name))
    return "".join(c if c.isalnum() or c in "_+" else "_" for c in "+".join(parts))


class Tracker:
    """Something that watches a run, such as a progress bar; it is told what happens and can change nothing.

    A tracker that raises is dropped with a warning; the run goes on. One that is chosen by its name (`track: [wandb]`)
    lives in a process of its own and reads the run directory; an object is called in the run's own process, between two
    steps. Both are told the same: `begin`, then `past` for what was told before the run was stopped, `event`, `close`.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """Packages that it can't do without."""

    kept: dict[str, Any]
    """Of a tracker chosen by name: what it wants to know again when the run goes on, as plain values; empty at first."""

    def begin(self, run: Run) -> None:
        """The run starts or goes on.

        Args:
            run: Its configuration, stream, numbers and files, which grow while it trains.
        """

    def past(self, kind: str, values: Mapping[str, Any]) -> None:
        """Recall an event that was told before the run was stopped."""

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Take note of an event, as `events.jsonl` records it.

        Args:
            kind: `run`, `experience`, `epoch`, `evaluation`, `measured` or `finished`; to objects also `steps`.
            values: What happened; plain values.
        """

    def close(self) -> None:
        """The run has ended or stopped; where it has ended, its result is there."""


class RunDirectory:
    """The files of one run.

    Use `create` for a new run and `open` for one that exists; `lock` before writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events: io.FileIO | None = None
        self._lock: IO[str] | None = None

    @property
    def predictions(self) -> Path:
        """Kept predictions, a folder per split."""
        return self.path / "predictions"

    @property
    def checkpoints(self) -> Path:
        """`latest.pt`, models kept on request, and `model.safetensors` once finished."""
        return self.path / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether the run has a result."""
        return (self.path / "result.json").is_file()

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return _mapping(read_yaml(self.path / "config.yaml"), self.path / "config.yaml")

    @property
    def stream(self) -> dict[str, Any]:
        """Tasks, class names and order of the stream."""
        return _mapping(read_json(self.path / "stream.json"), self.path / "stream.json")

    @property
    def result(self) -> dict[str, Any]:
        """Every metric.

        Raises:
            RunDirectoryError: The run hasn't finished, or the file is damaged.
        """
        if not self.finished:
            raise RunDirectoryError(
                f"The run in {self.path} has not finished: `clframe resume {self.path}` continues it."
            )
        return _mapping(read_json(self.path / "result.json"), self.path / "result.json")

    @classmethod
    def create(cls, path: Path, files: Mapping[str, Any], sources: Mapping[str, str]) -> RunDirectory:
        """Make the directory of a new run, whole or not at all, and lock it.

        Args:
            path: Where; it must not exist, or be an empty folder.
            files: Contents by name; `.yaml` and `.json`.
            sources: Text of user's files by name, kept under `source/`.

        Raises:
            RunDirectoryError: The directory exists or can't be written.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunDirectoryError(
                f"The run directory {path} exists already: continue it with `clframe resume {path}`, or choose another --run-dir."
            )
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        outermost = next((p for p in reversed(path.parents) if not p.exists()), None)
        shutil.rmtree(temporary, ignore_errors=True)  # of an earlier process of the same number
        made = cls(temporary)
        try:
            made._fill(files, sources)
            made.lock()  # the lock belongs to the file and moves with it
            if path.exists():
                path.rmdir()
            temporary.rename(path)
        except (OSError, RunDirectoryError) as error:
            made.close()
            shutil.rmtree(temporary, ignore_errors=True)
            if outermost is not None:
                _remove_empty(path.parent, outermost)
            reason = error if isinstance(error, RunDirectoryError) else error.strerror or error
            raise RunDirectoryError(
                f"The run directory {path} can't be made ({str(reason).replace(str(temporary), str(path))}): choose another --run-dir."
            ) from error
        made.path = path
        return made

    def _fill(self, files: Mapping[str, Any], sources: Mapping[str, str]) -> None:
        for folder in ("predictions", "checkpoints"):
            (self.path / folder).mkdir(parents=True)
        for name, content in files.items():
            (write_yaml if name.endswith(".yaml") else write_json)(self.path / name, content)
        for name, text in sources.items():
            (self.path / "source").mkdir(exist_ok=True)
            write_text(self.path / "source" / name, text)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open an existing run.

        Raises:
            RunDirectoryError: There is no run.
        """
        if not (path / "config.yaml").is_file():
            raise RunDirectoryError(f"Expected a run directory at {path}, found no config.yaml there.")
        return cls(path)

    def lock(self) -> RunDirectory:
        """Become the only writer; the lock goes with the process, however it ends.

        Raises:
            RunDirectoryError: Another process writes here.
        """
        self._lock = lock_folder(self.path, "The run directory", "choose another --run-dir")
        return self

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append one line to `events.jsonl`, or nothing.

        Raises:
            RunDirectoryError: It can't be written.
        """
        line = to_json({"schema": SCHEMA, "time": round(time.time(), 3), "event": kind, **values})
        before = self.events_size
        try:
            if self._events is None:
                self._events = io.FileIO(self.path / "events.jsonl", "a")
            left = memoryview(line.encode() + b"\n")
            while left:  # a disk that fills up takes the first part of a line
                left = left[self._events.write(left) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self.cut_events(before)
            raise RunDirectoryError(
                f"The events of {self.path} can't be written ({error.strerror or error}): free some space and resume."
            ) from error

    @property
    def events_size(self) -> int:
        """Bytes of `events.jsonl` so far."""
        file = self.path / "events.jsonl"
        return file.stat().st_size if file.exists() else 0

    def cut_events(self, size: int) -> None:
        """Drop what was logged after a checkpoint, which a resumed run will log again.

        Raises:
            RunDirectoryError: The log has become shorter than it was at the checkpoint.
        """
        file = self.path / "events.jsonl"
        if self.events_size < size:
            raise RunDirectoryError(
                f"Expected {file} to hold at least {size} bytes, as when its checkpoint was taken, found "
                f"{self.events_size}: bring it back, or start the run again."
            )
        if self.events_size > size:
            os.truncate(file, size)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield all events; a last line cut short by a killed writer is left out.

        Raises:
            RunDirectoryError: A line is damaged; names it.
        """
        file = self.path / "events.jsonl"
        if not file.exists():
            return
        *lines, _unfinished = file.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                found = json.loads(line)
            except ValueError:
                found = None
            if not isinstance(found, dict) or "event" not in found:
                raise RunDirectoryError(
                    f"Line {number} of {file} is damaged: bring the file back from a copy, or start the run again."
                )
            yield found

    def close(self) -> None:
        """Close the files and give the lock back."""
        for handle in (self._events, self._lock):
            if handle is not None:
                with contextlib.suppress(OSError):
                    handle.close()
        self._events = self._lock = None


def _mapping(found: Any, file: Path) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise RunDirectoryError(
            f"{file} is damaged (it holds a {type(found).__name__}, no mapping): bring it back from a copy, or start the run again."
        )
    return found


def _remove_empty(folder: Path, outermost: Path) -> None:
    """Take away the folders that were made on the way to a run directory which could not be made."""
    for made in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            made.rmdir()
        if made == outermost:
            return
