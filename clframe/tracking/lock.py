"""One writer per folder: a lock that goes with the process, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import IO

from clframe.errors import RunDirectoryError

__all__ = ["lock_folder"]


def lock_folder(folder: Path, what: str, instead: str, name: str = "lock") -> IO[str]:
    """Become the only writer of a folder; closing what is returned gives the lock back.

    Args:
        folder: The folder.
        what: What it is, to begin a sentence with, such as `The run directory`.
        instead: What the user can do instead of waiting, such as `choose another --run-dir`.
        name: The lock's file in the folder.

    Raises:
        RunDirectoryError: Another process writes here (it is named), or the folder can't be written or locked.
    """
    try:
        handle = (folder / name).open("a+", encoding="utf-8")
    except OSError as error:
        raise RunDirectoryError(
            f"{what} {folder} can't be written to ({error.strerror or error}): make it writable."
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {os.uname().nodename}")
        handle.flush()
    except OSError as error:
        owner = _owner(handle)
        with contextlib.suppress(OSError):
            handle.close()
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise RunDirectoryError(
                f"{what} {folder} can't be locked ({error.strerror or error}): choose a place where it can."
            ) from error
        raise RunDirectoryError(f"{what} {folder} is in use by {owner}: wait for it, or {instead}.") from None
    return handle


def _owner(handle: IO[str]) -> str:
    """What the holder of a lock wrote about itself."""
    try:
        handle.seek(0)
        return handle.read().strip() or "another process"
    except OSError:
        return "another process"
