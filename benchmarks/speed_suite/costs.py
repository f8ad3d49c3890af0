"""What else costs: evaluation, set-up, memory updates, peak memory and start-up."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clframe.data import DataRoot
from clframe.memory import ExemplarMemory
from speed_suite.bare import Loop, offer
from speed_suite.bare_expanding import herding
from speed_suite.children import apart, command_seconds
from speed_suite.jobs import Job, train_clframe
from speed_suite.timing import check, in_turn, timed

EVALUATION, SETUP, PEAK_MB = 5.0, 20.0, 100.0
"""Targets: times faster than Avalanche per image and to set up; megabytes over the bare loop."""


def evaluation(root: DataRoot, quick: bool) -> dict[str, Any]:
    """Time scoring the ten test sets of Split CIFAR-100 with the MLP: the last evaluation of a run, kept predictions included."""
    from speed_suite.peer import AvalancheJob, quietly

    job = Job("replay", "mlp", 100, 10, 1, 10 if quick else 100, 1, 64, 0)
    stream = job.stream(root)
    count = sum(len(t.test) for t in stream.tasks)
    loop = Loop(job, stream, 0)
    loop.model.grow(100)
    loop.model.eval()
    with tempfile.TemporaryDirectory() as folder, quietly():
        peer = AvalancheJob(job, stream, Path(folder))
        strategy = peer.strategy(0)
        strategy.train(peer.benchmark.train_stream[0], num_workers=0)
        seconds: dict[str, list[float]] = {"clframe": [], "bare": [], "avalanche": []}
        for number in range(2 if quick else 6):
            spent = {
                "clframe": train_clframe(job, stream, 0)["measured"][-1]["cpu_seconds"]["evaluation"],
                "bare": timed(lambda: loop.score(stream.experiences[-1], loop.model))[0]["cpu"],
                "avalanche": timed(lambda: peer.evaluate(strategy, 10))[0]["cpu"],
            }
            if number:  # the first round warms up
                for name, value in spent.items():
                    seconds[name].append(1e6 * value / count)
    faster = statistics.median(a / c for a, c in zip(seconds["avalanche"], seconds["clframe"], strict=True))
    return {
        "images": count,
        "microseconds_per_image": {n: round(statistics.median(s), 2) for n, s in seconds.items()},
        "all_microseconds_per_image": {n: [round(v, 2) for v in s] for n, s in seconds.items()},
        "targets": {"times faster than Avalanche per image": check(faster, EVALUATION, at_most=False)},
    }


def setup(root: DataRoot, data_root: str, quick: bool) -> dict[str, Any]:
    """Time making Split CIFAR-100, each time in a fresh process, imports apart; the images have been decoded before."""
    from speed_suite.peer import write_cifar100

    whole = Job("finetune", "mlp", 100, 10, 500, 100)
    with tempfile.TemporaryDirectory() as folder:
        write_cifar100(Path(folder), whole.stream(root))
        runs = [
            {"clframe": apart("setup", "clframe", data_root), "avalanche": apart("setup", "avalanche", folder)}
            for _ in range(1 if quick else 5)
        ]
    faster = statistics.median(r["avalanche"]["cpu"] / r["clframe"]["cpu"] for r in runs)
    median = {n: round(statistics.median(r[n]["cpu"] for r in runs), 4) for n in ("clframe", "avalanche")}
    return {
        "cpu": median,
        "all": runs,
        "targets": {"times faster than Avalanche": check(faster, SETUP, at_most=False)},
    }


def memory(quick: bool) -> dict[str, Any]:
    """Time updates of the memory: a batch offered to a full reservoir, and herding an experience's exemplars."""
    found: dict[str, Any] = {"reservoir": {}, "herding": {}}
    rounds = 2 if quick else 7
    for size in (200, 2000, 20000):
        ids = torch.arange(size + 64 * 200).split(64)
        contestants = {
            "clframe": lambda _, s=size, i=ids: _reservoir(s, i),
            "bare": lambda _, s=size, i=ids: _offers(s, i),
        }
        times = in_turn(contestants, rounds, f"reservoir of {size}")
        found["reservoir"][str(size)] = {n: round(1e6 * s / len(ids), 1) for n, s in times["cpu"].items()}
    for samples in (500, 5000):
        features = torch.randn(samples, 64, generator=torch.Generator().manual_seed(0))
        targets, ids = torch.arange(samples) % 10, torch.arange(samples)
        contestants = {
            "clframe": lambda _, f=features, t=targets, i=ids: _exemplars(f, t, i),
            "bare": lambda _, f=features, t=targets: [herding(f[t == c], 20) for c in range(10)],
        }
        times = in_turn(contestants, rounds, f"herding {samples}")
        found["herding"][str(samples)] = {n: round(1e3 * s, 2) for n, s in times["cpu"].items()}
    return found


def _reservoir(size: int, batches: tuple[Tensor, ...]) -> None:
    kept, generator = ExemplarMemory(size, policy="reservoir"), torch.Generator().manual_seed(0)
    for ids in batches:
        kept.observe(ids, ids, generator=generator)


def _offers(size: int, batches: tuple[Tensor, ...]) -> None:
    kept, generator, seen = torch.empty(0, dtype=torch.int64), torch.Generator().manual_seed(0), 0
    for ids in batches:
        kept = offer(kept, ids, seen, size, generator)
        seen += len(ids)


def _exemplars(features: Tensor, targets: Tensor, ids: Tensor) -> None:
    kept = ExemplarMemory(200)
    kept.add_classes(ids, targets, 10, generator=torch.Generator(), features=lambda chosen: features[chosen])


PEAKS = (
    Job("finetune", "mlp", 100, 10, 500, 100, 1, 64),
    Job("replay", "resnet8", 100, 10, 20, 20, 1, 64, 2000),
    Job("finetune", "resnet32", 100, 10, 10, 10, 1, 64),
)


def peak(data_root: str, quick: bool) -> dict[str, Any]:
    """Compare the peak of resident memory of a CIFAR-100 run with the bare loop's, each in a fresh process.

    Both hold the same modules: PyTorch, and of clframe what makes the stream. The bare loop has no metrics to import.
    """
    found = {}
    for job in PEAKS[:1] if quick else PEAKS:
        given = json.dumps(vars(job.small() if quick else job))
        sides = {side: apart("peak", side, given, data_root) for side in ("bare", "clframe")}
        more = sides["clframe"]["megabytes"] - sides["bare"]["megabytes"]
        found[job.name] = {
            "job": json.loads(given),
            **{side: values["megabytes"] for side, values in sides.items()},
            "before_training": {side: values["before"] for side, values in sides.items()},
            "targets": {"megabytes over the bare loop": check(more, PEAK_MB)},
        }
        print("peak", job.name, sides, file=sys.stderr)
    return found


def startup(quick: bool) -> dict[str, Any]:
    """Time importing and `--help`, whole processes; and what importing clframe adds to PyTorch within one."""
    commands = {
        "python": ("-c", "pass"),
        "import torch": ("-c", "import torch"),
        "import clframe": ("-c", "import clframe"),
        "import torch, clframe.run": ("-c", "import torch, clframe; clframe.run"),
        "clframe --help": ("-m", "clframe", "--help"),
        "import avalanche": ("-c", "import avalanche"),
    }
    times: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for number in range(2 if quick else 6):
        for name, command in commands.items():
            spent = command_seconds(*command)
            if number:  # the first round compiles and fills the disk's cache
                times[name].append(spent)
    return {
        name: {c: round(statistics.median(t[c] for t in values), 3) for c in ("cpu", "wall")}
        for name, values in times.items()
    }
