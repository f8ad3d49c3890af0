"""Methods for pretrained networks: on a ViT of `clframe pretrain`, and on a residual network with CIFAR-10 weights.

    python benchmarks/pretrained.py --data-root DIR --weights-dir DIR [--methods finetune,nmc] [--seeds 3] [--processes 2]
    python benchmarks/pretrained.py --tune ...           # learning rates on validation samples; how RATES were chosen
    python benchmarks/pretrained.py --record ...         # only read what the run directories hold

The stream: 50 classes of CIFAR-100 in five experiences, 100 training and 40 test images of each, a class order per seed.
Neither network has seen its classes. The ViT (1.2 million parameters, patches of 8 pixels) is pretrained here on
Tiny-ImageNet at 32x32 pixels without the classes that CIFAR-100 shares (`tiny_imagenet_without_cifar100.txt`); the
residual network is `resnet32_cifar10.safetensors` in the weights folder. Every method trains with the loss over the
experience's own classes, batches of 128 and five epochs per stage, without exemplars. What a method has to beat is
`linear_probe`: a frozen network and a classifier trained by the same loss, for the five epochs that a stage has, and for
the fifteen that the three stages of norm tuning have together.

The whole takes about an hour of one core: 17 minutes for the ViT (26 seconds per epoch), then about 4 for a seed of the ViT's
methods and 8 for one of the residual network's. Every run keeps its directory under `--runs`; one that is there is not made
again, one that was stopped goes on. Numbers are written to `results/pretrained.json` as they come.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import clframe
from clframe import registry
from clframe.config import merged, resolve
from clframe.launch.sweep import Sweep, SweepRun
from clframe.metrics import paired_difference
from clframe.models.weights import file_digest, read_provenance
from clframe.report import Column, Estimate, Table
from clframe.results import Run, metrics_of
from clframe.tracking.rundir import run_name
from clframe.training.checkpoint import strategy_state

RESULTS = Path(__file__).parent / "results" / "pretrained.json"
EXCLUDED = Path(__file__).parent / "tiny_imagenet_without_cifar100.txt"
SCALARS = ("average_incremental_accuracy", "final_accuracy", "forgetting_max", "learning_accuracy")
EPOCHS = 5
TUNING_SEED = 1000

VIT = {"name": "vit_tiny", "patch": 8, "dim": 128, "depth": 6, "heads": 4}
PRETRAINING: dict[str, Any] = {
    "scenario": {"name": "split_tiny_imagenet", "size": 32, "exclude": str(EXCLUDED)},
    "backbone": VIT,
    "optimizer": {
        "name": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "per": "step",
        "warmup": 2.0,
    },
    "epochs": 36,
    "batch_size": 128,
    "threads": 1,
    "seed": 0,
}
BASE: dict[str, Any] = {
    "scenario": {
        "name": "split_cifar100",
        "classes": 50,
        "increment": 10,
        "train_per_class": 100,
        "test_per_class": 40,
    },
    "optimizer": {"name": "adam", "weight_decay": 0.0},
    "epochs": EPOCHS,
    "batch_size": 128,
    "threads": 1,
}
NETWORKS: dict[str, dict[str, Any]] = {"vit_tiny": VIT, "resnet32": {"name": "resnet32"}}

# Each method's options, and the networks on which it runs; those that aren't registered are left out with a message.
METHODS: dict[str, dict[str, Any]] = {
    "finetune": {"strategy": {"name": "finetune", "loss_over": "experience"}},
    "linear_probe": {"strategy": {"name": "linear_probe"}},
    "linear_probe_15": {"strategy": {"name": "linear_probe"}, "epochs": 3 * EPOCHS},
    "layernorm_tuning": {"strategy": {"name": "layernorm_tuning", "head_lr": 1e-3}, "on": ["vit_tiny"]},
    "layernorm_single": {"strategy": {"name": "layernorm_tuning", "form": "single_stage"}, "on": ["vit_tiny"]},
    "batchnorm_tuning": {"strategy": {"name": "batchnorm_tuning", "head_lr": 1e-3}, "on": ["resnet32"]},
    "slca": {"strategy": {"name": "slca"}},
    "nmc": {"strategy": {"name": "nmc"}},
    "simplecil": {"strategy": {"name": "simplecil"}},
}
# Best of GRID on validation samples (`--tune`). Where it is the largest of the grid, more might be better still.
RATES: dict[str, dict[str, float]] = {
    "vit_tiny": {
        "finetune": 3e-4,
        "linear_probe": 1e-2,
        "linear_probe_15": 1e-2,
        "layernorm_tuning": 1e-2,
        "layernorm_single": 1e-2,
        "slca": 1e-2,
    },
    "resnet32": {
        "finetune": 1e-3,
        "linear_probe": 1e-2,
        "linear_probe_15": 1e-2,
        "batchnorm_tuning": 1e-2,
        "slca": 1e-2,
    },
}
RATE = 1e-3
"""Of methods that train nothing."""
GRID = (1e-4, 3e-4, 1e-3, 2.5e-3, 1e-2)


def config(method: str, network: str, seed: int, weights: Path, rate: float | None = None) -> dict[str, Any]:
    """Return the configuration of a run; the class order belongs to the seed."""
    options = {k: v for k, v in METHODS[method].items() if k != "on"}
    here = {
        "seed": seed,
        "scenario": {"order": f"seed:{1993 + seed}"},
        "backbone": {**NETWORKS[network], "weights": str(weights)},
        "optimizer": {"lr": RATES[network].get(method, RATE) if rate is None else rate},
    }
    return merged(merged(BASE, options), here)


def chosen_methods(names: Sequence[str], networks: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield method and network where both go together; a method that isn't registered is told and left out."""
    for name in names:
        strategy = METHODS[name]["strategy"]["name"]
        if strategy not in registry.available("strategy"):
            print(f"{name}: there is no strategy {strategy!r} here, left out", file=sys.stderr)
            continue
        for network in networks:
            if network in METHODS[name].get("on", NETWORKS):
                yield name, network


