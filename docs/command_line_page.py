"""The parts of the page on the command line that follow from the parser; the rest of that page is written by hand."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from clframe.cli.entry import EXIT_CODES, make_commands

PAGE = Path(__file__).resolve().parent / "command-line.md"


def page() -> str:
    """Return the page with its parts between the marks `begin` and `end` written again."""
    text = PAGE.read_text(encoding="utf-8")
    for name, part in (("commands", commands()), ("exit codes", exit_codes()), ("reference", reference())):
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        text = re.sub(
            f"{re.escape(begin)}.*?{re.escape(end)}",
            lambda _, p=part, b=begin, e=end: f"{b}\n\n{p}\n{e}",
            text,
            flags=re.DOTALL,
        )
    return text


def commands() -> str:
    """Return the table of commands."""
    rows = (
        f"| [`{name}`](#{name}) | {_cell(parser.description)} |\n" for name, parser in make_commands().by_name.items()
    )
    return "| command | does |\n|---|---|\n" + "".join(rows)


def exit_codes() -> str:
    """Return the table of exit codes."""
    return "| code | means |\n|---|---|\n" + "".join(f"| {code} | {text} |\n" for code, text in EXIT_CODES.items())


_OPTIONS_OF = {"audit": "[options of the kind](audits.md)", "log": "[options of trackers](tracking.md)"}
"""What a command's further options belong to, where that isn't the configuration of a run."""


def reference() -> str:
    """Return a section per command with its arguments and options."""
    return "\n".join(_section(name, parser) for name, parser in make_commands().by_name.items())


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    rows = "".join(_rows(parser))
    options = _OPTIONS_OF.get(name, "[options of the configuration](#options-of-a-run)")
    more = f"\nIt also takes {options}.\n" if parser.get_default("takes_overrides") else ""
    table = f"| argument | means |\n|---|---|\n{rows}" if rows else ""
    return f"### {name}\n\n{_sentence(parser.description)}\n\n{table}{more}"


def _rows(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        shown = action.metavar or (
            f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper()
        )
        value = "" if action.nargs == 0 else f" {shown}" if action.option_strings else str(shown)
        many = " …" if action.nargs == "+" else ""
        typed = f"{', '.join(action.option_strings)}{value}{many}"
        typed = f"[{typed}]" if not action.option_strings and action.nargs == "?" else typed
        yield f"| `{typed.replace('|', chr(92) + '|')}` | {_cell(action.help)} |\n"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("<", "&lt;")


def _sentence(text: str | None) -> str:
    said = (text or "").rstrip(".")
    return f"{said[:1].upper()}{said[1:]}."
