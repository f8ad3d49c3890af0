"""Avalanche 0.6.0, set up as its documentation does: `SplitCIFAR100`, its transforms, its own strategies and metrics."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from clframe.interop.avalanche.library import quietly, require
from clframe.stream import Stream
from speed_suite.bare import Model
from speed_suite.jobs import DECAY, LR, MOMENTUM, STRENGTH, Job


def write_cifar100(folder: Path, stream: Stream) -> None:
    """Write a stream's images as the files of CIFAR-100's Python version, which torchvision reads."""
    base = folder / "cifar-100-python"
    base.mkdir(parents=True, exist_ok=True)
    parts = {"train": (stream.train, [e.train for e in stream.experiences])}
    parts["test"] = (stream.test, [t.test for t in stream.tasks])
    for name, (table, ids) in parts.items():
        chosen = torch.cat(ids).sort().values
        images: Tensor = table.images.tensor[chosen]  # type: ignore[attr-defined]
        rows = images.permute(0, 3, 1, 2).flatten(1).numpy()
        labels = table.targets[chosen].tolist()
        (base / name).write_bytes(pickle.dumps({"data": rows, "fine_labels": labels}))
    (base / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(k) for k in range(stream.num_classes)]}))


def split_cifar100(folder: Path, experiences: int, classes: int) -> Any:
    """Call `SplitCIFAR100` on such files, in the stream's class order.

    The checksums of the published files are not asked for, because these hold the same images in other bytes; that
    saves Avalanche the time of hashing them.
    """
    classic = require("avalanche.benchmarks.classic")
    with quietly(), mock.patch("torchvision.datasets.cifar.check_integrity", return_value=True):
        return classic.SplitCIFAR100(
            experiences, fixed_class_order=list(range(classes)), return_task_id=False, dataset_root=folder
        )


def evaluator(classes: int) -> Any:
    """Make the evaluation plugin of Avalanche's tutorial, without loggers and without the use of the disk.

    Printing is left out because it measures the terminal, and the use of the disk because it measures the folder.
    """
    metrics, plugins = require("avalanche.evaluation.metrics"), require("avalanche.training.plugins")
    levels = {"minibatch": True, "epoch": True, "experience": True, "stream": True}
    return plugins.EvaluationPlugin(
        metrics.accuracy_metrics(**levels),
        metrics.loss_metrics(**levels),
        metrics.timing_metrics(epoch=True),
        metrics.cpu_usage_metrics(experience=True),
        metrics.forgetting_metrics(experience=True, stream=True),
        metrics.confusion_matrix_metrics(num_classes=classes, save_image=False, stream=True),
        loggers=[],
    )


class AvalancheJob:
    """A job in Avalanche: its own loop, plugin, loader and evaluation; no logger, which its default has.

    Args:
        job: Replay or EWC.
        stream: The same images as the others'.
        folder: For the data files.
    """

    def __init__(self, job: Job, stream: Stream, folder: Path) -> None:
        self.job, self.stream = job, stream
        write_cifar100(folder, stream)
        self.benchmark = split_cifar100(folder, job.experiences, job.classes)

    def strategy(self, seed: int) -> Any:
        """Make model, optimiser and strategy."""
        supervised = require("avalanche.training.supervised")
        torch.manual_seed(seed)
        model = Model(self.job, self.stream)
        model.grow(self.stream.num_classes)
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        common = {
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=DECAY),
            "criterion": nn.CrossEntropyLoss(),
            "train_mb_size": self.job.batch,
            "train_epochs": self.job.epochs,
            "eval_mb_size": 100,
            "evaluator": evaluator(self.stream.num_classes),
        }
        if self.job.method == "replay":
            return supervised.Replay(mem_size=self.job.memory, **common)
        return supervised.EWC(ewc_lambda=STRENGTH, mode="separate", **common)

    def train(self, seed: int) -> float:
        """Train, scoring all seen classes after each experience; returns the final accuracy over them."""
        with quietly():
            strategy = self.strategy(seed)
            found: dict[str, float] = {}
            for number, experience in enumerate(self.benchmark.train_stream, 1):
                strategy.train(experience, num_workers=0)
                found = self.evaluate(strategy, number)
        return next(float(v) for k, v in found.items() if k.startswith("Top1_Acc_Stream"))

    def evaluate(self, strategy: Any, experiences: int) -> dict[str, float]:
        """Score the first experiences' test sets."""
        chosen: Sequence[Any] = list(self.benchmark.test_stream)[:experiences]
        found: dict[str, float] = strategy.eval(chosen, num_workers=0)
        return found