def run_of(method: str, network: str, seed: int, weights: Path, runs: Path) -> SweepRun:
    """Return a run and its directory."""
    record = resolve(config(method, network, seed, weights)).record
    return SweepRun(record, runs / run_name(record))


# -- what is recorded --------------------------------------------------------------------------------------------------


def row_of(run: Run, method: str, network: str) -> dict[str, Any]:
    """Return what the recorded table keeps of a run: every head's numbers, what trained, what is stored, what it cost."""
    heads: dict[str, Any] = {}
    for head, restrictions in run.result["values"].items():
        values = restrictions["global"]
        heads[head] = {
            n: _rounded(values[n]) for n in (*SCALARS, "seen_accuracy", "task_identification") if n in values
        }
    last = [e for e in run.events("epoch") if e["experience"] == len(run.directory.stream["experiences"])]
    return {
        "method": method,
        "network": network,
        "seed": run.config["seed"],
        "primary": run.primary[0],
        "heads": heads,
        "trained": {e["phase"]: e["parameters"] for e in last},
        "stored": sum(p.numel() for p in run.model.parameters()) + _numbers(strategy_state(run.strategy)),
        "counters": {k: round(v, 1) for k, v in run.result["counters"].items()},
        "directory": run.path.name,
    }


def _rounded(value: Any) -> Any:
    """Five decimals are far below a test image."""
    return None if value is None else np.round(np.asarray(value, dtype=float), 5).tolist()


def _numbers(state: Any) -> int:
    """Count the floating-point numbers that a strategy keeps beside the network: sets, keys, means, covariances."""
    if isinstance(state, torch.Tensor):
        return state.numel() if state.is_floating_point() else 0
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return sum(map(_numbers, inner))


