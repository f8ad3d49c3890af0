"""The command `clframe`: finds the command asked for, runs it, and turns errors into sentences and exit codes."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from clframe._version import __version__
from clframe.cli import catalogue, reading, running
from clframe.cli.parser import Commands, Parser, split
from clframe.errors import ClframeError, ConfigurationError, did_you_mean

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or that of the error's kind (2 for a bad configuration)."""
    for stream in (sys.stdout, sys.stderr):  # a terminal of another encoding shows ? for signs such as ±
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = _command(list(sys.argv[1:] if arguments is None else arguments))
            sys.stdout.flush()
            return code
    except ClframeError as error:
        print(f"clframe: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("clframe: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has gone, for instance `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(
            f"clframe: The file system refused{where} ({error.strerror or error}): see that it can be used.",
            file=sys.stderr,
        )
        return 4


def _command(arguments: list[str]) -> int:
    made = _parser()
    parser, commands = made.parser, made.by_name
    first = arguments[0] if arguments else "--help"
    if not first.startswith("-") and first not in commands:
        hint = did_you_mean(first, commands) or f" There are: {', '.join(commands)}."
        raise ConfigurationError(f"There is no command {first!r}.{hint}")
    overrides: list[str] = []
    if first in commands and commands[first].get_default("takes_overrides"):
        own, overrides = split(commands[first], arguments[1:])
        arguments = [first, *own]
    elif not arguments:
        arguments = ["--help"]
    try:
        known, unknown = parser.parse_known_args(arguments)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    if unknown:
        commands.get(first, parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    known.overrides = overrides
    return int(known.handler(known) or 0)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    if issubclass(category, UserWarning):
        print(f"clframe: warning: {message}", file=sys.stderr)


def _parser() -> Commands:
    parser = Parser(prog="clframe", description="Continual-learning experiments.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"clframe {__version__}")
    commands = Commands(parser)
    for group in (running, reading, catalogue):
        group.add(commands.add)
    return commands
