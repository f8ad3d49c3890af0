"""What a sweep gains on several cores: eight small runs as a sweep, and as `clframe run` one after the other.

    python benchmarks/sweep_speed.py [--processes 2] [--threads 1] [--pairs 3] [--epochs 150] [--out FILE]

Both do the same eight runs (fine-tuning and replay with a small residual network on digits, four seeds each) with the
same threads per run, every run in a process of its own. Each pair is done in turn on the same machine; what counts is
the median of the ratios of wall time, in which the sweep's own start and its checks are included. It should be at most
0.6 for two processes on two cores. The results of the two ways are compared too: they have to be the same numbers.
Nothing else should run on the machine meanwhile; the load before every measurement is written down.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from clframe.launch.sweep import Sweep

RESULTS = Path(__file__).parent / "results" / "sweep_speed.json"
LIMIT = 0.6


def plan(out: Path, epochs: int, processes: int, threads: int) -> dict[str, Any]:
    """Return the plan of the eight runs."""
    return {
        "out": str(out),
        "base": {
            "scenario": {"name": "split_digits", "experiences": 5},
            "backbone": "resnet8",
            "epochs": epochs,
            "device": "cpu",
        },
        "strategies": ["finetune", {"name": "replay", "memory_size": 100}],
        "seeds": [0, 1, 2, 3],
        "processes": processes,
        "threads": threads,
    }


def timed(commands: Sequence[Sequence[str]], threads: int) -> dict[str, float]:
    """Do some commands one after the other; returns the seconds they took, by the clock and of the CPU, and the load before."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    load = os.getloadavg()[0]
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    for command in commands:
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "load_before": round(load, 2)}


def pair(folder: Path, epochs: int, processes: int, threads: int) -> dict[str, Any]:
    """Do the runs both ways."""
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(plan(folder / "sweep", epochs, processes, threads)))
    runs = Sweep.read(file).runs
    clframe = [sys.executable, "-m", "clframe"]
    alone = []
    for run in runs:
        config = folder / f"{run.name}.yaml"
        config.write_text(yaml.safe_dump(dict(run.record)))
        alone.append(
            [*clframe, "run", "--config", str(config), "--run-dir", str(folder / "alone" / run.name), "--quiet"]
        )
    serial = timed(alone, threads)
    sweep = timed([[*clframe, "sweep", str(file)]], threads)
    same = [_values(folder / "alone" / run.name) == _values(run.directory) for run in runs]
    ratio = round(sweep["seconds"] / serial["seconds"], 3)
    return {"serial": serial, "sweep": sweep, "ratio": ratio, "same_results": all(same), "runs": len(runs)}


def _values(directory: Path) -> Any:
    return json.loads((directory / "result.json").read_text())["values"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    pairs = []
    for number in range(given.pairs):
        with tempfile.TemporaryDirectory() as folder:
            pairs.append(pair(Path(folder), given.epochs, given.processes, given.threads))
        print(number + 1, pairs[-1], flush=True)
    ratio = statistics.median(p["ratio"] for p in pairs)
    found = {
        "schema": 1,
        "machine": {"processor": platform.processor(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "plan": plan(Path("out"), given.epochs, given.processes, given.threads),
        "pairs": pairs,
        "ratio": ratio,
        "limit": LIMIT,
        "within_limit": ratio <= LIMIT,
    }  # fmt: skip
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
