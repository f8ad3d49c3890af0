"""The run directory: everything that is known about a run, readable at any moment, written by one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from clframe.errors import RunDirectoryError
from clframe.tracking.files import read_json, read_yaml, write_json, write_yaml

__all__ = ["RunDirectory", "Tracker"]

SCHEMA = 1


class Tracker:
    """Something that watches a run, such as a progress bar; it is told what happens and can change nothing.

    A tracker that raises is dropped with a warning; the run goes on.
    """

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Take note of an event, as `events.jsonl` records it.

        Args:
            kind: `run`, `experience`, `phase`, `epoch`, `evaluation`, `checkpoint`, `resumed` or `finished`.
            values: What happened; plain values.
        """

    def close(self) -> None:
        """The run has ended or stopped."""


class RunDirectory:
    """The files of one run.

    Use `create` for a new run and `open` for one that exists; `lock` before writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events: IO[bytes] | None = None
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
        return dict(read_yaml(self.path / "config.yaml"))

    @property
    def stream(self) -> dict[str, Any]:
        """Tasks, class names and order of the stream."""
        return dict(read_json(self.path / "stream.json"))

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
        return dict(read_json(self.path / "result.json"))

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
        try:
            for folder in ("predictions", "checkpoints"):
                (temporary / folder).mkdir(parents=True)
            for name, content in files.items():
                (write_yaml if name.endswith(".yaml") else write_json)(temporary / name, content)
            for name, text in sources.items():
                (temporary / "source").mkdir(exist_ok=True)
                (temporary / "source" / name).write_text(text, encoding="utf-8")
            if path.exists():
                path.rmdir()
            temporary.rename(path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = error.strerror or error
            raise RunDirectoryError(
                f"The run directory {path} can't be made ({reason}): choose another --run-dir."
            ) from error
        except RunDirectoryError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return cls(path).lock()

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
        handle = (self.path / "lock").open("a+")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            owner = handle.read().strip() or "another process"
            handle.close()
            raise RunDirectoryError(
                f"The run directory {self.path} is in use by {owner}: wait for it, or choose another --run-dir."
            ) from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {os.uname().nodename}")
        handle.flush()
        self._lock = handle
        return self

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append one line to `events.jsonl`.

        Raises:
            RunDirectoryError: It can't be written.
        """
        line = json.dumps({"schema": SCHEMA, "time": round(time.time(), 3), "event": kind, **values})
        try:
            if self._events is None:
                self._events = (self.path / "events.jsonl").open("ab")
            self._events.write(line.encode() + b"\n")
            self._events.flush()
        except OSError as error:
            raise RunDirectoryError(
                f"The events of {self.path} can't be written ({error.strerror or error}): free some space and resume."
            ) from error

    @property
    def events_size(self) -> int:
        """Bytes of `events.jsonl` so far."""
        file = self.path / "events.jsonl"
        return file.stat().st_size if file.exists() else 0

    def cut_events(self, size: int) -> None:
        """Drop what was logged after a checkpoint, which a resumed run will log again."""
        file = self.path / "events.jsonl"
        if file.exists() and file.stat().st_size > size:
            with file.open("r+b") as handle:
                handle.truncate(size)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield all events; a last line cut short by a killed writer is left out."""
        file = self.path / "events.jsonl"
        if not file.exists():
            return
        *lines, _unfinished = file.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError:
                raise RunDirectoryError(f"Line {number} of {file} is damaged.") from None

    def close(self) -> None:
        """Close the files and give the lock back."""
        for handle in (self._events, self._lock):
            if handle is not None:
                handle.close()
        self._events = self._lock = None
