"""Do PODNet's distillation terms hold old classes' features in place on a stream of many small steps?

    python benchmarks/podnet_drift.py [--methods podnet,without] [--seeds 3] [--processes 1] [--data-root DIR]
    python benchmarks/podnet_drift.py --record           # only read what the run directories hold
    python benchmarks/podnet_drift.py --table            # print the table of what is recorded

The claim: POD-spatial and POD-flat (Douillard et al. 2020) lower the drift of old classes' prototypes. Five classes of
CIFAR-100 and then ten times two, 200 training images of each, ResNet-8, 12 epochs an experience, 250 exemplars; `without` is
the same method whose two terms weigh nothing, `spatial` and `flat` have one of them. Drift is that of the representation
report (`clframe representation`): the way of every old class's mean feature since the class was taught, in units of the
class's spread then, averaged over the old classes, and here over the experiences from the second on. Its cosine, which
knows no scale, stands beside it, and so does what a probe reads in the features: features that stand still may have
stopped learning. Runs keep their models under `--runs`; one that is there is not made again, and one that was stopped goes
on. Numbers are written to `results/podnet_drift.json` as the runs are read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import s25

import clframe
from clframe.config import merged, resolve
from clframe.launch.sweep import Sweep, SweepRun
from clframe.metrics import paired_difference, summarise
from clframe.report import Column, Estimate, Table
from clframe.results import Run
from clframe.tracking.rundir import run_name

RESULTS = Path(__file__).parent / "results" / "podnet_drift.json"

BASE: dict[str, Any] = merged(
    merged(s25.BASE, s25.METHODS["podnet"]),
    {
        "scenario": {"base": 5, "increment": 2},
        "backbone": {"name": "resnet8", "last_relu": False},
        "batch_size": 64,
        "keep_models": True,
    },
)
METHODS: dict[str, dict[str, float]] = {
    "podnet": {},
    "without": {"spatial_weight": 0.0, "flat_weight": 0.0},
    "spatial": {"flat_weight": 0.0},
    "flat": {"spatial_weight": 0.0},
}
"""Options of PODNet that are changed."""

NUMBERS = {
    "drift": Column("drift", digits=3, right=True),
    "last_drift": Column("at the end", digits=3, right=True),
    "cosine": Column("cosine", digits=3, right=True),
    "probe_accuracy": Column("probe, last", unit="%", scale=100, right=True),
    "gain": Column("probe gain", unit="%", scale=100, right=True),
    "average_incremental_accuracy": Column("average", unit="%", scale=100, right=True),
    "final_accuracy": Column("last", unit="%", scale=100, right=True),
    "forgetting_max": Column("forgetting", unit="%", scale=100, right=True),
}


def config(method: str, seed: int) -> dict[str, Any]:
    """Return the configuration of a run."""
    return merged(BASE, {"strategy": dict(METHODS[method]), "seed": seed})


def run_of(method: str, seed: int, runs: Path) -> SweepRun:
    """Return a run and its directory."""
    record = resolve(config(method, seed)).record
    return SweepRun(record, runs / run_name(record))


def row_of(run: Run, method: str, data_root: str | None) -> dict[str, Any]:
    """Return what is recorded of a run; makes its representation report where there is none."""
    found = run.representation(data_root=data_root, progress=False)
    numbers = {
        "drift": float(found.drift[1:].mean()),
        "last_drift": float(found.drift[-1]),
        "cosine": float(found.drift_cosine[1:].mean()),
        "probe_accuracy": float(found.probe_accuracy[-1]),
        "gain": found.gain,
        **{n: run.metric(n) for n in ("average_incremental_accuracy", "final_accuracy", "forgetting_max")},
    }
    curves = {"drift": found.drift, "cosine": found.drift_cosine, "probe_accuracy": found.probe_accuracy}
    return {
        "method": method,
        "seed": run.config["seed"],
        "numbers": {name: round(value, 5) for name, value in numbers.items()},
        "curves": {n: [None if np.isnan(v) else round(float(v), 5) for v in values] for n, values in curves.items()},
        "train_seconds": round(run.result["counters"]["train_seconds"], 1),
        "directory": run.path.name,
    }


def record(chosen: Iterable[tuple[str, int]], runs: Path, out: Path, data_root: str | None) -> dict[str, Any]:
    """Add every finished run that is not recorded yet; the file is written after each."""
    results = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"schema": 1, "runs": []}
    for method, seed in chosen:
        run = run_of(method, seed, runs)
        if run.state != "finished" or run.name in {r["directory"] for r in results["runs"]}:
            continue
        rest = [r for r in results["runs"] if (r["method"], r["seed"]) != (method, seed)]  # an earlier form makes way
        rest.append(row_of(clframe.load(run.directory), method, data_root))
        rest.sort(key=lambda r: (list(METHODS).index(r["method"]), r["seed"]))
        results = {"schema": 1, "base": BASE, "methods": METHODS, "runs": rest}
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def _by_seed(rows: Sequence[Mapping[str, Any]], method: str, number: str) -> dict[int, float]:
    return {r["seed"]: r["numbers"][number] for r in rows if r["method"] == method}


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return mean and deviation over seeds of every method, and what the seeds say of the claim."""
    present = [m for m in METHODS if any(r["method"] == m for r in rows)]
    lines = []
    for method in present:
        found = [summarise(_by_seed(rows, method, number)) for number in NUMBERS]
        lines.append([method, *(Estimate(f.mean, f.std) for f in found), found[0].n])
    notes = ["Drift and cosine are means over the experiences from the second on; in units of the classes' spread."]
    for method in present:
        if method != "without" and "without" in present:
            for number in ("drift", "cosine"):
                gap = paired_difference(_by_seed(rows, method, number), _by_seed(rows, "without", number))
                verdict = "supported" if gap.supported else "not supported"
                ends = "" if np.isnan(gap.low) else f" (95 % interval {gap.low:+.3f} … {gap.high:+.3f}, {gap.n} seeds)"
                notes.append(f"{number}, {method} less without: {gap.mean:+.3f}, {verdict}{ends}.")
    return Table(["method", *NUMBERS.values(), Column("n", right=True)], lines, title="Prototype drift", notes=notes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing, record them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="podnet,without", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/podnet_drift"))
    parser.add_argument("--data-root")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--record", action="store_true", help="make no runs")
    parser.add_argument("--table", action="store_true", help="make no runs and record none")
    given = parser.parse_args(arguments)
    if given.table:
        if not given.out.exists():
            sys.exit(f"There are no results in {given.out} yet: run benchmarks/podnet_drift.py first.")
        print(table(json.loads(given.out.read_text(encoding="utf-8"))["runs"]).to_markdown(), end="")
        return
    chosen = [(method, seed) for seed in range(given.seeds) for method in given.methods.split(",")]
    failed = 0
    if not given.record:
        sweep = Sweep.of_configs(
            [run_of(*c, given.runs).record for c in chosen], given.runs, given.processes, given.data_root
        )
        failed = sweep.run()
        print(sweep.table().to_text(), file=sys.stderr)
    print(table(record(chosen, given.runs, given.out, given.data_root)["runs"]).to_markdown(), end="")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
