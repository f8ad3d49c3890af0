"""Colours for people: on a terminal alone, and not where NO_COLOR asks for none (https://no-color.org)."""

from __future__ import annotations

import os
from typing import IO, Literal

__all__ = ["painted"]

_CODES = {"red": "31", "green": "32", "yellow": "33"}


def painted(text: str, colour: Literal["red", "green", "yellow"], stream: IO[str]) -> str:
    """Return a text in a colour where the stream shows it, else as it is."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty()
    return text if plain else f"\x1b[{_CODES[colour]}m{text}\x1b[0m"
