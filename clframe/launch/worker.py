"""One run in a process of its own, for whatever starts it: begun, continued, or left alone where it has finished.

    python -m clframe.launch.worker CONFIG.yaml DIRECTORY [--data-root DIR]

The same command again goes on where the run was stopped. What a run says when it fails is kept beside its directory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from clframe.errors import ClframeError

__all__ = ["do", "main"]

_INTERRUPTED = 130
_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


def do(config: Path, directory: Path, data_root: str | None = None) -> int:
    """Begin or continue a run, and return its exit code, 0 when it has finished.

    Args:
        config: The configuration, of a run that is still to begin.
        directory: The run directory.
        data_root: Folders to look for data in.
    """
    from clframe.cli import main as command
    from clframe.launch.sweep_run import SweepRun

    run = SweepRun({}, directory)
    if run.state == "finished":
        return 0
    with contextlib.suppress(OSError):
        run.log.unlink()
    task = ["resume", str(directory)] if run.begun else ["run", "--config", str(config), "--run-dir", str(directory)]
    place = [] if data_root is None else ["--data-root", data_root]
    said = _Tee(sys.stderr)
    with contextlib.redirect_stderr(said):
        try:
            code = command([*task, *place, "--quiet"])
        except Exception:
            traceback.print_exc()
            code = 1
    if code not in (0, _INTERRUPTED):
        with contextlib.suppress(ClframeError):  # a full disk; who started this run has heard what it said
            run.keep_log(said.text, code)
    return code


class _Tee(io.TextIOBase):
    """Passes on what is written, and keeps it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()


def _end_with(parent: int) -> None:
    """Let this process end when the one that started it is gone, and hear Ctrl-C, which it passes on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it went before we could ask
        raise SystemExit(_INTERRUPTED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the run that a command line names."""
    parser = argparse.ArgumentParser(prog="python -m clframe.launch.worker", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    parser.add_argument("directory", type=Path, metavar="DIRECTORY")
    parser.add_argument("--data-root", metavar="DIR", help="where data is looked for")
    parser.add_argument("--parent", type=int, metavar="PID", help="end with this process, which started this one")
    given = parser.parse_args(arguments)
    if given.parent is not None:
        _end_with(given.parent)
    return do(given.config, given.directory, given.data_root)


if __name__ == "__main__":
    sys.exit(main())
