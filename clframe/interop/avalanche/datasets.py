"""Samples of a clframe table as Avalanche datasets: an image is read, augmented and normalised when it is asked for.

Nothing is copied: a dataset holds ids, and two Python lists with the labels that Avalanche wants. The attribute
`sample_ids` of every such dataset, and of every subset and concatenation that Avalanche makes of it, says which samples
of which table it holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clframe.interop.avalanche.library import require
from clframe.stream import EvaluationTask, Experience, SampleTable, Stream
from clframe.training.batches import BatchMaker

__all__ = ["Origin", "Part", "Samples", "ids_of", "make_dataset", "origin_of", "part_of"]

IDS, ORIGIN, PART = "sample_ids", "clframe_origin", "clframe_part"
"""Data attributes of the datasets made here."""

Part = Experience | EvaluationTask


@dataclasses.dataclass(eq=False)
class Origin:
    """Where the samples of datasets come from.

    Attributes:
        stream: The stream that they were cut from.
        maker: Its training or test table, and how images become a network's input. On the CPU.
        ids_only: While set, a dataset gives the id in the place of the image.
        reads: Images read so far.
    """

    stream: Stream
    maker: BatchMaker
    ids_only: bool = False
    reads: int = 0

    @property
    def table(self) -> SampleTable:
        """The samples."""
        return self.maker.table

    @contextlib.contextmanager
    def showing_ids(self) -> Iterator[None]:
        """Let datasets give ids in the place of images: what a loader draws can then be seen without reading any."""
        self.ids_only = True
        try:
            yield
        finally:
            self.ids_only = False

    def train_input(self, image: Tensor) -> Tensor:
        """Return the network's input (C, H, W) of an image (C, H, W), augmented by draws of the global generator."""
        if self.ids_only:
            return image
        return self.maker.train_input(_channels_last(image), torch.default_generator)[0]

    def eval_input(self, image: Tensor) -> Tensor:
        """Return the network's input (C, H, W) of an image (C, H, W) that is not augmented."""
        return image if self.ids_only else self.maker.test_input(_channels_last(image))[0]


class Samples(Dataset[tuple[Tensor, int]]):
    """Some samples of a table: uint8 images (C, H, W) or float features (D,), with their labels."""

    def __init__(self, origin: Origin, ids: Tensor) -> None:
        self.origin = origin
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sample = self.ids[index]
        label = int(self.origin.table.targets[sample])
        if self.origin.ids_only:
            return sample, label
        self.origin.reads += 1
        image = self.origin.table.gather(sample[None])[0]
        return image.movedim(-1, 0) if image.ndim == 3 else image, label


def _channels_last(image: Tensor) -> Tensor:
    """Make a batch (1, H, W, C) of an image (C, H, W); of features (D,) a batch (1, D)."""
    return (image.movedim(0, -1) if image.ndim == 3 else image)[None]


def make_dataset(origin: Origin, ids: Tensor, group: str = "train", part: Part | None = None) -> Any:
    """Return an Avalanche dataset of some samples.

    Its items are the network's input, the stream label and the task label, which is the sample's task id where the
    setting gives one, else 0. The transform groups `train` and `eval` differ in the augmentation.

    Args:
        origin: The table.
        ids: (N,) ids in the table.
        group: The transform group that the dataset starts in.
        part: What of the stream the samples belong to.
    """
    utils = require("avalanche.benchmarks.utils")
    if not len(ids):
        return utils.AvalancheDataset([])
    table = origin.table
    given = table.task_ids is not None and origin.stream.setting == "task"
    tasks = table.task_ids[ids].tolist() if given and table.task_ids is not None else [0] * len(ids)
    attributes = [
        utils.DataAttribute(table.targets[ids].tolist(), "targets"),
        utils.DataAttribute(ids.tolist(), IDS),
        utils.DataAttribute(utils.ConstantSequence(origin, len(ids)), ORIGIN),
        utils.DataAttribute(tasks, "targets_task_labels", use_in_getitem=True),
    ]
    if part is not None:
        attributes.append(utils.DataAttribute(utils.ConstantSequence(part, len(ids)), PART))
    groups = utils.TransformGroups(
        {"train": (origin.train_input, None), "eval": (origin.eval_input, None)}, current_group=group
    )
    made = utils.make_avalanche_dataset(
        Samples(origin, ids.clone()), data_attributes=attributes, transform_groups=groups
    )
    return utils.as_taskaware_classification_dataset(made)


def origin_of(dataset: Any) -> Origin | None:
    """Return where all samples of an Avalanche dataset come from; None where that isn't one table of clframe's."""
    found: Origin | None = _only(dataset, ORIGIN)
    return found


def part_of(dataset: Any) -> Part | None:
    """Return the experience or task that all samples of an Avalanche dataset belong to, None where there is none."""
    found: Part | None = _only(dataset, PART)
    return found


def _only(dataset: Any, attribute: str) -> Any:
    found = getattr(dataset, attribute, None)
    values = set() if found is None else set(found.uniques)
    return values.pop() if len(values) == 1 else None


def ids_of(dataset: Any) -> Tensor:
    """Return the ids (N,) of the samples of an Avalanche dataset that was made of some here."""
    return torch.tensor(list(getattr(dataset, IDS, ())), dtype=torch.int64)
