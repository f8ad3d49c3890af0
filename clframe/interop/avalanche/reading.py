"""Reads the datasets of an Avalanche benchmark: which samples of which table each of them holds."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clframe.data import Arrays, DataRoot
from clframe.data.reader import as_tensor
from clframe.errors import DataError
from clframe.interop.avalanche.datasets import Part, ids_of, origin_of, part_of
from clframe.stream import SampleTable, Stream

__all__ = ["Material", "Piece", "Statistics", "read"]

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of every channel, of pixels in [0, 1]."""

_PROBED = 4
_SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """One experience of an Avalanche stream.

    Attributes:
        ids: Of its samples in the table.
        classes: Its labels, ascending, as the benchmark has them.
        task_label: The one that all samples have; None where they differ, or have none.
        part: What of a clframe stream it was made of, where it was.
    """

    ids: Tensor
    classes: tuple[int, ...]
    task_label: int | None
    part: Part | None


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """A benchmark's samples; the labels are the benchmark's own.

    Attributes:
        train: Table of the streams `train` and `valid`.
        test: Table of the stream `test`.
        pieces: The experiences of the streams `train`, `valid` and `test`, by its name.
        mean: Per channel, of pixels in [0, 1].
        std: Likewise.
        fingerprint: Of the images and labels.
        stream: The clframe stream that the benchmark was made of, where it was.
    """

    train: SampleTable
    test: SampleTable
    pieces: dict[str, list[Piece]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    stream: Stream | None = None


def read(benchmark: Any, statistics: Statistics | None = None, features: bool = False) -> Material:
    """Read the streams `train`, `test` and, where there is one, `valid`.

    Args:
        benchmark: An Avalanche benchmark.
        statistics: Of the normalisation that its items have gone through, to be undone.
        features: Take the items as flat vectors, whatever they are.

    Raises:
        DataError: A stream is missing, or an item is no image or vector with its class.
    """
    streams = {name: [e.dataset for e in stream] for name, stream in benchmark.streams.items()}
    if not streams.get("train") or not streams.get("test"):
        raise DataError(
            f"Expected a benchmark with the streams train and test, received {', '.join(streams) or 'none'}: name them so, "
            "as in benchmark_from_datasets(train=[...], test=[...])."
        )
    datasets = {split: streams.get(split, []) for split in _SPLITS}
    every = [d for found in datasets.values() for d in found]
    origins = [origin_of(d) for d in every]
    if features or len({None if o is None else o.stream for o in origins}) > 1 or origins[0] is None:
        return _of_items(datasets, statistics, features)
    return _of_stream(datasets, origins[0].stream)


def _of_stream(datasets: dict[str, list[Any]], stream: Stream) -> Material:
    """Find the tables again that the datasets are views of; no image is read."""
    tables = {"train": stream.train, "valid": stream.train, "test": stream.test}
    pieces = {s: [_piece(d, ids_of(d), tables[s].targets, part_of(d)) for d in datasets[s]] for s in _SPLITS}
    return Material(stream.train, stream.test, pieces, stream.mean, stream.std, stream.data_fingerprint, stream=stream)


def _of_items(datasets: dict[str, list[Any]], statistics: Statistics | None, features: bool) -> Material:
    """Read every item once, in order."""
    train, test = _Reader(statistics, features), _Reader(statistics, features)
    readers = {"train": train, "valid": train, "test": test}
    ids = {s: [readers[s].take(d) for d in datasets[s]] for s in _SPLITS}
    images = [r.images() for r in (train, test)]
    known = statistics if statistics is not None and images[0].ndim == 4 else (None, None)
    source = Arrays(
        x_train=images[0], y_train=train.labels, x_test=images[1], y_test=test.labels, mean=known[0], std=known[1]
    )
    data = source.open(DataRoot.resolve())
    tables = {
        "train": SampleTable(data.train.images, data.train.targets, task_ids=torch.tensor(train.tasks)),
        "test": SampleTable(data.test.images, data.test.targets, task_ids=torch.tensor(test.tasks)),
    }
    tables["valid"] = tables["train"]
    pieces = {
        s: [_piece(d, own, tables[s].targets) for d, own in zip(datasets[s], ids[s], strict=True)] for s in _SPLITS
    }
    return Material(tables["train"], tables["test"], pieces, data.mean, data.std, data.fingerprint)


def _piece(dataset: Any, ids: Tensor, targets: Tensor, part: Part | None = None) -> Piece:
    found = getattr(dataset, "targets_task_labels", None)
    tasks = set() if found is None else {int(t) for t in found.uniques}
    classes = set(targets[ids].tolist())
    if part is not None and classes <= set(part.classes):  # some may have no sample
        classes = set(part.classes)
    return Piece(ids, tuple(sorted(classes)), tasks.pop() if len(tasks) == 1 else None, part)


class _Reader:
    """Turns the items of datasets into one table, without the benchmark's normalisation and augmentation."""

    def __init__(self, statistics: Statistics | None, features: bool) -> None:
        self._statistics = statistics
        self._features = features
        self._images: list[Tensor] = []
        self.labels: list[int] = []
        self.tasks: list[int] = []

    def take(self, dataset: Any) -> Tensor:
        """Read all items of a dataset and return their ids."""
        first = len(self.labels)
        plain = self._plain(dataset)
        for index in range(len(dataset)):
            image, label, *_ = plain[index]
            self._images.append(self._image(image, index))
            self.labels.append(int(label))
        tasks = getattr(dataset, "targets_task_labels", None)
        self.tasks += [0] * len(dataset) if tasks is None else [int(t) for t in tasks]
        return torch.arange(first, len(self.labels))

    def images(self) -> Tensor:
        """Return everything taken: (N, H, W, C) uint8, or (N, D) float32.

        Raises:
            DataError: Images differ in shape.
        """
        shapes = {tuple(i.shape) for i in self._images}
        if len(shapes) > 1:
            raise DataError(f"Expected images of one shape, received {sorted(shapes)}: let the benchmark resize them.")
        return torch.stack(self._images)

    def _plain(self, dataset: Any) -> Any:
        """Return the dataset without its transforms where that gives pixels, else as it evaluates.

        Frozen transforms, such as the permutation of a domain, stay.
        """
        bare = dataset.remove_current_transform_group()  # of nested transforms, Avalanche may leave some
        probed = range(min(_PROBED, len(dataset)))
        if self._features or self._statistics is not None:
            return dataset.eval()
        twice = ((bare[i][0], bare[i][0]) for i in probed)
        return bare if all(_pixels(a) is not None and _same(a, b) for a, b in twice) else dataset.eval()

    def _image(self, value: Any, index: int) -> Tensor:
        if self._features or np.ndim(value) == 1:
            return as_tensor(np.asarray(value)).float().flatten()
        if self._statistics is not None and torch.is_tensor(value) and value.is_floating_point():
            mean, std = (torch.tensor(v)[:, None, None] for v in self._statistics)
            value = value * std + mean
        pixels = _pixels(value)
        if pixels is None:
            raise DataError(
                f"Expected pixels in 0..255 or in [0, 1] as item {index} of an experience, received {_described(value)}: "
                "give the mean= and std= of its Normalize, so that it can be undone, or features=True to take the items as "
                "vectors."
            )
        return pixels


def _pixels(value: Any) -> Tensor | None:
    """Return uint8 pixels (H, W, C) of an image in any of the usual forms; None where it isn't one.

    Floats must be multiples of 1/255, so that nothing is lost.
    """
    array = as_tensor(value if torch.is_tensor(value) else np.asarray(value))
    if array.ndim == 3 and torch.is_tensor(value):
        array = array.movedim(0, -1)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.is_floating_point() and array.numel():
        whole = (array * 255).round()
        exact = bool((array * 255 - whole).abs().max() < 0.01)
        array = whole.to(torch.uint8) if exact and 0 <= float(whole.min()) <= float(whole.max()) <= 255 else array
    return array if array.ndim == 3 and array.dtype == torch.uint8 else None


def _same(a: Any, b: Any) -> bool:
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


def _described(value: Any) -> str:
    if not torch.is_tensor(value) or not value.numel():
        return f"a {type(value).__name__}"
    return f"{value.dtype} {tuple(value.shape)} from {float(value.min()):.3g} to {float(value.max()):.3g}"
