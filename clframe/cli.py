"""The command line. Parsing imports nothing heavy; a command loads what it needs when it runs."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from clframe._version import __version__
from clframe.errors import ClframeError, ConfigurationError, did_you_mean

__all__ = ["main", "parse_overrides"]

_RUN_USAGE = "clframe run [--config FILE] [--run-dir DIR] [--dry-run] [--strategy NAME] [--section.option VALUE ...]"
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
_PRETRAIN_USAGE = "clframe pretrain --out FILE [--config FILE] [--run-dir DIR] [--dry-run] [--section.option VALUE ...]"
_PRETRAIN_HELP = """\
The options are those of `clframe run`, without a strategy:

  --scenario NAME    --scenario.classes 50 | --scenario.exclude LIST.txt   the data, and the classes to train on
  --backbone NAME    --backbone.dim 96 ...           the network to train, with a linear classifier
  --optimizer NAME   --optimizer.lr 0.001 ...        --epochs N  --batch-size N  --seed N ...

FILE then serves as `--backbone.weights FILE` of the same backbone with the same options. It says in its metadata
where it comes from. The same command again continues a pretraining that was stopped.
"""
_AUDIT_USAGE = "clframe audit KIND DIR [DIR ...] [--reference DIR ...] [--option VALUE ...]"
_AUDIT_HELP = """\
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
    parser, commands = _parser()
    first = arguments[0] if arguments else "--help"
    if not first.startswith("-") and first not in commands:
        hint = did_you_mean(first, commands) or f" There are: {', '.join(commands)}."
        raise ConfigurationError(f"There is no command {first!r}.{hint}")
    overrides: list[str] = []
    if first in commands and commands[first].get_default("takes_overrides"):
        own, overrides = _split(commands[first], arguments[1:])
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


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        name, _, rest = message.partition(": ")
        if name == "unrecognized arguments":
            options = [o for action in self._actions for o in action.option_strings]
            unknown = rest.split()[0].partition("=")[0]
            if unknown.startswith("-"):
                message = f"there is no option {unknown}.{did_you_mean(unknown, options)}"
        end = "" if message.endswith(("?", ".")) else "."
        raise ConfigurationError(f"{message[:1].upper()}{message[1:]}{end} See `{self.prog} --help`.")


