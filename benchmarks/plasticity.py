"""The plasticity study: a long stream on which fine-tuning learns ever less, and what keeps a network able to learn.

    python benchmarks/plasticity.py [--methods finetune,l2_init] [--seeds 3] [--processes 1] [--data-root DIR]
    python benchmarks/plasticity.py --record             # only read what the run directories hold
    python benchmarks/plasticity.py --page               # write plasticity.md and plasticity.png from what is recorded

120 tasks, each the same 400 digits with their labels permuted anew; an MLP of two hidden layers, Adam. A fresh network finds
every task equally hard, and `fresh` is such a network in every task: what it reaches is what a task has to give. All
methods take the same steps. The seed is that of the permutations, too. A run takes a quarter of a minute of a core and keeps
its directory under `--runs`, so one that is there is not made again and one that was stopped goes on; its numbers are
written to `results/plasticity.json` as it ends.
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
from clframe.metrics import Difference, corrected, paired_difference
from clframe.report import Cell, Column, Estimate, Table, plot_curve, to_png
from clframe.report.style import PAGE as PAGE_WIDTH
from clframe.results import Run
from clframe.tracking.rundir import run_name

RESULTS = Path(__file__).parent / "results" / "plasticity.json"
PAGE = Path(__file__).with_suffix(".md")
TASKS, BLOCK = 120, 10
"""Tasks of the stream, and of every block whose mean is recorded."""

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
    "fresh": {"strategy": {"name": "fresh"}},
    "finetune": {"strategy": {"name": "finetune"}},
    "l2_init": {"strategy": {"name": "l2_init", "strength": 1e-3}},
    "shrink_perturb": {"strategy": {"name": "shrink_perturb"}},
    "redo": {"strategy": {"name": "redo"}},
    "continual_backprop": {"strategy": {"name": "continual_backprop"}},
    "layer_norm": {"strategy": {"name": "finetune"}, "backbone": {"layer_norm": True}},
}
"""Nothing is tuned: strengths are the strategies' defaults."""
CURVES = ("online_accuracy", "dormant_units_mean", "effective_rank", "weight_magnitude")
Row = Mapping[str, Any]


# -- runs --------------------------------------------------------------------------------------------------------------


def config(method: str, seed: int) -> dict[str, Any]:
    """Return the configuration of a run."""
    return merged(merged(BASE, METHODS[method]), {"seed": seed, "scenario": {"domain_seed": seed}})


def run_of(method: str, seed: int, runs: Path) -> SweepRun:
    """Return a run and its directory."""
    record = resolve(config(method, seed)).record
    return SweepRun(record, runs / run_name(record))


def row_of(run: Run, method: str) -> dict[str, Any]:
    """Return what is recorded of a run: means over blocks of ten tasks, and its cost."""
    measured = run.result["run"]
    learning = run.matrix()[1:].diagonal()  # a[j,j], the test accuracy on a task right after it
    return {
        "method": method,
        "seed": run.config["seed"],
        "curves": {"learning_accuracy": blocks(learning), **{name: blocks(measured[name]) for name in CURVES}},
        "learning_accuracy_slope": round(run.metric("learning_accuracy_slope"), 6),
        "total_train_flops": measured["total_train_flops"],
        "train_seconds": round(run.result["counters"]["train_seconds"], 1),
        "directory": run.path.name,
    }


def blocks(values: Sequence[Any]) -> list[float]:
    """Return the means over every ten tasks."""
    means = np.asarray(values, dtype=float).reshape(-1, BLOCK).mean(axis=1)
    return [round(float(v), 5) for v in means]


def read(out: Path) -> dict[str, Any]:
    """Return what is recorded."""
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"schema": 1, "runs": []}
    return found


