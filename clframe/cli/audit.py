"""The command audit."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from clframe.cli.overrides import parse_overrides

__all__ = ["add"]

_USAGE = "clframe audit KIND DIR [DIR ...] [--reference DIR ...] [--option VALUE ...]"
_HELP = """\
Kinds, and their own options:

  open-set       AUROC and FPR@95 of five scores, seen test images against tasks to come or another data set
                   --foreign NAME  --final-only true  --tail N
  compatibility  old galleries searched with newer models, on the scenario compatibility
                   --reference DIR ...: runs whose models were trained independently
  unlearning     what is left of the samples that the scenario unlearning asks to forget
                   --reference DIR ...: runs with --scenario.retrain true
                   --regain SHARE  --relearn-limit N  --relearn-samples N

Models are there for runs with --keep-models true. What is found is kept in each run directory DIR.
"""


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    audit = command(
        "audit",
        "audit the models that runs kept: open-set, compatibility, unlearning",
        _audit,
        True,
        epilog=_HELP,
        usage=_USAGE,
    )
    audit.add_argument("kind", metavar="KIND", help="open-set, compatibility or unlearning")
    audit.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="a finished run")
    audit.add_argument("--reference", nargs="+", type=Path, default=[], metavar="DIR", help="runs to compare with")
    audit.add_argument("--device", default="auto", help="cpu, cuda, …; default: a GPU when there is one")
    audit.add_argument("--format", choices=["text", "markdown", "latex", "csv", "html"], default="text")
    audit.add_argument("--data-root", metavar="DIR", help="where data is looked for")
    audit.add_argument("--json", action="store_true", help="everything, as JSON")


def _audit(options: argparse.Namespace) -> None:
    from clframe.audits import audit

    found = audit(
        options.kind,
        options.directories,
        references=options.reference,
        data_root=options.data_root,
        device=options.device,
        **parse_overrides(options.overrides),
    )
    if options.json:
        rows = [{"directory": str(path), **data} for path, data in zip(options.directories, found.data, strict=True)]
        print(json.dumps(rows))
        return
    print(found.render(options.format), end="")
