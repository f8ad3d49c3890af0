"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import yaml

from clframe.errors import RunDirectoryError

__all__ = ["read_json", "read_yaml", "write_json", "write_text", "write_yaml"]


def write_text(path: Path, text: str) -> None:
    """Write to a temporary name beside the file, then rename.

    Raises:
        RunDirectoryError: The file can't be written; what was there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunDirectoryError(
            f"{path} can't be written ({error.strerror or error}): free some space or choose another --run-dir."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON, with NaN as null."""
    write_text(path, json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_yaml(path: Path, value: Any) -> None:
    """Write YAML in the order given."""
    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        RunDirectoryError: The file is missing or damaged; names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunDirectoryError(f"Expected {path}, found no such file: is this a run directory?") from None
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path} can't be read ({error}).") from error


def read_yaml(path: Path) -> Any:
    """Read YAML.

    Raises:
        RunDirectoryError: The file is missing or damaged; names it.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunDirectoryError(f"Expected {path}, found no such file.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunDirectoryError(f"{path} can't be read ({error}).") from error


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
