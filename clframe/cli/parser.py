"""The parser: errors in one sentence, and options of the configuration beside a command's own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from clframe.errors import ConfigurationError, did_you_mean

__all__ = ["Commands", "Parser", "common_options", "split", "training_options"]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments.

        Raises:
            ConfigurationError: Always.
        """
        name, _, rest = message.partition(": ")
        if name == "unrecognized arguments":
            options = [o for action in self._actions for o in action.option_strings]
            unknown = rest.split()[0].partition("=")[0]
            if unknown.startswith("-"):
                message = f"there is no option {unknown}.{did_you_mean(unknown, options)}"
        end = "" if message.endswith(("?", ".")) else "."
        raise ConfigurationError(f"{message[:1].upper()}{message[1:]}{end} See `{self.prog} --help`.")


class Commands:
    """The commands of a parser, by name."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser
        self.by_name: dict[str, argparse.ArgumentParser] = {}
        self._commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(self, name: str, text: str, handler: Any, overrides: bool = False, **more: Any) -> argparse.ArgumentParser:
        """Add a command.

        Args:
            name: As it is typed.
            text: What it does, in a line.
            handler: Takes the parsed options; returns an exit code, or None for 0.
            overrides: Whether it takes options of the configuration (`--section.option value`) beside its own.
            **more: For the parser of its arguments.
        """
        made = self._commands.add_parser(
            name, help=text, description=text, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter, **more,
        )  # fmt: skip
        made.set_defaults(handler=handler, takes_overrides=overrides)
        self.by_name[name] = made
        return made


def common_options(parser: argparse.ArgumentParser) -> None:
    """Add what all commands that compute on data have in common."""
    parser.add_argument(
        "--data-root", metavar="DIR", help="where data is looked for, before $CLFRAME_DATA and the cache"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def training_options(parser: argparse.ArgumentParser, download: bool = False) -> None:
    """Add what all commands that train have in common."""
    common_options(parser)
    parser.add_argument(
        "--track", metavar="NAME,…", help="what watches the run: wandb, tensorboard, FILE.py:Class; none: nothing does"
    )
    if download:
        parser.add_argument("--download", action="store_true", help="fetch a missing data set")


def split(parser: argparse.ArgumentParser, tokens: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part a command's own arguments from the options of the configuration, whose values may look like anything."""
    own: list[str] = []
    overrides: list[str] = []
    flags = {o: action for action in parser._actions for o in action.option_strings}
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        action = flags.get(token.partition("=")[0])
        target = overrides if action is None and token.startswith("--") and token != "--" else own
        target.append(token)
        wants_value = target is overrides or (action is not None and action.nargs != 0)
        if wants_value and "=" not in token and rest and not rest[0].startswith("--"):
            target.append(rest.pop(0))
    return own, overrides