def record(chosen: Iterable[tuple[str, int]], runs: Path, out: Path) -> None:
    """Add every finished run that is not recorded yet, and write the file when something was added."""
    results = {**read(out), "base": BASE, "methods": METHODS, "block": BLOCK}
    known, changed = {r["directory"] for r in results["runs"]}, False
    for method, seed in chosen:
        run = run_of(method, seed, runs)
        if run.name not in known and run.state == "finished":
            # a run of an earlier form of the method makes way
            results["runs"] = [r for r in results["runs"] if (r["method"], r["seed"]) != (method, seed)]
            results["runs"].append(row_of(clframe.load(run.directory), method))
            changed = True
    if changed:
        results["runs"].sort(key=lambda r: (list(METHODS).index(r["method"]), r["seed"]))
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def run_all(chosen: Sequence[tuple[str, int]], given: argparse.Namespace) -> int:
    """Make the runs that are missing, and record each as it ends; returns how many failed."""
    failed = 0
    for start in range(0, len(chosen), given.processes):
        part = chosen[start : start + given.processes]
        made = [run_of(*c, given.runs) for c in part]
        sweep = Sweep.of_configs([run.record for run in made], given.runs, given.processes, given.data_root)
        failed += sweep.run()
        record(part, given.runs, given.out)
        for (method, seed), run in zip(part, made, strict=True):
            print(f"{method}, seed {seed}: {run.state}", file=sys.stderr, flush=True)
    return failed


# -- the page ----------------------------------------------------------------------------------------------------------

HEAD = f"""\
# Loss of plasticity

<!-- Written by `python benchmarks/plasticity.py --page` from results/plasticity.json. -->

{TASKS} tasks of 400 digits, the labels permuted anew in each; an MLP of 64 and 64 hidden units, Adam 3e-3, four epochs of
batches of 16 (`benchmarks/plasticity.py`). *Learning accuracy* is the test accuracy on a task right after it was learned: how
much the network still learns, whatever it forgets. `fresh` begins every task with a new network, so that what others fall
short of it is the `fresh_gap`. `layer_norm` is fine-tuning of a network with LayerNorm. No method was tuned here; strengths are the
strategies' defaults.

A number is the mean over seeds ± the sample standard deviation; the seed varies the permutations, the initialisation and the
order of the images. *First* and *last* are the first and the last {BLOCK} tasks. Differences are seed by seed, with the 95 %
interval of Student's t, which is not corrected; one is supported when three seeds or more stand behind it and its p value is below
0.05 after Holm's correction for the differences of its column.
"""


def page(rows: Sequence[Row]) -> str:
    """Return the page in Markdown."""
    if not rows:
        return f"{HEAD}\nNothing has been measured yet.\n"
    parts = {
        "What is still learned": learning_table(rows),
        f"Differences in the last {BLOCK} tasks": differences_table(rows),
        "What was measured inside": inside_table(rows),
    }
    figure = "\n![Learning accuracy over the tasks](plasticity.png)\n"
    return HEAD + figure + "".join(f"\n## {title}\n\n{table.to_markdown()}" for title, table in parts.items())


def methods_of(rows: Sequence[Row]) -> list[str]:
    """Return the methods that have a row, in their order."""
    return list(dict.fromkeys(row["method"] for row in rows))


def values(rows: Sequence[Row], method: str, name: str, block: int) -> dict[int, float]:
    """Return a recorded value of a block of tasks by seed."""
    return {row["seed"]: row["curves"][name][block] for row in rows if row["method"] == method}


def learning_table(rows: Sequence[Row]) -> Table:
    """Return a row per method: learning accuracy at both ends of the stream, and whether it fell."""
    titles = ("first", "last")
    columns = [Column("method"), Column("seeds", right=True)]
    columns += [Column(f"learning accuracy, {t}", unit="%", scale=100, right=True) for t in titles]
    columns += _difference_columns("change")
    columns.append(Column("slope [points per 100 tasks]", scale=1e4, right=True, signed=True))
    ends = {m: [values(rows, m, "learning_accuracy", block) for block in (0, -1)] for m in methods_of(rows)}
    changes = corrected([paired_difference(last, first) for first, last in ends.values()])
    lines: list[list[Cell]] = []
    for (method, (first, last)), change in zip(ends.items(), changes, strict=True):
        slopes = {row["seed"]: row["learning_accuracy_slope"] for row in rows if row["method"] == method}
        lines.append(
            [method, len(first), Estimate.over(first), Estimate.over(last), *_cells(change), Estimate.over(slopes)]
        )
    return Table(columns, lines)


