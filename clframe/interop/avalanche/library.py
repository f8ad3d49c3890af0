"""Avalanche itself: looked for and imported here, when it is first used and not before."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clframe.errors import ConfigurationError
from clframe.training.seeds import isolated

__all__ = ["VERSION", "quietly", "require"]

VERSION = "0.6.0"
"""The release that this bridge is written for and tested with."""


def require(module: str = "avalanche") -> Any:
    """Import Avalanche, or one of its modules; the global generators and warning filters stay as they are.

    Args:
        module: Its full name.

    Raises:
        ConfigurationError: Avalanche isn't installed, or in another version.
    """
    try:
        found = importlib.metadata.version("avalanche-lib")
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found != VERSION:
        received = "found none" if found is None else f"found {found}"
        raise ConfigurationError(
            f"clframe.interop.avalanche expects avalanche-lib {VERSION}, {received}: pip install avalanche-lib=={VERSION}."
        )
    with isolated(), quietly():
        importlib.import_module("avalanche")  # one of its modules alone runs into a circular import
        return importlib.import_module(module)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep to itself what Avalanche warns of in its own code, where a user can do nothing; pass on all other warnings.

    Its decorator of deprecated functions changes the process's warning filters at every call, which is undone here.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for w in caught:
        inside = "avalanche" in Path(w.filename).parts or "no QP solver found" in str(w.message)
        if not inside and not issubclass(w.category, DeprecationWarning):
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
