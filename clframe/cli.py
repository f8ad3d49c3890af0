"""The command line. Parsing imports nothing heavy; a command loads what it needs when it runs."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clframe._version import __version__
from clframe.errors import ClframeError, ConfigurationError

__all__ = ["main", "parse_overrides"]

_RUN_HELP = """\
Any option of the configuration can be given, in the form --section.option value:

  --scenario NAME    --scenario.experiences 10 ...   the stream            (default split_digits)
  --strategy NAME    --strategy.memory-size 500 ...  the method; a+b composes (default finetune)
  --backbone NAME    --backbone.width 32 ...         the network           (default mlp)
  --head NAME        --optimizer NAME --optimizer.lr 0.05 --optimizer.schedule cosine ...
  --epochs N         length of the main phase
  --seed N           --init-seed N  --data-seed N
  --batch-size N     --device cpu  --precision bf16  --augmentation NAME ...

`clframe list` names what there is; `clframe describe strategy replay` shows the options of one thing,
`clframe describe run` and `clframe describe optimizer` the rest.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or that of the error's kind (2 for a bad configuration)."""
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    if not hasattr(known, "handler"):
        parser.print_help()
        return 0
    if rest and not known.takes_overrides:
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    if known.takes_overrides:
        known.overrides = rest
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return int(known.handler(known) or 0)
    except ClframeError as error:
        print(f"clframe: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("clframe: interrupted; `clframe resume` continues a run from its last checkpoint.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has gone, for instance `head`
        sys.stderr.close()
        return 141


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if issubclass(category, UserWarning):
        print(f"clframe: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="clframe", description="Continual-learning experiments.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"clframe {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="")

    def command(name: str, text: str, handler: Any, overrides: bool = False, **more: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=text, description=text, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter, **more,
        )  # fmt: skip
        made.set_defaults(handler=handler, takes_overrides=overrides)
        return made

    run = command("run", "run an experiment (with no argument: fine-tuning on digits)", _run, True, epilog=_RUN_HELP)
    run.add_argument("--config", type=Path, metavar="FILE", help="YAML file; options given beside it win")
    run.add_argument("--run-dir", type=Path, metavar="DIR", help="default: runs/<scenario>-<strategy>-<seed>-<hash>")
    run.add_argument("--dry-run", action="store_true", help="show stream, phases, steps and memory; train nothing")
    _common(run, download=True)
    resume = command("resume", "continue a run that was stopped", _resume)
    resume.add_argument("directory", type=Path, metavar="DIR")
    _common(resume)
    sweep = command("sweep", "run a plan of strategies and seeds, a process each; finished runs are skipped", _sweep)
    sweep.add_argument("plan", type=Path, metavar="PLAN.yaml")
    sweep.add_argument("--processes", type=int, metavar="N", help="runs at a time (default: the plan's, else 1)")
    sweep.add_argument("--dry-run", action="store_true", help="list the runs and what has become of each")
    sweep.add_argument("--data-root", metavar="DIR", help="where data is looked for")
    compare = command("compare", "table of runs: mean ± std over seeds", _compare)
    compare.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    compare.add_argument("--format", choices=["text", "markdown", "latex", "csv", "html"], default="text")
    compare.add_argument("--metrics", metavar="A,B", help="columns, by full name")
    metrics = command("metrics", "compute a run's metrics again from its kept predictions", _metrics)
    metrics.add_argument("directory", type=Path, metavar="DIR")
    metrics.add_argument("--json", action="store_true", help="everything, as JSON")
    metrics.add_argument("--split", choices=["test", "valid"], default="test")
    listing = command("list", "name the strategies, scenarios, backbones and metrics", _list)
    listing.add_argument("kind", nargs="?", choices=["strategies", "scenarios", "backbones", "metrics"])
    listing.add_argument("--json", action="store_true", help="as JSON")
    describe = command("describe", "show one strategy, scenario, backbone or metric and its options", _describe)
    describe.add_argument("what", nargs="+", metavar="[KIND] NAME", help="for instance: strategy replay")
    check = command("check", "check that a strategy or scenario of your own keeps the contract", _check)
    check.add_argument("name", metavar="FILE.py:Class")
    data = command("data", "show which data sets are found where, and how to get the others", _data)
    data.add_argument("--data-root", metavar="DIR", help="where data is looked for")
    return parser


def _common(parser: argparse.ArgumentParser, download: bool = False) -> None:
    parser.add_argument("--data-root", metavar="DIR", help="where data is looked for, before $CLFRAME_DATA and the cache")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    if download:
        parser.add_argument("--download", action="store_true", help="fetch a missing data set")


def parse_overrides(tokens: Sequence[str]) -> dict[str, Any]:
    """Turn `--section.option value` tokens into a nested configuration.

    >>> parse_overrides(["--strategy", "replay", "--strategy.memory-size", "50", "--seed=3"])
    {'strategy': {'name': 'replay', 'memory_size': '50'}, 'seed': '3'}

    Raises:
        ConfigurationError: A token is no option.
    """
    from clframe.config import SECTIONS

    found: dict[str, Any] = {}
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--") or token == "--":  # noqa: S105 - no password
            raise ConfigurationError(f"Expected an option such as --strategy.epochs 5, received {token!r}.")
        key, equals, value = token[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        path = key.replace("-", "_").split(".")
        if len(path) == 1 and path[0] in SECTIONS:
            path.append("name")
        inner = found
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigurationError(f"--{key}: {part!r} is a value already and can't have options of its own.")
        inner[path[-1]] = value
    return found


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay changes over a configuration; a section whose name changes starts afresh."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        old = {"name": old} if isinstance(old, str) and isinstance(value, dict) else old
        renamed = isinstance(value, dict) and isinstance(old, dict) and "name" in value and value["name"] != old.get("name")
        merged[key] = _merged(old, value) if isinstance(value, dict) and isinstance(old, dict) and not renamed else value
    return merged


def _configuration(options: argparse.Namespace) -> dict[str, Any]:
    changes = parse_overrides(options.overrides)
    if options.config is None:
        return changes
    from clframe.tracking.files import read_yaml

    if not options.config.is_file():
        raise ConfigurationError(f"There is no configuration file {options.config}.")
    base = read_yaml(options.config)
    if not isinstance(base, dict):
        raise ConfigurationError(f"Expected {options.config} to hold a mapping of options, received {type(base).__name__}.")
    return _merged(base, changes)


def _run(options: argparse.Namespace) -> None:
    config = _configuration(options)
    from clframe import api

    if options.dry_run:
        _print_plan(api.plan(data_root=options.data_root, download=options.download, **config))
        return
    finished = api.run(
        run_dir=options.run_dir, data_root=options.data_root, download=options.download,
        progress=not options.quiet, **config,
    )  # fmt: skip
    _print_run(finished, options.json)


def _resume(options: argparse.Namespace) -> None:
    from clframe import api

    run = api.resume(options.directory, data_root=options.data_root, progress=not options.quiet)
    _print_run(run, options.json)


def _print_run(run: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"directory": str(run.path), **run.result}))
        return
    from clframe.report import Table

    rows = [_headline(head, restriction, v) for head, by in run.result["values"].items() for restriction, v in by.items()]
    columns = ["head", "classes", "final accuracy", "average", "forgetting (max)", "learning accuracy"]
    print(Table(columns, [r for r in rows if r is not None]).to_text())
    print(f"\nall metrics: {run.path / 'result.json'}")


def _headline(head: str, restriction: str, values: Mapping[str, Any]) -> list[str] | None:
    if restriction == "upto":
        return None
    names = ("final_accuracy", "average_incremental_accuracy", "forgetting_max", "learning_accuracy")
    shown = {"global": "all seen", "local": "own task"}[restriction]
    return [head, shown, *(f"{100 * values[n]:.2f} %" if values.get(n) is not None else "–" for n in names)]


def _print_plan(plan: Any) -> None:
    from clframe.report import Table

    def show(rows: Sequence[Mapping[str, Any]]) -> None:
        print(Table(list(rows[0]), [list(r.values()) for r in rows]).to_text() + "\n")

    import yaml

    print(yaml.safe_dump(plan.config, sort_keys=False))
    show(plan.stream)
    if plan.phases:
        show(plan.phases)
    print(f"{sum(p['steps'] for p in plan.phases)} optimiser steps in all")
    print("memory: " + ", ".join(f"{name} {size / 2**20:.2f} MiB" for name, size in plan.memory.items()))


def _sweep(options: argparse.Namespace) -> int:
    from clframe.launch.sweep import Sweep

    sweep = Sweep.read(options.plan, data_root=options.data_root)
    if options.dry_run:
        print(sweep.table().to_text())
        return 0
    failed = sweep.run(options.processes)
    print(sweep.table().to_text())
    return 1 if failed else 0


def _compare(options: argparse.Namespace) -> None:
    from clframe import api

    chosen = {"metrics": options.metrics.split(",")} if options.metrics else {}
    table = api.compare(options.directories, **chosen)
    print(table.render(options.format))


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
        print("\nnot given by this run:\n" + Table(["metric", "reason"], [list(i) for i in report.absent.items()]).to_text())


def _number(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        return f"{len(value)} × {len(value[0])} table (see --json)"
    if isinstance(value, list):
        return " ".join(_number(v) for v in value)
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _list(options: argparse.Namespace) -> None:
    from clframe.report.describe import listing

    rows = listing(options.kind)
    if options.json:
        print(json.dumps(rows))
        return
    from clframe.report import Table

    print(Table(["kind", "name", "what"], [[r["kind"], r["name"], r["what"]] for r in rows]).to_text())


def _describe(options: argparse.Namespace) -> None:
    from clframe.report.describe import describe

    if len(options.what) > 2:
        raise ConfigurationError(f"Expected a kind and a name, as in `describe strategy replay`, received {options.what}.")
    print(describe(*options.what))


def _check(options: argparse.Namespace) -> int:
    from clframe.testing import check_named

    failures = 0
    for name, problem in check_named(options.name):
        print(f"{'ok  ' if problem is None else 'FAIL'}  {name}" + (f": {problem}" if problem else ""))
        failures += problem is not None
    return 6 if failures else 0


def _data(options: argparse.Namespace) -> None:
    from clframe.data import DataRoot, describe_data
    from clframe.report import Table

    root = DataRoot.resolve(options.data_root)
    rows = [[r.name, str(r.found or "–"), "" if r.found else r.how] for r in describe_data(root)]
    print(Table(["data set", "found at", "how to get it"], rows).to_text())


