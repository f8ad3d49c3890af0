"""What a sweep shows while it runs: a live table on a terminal, a line per run in a pipe."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from types import TracebackType

from clframe.launch.executors import Update
from clframe.launch.sweep_run import SweepRun
from clframe.report import Column, Table

__all__ = ["SweepProgress"]

_EVERY = 0.5
"""Seconds between two drawings of the table."""


class SweepProgress:
    """Shows how a sweep goes, on standard error.

    Args:
        runs: The runs that are to be done.
        stage: Stands before every line, such as `search `.
        live: Whether to draw a table; None means when standard error is a terminal.
    """

    def __init__(self, runs: Sequence[SweepRun], stage: str = "", live: bool | None = None) -> None:
        self.runs = list(runs)
        self.stage = stage
        self.live = sys.stderr.isatty() if live is None else live
        self.states: dict[SweepRun, str] = dict.fromkeys(runs, "waiting")
        self.began: dict[SweepRun, float] = {}
        self.took: dict[SweepRun, float] = {}
        self.scores: dict[SweepRun, str] = {}
        self.start = time.monotonic()
        self._drawn = 0
        self._last = -_EVERY

    def __enter__(self) -> SweepProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self._draw()
            self._drawn = 0

    def show(self, update: Update | None) -> None:
        """Take in what has become of a run; now and then draw the table."""
        if update is not None:
            self._note(update)
        if self.live and time.monotonic() - self._last >= _EVERY:
            self._draw()

    def _note(self, update: Update) -> None:
        run = update.run
        if update.state == "running":
            self.began.setdefault(run, time.monotonic())
        self.states[run] = update.state
        if not update.ended:
            return
        self.took[run] = time.monotonic() - self.began.get(run, self.start)
        self.scores[run] = run.score_text or "" if update.state == "finished" and self.live else ""
        what = "finished" if update.state == "finished" else f"failed: {update.complaint} (see {run.log})"
        line = f"{self.stage}{self._count('finished', 'failed')}/{len(self.runs)} {run.name}: {what}"
        if not self.live:
            print(line, file=sys.stderr, flush=True)
        elif update.state == "failed":
            self._erase()
            print(line, file=sys.stderr)
            self._draw()

    def _count(self, *states: str) -> int:
        return sum(state in states for state in self.states.values())

    # -- the table -----------------------------------------------------------------------------------------------------------

    def text(self, columns: int, lines: int) -> str:
        """The table as it stands: runs under way first, then those that ended last, as many as fit.

        Args:
            columns: Width of the terminal, in characters.
            lines: Its height, in lines.
        """
        shown = [run for run, state in self.states.items() if state == "running"]
        shown += sorted(self.took, key=lambda run: self.took[run] + self.began.get(run, 0.0), reverse=True)
        rows = [
            [run.name, self.states[run], self.scores.get(run, run.whereabouts), _clock(self._time(run))]
            for run in shown[: max(1, lines - 6)]
        ]
        counts = ", ".join(
            f"{self._count(s)} {s}" for s in ("finished", "failed", "running", "waiting") if self._count(s)
        )
        head = f"{self.stage}{len(self.runs)} runs: {counts}; {_clock(time.monotonic() - self.start)}"
        table = Table(["run", "state", "where, or score", Column("time", right=True)], rows).to_text() if rows else ""
        return "\n".join(line[: columns - 1] for line in [head, *table.rstrip("\n").split("\n")] if line)

    def _time(self, run: SweepRun) -> float:
        return self.took.get(run, time.monotonic() - self.began.get(run, time.monotonic()))

    def _erase(self) -> None:
        if self._drawn:
            sys.stderr.write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0

    def _draw(self) -> None:
        size = shutil.get_terminal_size()
        text = self.text(size.columns, size.lines)
        self._erase()
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
        self._drawn = text.count("\n") + 1
        self._last = time.monotonic()


def _clock(seconds: float) -> str:
    whole = int(seconds)
    hours = f"{whole // 3600}:" if whole >= 3600 else ""
    return f"{hours}{whole % 3600 // 60:02}:{whole % 60:02}"
