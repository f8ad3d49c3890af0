"""The plasticity study: a long stream on which fine-tuning learns ever less, and what keeps a network able to learn.

    python benchmarks/plasticity.py [--methods finetune,l2_init] [--seeds 3] [--processes 2] [--data-root DIR]
    python benchmarks/plasticity.py --record             # only read what the run directories hold, and write the page

120 tasks, each the same 400 digits with their labels permuted anew; an MLP of two hidden layers, Adam. A fresh network finds
every task equally hard. Every run keeps its directory under `--runs`, so one that is there is not made again and one that was
stopped goes on; numbers go to `results/plasticity.json`, and `plasticity.md` is written from them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import clframe
from clframe.config import merged, resolve
from clframe.launch.sweep import Sweep, SweepRun
from clframe.results import Run
from clframe.tracking.rundir import run_name

RESULTS = Path(__file__).parent / "results" / "plasticity.json"
PAGE = Path(__file__).parent / "plasticity.md"
TASKS = 120
ENDS = 10
"""Tasks at either end of the stream that are compared."""
CURVES = ("online_accuracy", "dormant_units_mean", "effective_rank", "weight_magnitude")

BASE: dict[str, Any] = {
    "scenario": {"name": "plasticity", "source": "digits", "kind": "permuted_labels", "experiences": TASKS},
    "backbone": {"name": "mlp", "hidden": [64, 64]},
    "optimizer": {"name": "adam", "lr": 3e-3, "weight_decay": 0.0},
    "augmentation": "none",
    "batch_size": 16,
    "epochs": 4,
    "threads": 1,
    "measure": ["default", "online_accuracy"],
}
METHODS: dict[str, dict[str, Any]] = {
    "finetune": {"strategy": {"name": "finetune"}},
    "l2_init": {"strategy": {"name": "l2_init", "strength": 1e-3}},
    "shrink_perturb": {"strategy": {"name": "shrink_perturb"}},
    "redo": {"strategy": {"name": "redo"}},
    "continual_backprop": {"strategy": {"name": "continual_backprop"}},
    "layer_norm": {"strategy": {"name": "finetune"}, "backbone": {"layer_norm": True}},
}
"""Nothing is tuned: strengths are the strategies' defaults."""

HEAD = """\
# Plasticity on a long stream

<!-- Written by `python benchmarks/plasticity.py --record` from results/plasticity.json. -->

{tasks} tasks of 400 digits, the labels permuted anew in each; an MLP of 64 and 64 hidden units, Adam 3e-3, four epochs of
batches of 16. *first* and *last* are means over the {ends} tasks at either end, of the accuracy on every batch before learning
from it; *change* is their difference. Dormant units and effective rank are means over the last {ends} tasks. A number is the mean over
seeds ± the sample standard deviation. No method was tuned here.

| method | seeds | first | last | change | dormant units | effective rank |
|---|---|---|---|---|---|---|
"""


def config(method: str, seed: int) -> dict[str, Any]:
    """Return the configuration of a run."""
    return merged(merged(BASE, METHODS[method]), {"seed": seed})


def run_of(method: str, seed: int, runs: Path) -> SweepRun:
    """Return a run and its directory."""
    record = resolve(config(method, seed)).record
    return SweepRun(record, runs / run_name(record))


def row_of(run: Run, method: str) -> dict[str, Any]:
    """Return what is recorded of a run."""
    curves = {name: np.round(np.asarray(run.result["run"][name], dtype=float), 5).tolist() for name in CURVES}
    return {"method": method, "seed": run.config["seed"], "curves": curves, "directory": run.path.name}


def record(chosen: Iterable[tuple[str, int]], runs: Path, out: Path) -> list[dict[str, Any]]:
    """Add every finished run; returns all that is recorded."""
    rows = {r["directory"]: r for r in (json.loads(out.read_text())["runs"] if out.exists() else [])}
    for method, seed in chosen:
        run = run_of(method, seed, runs)
        if run.state == "finished":
            rows[run.name] = row_of(clframe.load(run.directory), method)
    found = sorted(rows.values(), key=lambda r: (list(METHODS).index(r["method"]), r["seed"]))
    out.write_text(json.dumps({"schema": 1, "base": BASE, "methods": METHODS, "runs": found}, indent=1) + "\n")
    return found


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page in Markdown."""
    text = HEAD.format(tasks=TASKS, ends=ENDS)
    for method in dict.fromkeys(r["method"] for r in rows):
        curves = [{n: np.asarray(v) for n, v in r["curves"].items()} for r in rows if r["method"] == method]
        first = [c["online_accuracy"][:ENDS].mean() for c in curves]
        last = [c["online_accuracy"][-ENDS:].mean() for c in curves]
        dormant = [c["dormant_units_mean"][-ENDS:].mean() for c in curves]
        rank = [c["effective_rank"][-ENDS:].mean() for c in curves]
        change = [b - a for a, b in zip(first, last, strict=True)]
        cells = [*(_shown(v, 100) for v in (first, last, change, dormant)), _shown(rank, 1)]
        text += f"| {method} | {len(curves)} | {' | '.join(cells)} |\n"
    return text + "\nAccuracies and shares in percent.\n"


def _shown(values: Sequence[float], scale: float) -> str:
    spread = f" ± {scale * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{scale * np.mean(values):.1f}{spread}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing and record them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/plasticity"))
    parser.add_argument("--data-root")
    parser.add_argument("--record", action="store_true", help="make no runs")
    given = parser.parse_args(arguments)
    chosen = [(m, s) for s in range(given.seeds) for m in given.methods.split(",")]
    if not given.record:
        sweep = Sweep.of_configs(
            [run_of(*c, given.runs).record for c in chosen], given.runs, given.processes, given.data_root
        )
        if sweep.run():
            print(sweep.table().to_text(), file=sys.stderr)
            sys.exit(1)
    PAGE.write_text(page(record(chosen, given.runs, RESULTS)), encoding="utf-8")


if __name__ == "__main__":
    main()
