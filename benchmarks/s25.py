"""The S25 protocol: 25 classes of CIFAR-100 in five experiences, ResNet-32, every method with the same budget.

    python benchmarks/s25.py [--methods replay,wa] [--batch 32,128] [--seeds 3] [--processes 2] [--data-root DIR]
    python benchmarks/s25.py --record                    # only read what the run directories hold
    python benchmarks/s25.py --table                     # write results/s25.md from what is recorded

200 training images of each class, 12 epochs per experience, SGD 0.1 dropped after epochs 6 and 9, weight decay 5e-4 in
the first experience and 2e-4 later, 250 exemplars, the class order of seed 1993: small enough for one core, and PyCIL's
own code has been measured on it (`fidelity.py` compares). Every run keeps its directory under `--runs`, so one that is
there is not made again, and one that was stopped goes on; its numbers are written to `results/s25.json` as it ends.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import clframe
from clframe.config import merged, resolve
from clframe.launch.sweep import Sweep, SweepRun
from clframe.results import Run
from clframe.tracking.rundir import run_name

RESULTS = Path(__file__).parent / "results" / "s25.json"
SCALARS = (
    "final_accuracy",
    "average_incremental_accuracy",
    "forgetting_max",
    "learning_accuracy",
    "backward_transfer",
)
EPOCHS = 12

BASE: dict[str, Any] = {
    "scenario": {
        "name": "split_cifar100",
        "classes": 25,
        "train_per_class": 200,
        "increment": 5,
        "order": "seed:1993",
    },
    "backbone": {"name": "resnet32"},
    "head": {"init": "kaiming_uniform"},
    "optimizer": {
        "name": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 2e-4,
        "schedule": "multistep",
        "milestones": [6, 9],
    },
    "first_optimizer": {"weight_decay": 5e-4},
    "augmentation": "crop_flip_jitter",
    "epochs": EPOCHS,
    "threads": 1,
    "keep_models": True,
}
MEMORY = {"memory_size": 250}
STEP = {"memory_batch": 32, **MEMORY}
"""Of methods that draw from the memory beside every batch."""

METHODS: dict[str, dict[str, Any]] = {
    # PyCIL's forms, which `fidelity.py` compares with its code
    "finetune": {"strategy": {"name": "finetune"}},
    "joint": {"strategy": {"name": "joint"}},
    "replay": {"strategy": {"name": "replay", **MEMORY}},
    "icarl": {"strategy": {"name": "icarl", "loss": "kd", **MEMORY}},
    "wa": {"strategy": {"name": "wa", "clamp": False, **MEMORY}, "head": {"bias": True}},
    "der_pycil": {"strategy": {"name": "der", "stage": "align", "reuse_head": True, **MEMORY}},
    "foster": {
        "strategy": {"name": "foster", "compression_epochs": 8, **MEMORY},
        "optimizer": {"schedule": "cosine", "milestones": [], "weight_decay": 5e-4},
    },
    # without exemplars; nothing is tuned on this protocol
    "lwf": {"strategy": {"name": "lwf", "strength": 3.0}},  # PyCIL's λ; its softmax over the new classes
    "ewc": {"strategy": {"name": "ewc", "fisher": "batch", "strength": 1000.0, "fisher_max": 1e-4}},  # PyCIL's values
    "si": {"strategy": {"name": "si"}},
    # with the paper's λ, and no bound, MAS diverged; so lr · λ · Ω stays below 1
    "mas": {"strategy": {"name": "mas", "importance_max": 1.0}},
    "l2_anchor": {"strategy": {"name": "l2_anchor"}},
    "featkd": {"strategy": {"name": "featkd"}},
    "predkd": {"strategy": {"name": "predkd"}},
    "bce_predkd": {"strategy": {"name": "bce+predkd"}},
    "bce_predkd_l2": {"strategy": {"name": "bce+predkd+l2_anchor"}},
    # classifier stages behind methods above; `before_stage` is the method without the stage, bit for bit
    "replay_crt": {"strategy": {"name": "replay+crt", **MEMORY}},
    "replay_tau_norm": {"strategy": {"name": "replay+tau_norm", **MEMORY}},
    "replay_lws": {"strategy": {"name": "replay+lws", **MEMORY}},
    "finetune_gauss_align": {"strategy": {"name": "finetune+gauss_align"}},
    # the papers' own forms; the classifier of DER begins as in the other methods (not kaiming_normal, with which some first
    # experiences of twelve epochs never leave chance), so that the first experience is the same for all
    "der": {"strategy": {"name": "der", **MEMORY}, "head": {"bias": False}},
    "icarl_bce": {"strategy": {"name": "icarl", **MEMORY}, "optimizer": {"lr": 0.02}},
    "wa_clamp": {"strategy": {"name": "wa", **MEMORY}},
    "bic": {"strategy": {"name": "bic", **MEMORY}},
    "podnet": {
        "strategy": {"name": "podnet", **MEMORY},
        "backbone": {"last_relu": False},
        "head": {"init": "kaiming_normal"},
        "optimizer": {"schedule": "cosine", "milestones": [], "weight_decay": 5e-4},
    },
    "derpp": {"strategy": {"name": "dark_er", "alpha": 0.3, "beta": 0.5, **STEP}},
    "dark_er": {"strategy": {"name": "dark_er", "alpha": 0.3, "beta": 0.0, **STEP}},
    "er_ace": {"strategy": {"name": "er_ace", **STEP}},
    "agem": {"strategy": {"name": "agem", **STEP}},
    # 64 epochs over 250 exemplars present about as much as 12 over an experience and them
    "gdumb": {"strategy": {"name": "gdumb", **MEMORY}, "epochs": 64},
    # λ_s by `der_masks.py`, on held-out samples of the first experience: the best of those that leave at most 70 %
    "der_masks": {
        "strategy": {"name": "der", "masks": True, "sparsity": 6.0, **MEMORY},
        "head": {"bias": False},
    },
}


def config(method: str, batch: int, seed: int) -> dict[str, Any]:
    """Return the configuration of a run."""
    return merged(merged(BASE, METHODS[method]), {"batch_size": batch, "seed": seed})


def run_of(method: str, batch: int, seed: int, runs: Path) -> SweepRun:
    """Return a run and its directory."""
    record = resolve(config(method, batch, seed)).record
    return SweepRun(record, runs / run_name(record))


def row_of(run: Run, method: str) -> dict[str, Any]:
    """Return what the recorded table keeps of a run: every head's curve and scalars, and what it cost."""
    curves: dict[str, Any] = {}
    for head, restrictions in run.result["values"].items():
        values = restrictions["global"]
        curves[head] = {name: _rounded(values[name]) for name in SCALARS if values.get(name) is not None}
        curves[head]["curve"] = _rounded(values["seen_accuracy"])
    return {
        "method": method,
        "strategy": run.config["strategy"]["name"],
        "batch_size": run.config["batch_size"],
        "seed": run.config["seed"],
        "primary": run.primary[0],
        "heads": curves,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "counters": {k: round(v, 1) for k, v in run.result["counters"].items()},
        "directory": run.path.name,
    }


