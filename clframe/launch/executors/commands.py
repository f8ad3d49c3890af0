"""One command line per run, for a scheduler that clframe doesn't know."""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator
from pathlib import Path
from typing import ClassVar

from clframe.launch.executors.base import Executor, Update, Work

__all__ = ["Print"]


class Print(Executor):
    """Prints one command line per run, for any other scheduler; no run is done here.

    A line can be started from any folder and again after it was stopped: it goes on from the last checkpoint.
    """

    elsewhere: ClassVar[bool] = True
    only_writes: ClassVar[bool] = True

    def run(self, work: Work) -> Generator[Update | None]:
        """Print the lines."""
        places = [f"{name}={os.environ[name]}" for name in ("CLFRAME_DATA", "CLFRAME_CACHE") if name in os.environ]
        before = ["env", "-C", str(Path.cwd()), f"OMP_NUM_THREADS={work.threads}", *places]
        for run in work.runs:
            print(shlex.join([*before, *work.command(run)]), flush=True)
        yield from ()
