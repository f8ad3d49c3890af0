"""What the engine costs: clframe, a bare PyTorch loop and Avalanche 0.6.0 on the same jobs, in turn within one process.

    python benchmarks/overhead.py --data-root DIR [--pairs 7] [--jobs mlp,resnet32,...] [--out FILE]

Every job is run by all its contestants one after the other, again and again; what counts is the median of the ratios of
CPU time within a round, one thread. The bare loop has the same tensors, model, batches, augmentation, memory format,
threads and precision as clframe, which also logs, writes a checkpoint at every epoch's end, keeps its predictions and
computes every metric. Imports, opening the data and making the stream are left out for all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import clframe
from clframe.data import DataRoot, MemoryReader
from clframe.data.augment import ToInput, build_augmentation
from clframe.models import backbone_config
from clframe.scenarios.split import Split
from clframe.stream import Stream

RESULTS = Path(__file__).parent / "results" / "overhead.json"


@dataclass(frozen=True)
class Job:
    """One thing to train.

    Attributes:
        name: In the results.
        source: The data set.
        backbone: Registered name.
        options: Of the backbone.
        experiences: Length of the stream.
        train_per_class: Training images of every class (samples).
        test_per_class: Test images of every class (samples).
        classes: Classes used.
        epochs: Of every experience.
        batch: New samples per step.
        memory: Exemplars; 0 means plain fine-tuning.
        augmentation: A preset.
        limit: Largest accepted ratio of clframe's CPU time to the bare loop's.
        avalanche: Whether Avalanche runs it too.
    """

    name: str
    source: str
    backbone: str
    options: tuple[tuple[str, Any], ...]
    experiences: int
    train_per_class: int
    test_per_class: int
    classes: int
    epochs: int
    batch: int
    memory: int
    augmentation: str
    limit: float
    avalanche: bool = False


JOBS = (
    Job("mlp", "fashion_mnist", "mlp", (("hidden", [400, 400]),), 1, 2000, 200, 10, 3, 64, 0, "none", 1.25),
    Job("resnet32", "cifar100", "resnet32", (), 1, 128, 20, 10, 2, 64, 0, "standard", 1.05),
    Job(
        "replay_mlp",
        "cifar100",
        "mlp",
        (("hidden", [400, 400]),),
        10,
        100,
        20,
        100,
        2,
        64,
        2000,
        "none",
        1 / 0.85,
        True,
    ),
    Job("replay_resnet8", "cifar100", "resnet8", (), 10, 100, 20, 20, 2, 64, 200, "none", 1 / 0.85, True),
)
LR = 0.02


def make_stream(job: Job, root: DataRoot) -> Stream:
    """Cut the job's stream; its images are in memory, as for every contestant."""
    scenario = Split(
        source=job.source, experiences=job.experiences, classes=job.classes, train_per_class=job.train_per_class,
        test_per_class=job.test_per_class,
    )  # fmt: skip
    return scenario.build(root)


