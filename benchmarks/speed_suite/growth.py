"""How the cost of training grows with the stream: experiences, classes, samples, the memory's size."""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import clframe
from clframe.data import DataRoot
from clframe.scenarios.permuted import Permuted
from clframe.strategies.ewc import EWC
from clframe.strategies.finetune import Finetune
from clframe.strategies.replay import Replay
from clframe.strategy import Strategy
from clframe.stream import Experience
from speed_suite.bare import train_bare
from speed_suite.jobs import Job, train_clframe
from speed_suite.timing import check, in_turn

LEVEL = 1.1
"""Target for the last experiences' cost over the first ones'."""
MLP = Job("replay", "mlp", 20, 2, 100, 10, 1, 64, 500)
AXES: dict[str, tuple[Job, ...]] = {
    "experiences": tuple(replace(MLP, classes=100, experiences=n, train_per_class=50) for n in (2, 10, 50)),
    "classes": tuple(replace(MLP, classes=n, train_per_class=5000 // n) for n in (10, 20, 50)),
    "train_per_class": tuple(replace(MLP, train_per_class=n) for n in (100, 200, 400)),
    "memory": tuple(replace(MLP, train_per_class=250, memory=n) for n in (200, 1000, 4000)),
}


def growth(root: DataRoot, quick: bool) -> dict[str, Any]:
    """Time long streams, and replay with the MLP along each axis."""
    found: dict[str, Any] = {"long": {name: long_stream(name, quick) for name in STREAMERS}}
    for axis, jobs in AXES.items():
        found[axis] = {}
        for job in [jobs[0].small()] if quick else jobs:
            stream = job.stream(root)
            contestants = {
                "bare": lambda seed, j=job, s=stream: train_bare(j, s, seed),
                "clframe": lambda seed, j=job, s=stream: train_clframe(j, s, seed),
            }
            times = in_turn(contestants, 1, f"{axis} {vars(job)[axis]}")
            samples = job.epochs * sum(len(e.train) for e in stream.experiences)
            found[axis][str(vars(job)[axis])] = {
                "cpu": times["cpu"],
                "microseconds_per_new_sample": {n: round(1e6 * s / samples, 1) for n, s in times["cpu"].items()},
            }
    return found


class Watched(Strategy):
    """Writes down the CPU time at the start of every experience, and is scored after the last one alone."""

    times: ClassVar[
        list[float]
    ] = []  # of the class: a run takes a copy of the object, and state is written to checkpoints

    def before_experience(self, experience: Experience) -> None:
        """Note the time."""
        self.times.append(time.process_time())
        super().before_experience(experience)

    def evaluates_after(self, experience: Experience) -> bool:
        """Evaluation is set apart."""
        return experience.index == self.run.num_experiences - 1


class WatchedFinetune(Watched, Finetune):
    """Fine-tuning."""


class WatchedReplay(Watched, Replay):
    """Replay."""


class WatchedEWC(Watched, EWC):
    """EWC."""


STREAMERS: dict[str, Any] = {
    "finetune": lambda: WatchedFinetune(epochs=2),
    "replay": lambda: WatchedReplay(epochs=2, form="step", memory_size=200, nme=False),
    "ewc": lambda: WatchedEWC(epochs=2, fisher="batch", strength=1.0, fisher_max=1e-4),
}


def long_stream(method: str, quick: bool) -> dict[str, Any]:
    """Time every experience of permuted digits, evaluation apart: a hundred of the last ones against as many of the first."""
    length, part = (60, 15) if quick else (1000, 100)
    Watched.times.clear()
    scenario = Permuted(source="digits", experiences=length, train_per_class=16, test_per_class=2)
    with tempfile.TemporaryDirectory() as folder:
        clframe.run(
            scenario=scenario, strategy=STREAMERS[method](), backbone={"name": "mlp", "hidden": [64]}, batch_size=32, device="cpu",
            optimizer={"lr": 0.02},
            run_dir=Path(folder) / "run", progress=False,
        )  # fmt: skip
    spent = [1000 * (b - a) for a, b in itertools.pairwise(Watched.times)]
    tens = [round(statistics.median(spent[i : i + length // 10]), 3) for i in range(0, len(spent), length // 10)]
    warm = 10  # a full memory and a warm process: the first ones are no measure
    level = statistics.median(spent[-part:]) / statistics.median(spent[warm : warm + part])
    print("long stream", method, tens, file=sys.stderr)
    return {
        "experiences": length,
        "milliseconds_per_experience": tens,
        "targets": {f"last {part} experiences over the first {part}": check(level, LEVEL)},
    }
