"""Joins a trainer to its run directory and trackers."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clframe.errors import RunDirectoryError
from clframe.metrics import Predictions, prediction_path
from clframe.tracking.rundir import RunDirectory, Tracker
from clframe.training.seeds import isolated

if TYPE_CHECKING:
    from clframe.results import Run

__all__ = ["RunRecorder", "Unwritten"]

_FLEETING = {"steps"}
"""Events for trackers only."""


class RunRecorder:
    """Writes a run's events, predictions and checkpoints, and tells the trackers.

    Args:
        directory: Where the run is kept; locked by this process.
        trackers: Watch the run; one that raises is dropped with a warning.
        write_checkpoint: Writes a state to a path, whole or not at all.
    """

    def __init__(
        self,
        directory: RunDirectory,
        trackers: Sequence[Tracker],
        write_checkpoint: Callable[[Path, Mapping[str, Any]], None],
    ) -> None:
        self.directory = directory
        self.trackers = list(trackers)
        self._write = write_checkpoint

    def begin(self, run: Run) -> None:
        """Tell the trackers that the run starts or goes on, and what was told before."""
        for tracker in list(self.trackers):
            if not hasattr(tracker, "kept"):
                tracker.kept = {}
            self._tell(tracker, lambda t: t.begin(run))
        for event in self.directory.events():
            values = {k: v for k, v in event.items() if k not in ("schema", "time", "event")}
            self._tell_all("past", event["event"], values)

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Log an event and pass it on."""
        if kind not in _FLEETING:
            self.directory.event(kind, values)
        self._tell_all("event", kind, values)

    def _tell_all(self, method: str, kind: str, values: Mapping[str, Any]) -> None:
        for tracker in list(self.trackers):
            if getattr(type(tracker), method) is not getattr(Tracker, method):  # else there is nobody to protect from
                self._tell(tracker, lambda t: getattr(t, method)(kind, copy.deepcopy(dict(values))))

    def _tell(self, tracker: Tracker, call: Callable[[Tracker], None]) -> None:
        """Call a tracker, which can change neither the values nor the global generators, nor stop the run."""
        try:
            with isolated():
                call(tracker)
        except Exception as error:
            self.trackers.remove(tracker)
            warnings.warn(
                f"The tracker {type(tracker).__name__} failed ({type(error).__name__}: {error}) and is dropped; the run goes on.",
                stacklevel=4,
            )

    def predictions(self, split: str, after: int, heads: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Keep predictions, a file per head; returns the accuracy (or error) over everything that a head could answer."""
        summary: dict[str, Any] = {}
        for head, columns in heads.items():
            kept = Predictions(**columns)
            kept.save(prediction_path(self.directory.predictions, split, after, head))
            if kept.predicted is not None:
                right = (kept.predicted == kept.target)[kept.predicted >= 0]
                if len(right):
                    summary.setdefault("seen_accuracy", {})[head] = float(right.mean())
            elif kept.score is not None:
                summary.setdefault("error", {})[head] = float(kept.score.mean())
        return summary

    def checkpoint(self, state: Mapping[str, Any], keep_as: str | None) -> None:
        """Replace the latest checkpoint; on request keep a copy."""
        latest = self.directory.checkpoints / "latest.pt"
        self._write(latest, {**state, "events_size": self.directory.events_size})
        if keep_as is not None:
            copy = self.directory.checkpoints / f"{keep_as}.pt"
            try:
                shutil.copyfile(latest, copy.with_suffix(".tmp"))
                copy.with_suffix(".tmp").replace(copy)
            except OSError as error:
                copy.with_suffix(".tmp").unlink(missing_ok=True)
                raise RunDirectoryError(f"{copy} can't be written ({error}): free some space and resume.") from error

    def close(self) -> None:
        """Close trackers and files."""
        for tracker in list(self.trackers):
            self._tell(tracker, lambda t: t.close())
        self.directory.close()


class Unwritten:
    """Takes nothing: the recorder of a trainer that only tries something, or has no directory yet."""

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Ignore."""

    def predictions(self, split: str, after: int, heads: Mapping[str, Any]) -> dict[str, Any]:
        """Ignore."""
        return {}

    def checkpoint(self, state: Mapping[str, Any], keep_as: str | None) -> None:
        """Ignore."""
