"""The spread of the first experience's accuracy on the S25 protocol, over many seeds.

    python benchmarks/first_experience.py [--method foster] [--batch 128] [--seeds 10] [--data-root DIR]

What a method reaches after the first experience depends on recipe, augmentation and initialisation alone, and it varies
widely with the seed. PyCIL was run with one seed, so this says how unusual its number is. A run here is the first
experience of `s25.py`'s run of the same seed, bit for bit. Accuracies go to `results/first_experience.json` as they come.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import s25

import clframe
from clframe.config import merged

RESULTS = Path(__file__).parent / "results" / "first_experience.json"
FIRST = [13, 22, 8, 6, 10]
"""The first five classes of the protocol's order."""


def config(method: str, batch: int, seed: int) -> dict[str, Any]:
    """Return the configuration of the first experience alone."""
    alone = {"classes": FIRST, "order": FIRST, "increment": None, "experiences": 1}
    return merged(s25.config(method, batch, seed), {"scenario": alone})


def accuracy(method: str, batch: int, seed: int, data_root: str | None) -> float:
    """Train one run in a folder of its own and return the primary head's accuracy in percent."""
    with tempfile.TemporaryDirectory() as folder:
        given = config(method, batch, seed)
        run = clframe.run(run_dir=Path(folder) / "run", data_root=data_root, progress=False, **given)
        return round(100 * float(run.metric("final_accuracy")), 2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="foster")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--data-root")
    given = parser.parse_args(arguments)
    for seed in range(given.seeds):
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"schema": 1, "accuracy": {}}
        row = found["accuracy"].setdefault(f"{given.method} {given.batch}", {})
        if str(seed) not in row:
            row[str(seed)] = accuracy(given.method, given.batch, seed, given.data_root)
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
            print(given.method, given.batch, seed, row[str(seed)], flush=True)


if __name__ == "__main__":
    main()
