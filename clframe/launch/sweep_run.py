"""One run of a sweep, as its files tell: what has become of it, what it said, what it cost."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clframe.errors import ClframeError, RunDirectoryError, TrainingError
from clframe.results import summary_of
from clframe.tracking.files import read_json, write_text
from clframe.tracking.rundir import RunDirectory

__all__ = ["State", "SweepRun"]

State = Literal["finished", "failed", "unfinished", "missing"]

_TAIL = 1 << 16
"""Bytes at the end of a run's events that tell where it is."""
_EXIT = "exit code "


@dataclass(frozen=True, eq=False)
class SweepRun:
    """One run of a sweep.

    Attributes:
        record: Its resolved configuration, as `config.yaml` holds it.
        directory: Its run directory, `<scenario>-<strategy>-<seed>-<hash>`.
        track: What watches it, as a configuration names trackers.
    """

    record: Mapping[str, Any]
    directory: Path
    track: Sequence[Mapping[str, Any]] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.directory.name

    @property
    def config(self) -> dict[str, Any]:
        """What the process that begins the run is given."""
        return {**self.record, **({"track": [dict(one) for one in self.track]} if self.track else {})}

    @property
    def log(self) -> Path:
        """What the run said when it failed; it lies beside the run directory."""
        return self.directory.with_name(f"{self.name}.log")

    @property
    def begun(self) -> bool:
        """Whether there is a run directory, to go on in."""
        return (self.directory / "config.yaml").is_file()

    @property
    def state(self) -> State:
        """What has become of it: finished, failed, unfinished (stopped on the way) or missing (never begun)."""
        if (self.directory / "result.json").is_file():
            return "finished"
        if self.log.is_file():
            return "failed"
        return "unfinished" if self.begun else "missing"

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
    def score_text(self) -> str | None:
        """The headline's value as a table shows it."""
        if (headline := self.headline) is None:
            return None
        return f"{100 * headline[1]:.2f} %" if headline[0] == "final_accuracy" else f"{headline[1]:.4g}"

    def number(self, metric: str) -> tuple[float, bool] | None:
        """A metric of the finished run, of its primary head, and whether a larger score is a better one."""
        if self.state != "finished":
            return None
        summary = summary_of(RunDirectory.open(self.directory))
        value = summary.number(metric)
        return None if value is None else (value, summary.higher_is_better)

    # -- what it said --------------------------------------------------------------------------------------------------

    def keep_log(self, said: str, code: int | None = None, ended: str = "") -> None:
        """Keep what a failed run said.

        Args:
            said: Its standard error.
            code: The exit code that it ended with by itself.
            ended: How it ended otherwise.

        Raises:
            RunDirectoryError: It can't be written.
        """
        first = "" if code is None else f"{_EXIT}{code}"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.log, "\n".join(part for part in (first, said.rstrip("\n"), ended) if part) + "\n")

    @property
    def complaint(self) -> str:
        """The last line that a failed run said."""
        lines = self.said
        return next((line.removeprefix("clframe: ") for line in reversed(lines) if line.strip()), "it said nothing")

    @property
    def diverged(self) -> bool:
        """Whether the run failed because its training couldn't go on, as it would again."""
        return self.state == "failed" and self.said[0] == f"{_EXIT}{TrainingError.exit_code}"

    @property
    def said(self) -> list[str]:
        """The lines that a failed run said; one empty line where none were kept."""
        try:
            return self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return [""]

    # -- how far it is, and what that took -------------------------------------------------------------------------------

    @property
    def whereabouts(self) -> str:
        """Where a run under way is, in words, such as `experience 2/5, ewc 3/10`."""
        place = ""
        for event in self._last_events():
            if event["event"] == "experience":
                place = f"experience {event['experience']}{self._total}"
            elif event["event"] == "epoch":
                place = f"experience {event['experience']}{self._total}, {event['phase']} {event['epoch']}/{event['epochs']}"
            elif event["event"] == "evaluation" and event["experience"]:
                place = f"experience {event['experience']}{self._total}, scored"
        return place

    @property
    def _total(self) -> str:
        try:
            return f"/{len(read_json(self.directory / 'stream.json')['experiences'])}"
        except (RunDirectoryError, KeyError, TypeError):
            return ""

    def _last_events(self) -> Iterator[dict[str, Any]]:
        """The last few events; whatever can't be read of a file under way is left out."""
        with contextlib.suppress(OSError), (self.directory / "events.jsonl").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            for line in file.read().split(b"\n"):
                with contextlib.suppress(ValueError):
                    yield json.loads(line)

    def cost(self) -> dict[str, float]:
        """What the run took so far: optimiser `steps`, and `seconds` between the first and last event of each start."""
        steps, seconds, began, last = 0, 0.0, 0.0, 0.0
        with contextlib.suppress(ClframeError):
            for event in RunDirectory(self.directory).events():
                if event["event"] == "run":
                    seconds += last - began
                    began = event["time"]
                last = event["time"]
                steps += event["steps"] if event["event"] == "epoch" else 0
        return {"steps": steps, "seconds": round(seconds + last - began, 3)}
