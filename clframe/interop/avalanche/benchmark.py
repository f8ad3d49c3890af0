"""A clframe stream as an Avalanche benchmark."""

from __future__ import annotations

from typing import Any

import torch

from clframe.data.augment import ToInput, build_augmentation
from clframe.errors import ConfigurationError
from clframe.interop.avalanche.datasets import Origin, make_dataset
from clframe.interop.avalanche.library import require
from clframe.stream import AugmentationSpec, SampleTable, Stream
from clframe.training.batches import BatchMaker

__all__ = ["refuse_unknown_to_avalanche", "to_avalanche"]


def to_avalanche(stream: Stream, *, augmentation: AugmentationSpec = "none") -> Any:
    """Return a stream as an Avalanche benchmark, on which Avalanche's own strategies train and evaluate.

    Streams: `train`, an experience for each of the stream's; `test`, one for each of its tasks; `valid`, one for each of
    its tasks for which samples were set aside, if there are any. An item is the image as a clframe run would see it
    (through the test transform, normalised by the stream's mean and deviation), its stream label, and the task label: the
    task id in the task-incremental setting, else 0. Labels are numbered in the order of first appearance;
    `benchmark.class_names` and `benchmark.class_order` say what they stand for.

    An image is read from the stream's own table when it is asked for, one at a time. Beside that table the benchmark takes
    memory for labels and ids alone, less than 100 bytes a sample.

    Args:
        stream: Of classes.
        augmentation: Of training images, in the transform group `train`; it draws from torch's global generator.

    Raises:
        ConfigurationError: Avalanche isn't installed, or the stream has something that Avalanche has no form for.
    """
    refuse_unknown_to_avalanche(stream)
    scenarios = require("avalanche.benchmarks")
    train, test = (_origin(stream, table, augmentation) for table in (stream.train, stream.test))
    streams = {
        "train": [make_dataset(train, e.train, "train", e) for e in stream.experiences],
        "test": [make_dataset(test, t.test, "eval", t) for t in stream.tasks],
    }
    valid = [make_dataset(train, t.valid, "eval", t) for t in stream.tasks if len(t.valid)]
    benchmark = scenarios.benchmark_from_datasets(**streams, **({"valid": valid} if valid else {}))
    benchmark = scenarios.with_task_labels(scenarios.with_classes_timeline(benchmark))
    benchmark.class_names, benchmark.class_order = stream.class_names, stream.class_order
    return benchmark


def refuse_unknown_to_avalanche(stream: Stream) -> None:
    """Refuse a stream that has something for which Avalanche has no form.

    Raises:
        ConfigurationError: Names it.
    """
    every = stream.experiences
    wrong = [
        (stream.score != "accuracy", "targets that are no classes"),
        (any(len(e.unlabelled) for e in every), "samples without labels"),
        (any(len(e.pool) for e in every), "labels to buy"),
        (any(len(e.forget) for e in every), "samples to unlearn"),
        (any(not len(e.train) for e in every), "experiences without training samples"),
        (any(not len(t.test) for t in stream.tasks), "tasks without test samples"),
    ]
    for bad, what in wrong:
        if bad:
            raise ConfigurationError(
                f"Avalanche has no form for {what}, which the scenario {stream.name!r} has: choose another scenario, or stay "
                "with clframe's own strategies."
            )


def _origin(stream: Stream, table: SampleTable, augmentation: AugmentationSpec) -> Origin:
    """Return a table with what its images pass through in a clframe run."""
    if len(stream.shape) != 3:
        return Origin(stream, BatchMaker(table, ToInput((), ()), torch.device("cpu")))
    train, test = (build_augmentation(spec, stream.shape) for spec in (augmentation, stream.test_transform))
    to_input = ToInput(stream.mean, stream.std)
    maker = BatchMaker(
        table, to_input, torch.device("cpu"), train if train.transforms else None, test if test.transforms else None
    )
    return Origin(stream, maker)