class Bare(nn.Module):
    """The same backbone under a plain linear layer."""

    def __init__(self, job: Job, stream: Stream) -> None:
        super().__init__()
        self.backbone = backbone_config(job.backbone, dict(job.options)).build(stream.shape)
        self.linear = nn.Linear(self.backbone.feature_dim, stream.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K)."""
        return self.linear(self.backbone(x))


def train_bare(job: Job, stream: Stream, seed: int) -> float:
    """Train with nothing but PyTorch; returns the final accuracy."""
    torch.manual_seed(seed)
    model = Bare(job, stream).to(memory_format=torch.channels_last)
    augment = build_augmentation(job.augmentation, stream.shape)
    to_input = ToInput(stream.mean, stream.std)
    images, targets = _images(stream.train), stream.train.targets
    generator = torch.Generator().manual_seed(seed)
    memory = torch.empty(0, dtype=torch.int64)
    seen = 0
    accuracy = 0.0
    for experience in stream.experiences:
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
        for epoch in range(job.epochs):
            order = experience.train[torch.randperm(len(experience.train), generator=generator)]
            for ids in order.split(job.batch):
                new = ids
                if job.memory and len(memory):
                    ids = torch.cat([ids, memory[torch.randperm(len(memory), generator=generator)[: job.batch]]])
                x = images.index_select(0, ids)
                if augment.transforms:
                    x = augment(x, generator)
                logits = model(to_input(x))[:, : experience.num_seen_classes]
                y = targets[ids]
                count = len(new)
                loss = functional.cross_entropy(logits[:count], y[:count])
                if len(ids) > count:
                    loss = loss + functional.cross_entropy(logits[count:], y[count:])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if job.memory and epoch == 0:
                    memory, seen = _reservoir(memory, new, seen, job.memory, generator), seen + count
        accuracy = _test_bare(model, stream, to_input, experience.num_seen_classes)
    return accuracy


def _reservoir(memory: Tensor, new: Tensor, seen: int, size: int, generator: torch.Generator) -> Tensor:
    room = max(0, size - len(memory))
    memory = torch.cat([memory, new[:room]])
    rest = new[room:]
    if len(rest):
        slots = (torch.rand(len(rest), generator=generator) * torch.arange(seen + room + 1, seen + len(new) + 1)).long()
        for k in (slots < size).nonzero().flatten().tolist():
            memory[slots[k]] = rest[k]
    return memory


@torch.inference_mode()
def _test_bare(model: nn.Module, stream: Stream, to_input: ToInput, classes: int) -> float:
    model.eval()
    ids = torch.cat([t.test for t in stream.tasks if max(t.classes) < classes])
    images, targets = _images(stream.test), stream.test.targets
    right = sum(
        int((model(to_input(images.index_select(0, part)))[:, :classes].argmax(1) == targets[part]).sum())
        for part in ids.split(512)
    )
    return right / len(ids)


def _images(table: Any) -> Tensor:
    reader = table.images
    if not isinstance(reader, MemoryReader):
        raise TypeError("the benchmark needs images in memory")
    return reader.tensor


def train_clframe(job: Job, stream: Stream, seed: int) -> float:
    """Train with clframe, with logging and checkpoints; returns the final accuracy."""
    strategy = {"name": "finetune", "epochs": job.epochs}
    if job.memory:
        strategy = {"name": "replay", "epochs": job.epochs, "form": "step", "memory_size": job.memory, "nme": False}
    with tempfile.TemporaryDirectory() as folder:
        run = clframe.run(
            scenario=stream, strategy=strategy, backbone={"name": job.backbone, **dict(job.options)},
            optimizer={"lr": LR}, batch_size=job.batch, augmentation=job.augmentation, seed=seed,
            run_dir=Path(folder) / "run", progress=False,
        )  # fmt: skip
        return float(run.metric("final_accuracy"))


class AvalancheJob:
    """The same job in Avalanche 0.6.0: its own loop, replay plugin and evaluation on all seen classes."""

    def __init__(self, job: Job, stream: Stream) -> None:
        from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
        from avalanche.benchmarks.utils import (
            DataAttribute,
            as_taskaware_classification_dataset,
            make_avalanche_dataset,
        )

        to_input = ToInput(stream.mean, stream.std)

        def dataset(table: Any, ids: Tensor) -> Any:
            x, y = to_input(_images(table)[ids]).contiguous(), table.targets[ids]
            labels = y.tolist()
            attributes = [
                DataAttribute(labels, "targets"),
                DataAttribute([0] * len(labels), "targets_task_labels", use_in_getitem=True),
            ]
            tensors = torch.utils.data.TensorDataset(x, y)
            return as_taskaware_classification_dataset(make_avalanche_dataset(tensors, data_attributes=attributes))

        train = [dataset(stream.train, e.train) for e in stream.experiences]
        test = [dataset(stream.test, t.test) for t in stream.tasks]
        benchmark = with_classes_timeline(benchmark_from_datasets(train=train, test=test))
        self.benchmark = with_task_labels(benchmark)
        self.job = job
        self.stream = stream

    def train(self, seed: int) -> float:
        """Train; returns the final accuracy over all seen classes."""
        from avalanche.evaluation.metrics import accuracy_metrics
        from avalanche.training.plugins import EvaluationPlugin
        from avalanche.training.supervised import Replay

        torch.manual_seed(seed)
        model = Bare(self.job, self.stream)
        strategy = Replay(
            model=model, optimizer=torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4),
            criterion=nn.CrossEntropyLoss(), mem_size=self.job.memory, train_mb_size=self.job.batch,
            train_epochs=self.job.epochs, eval_mb_size=512,
            evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
        )  # fmt: skip
        result: dict[str, Any] = {}
        for number, experience in enumerate(self.benchmark.train_stream, 1):
            strategy.train(experience, num_workers=0)
            result = strategy.eval(list(self.benchmark.test_stream)[:number], num_workers=0)
        return float(next(iter(result.values())))


def cpu_seconds(call: Callable[[], float]) -> tuple[float, float]:
    """Return the CPU time of a call, in seconds, and what it returned."""
    start = time.process_time()
    value = call()
    return time.process_time() - start, value


def measure(job: Job, root: DataRoot, pairs: int) -> dict[str, Any]:
    """Run all contestants of a job in turn and return the medians."""
    stream = make_stream(job, root)
    contestants: dict[str, Callable[[int], float]] = {
        "bare": lambda seed: train_bare(job, stream, seed),
        "clframe": lambda seed: train_clframe(job, stream, seed),
    }
    if job.avalanche:
        contestants["avalanche"] = AvalancheJob(job, stream).train
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    accuracy: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(-1, pairs):  # the first round only warms up
        for name, train in contestants.items():
            spent, value = cpu_seconds(lambda train=train, seed=round_number + 1: train(seed))  # type: ignore[misc]
            if round_number >= 0:
                seconds[name].append(round(spent, 4))
                accuracy[name].append(round(value, 4))
        print(job.name, round_number, {n: s[-1:] for n, s in seconds.items()}, file=sys.stderr, flush=True)
    ratio = statistics.median(c / b for c, b in zip(seconds["clframe"], seconds["bare"], strict=True))
    found: dict[str, Any] = {
        "job": dataclasses.asdict(job),
        "cpu_seconds": {n: statistics.median(s) for n, s in seconds.items()},
        "all_cpu_seconds": seconds,
        "final_accuracy": {n: statistics.mean(a) for n, a in accuracy.items()},
        "clframe_over_bare": round(ratio, 4),
        "limit": round(job.limit, 4),
        "within_limit": ratio <= job.limit,
    }
    if job.avalanche:
        rounds = list(zip(seconds["avalanche"], seconds["clframe"], seconds["bare"], strict=True))
        found["avalanche_over_clframe"] = round(statistics.median(a / c for a, c, _ in rounds), 2)
        found["avalanche_over_bare"] = round(statistics.median(a / b for a, _, b in rounds), 2)
        found["share_of_bare_speedup"] = round(statistics.median(b / c for _, c, b in rounds), 4)
    return found


def machine() -> dict[str, Any]:
    """Describe the machine in general words."""
    from clframe.tracking.environment import environment

    found = environment("cpu", "")
    return {k: found[k] for k in ("python", "packages", "processor", "cores")} | {"system": platform.system()}


def main() -> None:
    """Measure the chosen jobs and write the results as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--jobs", default=",".join(j.name for j in JOBS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ.setdefault("WANDB_MODE", "disabled")
    results = json.loads(options.out.read_text()) if options.out.exists() else {"schema": 1, "jobs": {}}
    results["machine"] = machine()
    for job in JOBS:
        if job.name in options.jobs.split(","):
            results["jobs"][job.name] = measure(job, DataRoot.resolve(options.data_root), options.pairs)
            options.out.parent.mkdir(exist_ok=True)
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    for name, found in results["jobs"].items():
        print(name, found["clframe_over_bare"], "limit", found["limit"], found.get("share_of_bare_speedup", ""))


if __name__ == "__main__":
    main()
