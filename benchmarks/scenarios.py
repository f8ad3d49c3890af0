"""Every scenario at work: replay and fine-tuning over families of streams, six methods on two data sets, digits for the rest.

    python benchmarks/scenarios.py --list                       # every row with its command, and about how long it takes
    python benchmarks/scenarios.py [--groups families,online] [--rows TEXT] [--seeds 1] [--processes 1] [--data-root DIR]
    python benchmarks/scenarios.py --record                     # only read what the run directories hold
    python benchmarks/scenarios.py --table                      # write scenarios.md from what is recorded

Groups: `families` (CIFAR-100 cut in twelve ways), `online` (any-time accuracy on Si-Blurry), `methods` (six strategies on
CIFAR-100 and on an ImageNet subset), `tiny` (Tiny-ImageNet at 64 pixels) and `smoke` (the example of every registered
scenario, on digits). They are sized for one slow core: about two minutes a run of a residual network. Two strategies need
a pretrained backbone, which `--weights` names a folder of. A row whose strategy isn't registered, whose weights are missing
or whose network is of the wrong kind is left out with a message. Every run keeps its directory under `--runs`: one that is
there isn't made again, one that was stopped goes on. Numbers are written to `results/scenarios.json` as they come.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import clframe
from clframe import registry
from clframe.cli import parse_overrides
from clframe.config import SECTIONS, merged, resolve
from clframe.data import DataRoot
from clframe.launch.sweep import Sweep, SweepRun
from clframe.metrics import summarise
from clframe.report import Column, Table
from clframe.report.describe import scenario_example
from clframe.results import Run
from clframe.tracking.rundir import run_name

RESULTS = Path(__file__).parent / "results" / "scenarios.json"
PAGE = Path(__file__).with_suffix(".md")
SCALARS = (
    *("final_accuracy", "average_incremental_accuracy", "forgetting_max"),
    *("final_squared_error", "average_incremental_squared_error"),
)
IMAGENET = {"input_mean": [0.485, 0.456, 0.406], "input_std": [0.229, 0.224, 0.225]}
MILLISECONDS = {"resnet20": 2.2, "resnet18": 2.2, "mlp": 0.02}
"""Of one core, per training image: a step's share. ResNet-18 with an ImageNet stem at width 32 and 64 pixels."""
COST = {"ewc": 1.1, "er_ace": 2.0, "der": 1.8, "foster": 1.5, "batchnorm_tuning": 0.8, "nmc": 0.1}
"""Of an image presented, over that of fine-tuning: further branches and teachers, or a part of the network alone."""

SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "multistep", "milestones": [4, 6]}
BASE: dict[str, Any] = {"backbone": {"name": "resnet20"}, "optimizer": SGD, "batch_size": 32, "epochs": 8, "threads": 1}
CIFAR = {"name": "split_cifar100", "classes": 20, "train_per_class": 150, "test_per_class": 50, "increment": 4}
"""3,000 training images: 24,000 presentations in eight epochs."""
OF_CIFAR = {
    "source": "cifar100",
    "order": "seed:1993",
    **{k: v for k, v in CIFAR.items() if k not in ("name", "increment")},
}
PASS = {
    "optimizer": {
        "name": "sgd",
        "lr": 0.03,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "schedule": "constant",
        "milestones": [],
    },
    "batch_size": 16,
    "epochs": 1,
}
"""Of streams whose samples come once."""
ONCE = {**OF_CIFAR, "train_per_class": 500, "evaluate_every": 1000}