def differences_table(rows: Sequence[Row]) -> Table:
    """Return every method's learning accuracy at the end, minus a fresh network's and minus fine-tuning's."""
    methods, others = methods_of(rows), ("fresh", "finetune")
    columns, lines = [Column("method")], {method: list[Cell]() for method in methods}
    for other in others:
        columns += _difference_columns(f"minus {other}")
        last = {m: values(rows, m, "learning_accuracy", -1) for m in methods}
        pairs = {m: paired_difference(last[m], last[other]) for m in methods if m != other and other in last}
        found = dict(zip(pairs, corrected(list(pairs.values())), strict=True))
        for method, line in lines.items():
            line += _cells(found[method]) if method in found else [None] * 3
    return Table(columns, [[method, *line] for method, line in lines.items()])


def _difference_columns(title: str) -> list[Column]:
    return [
        Column(f"{title} [points]", scale=100, right=True, signed=True),
        Column("95 % interval [points]", right=True),
        Column("supported"),
    ]


def _cells(found: Difference) -> list[Cell]:
    ends = None if np.isnan(found.low) else f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
    return [found.mean, ends, "yes" if found.supported else "no"]


def inside_table(rows: Sequence[Row]) -> Table:
    """Return what the instruments saw in the first and in the last ten tasks, and what training took."""
    shown = {
        "dormant_units_mean": ("dormant units", "%", 100.0, 2),
        "effective_rank": ("effective rank", "", 1.0, 2),
        "weight_magnitude": ("mean |w|", "", 1.0, 3),
        "online_accuracy": ("online accuracy", "%", 100.0, 2),
    }
    columns = [Column("method")]
    for title, unit, scale, digits in shown.values():
        columns += [Column(f"{title}, {when}", unit, scale, digits, right=True) for when in ("first", "last")]
    columns.append(Column("training", unit="GFLOP", scale=1e-9, right=True))
    lines: list[list[Cell]] = []
    for method in methods_of(rows):
        seen = [Estimate.over(values(rows, method, name, block)) for name in shown for block in (0, -1)]
        flops = {row["seed"]: float(row["total_train_flops"]) for row in rows if row["method"] == method}
        lines.append([method, *seen, Estimate.over(flops)])
    return Table(columns, lines)


def write_page(out: Path, page_file: Path) -> None:
    """Print the page of what is recorded, and write it with its figure."""
    rows = read(out)["runs"]
    text = page(rows)
    page_file.write_text(text, encoding="utf-8")
    if rows:
        curves = {m: [r["curves"]["learning_accuracy"] for r in rows if r["method"] == m] for m in methods_of(rows)}
        figure = plot_curve(
            curves, xlabel=f"block of {BLOCK} tasks", ylabel="learning accuracy", order=list(METHODS), width=PAGE_WIDTH
        )
        page_file.with_suffix(".png").write_bytes(to_png(figure, dpi=130))
    print(text, end="")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing and record them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="3", help="how many, from 0 on; or a list such as 0,2 (one: 2,)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/plasticity"))
    parser.add_argument("--data-root")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page-file", type=Path, default=PAGE)
    parser.add_argument("--record", action="store_true", help="make no runs; read those that are there")
    parser.add_argument(
        "--page", action="store_true", help="make no runs; print and write the page of what is recorded"
    )
    given = parser.parse_args(arguments)
    if given.page:
        write_page(given.out, given.page_file)
        return
    seeds = [int(s) for s in given.seeds.split(",") if s] if "," in given.seeds else list(range(int(given.seeds)))
    chosen = [(m, s) for s in seeds for m in given.methods.split(",")]
    if given.record:
        record(chosen, given.runs, given.out)
    elif run_all(chosen, given):
        sys.exit(1)


if __name__ == "__main__":
    main()