def _split(parser: argparse.ArgumentParser, tokens: Sequence[str]) -> tuple[list[str], list[str]]:
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


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = _Parser(prog="clframe", description="Continual-learning experiments.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"clframe {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    made_commands: dict[str, argparse.ArgumentParser] = {}

    def command(name: str, text: str, handler: Any, overrides: bool = False, **more: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=text, description=text, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter, **more,
        )  # fmt: skip
        made.set_defaults(handler=handler, takes_overrides=overrides)
        made_commands[name] = made
        return made

    run = command(
        "run",
        "run an experiment (with no argument: fine-tuning on digits)",
        _run,
        True,
        epilog=_RUN_HELP,
        usage=_RUN_USAGE,
    )
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
    pretrain = command(
        "pretrain",
        "train a backbone on a data set or some of its classes, for --backbone.weights",
        _pretrain,
        True,
        epilog=_PRETRAIN_HELP,
        usage=_PRETRAIN_USAGE,
    )
    pretrain.add_argument("--out", type=Path, metavar="FILE", required=True, help="the .safetensors file to write")
    pretrain.add_argument("--config", type=Path, metavar="FILE", help="YAML file; options given beside it win")
    pretrain.add_argument("--run-dir", type=Path, metavar="DIR", help="default: runs/<scenario>-joint-<seed>-<hash>")
    pretrain.add_argument("--dry-run", action="store_true", help="show data, steps and memory; train nothing")
    _common(pretrain, download=True)
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
    audit = command(
        "audit",
        "audit the models that finished runs kept: open-set, compatibility, unlearning",
        _audit,
        True,
        epilog=_AUDIT_HELP,
        usage=_AUDIT_USAGE,
    )
    audit.add_argument("kind", metavar="KIND", help="open-set, compatibility or unlearning")
    audit.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="a finished run")
    audit.add_argument("--reference", nargs="+", type=Path, default=[], metavar="DIR", help="runs to compare with")
    audit.add_argument("--device", default="auto", help="cpu, cuda, …; default: a GPU when there is one")
    audit.add_argument("--format", choices=["text", "markdown", "latex", "csv", "html"], default="text")
    audit.add_argument("--json", action="store_true", help="everything, as JSON")
    audit.add_argument("--data-root", metavar="DIR", help="where data is looked for")
    listing = command("list", "name the strategies, scenarios, backbones and metrics", _list)
    listing.add_argument(
        "kind", nargs="?", metavar="KIND", help="strategies, scenarios, backbones or metrics; default all"
    )
    listing.add_argument("--json", action="store_true", help="as JSON")
    describe = command("describe", "show one strategy, scenario, backbone or metric and its options", _describe, True)
    describe.add_argument(
        "what", nargs="+", metavar="[KIND] NAME", help="for instance: strategy replay; also: run, optimizer, head"
    )
    describe.add_argument(
        "--plot", type=Path, metavar="FILE", help="of a scenario: draw its stream into a .png, .pdf or .svg file"
    )
    describe.add_argument("--data-root", metavar="DIR", help="where data is looked for")
    check = command("check", "check that a strategy or scenario of your own keeps the contract", _check)
    check.add_argument("name", metavar="FILE.py:Class")
    data = command("data", "show which data sets are found where, and how to get the others", _data)
    data.add_argument("--data-root", metavar="DIR", help="where data is looked for")
    data.add_argument("--json", action="store_true", help="as JSON")
    return parser, made_commands


def _common(parser: argparse.ArgumentParser, download: bool = False) -> None:
    parser.add_argument(
        "--data-root", metavar="DIR", help="where data is looked for, before $CLFRAME_DATA and the cache"
    )
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
        key, equals, value = token[2:].partition("=")
        path = key.replace("-", "_").split(".")
        if not token.startswith("--") or not all(path):
            raise ConfigurationError(f"Expected an option such as --strategy.epochs 5, received {token!r}.")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        if len(path) == 1 and path[0] in SECTIONS:
            path.append("name")
        inner = found
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigurationError(f"--{key}: {part!r} is a value already and can't have options of its own.")
        inner[path[-1]] = value
    return found


def _configuration(options: argparse.Namespace) -> dict[str, Any]:
    """Put the file and the options beside it together.

    Raises:
        ConfigurationError: An option isn't known; further problems of the rest are named with it.
    """
    from clframe.config import merged, option_names, resolve
    from clframe.tracking.files import read_config

    changes = parse_overrides(options.overrides)
    known = [
        *option_names(),
        *(name for name in vars(options) if name not in ("handler", "takes_overrides", "overrides")),
    ]
    unknown = [name for name in changes if name not in option_names()]
    base = {} if options.config is None else read_config(options.config)
    if not unknown:
        return merged(base, changes)
    problems = [f"There is no option {_dashed(n)}.{_similar_option(n, known)}" for n in unknown]
    try:
        resolve(merged(base, {k: v for k, v in changes.items() if k not in unknown}))
    except ConfigurationError as error:
        problems.append(str(error))
    raise ConfigurationError("\n".join(problems))


def _dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


def _similar_option(name: str, known: Sequence[str]) -> str:
    return did_you_mean(_dashed(name), [_dashed(k) for k in known]) or " `clframe describe run` shows what there is."


def _run(options: argparse.Namespace) -> None:
    config = _configuration(options)
    from clframe import api

    if options.dry_run:
        _print_plan(api.plan(data_root=options.data_root, download=options.download, **config), options.json)
        return
    try:
        finished = api.run(
            run_dir=options.run_dir, data_root=options.data_root, download=options.download,
            progress=not options.quiet, **config,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted(_how_to_go_on(options.run_dir, config)) from None
    _print_run(finished, options.json)


def _pretrain(options: argparse.Namespace) -> None:
    config = _configuration(options)
    from clframe import api
    from clframe.launch.pretrain import pretraining

    if options.dry_run:
        given = pretraining(config)
        _print_plan(api.plan(data_root=options.data_root, download=options.download, **given), options.json)
        return
    try:
        made = api.pretrain(
            out=options.out, run_dir=options.run_dir, data_root=options.data_root, download=options.download,
            progress=not options.quiet, **config,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command continues the pretraining.") from None
    if options.json:
        print(json.dumps({"file": str(options.out), **made}))
        return
    data = made["data"]
    print(
        f"{made['backbone']['name']} trained on {len(made['classes'])} classes of {data['name']}, {data['train']} images"
    )
    print(f"accuracy on {data['test']} test images: {100 * made['accuracy']:.2f} %")
    print(f"weights: {options.out}")


class Interrupted(ClframeError):
    """Ctrl-C ended a command."""

    exit_code = 130


def _how_to_go_on(directory: Path | None, config: Mapping[str, Any]) -> str:
    from clframe.config import resolve
    from clframe.tracking.rundir import run_name

    if directory is None:
        directory = Path("runs") / run_name(resolve(config).record)
    if not (directory / "config.yaml").is_file():
        return "interrupted before the run began; nothing was written."
    return f"interrupted; `clframe resume {directory}` continues from the last checkpoint."


def _resume(options: argparse.Namespace) -> None:
    from clframe import api

    try:
        run = api.resume(options.directory, data_root=options.data_root, progress=not options.quiet)
    except KeyboardInterrupt:
        raise Interrupted(_how_to_go_on(options.directory, {})) from None
    _print_run(run, options.json)


def _print_run(run: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"directory": str(run.path), **run.result}))
        return
    from clframe.report import Table

    score = "accuracy" if run.directory.stream["score"] == "accuracy" else run.directory.stream["score"]
    rows = [
        [head, _RESTRICTIONS[restriction], *(_shown(values.get(name.format(score)), score) for name in _HEADLINES)]
        for head, by in run.result["values"].items()
        for restriction, values in by.items()
        if restriction in _RESTRICTIONS
    ]
    print(
        Table(["head", "classes", f"final {score}", "average", "forgetting (max)", f"learning {score}"], rows).to_text()
    )
    print(f"all metrics: {run.path / 'result.json'}")


_RESTRICTIONS = {"global": "all seen", "local": "own task"}
_HEADLINES = ("final_{}", "average_incremental_{}", "forgetting_max", "learning_{}")


def _shown(value: Any, score: str) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.2f} %" if score == "accuracy" else f"{value:.4g}"


