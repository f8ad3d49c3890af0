"""The exceptions of clframe: one root, few children, one sentence each.

Every message says what was expected, what was received and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ClframeError",
    "ConfigurationError",
    "ContractError",
    "DataError",
    "RunDirectoryError",
    "TrackerError",
    "TrainingError",
    "did_you_mean",
]


class ClframeError(Exception):
    """Root of every error that clframe raises on purpose."""

    exit_code: int = 1
    """What the command line exits with when this error ends it."""


class ConfigurationError(ClframeError):
    """A name, type, range or combination that can't be run; raised before any computing."""

    exit_code = 2


class DataError(ClframeError):
    """Images that are missing, damaged or not of the expected form."""

    exit_code = 3


class RunDirectoryError(ClframeError):
    """A run directory that exists already, is in use, is damaged, or can't be written."""

    exit_code = 4


class TrainingError(ClframeError):
    """Training can't go on, for instance because a loss is no longer a finite number."""

    exit_code = 5


class ContractError(ClframeError):
    """A strategy, scenario or backbone breaks the contract that the engine relies on."""

    exit_code = 6


class TrackerError(ClframeError):
    """A tracker failed to take a run that was sent to it; while a run trains, that is a warning alone."""

    exit_code = 7


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Suggest the choice that is spelt most like `name`.

    Returns:
        A phrase to put behind an error sentence, with a leading blank; empty when nothing is close.

    >>> did_you_mean("replai", ["replay", "ewc"])
    " Did you mean 'replay'?"
    >>> did_you_mean("xyz", ["replay", "ewc"])
    ''
    """
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
