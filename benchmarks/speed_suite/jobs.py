"""What is trained: method, backbone, data and lengths, the same for every contestant."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import clframe
from clframe.data import DataRoot
from clframe.scenarios.split import Split
from clframe.stream import Stream

BACKBONES: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [400, 400]},
    "resnet8": {"name": "resnet8"},
    "resnet32": {"name": "resnet32"},
}
METHODS = ("finetune", "replay", "ewc", "der", "foster")
LR, MOMENTUM, DECAY, STRENGTH, EVAL_BATCH = 0.02, 0.9, 5e-4, 1.0, 512
BETAS, TEMPERATURE, DER_TEMPERATURE, BALANCED_LR = (0.96, 0.97), 2.0, 5.0, 0.1


@dataclass(frozen=True)
class Job:
    """One thing to train on CIFAR-100.

    Attributes:
        method: Of `METHODS`.
        backbone: Of `BACKBONES`.
        classes: Classes used.
        experiences: Length of the stream.
        train_per_class: Training images of every class (samples).
        test_per_class: Test images of every class (samples).
        epochs: Of every phase of every experience.
        batch: New samples per step.
        memory: Exemplars of replay, DER and FOSTER (samples).
        augmentation: A preset of clframe's, applied to whole batches on both sides.
    """

    method: str
    backbone: str
    classes: int = 20
    experiences: int = 2
    train_per_class: int = 100
    test_per_class: int = 20
    epochs: int = 1
    batch: int = 64
    memory: int = 200
    augmentation: str = "crop_flip"

    @property
    def name(self) -> str:
        """In the record."""
        return f"{self.method} {self.backbone}"

    def small(self) -> Job:
        """The same in a second or two: for trying the script, and for warming up."""
        per_class = 8 if self.backbone == "resnet32" else 16
        few = {"classes": min(self.classes, 20), "experiences": min(self.experiences, 4), "epochs": 1, "memory": 40}
        return replace(self, train_per_class=per_class, test_per_class=5, **few)

    def stream(self, root: DataRoot) -> Stream:
        """Cut the job's stream; its images are in memory, or mapped into it, for every contestant."""
        scenario = Split(
            source="cifar100", experiences=self.experiences, classes=self.classes, train_per_class=self.train_per_class,
            test_per_class=self.test_per_class,
        )  # fmt: skip
        return scenario.build(root)

    def strategy(self) -> dict[str, Any]:
        """The method in clframe's words."""
        exemplars = {"memory_size": self.memory, "nme": False}
        return {
            "name": self.method,
            "epochs": self.epochs,
            **{
                "finetune": {},
                "replay": {"form": "step", **exemplars},
                "ewc": {"fisher": "batch", "strength": STRENGTH},
                "der": {"balanced_epochs": self.epochs, **exemplars},
                "foster": exemplars,
            }[self.method],
        }

    def config(self, stream: Stream, seed: int) -> dict[str, Any]:
        """The run's whole configuration in clframe's words."""
        return {
            "scenario": stream, "strategy": self.strategy(), "backbone": BACKBONES[self.backbone],
            "optimizer": {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}, "batch_size": self.batch,
            "eval_batch_size": EVAL_BATCH, "augmentation": self.augmentation, "seed": seed, "device": "cpu",
        }  # fmt: skip


def train_clframe(job: Job, stream: Stream, seed: int) -> dict[str, Any]:
    """Train as a user does, with logging, metrics, cost account and checkpoints, in a folder that is thrown away.

    Returns:
        `final_accuracy`, and `measured`: what the run has measured of every experience.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = clframe.run(**job.config(stream, seed), run_dir=Path(folder) / "run", progress=False)
        lines = (Path(folder) / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()
        events = [json.loads(line) for line in lines]
        measured = [e["values"] for e in events if e["event"] == "measured"]
        return {"final_accuracy": float(run.metric("final_accuracy")), "measured": measured}
