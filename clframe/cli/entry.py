"""The command `clframe`: finds the command asked for, runs it, and turns errors into sentences and exit codes."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from clframe._version import __version__
from clframe.cli import audit, catalogue, reading, running, shell
from clframe.cli.colour import painted
from clframe.cli.complete import candidates
from clframe.cli.parser import Commands, Parser, split
from clframe.errors import ClframeError, ConfigurationError, did_you_mean

__all__ = ["EXIT_CODES", "main", "make_commands"]

EXIT_CODES = {
    0: "done",
    1: "a run of a sweep failed; or a defect of clframe",
    2: "a configuration or a command that can't be run",
    3: "data that is missing or damaged",
    4: "a run directory or another file that is in the way, in use, damaged or can't be written",
    5: "training that can't go on",
    6: "a contract that is broken",
    7: "a tracker that failed to take a run which was sent to it",
    130: "interrupted",
    141: "the reader of a pipe has gone",
}
"""What the command exits with."""


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
        print(f"{painted('clframe:', 'red', sys.stderr)} {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("clframe: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has gone, for instance `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        said = f"The file system refused{where} ({error.strerror or error}): see that it can be used."
        print(f"{painted('clframe:', 'red', sys.stderr)} {said}", file=sys.stderr)
        return 4


def _command(arguments: list[str]) -> int:
    made = make_commands()
    parser, commands = made.parser, made.by_name
    first = arguments[0] if arguments else "--help"
    if first == "_complete":  # asked by a shell's completion, see `clframe completion`
        print("".join(f"{found}\n" for found in candidates(arguments[1:], commands)), end="")
        return 0
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
        print(f"{painted('clframe: warning:', 'yellow', sys.stderr)} {message}", file=sys.stderr)


_EXIT_CODES = "exit codes:\n" + "".join(f"  {code:<10}{text}\n" for code, text in EXIT_CODES.items())


def make_commands() -> Commands:
    """Make the parser of every command."""
    parser = Parser(
        prog="clframe",
        description="Continual-learning experiments.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"clframe {__version__}")
    commands = Commands(parser)
    for group in (running, reading, audit, catalogue, shell):
        group.add(commands.add)
    return commands
