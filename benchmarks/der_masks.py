"""How DER's sparsity weight was chosen on the S25 protocol: on the first experience's validation samples alone.

    python benchmarks/der_masks.py [--grid 2,4,6,8] [--seeds 1000,1001] [--data-root DIR]

A fifth of every class's training images is held out. A run stops after the first experience, whose network is pruned by
then; what is compared is its accuracy on the held-out samples and the share of the extractor's parameters that is left.
The seeds are none that the recorded table uses. Numbers are written to `results/der_masks.json` as they come.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from s25 import config

import clframe
from clframe.config import merged, resolve
from clframe.results import predictions_of
from clframe.tracking.rundir import RunDirectory, run_name
from clframe.training.checkpoint import read_checkpoint
from clframe.training.trainer import Stopped

RESULTS = Path(__file__).parent / "results" / "der_masks.json"
HELD_OUT = 40
"""Validation images of a class, of its 200."""


def first_experience(strength: float | None, seed: int, runs: Path, data_root: str | None) -> dict[str, Any]:
    """Train the first experience and score it on its held-out samples; None means no masks."""
    masks = {} if strength is None else {"strategy": {"sparsity": strength}}
    options = merged(config("der" if strength is None else "der_masks", 32, seed), masks)
    options = merged(options, {"scenario": {"valid_per_class": HELD_OUT}, "keep_models": True})
    path = runs / run_name(resolve(options).record)
    kept = path / "checkpoints" / "experience-001.pt"
    per_epoch = -(-5 * (200 - HELD_OUT) // 32)
    if not kept.exists():
        with contextlib.suppress(Stopped):
            clframe.run(run_dir=path, data_root=data_root, progress=False, stop_after=12 * per_epoch + 1, **options)
    directory = RunDirectory.open(path)
    found = predictions_of(directory, "valid")["classifier"][1]
    parameters = read_checkpoint(kept, torch.device("cpu"))["network"]
    return {
        "sparsity": strength,
        "seed": seed,
        "valid_accuracy": round(float((found.predicted == found.target).mean()), 5),
        "numbers": _numbers(parameters),
    }


def _numbers(state: Any) -> int:
    if hasattr(state, "is_floating_point"):
        return int(state.numel()) if state.is_floating_point() else 0
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(_numbers, inner))


def main() -> None:
    """Make what is missing and print a line per strength."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", default="2,4,6,8")
    parser.add_argument("--seeds", default="1000,1001")
    parser.add_argument("--runs", type=Path, default=Path("runs/der_masks"))
    parser.add_argument("--data-root")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for strength in (None, *map(float, given.grid.split(","))):
        for seed in map(int, given.seeds.split(",")):
            rows.append(first_experience(strength, seed, given.runs, given.data_root))
            given.out.write_text(
                json.dumps({"schema": 1, "held_out_per_class": HELD_OUT, "rows": rows}, indent=1) + "\n"
            )
            print(rows[-1], flush=True)
    full = np.mean([r["numbers"] for r in rows if r["sparsity"] is None])
    for strength in dict.fromkeys(r["sparsity"] for r in rows):
        mine = [r for r in rows if r["sparsity"] == strength]
        accuracy, left = np.mean([r["valid_accuracy"] for r in mine]), np.mean([r["numbers"] for r in mine]) / full
        print(f"λ_s {strength}: {100 * accuracy:.2f} % on held-out samples, {100 * left:.1f} % of the numbers left")


if __name__ == "__main__":
    main()
