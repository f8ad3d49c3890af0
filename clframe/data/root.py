"""Where data is searched, and where clframe keeps what it has decoded."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from clframe.errors import DataError

__all__ = ["SYSTEM_FOLDERS", "DataRoot", "cache_dir"]

SYSTEM_FOLDERS: tuple[Path, ...] = (Path("/usr/share/datasets"),)
"""Where distributions install data sets; Debian's `dataset-fashion-mnist` puts its files there."""


def cache_dir() -> Path:
    """Return the folder for what can be made again: `CLFRAME_CACHE`, or `~/.cache/clframe`. It need not exist."""
    given = os.environ.get("CLFRAME_CACHE")
    return Path(given).expanduser() if given else Path("~/.cache/clframe").expanduser()


@dataclasses.dataclass(frozen=True)
class DataRoot:
    """The folders that are searched for data sets, the most specific first.

    Attributes:
        folders: Searched in this order; those that don't exist hold nothing.
        download_folder: Where a download goes when one is asked for.
    """

    folders: tuple[Path, ...]
    download_folder: Path

    @classmethod
    def resolve(cls, given: str | Path | None = None) -> DataRoot:
        """Put the search path together: `given`, then `CLFRAME_DATA`, the user's cache, the system's folders.

        Args:
            given: A folder, or several joined by the system's path separator (`:`), as from `--data-root`.

        Raises:
            DataError: A folder that was given explicitly doesn't exist.
        """
        explicit = _split(given)
        for folder in explicit:
            if not folder.is_dir():
                raise DataError(
                    f"Expected the data root to be an existing folder, received {folder}; create it or name another one."
                )
        own = [*explicit, *_split(os.environ.get("CLFRAME_DATA"))]
        cached = cache_dir() / "data"
        folders = tuple(dict.fromkeys([*own, cached, *SYSTEM_FOLDERS]))
        return cls(folders=folders, download_folder=own[0] if own else cached)

    def find(self, names: Sequence[str]) -> Path | None:
        """Return the first existing `folder/name`: folders in order, and in each the names in order."""
        for folder in self.folders:
            for name in names:
                if (folder / name).exists():
                    return folder / name
        return None

    def __str__(self) -> str:
        """Return the folders as a phrase for messages."""
        return ", ".join(str(folder) for folder in self.folders)


def _split(given: str | Path | None) -> list[Path]:
    if given is None or not str(given):
        return []
    whole = Path(given).expanduser()
    if whole.exists():  # a folder's own name may hold the separator
        return [whole]
    return [Path(part).expanduser() for part in str(given).split(os.pathsep) if part]
