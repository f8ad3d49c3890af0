"""Where the runs of a sweep are done, by name: local processes, a Slurm cluster, or any other scheduler by hand."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from clframe.errors import ConfigurationError, did_you_mean
from clframe.launch.executors.base import Executor, Update, Work
from clframe.spec import build

__all__ = ["EXECUTORS", "Executor", "Update", "Work", "executor_for"]

EXECUTORS = {
    "local": "clframe.launch.executors.local:Local",
    "slurm": "clframe.launch.executors.slurm:Slurm",
    "print": "clframe.launch.executors.commands:Print",
}


def executor_for(given: str | Mapping[str, Any]) -> Executor:
    """Return the executor of a name, or of a mapping of a name and options.

    Raises:
        ConfigurationError: There is no such executor, or its options don't fit.
    """
    options = {"name": given} if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else {}
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in EXECUTORS:
        hint = did_you_mean(str(name), EXECUTORS)
        raise ConfigurationError(f"executor: expected one of {', '.join(EXECUTORS)}, received {name or given!r}.{hint}")
    module, _, cls = EXECUTORS[name].partition(":")
    found: Executor = build(getattr(importlib.import_module(module), cls), options, "executor")
    return found
