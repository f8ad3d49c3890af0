"""What measuring costs: a small ResNet-32 run with `measure=none` and with `measure=default`, in turn within one process.

    python benchmarks/measuring_cost.py --data-root DIR [--pairs 5] [--out FILE]

CPU time of whole runs on CIFAR-100 images, one thread: two experiences of two classes, fine-tuning with the standard
augmentation. What counts is the median of the ratios within a pair; the first pair only warms up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from overhead import machine

import clframe
from clframe.data import DataRoot
from clframe.scenarios.split import Split

RESULTS = Path(__file__).parent / "results" / "measuring_cost.json"
JOB = {"train_per_class": 128, "test_per_class": 20, "epochs": 3, "batch_size": 64}
STATES = ("none", "default")


def cpu_seconds(stream: Any, measure: str) -> float:
    """Return the CPU time of a run, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        clframe.run(
            scenario=stream, strategy={"name": "finetune", "epochs": JOB["epochs"]}, backbone="resnet32",
            batch_size=JOB["batch_size"], augmentation="standard", measure=measure, run_dir=Path(folder) / "run",
            progress=False,
        )  # fmt: skip
        return time.process_time() - start


def compare(root: DataRoot, pairs: int) -> dict[str, Any]:
    """Run both in turn and return the medians."""
    scenario = Split(
        source="cifar100", experiences=2, classes=4, train_per_class=JOB["train_per_class"],
        test_per_class=JOB["test_per_class"],
    )  # fmt: skip
    stream = scenario.build(root)
    seconds: dict[str, list[float]] = {state: [] for state in STATES}
    for pair in range(-1, pairs):
        for state in STATES if pair % 2 else STATES[::-1]:
            spent = cpu_seconds(stream, state)
            if pair >= 0:
                seconds[state].append(round(spent, 3))
        print(pair, {state: s[-1:] for state, s in seconds.items()}, file=sys.stderr, flush=True)
    ratios = [d / n for n, d in zip(seconds["none"], seconds["default"], strict=True)]
    return {
        "schema": 1,
        "job": {"backbone": "resnet32", "source": "cifar100", "experiences": 2, "classes": 4, **JOB},
        "cpu_seconds": {state: statistics.median(s) for state, s in seconds.items()},
        "all_cpu_seconds": seconds,
        "default_over_none": round(statistics.median(ratios), 4),
        "machine": machine(),
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = compare(DataRoot.resolve(options.data_root), options.pairs)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"default over none: {found['default_over_none']}")


if __name__ == "__main__":
    main()
