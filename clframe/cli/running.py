"""Commands that train: run, resume, sweep, pretrain."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clframe.cli.overrides import configuration
from clframe.cli.parser import training_options
from clframe.errors import ClframeError

__all__ = ["add"]

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
  --track wandb      --track.wandb.project NAME ...  a dashboard; no part of what the run is

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


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands."""
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
    training_options(run, download=True)
    resume = command("resume", "continue a run that was stopped", _resume)
    resume.add_argument("directory", type=Path, metavar="DIR")
    training_options(resume)
    sweep = command("sweep", "run a plan of strategies and seeds, a process each; finished runs are skipped", _sweep)
    sweep.add_argument("plan", type=Path, metavar="PLAN", help="a YAML file, or a Python file that defines `plan`")
    sweep.add_argument("--executor", metavar="NAME", help="local, slurm or print (default: the plan's, else local)")
    sweep.add_argument(
        "--processes", type=int, metavar="N", help="runs at a time (default: the plan's, else one per GPU or core)"
    )
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
    training_options(pretrain, download=True)


def _run(options: argparse.Namespace) -> None:
    config = configuration(options)
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
    config = configuration(options)
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
        run = api.resume(
            options.directory, data_root=options.data_root, track=options.track, progress=not options.quiet
        )
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
    from clframe.api import compare_sweep
    from clframe.launch.sweep import Sweep

    sweep = Sweep.read(options.plan, options.data_root, options.executor)
    if options.dry_run:
        print("\n".join(table.to_text() for table in (sweep.table(), sweep.search_table()) if table is not None))
        return 0
    try:
        failed = sweep.run(options.processes)
    except KeyboardInterrupt as stop:
        raise Interrupted(f"interrupted; {stop or 'the same command continues the sweep'}.") from None
    if not sweep.plan.executor.only_writes:
        print("\n".join(table.to_text() for table in (sweep.table(), sweep.search_table()) if table is not None))
        comparison = compare_sweep(sweep)
        if comparison is not None:
            print(comparison)
            print(f"every figure: {comparison.save(sweep.plan.out / 'report.html')}")
    return 1 if failed else 0