def comparisons(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Say of every method and network how far it is above fine-tuning and the linear probes, seed by seed."""
    values: dict[tuple[str, str], dict[int, float]] = {}
    for r in rows:
        number = r["heads"][r["primary"]]["average_incremental_accuracy"]
        values.setdefault((r["network"], r["method"]), {})[r["seed"]] = number
    found = []
    for (network, method), ours in values.items():
        for other in ("finetune", "linear_probe", "linear_probe_15"):
            theirs = values.get((network, other))
            if theirs is None or other == method:
                continue
            gap = paired_difference(ours, theirs)
            verdict = "undecided" if not gap.supported else "above" if gap.mean > 0 else "below"
            numbers = {"difference": gap.mean, "low": gap.low, "high": gap.high}
            where = {"network": network, "method": method, "than": other, "seeds": gap.n, "verdict": verdict}
            found.append({**where, **{k: None if v != v else round(v, 5) for k, v in numbers.items()}})
    return found


def table(results: dict[str, Any]) -> Table:
    """Return the recorded table: accuracy, what trains, what it costs, and the verdicts."""
    verdicts = {(c["network"], c["method"], c["than"]): c["verdict"] for c in results["comparisons"]}
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for r in results["runs"]:
        groups.setdefault((r["network"], r["method"]), []).append(r)
    rows = []
    for (network, method), runs in groups.items():
        cells = [_over_seeds(runs, name) for name in SCALARS[:2]]
        seconds = float(np.mean([r["counters"]["train_seconds"] for r in runs]))
        against = [
            verdicts.get((network, method, other), "–") for other in ("finetune", "linear_probe", "linear_probe_15")
        ]
        trained = max(runs[0]["trained"].values(), default=0)
        rows.append([network, method, *cells, len(runs), trained, runs[0]["stored"], seconds, *against])
    percent = [Column(t, "%", 100.0, right=True) for t in ("average", "final")]
    numbers = [Column(t, right=True) for t in ("seeds", "trained", "stored", "seconds")]
    heads = [Column("network"), Column("method"), *percent, *numbers]
    return Table([*heads, *(Column(f"than {n}") for n in ("finetune", "probe", "probe 15"))], rows)


def _over_seeds(runs: Sequence[dict[str, Any]], name: str) -> Estimate:
    return Estimate.over({r["seed"]: r["heads"][r["primary"]][name] for r in runs})


def record(chosen: Iterable[tuple[str, str, int]], weights: dict[str, Path], runs: Path, out: Path) -> dict[str, Any]:
    """Add every finished run that is not recorded yet, and write the file."""
    empty: dict[str, Any] = {"schema": 1, "runs": []}
    results = {**empty, **(json.loads(out.read_text()) if out.exists() else {})}
    known = {r["directory"] for r in results["runs"]}
    for method, network, seed in chosen:
        run = run_of(method, network, seed, weights[network], runs)
        if run.name not in known and run.state == "finished":
            results["runs"].append(row_of(clframe.load(run.directory), method, network))
    results["runs"].sort(
        key=lambda r: (list(NETWORKS).index(r["network"]), list(METHODS).index(r["method"]), r["seed"])
    )
    results |= {"base": BASE, "methods": METHODS, "rates": RATES}
    results["weights"] = {
        network: {"sha256": file_digest(file), "provenance": _without_config(read_provenance(file))}
        for network, file in weights.items()
    }
    results["comparisons"] = comparisons(results["runs"])
    out.write_text(json.dumps(results, indent=1) + "\n")
    return results


def _without_config(provenance: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if provenance is None else {k: v for k, v in provenance.items() if k != "config"}


# -- what is done ------------------------------------------------------------------------------------------------------


def weights_of(networks: Sequence[str], given: argparse.Namespace) -> dict[str, Path]:
    """Return each network's weights file; the ViT is pretrained unless its file is there."""
    files: dict[str, Path] = {}
    if "vit_tiny" in networks:
        files["vit_tiny"] = given.runs / f"vit_tiny_imagenet_{given.pretrain_epochs}.safetensors"
        options = {**PRETRAINING, "epochs": given.pretrain_epochs}
        run_dir = given.runs / f"pretraining_{given.pretrain_epochs}"
        made = clframe.pretrain(out=files["vit_tiny"], run_dir=run_dir, data_root=given.data_root, **options)
        print(
            f"vit_tiny: {100 * made['accuracy']:.2f} % on the test images of its {len(made['classes'])} classes",
            file=sys.stderr,
        )
    if "resnet32" in networks:
        if given.weights_dir is None:
            sys.exit("The residual network needs --weights-dir, the folder that holds resnet32_cifar10.safetensors.")
        files["resnet32"] = (given.weights_dir / "resnet32_cifar10.safetensors").resolve()
    return files


def tune(pairs: Sequence[tuple[str, str]], weights: dict[str, Path], given: argparse.Namespace) -> None:
    """Print the validation accuracy of every rate: a fifth of the training samples, and a seed that no result uses."""
    for method, network in pairs:
        for rate in GRID:
            options = config(method, network, TUNING_SEED, weights[network], rate)
            options = merged(options, {"scenario": {"valid_per_class": BASE["scenario"]["train_per_class"] // 5}})
            where = given.runs / "tuning" / run_name(resolve(options).record)
            run = (
                clframe.resume(where, data_root=given.data_root, progress=False)
                if where.is_dir()
                else clframe.run(run_dir=where, data_root=given.data_root, progress=False, **options)
            )
            report = metrics_of(run.directory, "valid")
            print(f"{network} {method} {rate:g}: {100 * report.get('average_incremental_accuracy'):.2f} %", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Pretrain, make the runs that are missing, record them and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--pretrain-epochs", type=int, default=PRETRAINING["epochs"])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/pretrained"))
    parser.add_argument("--data-root")
    parser.add_argument("--weights-dir", type=Path, help="folder with resnet32_cifar10.safetensors")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--record", action="store_true", help="make no runs")
    parser.add_argument("--tune", action="store_true", help="only try learning rates")
    given = parser.parse_args(arguments)
    pairs = list(chosen_methods(given.methods.split(","), given.networks.split(",")))
    weights = weights_of(given.networks.split(","), given)
    if given.tune:
        tune(pairs, weights, given)
        return
    groups = [[(m, n, s) for m, n in pairs if n == network] for network in NETWORKS for s in range(given.seeds)]
    chosen = [run for group in groups for run in group]
    failed = 0
    for group in [] if given.record else groups:
        runs = [run_of(m, n, s, weights[n], given.runs) for m, n, s in group]
        failed += Sweep.of_configs([run.record for run in runs], given.runs, given.processes, given.data_root).run()
        record(chosen, weights, given.runs, given.out)
    print(table(record(chosen, weights, given.runs, given.out)).to_text())
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
