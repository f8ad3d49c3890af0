"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

import yaml

from clframe.errors import ConfigurationError, RunDirectoryError

__all__ = ["read_config", "read_json", "read_yaml", "to_json", "to_yaml", "write_json", "write_text", "write_yaml"]


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
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunDirectoryError(
            f"{path} can't be written ({error.strerror or error}): free some space or choose another --run-dir."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON, with NaN as null."""
    write_text(path, to_json(value, indent=1) + "\n")


def to_json(value: Any, indent: int | None = None) -> str:
    """Return JSON, in which what is no finite number is null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def write_yaml(path: Path, value: Any) -> None:
    """Write YAML in the order given."""
    write_text(path, to_yaml(value))


def to_yaml(value: Any) -> str:
    """Return YAML, in the order given."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


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
        raise RunDirectoryError(_damaged(path, error)) from error


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
        raise RunDirectoryError(_damaged(path, error)) from error


def read_config(path: Path, what: str = "options") -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: The file.
        what: What it should hold, for errors.

    Raises:
        ConfigurationError: It is missing, broken, or no mapping.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"Expected a YAML file at {path}, found none: correct its path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Expected a YAML file at {path}, but it can't be read ({error}).") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(
            f"{path} is no valid YAML ({' '.join(str(error).split())}): correct it there."
        ) from None
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise ConfigurationError(
            f"Expected {path} to hold a mapping of {what} (name: value), received {type(found).__name__}: write it so."
        )
    return {str(k): v for k, v in found.items()}


def _damaged(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"{path} is damaged ({reason}): bring it back from a copy, or start the run again."


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
