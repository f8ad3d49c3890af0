"""Training, and whole runs against Avalanche: clframe, the bare loop and Avalanche on the same jobs."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from clframe.data import DataRoot
from speed_suite.bare import train_bare
from speed_suite.flops import needed
from speed_suite.jobs import METHODS, Job, train_clframe
from speed_suite.timing import check, in_turn, ratio

OVERHEAD = {"mlp": 1.15, "resnet32": 1.03}
"""Targets of clframe's CPU time over the bare loop's."""
EXPANDING = 1.1
"""Target for DER and FOSTER, of operations and of CPU time."""
SHARE, SPEEDUP = 0.92, {"resnet8": 1.8, "mlp": 9.0}
"""Targets against Avalanche: share of the bare loop's speed-up, and speed-up."""

SIZES: dict[str, dict[str, Any]] = {
    "mlp": {"train_per_class": 500, "test_per_class": 100, "epochs": 3},
    "resnet8": {},
    "resnet32": {"classes": 10, "train_per_class": 128, "memory": 100},
}
"""With the MLP, the first two experiences of Split CIFAR-100 as they are; with the ResNets a part of it, for time's sake."""
EPOCHS = {"finetune": 3, "ewc": 2}
"""Of ResNet-32, so that every method trains for about as long."""
ROUNDS = 3


def jobs() -> list[Job]:
    """Every method with every backbone."""
    found = [Job(m, b, **size) for b, size in SIZES.items() for m in METHODS]
    return [replace(j, epochs=EPOCHS.get(j.method, 1)) if j.backbone == "resnet32" else j for j in found]


def training(root: DataRoot, quick: bool) -> dict[str, Any]:
    """Time every job by clframe and by the bare loop; count the operations of DER and FOSTER."""
    return {job.name: compare(job, root, quick) for job in jobs()}


def compare(job: Job, root: DataRoot, quick: bool) -> dict[str, Any]:
    """Time one job."""
    small, job = job.small(), job.small() if quick else job
    warm, stream = small.stream(root), job.stream(root)
    train_bare(small, warm, 0)
    train_clframe(small, warm, 0)
    contestants = {
        "bare": lambda seed: train_bare(job, stream, seed).accuracy,
        "clframe": lambda seed: train_clframe(job, stream, seed),
    }
    found = in_turn(contestants, 1 if quick else ROUNDS, job.name)
    ran = found.pop("values")["clframe"]
    result = {"job": vars(job), **found, "clframe_over_bare": ratio(found, "clframe", "bare"), "targets": {}}
    if job.method in ("der", "foster"):
        spent = sum(sum(m["step_flops"].values()) for m in ran["measured"])
        result["flops"] = {"clframe": spent, "needed": needed(job, stream)}
        result["targets"]["operations over those needed"] = check(spent / result["flops"]["needed"], EXPANDING)
        result["targets"]["CPU time over the bare loop's"] = check(result["clframe_over_bare"], EXPANDING)
    elif job.backbone in OVERHEAD:
        result["targets"]["CPU time over the bare loop's"] = check(result["clframe_over_bare"], OVERHEAD[job.backbone])
    return result


ENDS = (
    Job("replay", "mlp", 100, 10, 500, 100, memory=2000),
    Job("ewc", "mlp", 100, 10, 500, 100),
    Job("replay", "resnet8", 100, 10, 100, 20, memory=2000),
    Job("ewc", "resnet8", 100, 10, 100, 20),
)
"""One epoch per experience: of all of Split CIFAR-100 with the MLP, of a fifth of it with ResNet-8."""
END_ROUNDS = 2


def end_to_end(root: DataRoot, quick: bool) -> dict[str, Any]:
    """Time whole runs of replay and EWC, with an evaluation of all seen classes after each of ten experiences."""
    return {job.name: against_avalanche(job, root, quick) for job in ENDS}


def against_avalanche(job: Job, root: DataRoot, quick: bool) -> dict[str, Any]:
    """Time one job by all three."""
    from speed_suite.peer import AvalancheJob

    small, job = job.small(), job.small() if quick else job
    warm, stream = small.stream(root), job.stream(root)
    with tempfile.TemporaryDirectory() as folder:
        peer = AvalancheJob(job, stream, Path(folder))
        train_bare(small, warm, 0)
        train_clframe(small, warm, 0)
        AvalancheJob(small, warm, Path(folder) / "warm").train(0)
        contestants = {
            "bare": lambda seed: train_bare(job, stream, seed).accuracy,
            "clframe": lambda seed: train_clframe(job, stream, seed)["final_accuracy"],
            "avalanche": peer.train,
        }
        found = in_turn(contestants, 1 if quick else END_ROUNDS, f"end to end, {job.name}")
    accuracy = found.pop("values")
    share = ratio(found, "bare", "clframe")
    speedup = ratio(found, "avalanche", "clframe")
    print(job.name, "accuracies", accuracy, file=sys.stderr)
    return {
        "job": vars(job), **found, "final_accuracy": accuracy, "avalanche_over_bare": ratio(found, "avalanche", "bare"),
        "avalanche_over_clframe": speedup,
        "targets": {
            "share of the bare loop's speed-up": check(share, SHARE, at_most=False),
            "times faster than Avalanche": check(speedup, SPEEDUP[job.backbone], at_most=False),
        },
    }  # fmt: skip