def _print_plan(plan: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"config": plan.config, "stream": plan.stream, "phases": plan.phases, "memory": plan.memory}))
        return
    import yaml

    from clframe.report import Table

    print(yaml.safe_dump(plan.config, sort_keys=False, allow_unicode=True))
    for rows in (plan.stream, plan.phases):
        if rows:
            print(Table(list(rows[0]), [list(r.values()) for r in rows]).to_text())
    print(f"{sum(p['steps'] for p in plan.phases)} optimiser steps in all")
    print("memory: " + ", ".join(f"{name} {size / 2**20:.2f} MiB" for name, size in plan.memory.items()))


def _sweep(options: argparse.Namespace) -> int:
    from clframe.launch.sweep import Sweep

    sweep = Sweep.read(options.plan, data_root=options.data_root)
    if options.dry_run:
        print(sweep.table().to_text())
        return 0
    try:
        failed = sweep.run(options.processes)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command continues the sweep.") from None
    print(sweep.table().to_text())
    return 1 if failed else 0


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


def _audit(options: argparse.Namespace) -> None:
    from clframe import api
    from clframe.tracking.files import to_json

    chosen = parse_overrides(options.overrides)
    found = api.audit(
        options.kind, options.directories, references=options.reference, data_root=options.data_root,
        device=options.device, **chosen,
    )  # fmt: skip
    if options.json:
        rows = [{"directory": str(path), **data} for path, data in zip(options.directories, found.data, strict=True)]
        print(to_json(rows))
        return
    print(found.render(options.format), end="")


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

    if options.plot is not None:
        _plot_scenario(options)
        return
    if options.overrides:
        raise ConfigurationError(f"describe takes options such as {options.overrides[0]} only with --plot FILE.")
    print(describe(*options.what))


def _plot_scenario(options: argparse.Namespace) -> None:
    """Draw the stream of a scenario with the options given."""
    from clframe.api import open_scenario
    from clframe.report.stream_plot import plot_stream

    given = parse_overrides(options.overrides)
    unknown = [name for name in given if name != "scenario"]
    if unknown:
        raise ConfigurationError(f"describe --plot takes the options of the scenario, received --{unknown[0]}.")
    if options.plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ConfigurationError(f"--plot: expected a .png, .pdf or .svg file, received {str(options.plot)!r}.")
    stream = open_scenario({**given.get("scenario", {}), "name": options.what[-1]}, data_root=options.data_root)
    plot_stream(stream).savefig(options.plot, dpi=120)
    print(options.plot)


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
    if options.json:
        found = [{"name": r.name, "found": r.found and str(r.found), "how": r.how} for r in describe_data(root)]
        print(json.dumps(found))
        return
    rows = [[r.name, str(r.found or "–"), "" if r.found else r.how] for r in describe_data(root)]
    print(Table(["data set", "found at", "how to get it"], rows).to_text())
    print(f"cache: {_cache_sizes()}")


def _cache_sizes() -> str:
    """Say what the cache holds; all of it can be made again."""
    from clframe.data.root import cache_dir

    sizes = {
        what: sum(p.stat().st_size for p in (cache_dir() / folder).rglob("*") if p.is_file())
        for what, folder in (("decoded images", "stores"), ("features of frozen networks", "features"))
    }
    return f"{', '.join(f'{what} {size / 2**20:.1f} MiB' for what, size in sizes.items())} in {cache_dir()}"
