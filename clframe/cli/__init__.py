"""The command line. Parsing imports nothing heavy; a command loads what it needs when it runs."""

from __future__ import annotations

from clframe.cli.entry import main
from clframe.cli.overrides import parse_overrides

__all__ = ["main", "parse_overrides"]