FAMILIES: dict[str, dict[str, Any]] = {
    "B0": {"scenario": CIFAR},
    "B50": {"scenario": {**CIFAR, "base": 10, "increment": 2}},
    "task ids": {"scenario": {**CIFAR, "setting": "task"}, "head": {"name": "multi"}},
    "superclass domains": {"scenario": {"name": "superclass_domains", "train_per_class": 30, "test_per_class": 10}},
    "rotated": {"scenario": {"name": "rotated", **OF_CIFAR, "images": "shares"}},
    "data-incremental": {"scenario": {"name": "data_incremental", **OF_CIFAR}},
    "repetition": {"scenario": {"name": "class_repetition", **OF_CIFAR, "experiences": 10, "slots": 4}},
    "long-tailed": {"scenario": {"name": "long_tailed", **OF_CIFAR, "train_per_class": 300, "ratio": 0.1}},
    "few-shot": {"scenario": {"name": "few_shot", **OF_CIFAR, "base": 12, "increment": 2}},
    "noisy labels": {"scenario": {"name": "noisy_labels", **OF_CIFAR}},
    "one pass": {"scenario": {"name": "online", **ONCE}, **PASS},
    "Gaussian schedule": {"scenario": {"name": "gaussian_schedule", **ONCE}, **PASS},
}
"""Cuts of CIFAR-100: what each changes in `BASE`."""
MEMORY = {"memory_size": 200}
DER = {"strategy": {"name": "der", "balanced_epochs": 4, **MEMORY}, "head": {"bias": False, "init": "kaiming_normal"}}
FOSTER = {
    "strategy": {"name": "foster", "compression_epochs": 6, **MEMORY},
    "optimizer": {"schedule": "cosine", "milestones": []},
}
PAIR: dict[str, dict[str, Any]] = {
    "finetune": {"strategy": {"name": "finetune"}},
    "replay": {"strategy": {"name": "replay", **MEMORY}},
}
PRETRAINED = {"name": "resnet20", "weights": "resnet20_cifar10.safetensors", **IMAGENET}
VIT = {"name": "vit_tiny", "patch": 8, "dim": 128, "depth": 6, "heads": 4, "weights": "vit_tiny.safetensors"}
"""What `benchmarks/pretrained.py` pretrains; the file is that of `clframe pretrain`."""
TUNING = {"optimizer": {"name": "adam", "lr": 2.5e-3, "weight_decay": 0.0, "schedule": "constant", "milestones": []}}
SIX: dict[str, dict[str, Any]] = {
    "replay": PAIR["replay"],
    "ewc": {"strategy": {"name": "ewc"}},
    "der": DER,
    "foster": FOSTER,
    "nmc": {"strategy": {"name": "nmc"}, "backbone": PRETRAINED},
    "layernorm_tuning": {"strategy": {"name": "layernorm_tuning"}, "backbone": VIT, **TUNING, "epochs": 5},
    "batchnorm_tuning": {"strategy": {"name": "batchnorm_tuning"}, "backbone": PRETRAINED, **TUNING, "epochs": 5},
}
DATA: dict[str, dict[str, Any]] = {
    "CIFAR-100": {"scenario": CIFAR},
    "ImageNet subset": {
        "scenario": {**CIFAR, "name": "imagenet_subset", "source": "tiny_imagenet", "size": 32, "crop": 32},
        "augmentation": "crop_flip",
    },
}
BLURRY = {"scenario": {"name": "si_blurry", **ONCE}, **PASS}
TINY = {
    "scenario": {
        "name": "split_tiny_imagenet",
        "classes": 100,
        "increment": 10,
        "train_per_class": 40,
        "test_per_class": 20,
    },
    "backbone": {"name": "resnet18", "stem": "imagenet", "width": 32},
    "optimizer": {"milestones": [3, 5]},
    "epochs": 6,
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        group: Part of the benchmark.
        family: What is presented.
        method: What learns.
        config: Of the run, without a seed.
    """

    group: str
    family: str
    method: str
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Group, family and method."""
        return f"{self.group}/{self.family}/{self.method}"

    @property
    def command(self) -> str:
        """The command that makes the run; weights by the name of their file."""
        return command_of(self.config)

    @property
    def missing(self) -> str:
        """Why the row can't be run here; empty where it can."""
        strategies = registry.split_names(str(self.config.get("strategy", {}).get("name", "finetune")))
        unknown = [n for n in strategies if n not in registry.available("strategy")]
        if unknown:
            return f"there is no strategy {unknown[0]!r} here"
        weights = self.config.get("backbone", {}).get("weights")
        if weights and not Path(weights).is_file():
            return f"there is no file {Path(weights).name} in the folder of --weights"
        return ""

    def minutes(self, data_root: str | None = None) -> float:
        """About how long the run takes on one core, from the number of images presented."""
        plan = clframe.plan(data_root=data_root, **self.config)
        presented = sum(p["samples"] * p["epochs"] for p in plan.phases)
        backbone = str(self.config.get("backbone", {}).get("name", "mlp"))
        share = MILLISECONDS.get(backbone, 0.02) * COST.get(self.method, 1.0)
        return float(presented * share / 60_000)


def rows(weights: Path | None = None) -> Iterator[Row]:
    """Yield every row.

    Args:
        weights: The folder of pretrained weights; None leaves their names as they are.
    """
    for family, changes in FAMILIES.items():
        for method, own in PAIR.items():
            yield _row("families", family, method, changes, own, weights)
    for method, own in {**PAIR, "er_ace": {"strategy": {"name": "er_ace", "memory_batch": 16, **MEMORY}}}.items():
        yield _row("online", "Si-Blurry", method, BLURRY, own, weights)
    for data, changes in DATA.items():
        for method, own in SIX.items():
            yield _row("methods", data, method, changes, own, weights)
    shorter: dict[str, dict[str, int]] = {
        "replay": {},
        "der": {"balanced_epochs": 3},
        "foster": {"compression_epochs": 4},
    }
    for method, own in {"replay": PAIR["replay"], "der": DER, "foster": FOSTER}.items():
        own = merged(own, {"strategy": {"memory_size": 300, **shorter[method]}})
        yield _row("tiny", "Tiny-ImageNet-100, 64 px", method, TINY, own, weights)
    for name in registry.available("scenario"):
        config = parse_overrides(shlex.split(scenario_example(name))[2:])
        yield Row("smoke", name, config.get("strategy", {}).get("name", "finetune"), {**config, "threads": 1})


def _row(
    group: str, family: str, method: str, changes: Mapping[str, Any], own: Mapping[str, Any], weights: Path | None
) -> Row:
    config = merged(merged(BASE, changes), own)
    if changes.get("epochs") == 1:
        config["epochs"] = 1
    named = config["backbone"].get("weights")
    if named and weights is not None:
        config = merged(config, {"backbone": {"weights": str(weights / named)}})
    return Row(group, family, method, config)


def command_of(config: Mapping[str, Any]) -> str:
    """Write a configuration as a command, as it would be typed."""
    words = ["clframe", "run"]
    for key, value in config.items():
        if key in SECTIONS and isinstance(value, Mapping):
            options = {f"{key}.{k}": v for k, v in value.items() if k != "name"}
            words += [f"--{key}", str(value["name"])] if "name" in value else []
        else:
            options = {key: value}
        for option, given in options.items():
            shown = Path(given).name if option == "backbone.weights" else _typed(given)
            words += [f"--{option}".replace("_", "-"), shown]
    return shlex.join(words)


def _typed(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return json.dumps(value) if isinstance(value, (list, tuple, Mapping)) else str(value)


# -- runs --------------------------------------------------------------------------------------------------------------


def run_of(row: Row, seed: int, runs: Path) -> SweepRun:
    """Return a run and its directory."""
    record = resolve(merged(row.config, {"seed": seed})).record
    return SweepRun(record, runs / run_name(record))


def kept_of(run: Run, row: Row) -> dict[str, Any]:
    """Return what the record keeps of a run: every head's scalars and curve, what it cost, and its command."""
    heads: dict[str, Any] = {}
    _, among = run.primary
    for head, restrictions in run.result["values"].items():
        values = restrictions[among]
        heads[head] = {n: _rounded(values[n]) for n in SCALARS if values.get(n) is not None}
        heads[head]["curve"] = _rounded(values.get("seen_accuracy"))
    return {
        "group": row.group,
        "family": row.family,
        "method": row.method,
        "seed": run.config["seed"],
        "primary": run.primary[0],
        "among": among,
        "heads": heads,
        "counters": {k: round(v, 1) for k, v in run.result["counters"].items()},
        "command": row.command,
        "directory": run.path.name,
    }


def _rounded(value: Any) -> Any:
    return None if value is None else np.round(np.asarray(value, dtype=float), 5).tolist()


def read(out: Path) -> dict[str, Any]:
    """Return what is recorded."""
    found: dict[str, Any] = {"schema": 1, "runs": []}
    return json.loads(out.read_text(encoding="utf-8")) if out.exists() else found


def record(chosen: Iterable[tuple[Row, int]], runs: Path, out: Path) -> dict[str, Any]:
    """Add every finished run that is not recorded yet, and write the file when something was added."""
    results = read(out)
    known = {r["directory"] for r in results["runs"]}
    changed = False
    for row, seed in chosen:
        run = run_of(row, seed, runs)
        if run.name in known or run.state != "finished":
            continue
        same = (row.group, row.family, row.method, seed)  # a run of an earlier form of the row makes way
        results["runs"] = [
            r for r in results["runs"] if tuple(r[k] for k in ("group", "family", "method", "seed")) != same
        ]
        results["runs"].append(kept_of(clframe.load(run.directory), row))
        changed = True
    if changed:
        order = list(dict.fromkeys((row.group, row.family, row.method) for row in rows()))
        place = {key: k for k, key in enumerate(order)}
        results["runs"].sort(key=lambda r: (place.get((r["group"], r["family"], r["method"]), len(place)), r["seed"]))
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def run_all(chosen: Sequence[tuple[Row, int]], given: argparse.Namespace) -> int:
    """Make the runs that are missing, and record each as it ends; returns how many failed."""
    failed = 0
    for start in range(0, len(chosen), given.processes):
        part = chosen[start : start + given.processes]
        made = [run_of(*c, given.runs) for c in part]
        sweep = Sweep.of_configs([run.record for run in made], given.runs, given.processes, given.data_root)
        failed += int(bool(sweep.run()))
        record(part, given.runs, given.out)
        for (row, seed), run in zip(part, made, strict=True):
            shown = "" if run.headline is None else f": {run.headline[0]} {run.headline[1]:.4f}"
            print(f"{row.name}, seed {seed}: {run.state}{shown}", file=sys.stderr, flush=True)
    return failed


# -- tables ------------------------------------------------------------------------------------------------------------

HEAD = """\
# Scenarios

<!-- Written by `python benchmarks/scenarios.py --table` from results/scenarios.json. -->

What `benchmarks/scenarios.py` recorded: small runs that show every scenario at work, not the best that a method can do.
*last* is the accuracy on all classes seen after the last experience, *average* its mean over experiences (the any-time accuracy
where samples come once), *forgetting* the mean drop of a task from its best; in percent, of a method's primary head, mean ±
sample standard deviation over seeds. Where the stream gives task ids, accuracy is within the task. A regression stream shows
its squared error, and its growth, instead. Training time is wall-clock on one thread of a machine that ran other things too.

Methods for pretrained networks have weights of `benchmarks/pretrained.py` (a ViT trained on the Tiny-ImageNet classes that CIFAR-100
doesn't share) or of CIFAR-10 (residual networks). On the ImageNet subset the ViT has therefore seen most of the classes: its row
there shows that the method runs, and is no result.
"""
TITLES = {
    "families": "Replay and fine-tuning over families of CIFAR-100",
    "online": "Any-time accuracy on Si-Blurry",
    "methods": "Six methods on CIFAR-100 and an ImageNet subset",
    "tiny": "Tiny-ImageNet-100 at 64 pixels",
    "smoke": "Every registered scenario on digits",
}


def text(kept: Sequence[Mapping[str, Any]]) -> str:
    """Return the whole page in Markdown."""
    parts = [HEAD]
    for group, title in TITLES.items():
        own = [r for r in kept if r["group"] == group]
        if own:
            parts.append(f"\n## {title}\n\n{table(own).to_markdown()}\n{_commands(own)}")
    return "".join(parts) if len(parts) > 1 else f"{HEAD}\nNothing has been measured yet.\n"


def table(kept: Sequence[Mapping[str, Any]]) -> Table:
    """Return a line per family and method."""
    numbers = [Column(n, right=True) for n in ("last", "average", "forgetting", "training [s]", "seeds")]
    lines = []
    for own in _grouped(kept).values():
        heads = [r["heads"][r["primary"]] for r in own]
        last = _shown(heads, "final_accuracy") or _shown(heads, "final_squared_error", 1.0)
        average = _shown(heads, "average_incremental_accuracy") or _shown(
            heads, "average_incremental_squared_error", 1.0
        )
        seconds = f"{np.mean([r['counters']['train_seconds'] for r in own]):.0f}"
        forgetting = _shown(heads, "forgetting_max", 100.0 if "final_accuracy" in heads[0] else 1.0)
        lines.append([own[0]["family"], own[0]["method"], last, average, forgetting, seconds, str(len(own))])
    return Table([Column("family"), Column("method"), *numbers], lines)


def _grouped(kept: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in kept:
        found.setdefault((row["family"], row["method"]), []).append(row)
    return found


def _shown(heads: Sequence[Mapping[str, Any]], name: str, scale: float = 100.0) -> str | None:
    values = [scale * h[name] for h in heads if h.get(name) is not None]
    if not values:
        return None
    found = summarise(values)
    return f"{found.mean:.2f}" if len(values) < 2 else f"{found.mean:.2f} ± {found.std:.2f}"


def _commands(kept: Sequence[Mapping[str, Any]]) -> str:
    """Return the command of every line, for seed 0."""
    lines = [f"{own[0]['command']}    # {family}, {method}\n" for (family, method), own in _grouped(kept).items()]
    return f"<details><summary>Commands</summary>\n\n```sh\n{''.join(lines)}```\n\n</details>\n"


# -- the command -------------------------------------------------------------------------------------------------------


def chosen_rows(given: argparse.Namespace) -> list[Row]:
    """Return the rows that were asked for and can be run; the others are told."""
    weights = given.weights or DataRoot.resolve(given.data_root).find(["weights"])
    groups = given.groups.split(",")
    unknown = sorted(set(groups) - set(TITLES))
    if unknown:
        sys.exit(f"Expected groups among {', '.join(TITLES)}, received {unknown[0]!r}.")
    found = []
    for row in rows(weights):
        if row.group in groups and given.rows in row.name:
            if row.missing:
                print(f"{row.name}: {row.missing}, left out", file=sys.stderr)
            else:
                found.append(row)
    return found


def show(chosen: Sequence[Row], data_root: str | None) -> None:
    """Print every row's command with about how long it takes, and the sum."""
    total = 0.0
    for row in chosen:
        minutes = row.minutes(data_root)
        total += minutes
        print(f"# {row.name}: about {minutes:.1f} minutes of a core\n{row.command}")
    print(f"# {len(chosen)} rows, about {total:.0f} minutes of a core for each seed")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing and record them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", default=",".join(TITLES))
    parser.add_argument("--rows", default="", help="only rows whose group/family/method holds this text")
    parser.add_argument("--seeds", default="1", help="how many, from 0 on; or a list such as 0,2 (one: 2,)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/scenarios"))
    parser.add_argument("--data-root")
    parser.add_argument(
        "--weights", type=Path, help="folder of pretrained weights; by default `weights` in the data root"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--list", action="store_true", help="make no runs; print their commands")
    parser.add_argument("--record", action="store_true", help="make no runs; read those that are there")
    parser.add_argument(
        "--table", action="store_true", help="make no runs; print and write the table of what is recorded"
    )
    given = parser.parse_args(arguments)
    if given.table:
        page = text(read(given.out)["runs"])
        given.page.write_text(page, encoding="utf-8")
        print(page, end="")
        return
    chosen = chosen_rows(given)
    if given.list:
        show(chosen, given.data_root)
        return
    seeds = [int(s) for s in given.seeds.split(",") if s] if "," in given.seeds else list(range(int(given.seeds)))
    pairs = [(row, seed) for row in chosen for seed in seeds]
    if given.record:
        record(pairs, given.runs, given.out)
    elif run_all(pairs, given):
        sys.exit(1)


if __name__ == "__main__":
    main()
