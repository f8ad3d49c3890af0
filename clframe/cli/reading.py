"""Commands that read runs: compare, metrics, log."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clframe.cli.overrides import parse_overrides, tracked
from clframe.errors import ConfigurationError

__all__ = ["add"]

_LOG_USAGE = "clframe log DIR [DIR ...] --to NAME,… [--again] [--track.NAME.option VALUE ...]"


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands."""
    compare = command("compare", "table of runs: mean ± std over seeds", _compare)
    compare.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    compare.add_argument("--format", choices=["text", "markdown", "latex", "csv", "html"], default="text")
    compare.add_argument("--json", action="store_true", help="columns and rows as JSON, unscaled")
    compare.add_argument("--metrics", metavar="A,B", help="columns, by full name")
    compare.add_argument("--head", metavar="NAME", help="report head (default: each run's primary one)")
    compare.add_argument("--restriction", choices=["global", "local", "upto"], help="default: each run's primary one")
    metrics = command("metrics", "compute a run's metrics again from its kept predictions", _metrics)
    metrics.add_argument("directory", type=Path, metavar="DIR")
    metrics.add_argument("--json", action="store_true", help="everything, as JSON")
    metrics.add_argument("--split", choices=["test", "valid"], default="test")
    log = command("log", "send runs to a dashboard afterwards, as if it had watched them", _log, True, usage=_LOG_USAGE)
    log.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    log.add_argument("--to", required=True, metavar="NAME,…", help="wandb, tensorboard, FILE.py:Class")
    log.add_argument("--again", action="store_true", help="send everything anew, for instance as another W&B run")


def _compare(options: argparse.Namespace) -> None:
    from clframe import api
    from clframe.report import Estimate
    from clframe.tracking.files import to_json

    chosen = {"metrics": options.metrics.split(",")} if options.metrics else {}
    table = api.compare(options.directories, head=options.head, restriction=options.restriction, **chosen)
    if options.json:
        rows = [[vars(c) if isinstance(c, Estimate) else c for c in row] for row in table.rows]
        print(to_json({"columns": [c.title for c in table.heads], "rows": rows}))
        return
    print(table.render(options.format), end="")


def _metrics(options: argparse.Namespace) -> None:
    from clframe.results import metrics_of, open_run

    report = metrics_of(open_run(options.directory).directory, options.split)
    if options.json:
        print(json.dumps(report.to_dict()))
        return
    from clframe.report import Table

    rows = [
        [head, restriction, name, _number(value)]
        for head, by in report.values.items()
        for restriction, values in by.items()
        for name, value in values.items()
    ]
    print(Table(["head", "classes", "metric", "value"], rows).to_text())
    if report.absent:
        print(
            "\nnot given by this run:\n"
            + Table(["metric", "reason"], [list(i) for i in report.absent.items()]).to_text()
        )


def _number(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        return f"{len(value)} × {len(value[0])} table (see --json)"
    if isinstance(value, list):
        return " ".join(_number(v) for v in value)
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _log(options: argparse.Namespace) -> None:
    from clframe.launch.follow import log

    given = parse_overrides(options.overrides)
    unknown = [name for name in given if name != "track"]
    if unknown:
        raise ConfigurationError(
            f"log takes options of trackers, such as --track.wandb.project, received --{unknown[0]}."
        )
    chosen = tracked(None, options.to, given.get("track", {}))
    for directory in options.directories:
        for done in log(directory, chosen, again=options.again):
            print(done)
