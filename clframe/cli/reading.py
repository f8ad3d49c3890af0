"""Commands that read runs: compare, metrics, representation, log."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clframe.cli.overrides import parse_overrides, tracked
from clframe.cli.parser import common_options
from clframe.errors import ConfigurationError

__all__ = ["add"]

_LOG_USAGE = "clframe log DIR [DIR ...] --to NAME,… [--again] [--track.NAME.option VALUE ...]"

_REPRESENTATION_HELP = """\
The report is kept as representation.json in each run directory; asked again, it is only read, unless --again is given.
Several runs of one scenario that differ in nothing but the seed are one row of the last table.
"""


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands."""
    compare = command("compare", "table of runs: mean ± std over seeds", _compare)
    compare.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    compare.add_argument(
        "--format", choices=["text", "markdown", "latex", "csv", "html"], help="default: what --out ends in, else text"
    )
    compare.add_argument("--out", type=Path, metavar="FILE", help="write there; FILE.html is a page with every figure")
    compare.add_argument(
        "--table", choices=["leaderboard", "pairwise", "settings", "runs", "environments"], help="this table alone"
    )
    compare.add_argument("--json", action="store_true", help="the numbers as JSON, unscaled")
    compare.add_argument("--metrics", metavar="A,B", help="columns, by full name; the first one ranks")
    compare.add_argument("--head", metavar="NAME", help="report head (default: each run's primary one)")
    compare.add_argument("--restriction", choices=["global", "local", "upto"], help="default: each run's primary one")
    metrics = command("metrics", "compute a run's metrics again from its kept predictions", _metrics)
    metrics.add_argument("directory", type=Path, metavar="DIR")
    metrics.add_argument("--json", action="store_true", help="everything, as JSON")
    metrics.add_argument("--split", choices=["test", "valid"], help="default: the samples that the run is scored on")
    representation = command(
        "representation",
        "what extractors keep and gain, from the models of runs with keep_models: probe, CKA, prototype drift",
        _representation,
        epilog=_REPRESENTATION_HELP,
    )
    representation.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    representation.add_argument("--knn", action="store_true", help="probe by 20 nearest neighbours, which is cheaper")
    representation.add_argument(
        "--train-per-class", type=int, metavar="N", help="training images of each class for the probe (default: all)"
    )
    representation.add_argument(
        "--layers", metavar="A,B", help="layers to align, such as stage3,features (default: all)"
    )
    representation.add_argument(
        "--cka-samples", type=int, metavar="N", help="test images per alignment (default: 2000)"
    )
    representation.add_argument("--again", action="store_true", help="make the reports anew")
    representation.add_argument("--device", default="auto", help="cpu, cuda, …; default: a GPU when there is one")
    representation.add_argument("--format", choices=["text", "markdown", "latex", "csv", "html"], default="text")
    common_options(representation)
    log = command("log", "send runs to a dashboard afterwards, as if it had watched them", _log, True, usage=_LOG_USAGE)
    log.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    log.add_argument("--to", required=True, metavar="NAME,…", help="wandb, tensorboard, FILE.py:Class")
    log.add_argument("--again", action="store_true", help="send everything anew, for instance as another W&B run")


def _compare(options: argparse.Namespace) -> None:
    from clframe import api
    from clframe.tracking.files import to_json

    chosen = {"metrics": options.metrics.split(",")} if options.metrics else {}
    found = api.compare(options.directories, head=options.head, restriction=options.restriction, **chosen)
    if options.json:
        print(to_json(found.to_dict()))
    elif options.out is not None:
        print(found.save(options.out, options.format, options.table))
    else:
        print(found.render(options.format or "text", options.table), end="")


def _metrics(options: argparse.Namespace) -> None:
    from clframe.results import metrics_of, open_run

    report = metrics_of(open_run(options.directory).directory, options.split)
    if options.json:
        print(json.dumps(report.to_dict()))
        return
    from clframe.report import Table

    rows: list[list[str | None]] = [
        [head, restriction, name, _number(value)]
        for head, by in report.values.items()
        for restriction, values in by.items()
        for name, value in values.items()
    ]
    rows += [["run", None, name, _number(value)] for part in report.run.items() for name, value in _by_name(*part)]
    print(Table(["head", "classes", "metric", "value"], rows).to_text())
    if report.absent:
        print(
            "\nnot given by this run:\n"
            + Table(["metric", "reason"], [list(i) for i in report.absent.items()]).to_text()
        )


def _by_name(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A quantity of a layer, phase or purpose goes by all of these names: `dormant_units/stage1`."""
    if isinstance(value, Mapping):
        for part, inner in value.items():
            yield from _by_name(f"{name}/{part}", inner)
    else:
        yield name, value


def _number(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        return f"{len(value)} × {len(value[0])} table (see --json)"
    if isinstance(value, list):
        return " ".join(_number(v) for v in value)
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _representation(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from clframe.report.representation import compare_representations
    from clframe.representation import represent
    from clframe.results import open_run, summary_of

    asked: dict[str, Any] = {"probe": "knn"} if options.knn else {}
    asked |= {n: v for n in ("train_per_class", "cka_samples") if (v := getattr(options, n)) is not None}
    asked |= {} if options.layers is None else {"layers": options.layers.split(",")}
    how = {"again": options.again, "data_root": options.data_root, "device": options.device}
    runs = [open_run(path).directory for path in options.directories]
    found = [represent(run, progress=not options.quiet, **how, **asked) for run in runs]
    if options.json:
        print(json.dumps([{"directory": str(r.path), **f.data} for r, f in zip(runs, found, strict=True)]))
        return
    tables = [replace(f.table(), title=f"{f.title}: {r.path}") for r, f in zip(runs, found, strict=True)]
    if len(runs) > 1:
        tables.append(compare_representations([(summary_of(r), f) for r, f in zip(runs, found, strict=True)]))
    print("\n".join(table.render(options.format) for table in tables), end="")


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
