"""What clframe costs beside a bare PyTorch loop and avalanche-lib 0.6.0, measured in turn within one run.

    python benchmarks/speed.py [--parts training,avalanche,evaluation,setup,memory,growth,peak,startup] [--quick]
        [--threads 1] [--data-root DIR] [--out FILE]

Every part is written to the record as soon as it is done, with the machine's description, and the page beside it
(`results/speed.md`) is written from the record. `--quick` does everything in its small form, to see that it works: its
numbers say nothing. Nothing else should run on the machine meanwhile; the load before each part is written down. Two
processes may share the parts on two cores, such as `--parts training` and all the others; the page says how long each took.

The bare loops (`speed_suite/bare.py`) do by hand what clframe does, from the same draws; `tests/benchmarks/test_speed.py`
shows that their losses are the same. `avalanche` is replay and EWC end to end against Avalanche.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from speed_suite import costs, growth, training
from speed_suite.table import page
from speed_suite.timing import machine

from clframe.data import DataRoot

RESULTS = Path(__file__).parent / "results" / "speed.json"
PARTS = ("training", "avalanche", "evaluation", "setup", "memory", "growth", "peak", "startup")


def measure(part: str, data_root: str | None, quick: bool) -> dict[str, Any]:
    """Measure one part."""
    root, given = DataRoot.resolve(data_root), data_root or ""
    return {
        "training": lambda: training.training(root, quick),
        "avalanche": lambda: training.end_to_end(root, quick),
        "evaluation": lambda: costs.evaluation(root, quick),
        "setup": lambda: costs.setup(root, given, quick),
        "memory": lambda: costs.memory(quick),
        "growth": lambda: growth.growth(root, quick),
        "peak": lambda: costs.peak(given, quick),
        "startup": lambda: costs.startup(quick),
    }[part]()


def chosen_parts(text: str) -> list[str]:
    """Return the parts named in a list separated by commas, in their order here."""
    names = text.split(",")
    unknown = [n for n in names if n not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    return [p for p in PARTS if p in names]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts asked for, and write record and page after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=chosen_parts, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="the small form, to see that it works")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-root")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    for part in given.parts:
        print(part, file=sys.stderr, flush=True)
        load, start = os.getloadavg()[0], time.monotonic()
        found = measure(part, given.data_root, given.quick)
        seconds = round(time.monotonic() - start, 1)
        # read only now: on two cores, two processes may measure some parts each
        record = json.loads(given.out.read_text()) if given.out.exists() else {"schema": 1, "parts": {}}
        record["machine"] = machine()
        record["parts"][part] = {
            "quick": given.quick,
            "seconds": seconds,
            "load_before": round(load, 2),
            "found": found,
        }
        record["parts"] = {p: record["parts"][p] for p in PARTS if p in record["parts"]}
        given.out.write_text(json.dumps(record, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(page(record))
        print(f"{part}: {seconds} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