def _rounded(value: Any) -> Any:
    """Five decimals are a hundredth of a test image."""
    return None if value is None else np.round(np.asarray(value, dtype=float), 5).tolist()


def record(chosen: Iterable[tuple[str, int, int]], runs: Path, out: Path) -> dict[str, Any]:
    """Add every finished run that is not recorded yet, and write the file when something was added."""
    results = json.loads(out.read_text()) if out.exists() else {"schema": 1, "base": {}, "methods": {}, "runs": []}
    known = {r["directory"] for r in results["runs"]}
    results |= {"base": BASE, "methods": METHODS}
    changed = False
    for method, batch, seed in chosen:
        run = run_of(method, batch, seed, runs)
        if run.name not in known and run.state == "finished":
            same = (method, batch, seed)  # a run of an earlier form of the method makes way
            results["runs"] = [r for r in results["runs"] if (r["method"], r["batch_size"], r["seed"]) != same]
            results["runs"].append(row_of(clframe.load(run.directory), method))
            changed = True
    if changed:
        results["runs"].sort(key=lambda r: (r["batch_size"], r["method"], r["seed"]))
        out.write_text(json.dumps(results, indent=1) + "\n")
    return results


def write_table(out: Path) -> None:
    """Print the table of what is recorded, and write it beside the record."""
    from s25_table import text

    if not out.exists():
        sys.exit(f"There are no results in {out} yet: run benchmarks/s25.py first.")
    page = text(json.loads(out.read_text(encoding="utf-8"))["runs"])
    out.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page, end="")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing and record them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--batch", default="32")
    parser.add_argument("--seeds", default="3", help="how many, from 0 on; or a list such as 0,2 (one: 2,)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/s25"))
    parser.add_argument("--data-root")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--record", action="store_true", help="make no runs")
    parser.add_argument(
        "--table", action="store_true", help="make no runs; print and write the table of what is recorded"
    )
    given = parser.parse_args(arguments)
    if given.table:
        write_table(given.out)
        return
    seeds = [int(s) for s in given.seeds.split(",") if s] if "," in given.seeds else list(range(int(given.seeds)))
    chosen = [(m, int(b), s) for b in given.batch.split(",") for s in seeds for m in given.methods.split(",")]
    if not given.record:
        sweep = Sweep.of_configs(
            [run_of(*c, given.runs).record for c in chosen], given.runs, given.processes, given.data_root
        )
        failed = sweep.run()
        print(sweep.table().to_text(), file=sys.stderr)
        if failed:
            sys.exit(1)
    record(chosen, given.runs, given.out)


if __name__ == "__main__":
    main()
