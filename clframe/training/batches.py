"""From index sets to batches on the device: one gather, one augmentation, one conversion per step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from clframe.data.augment import Augmentation, Pipeline, ToInput
from clframe.strategy import Batch, DataView, TensorView
from clframe.stream import Experience, SampleTable
from clframe.training.seeds import RandomStreams

__all__ = ["BatchMaker", "sample_bytes", "split_batches"]

T = TypeVar("T")
Place = tuple[Experience, str, int, int, int]
"""Where a batch is drawn: experience, phase, epoch, step, steps in the epoch."""


def split_batches(ids: Tensor, batch_size: int) -> list[Tensor]:
    """Cut ids into batches; a last batch of one sample joins the one before.

    BatchNorm can't train on a single value per channel, and dropping the sample would lose it.
    """
    parts = list(torch.split(ids, batch_size)) if len(ids) else []  # of nothing, PyTorch makes one empty part
    if len(parts) > 1 and len(parts[-1]) == 1:
        last = parts.pop()
        parts[-1] = torch.cat([parts[-1], last])
    return parts


def _passes(draw: Callable[[], list[T]], steps: int | None) -> list[T]:
    """Return the batches of one pass, or so many of as many passes as it takes; of no data there are none."""
    parts = draw()
    while steps is not None and 0 < len(parts) < steps:
        parts += draw()
    return parts[:steps]


class BatchMaker:
    """Makes the batches of one table on one device.

    Args:
        table: The samples.
        to_input: Turns uint8 images into normalised floats.
        device: Where batches go.
        augmentation: What training images pass through; None for none.
        test_transform: What images pass through when they are not augmented, such as a centre crop.
    """

    def __init__(
        self,
        table: SampleTable,
        to_input: ToInput,
        device: torch.device,
        augmentation: Augmentation | Pipeline | None = None,
        test_transform: Augmentation | Pipeline | None = None,
    ) -> None:
        self.table = table
        self.device = device
        self.to_input = to_input
        self.augmentation = augmentation
        self.test_transform = test_transform
        self._moves = device.type != "cpu"
        self._no_draws = torch.Generator()

    def test_input(self, images: Tensor) -> Tensor:
        """Return the network's input (B, C, H, W) of images (B, H, W, C) that are not augmented."""
        if self._moves:
            images = images.to(self.device, non_blocking=True)
        if self.test_transform is not None:
            images = self.test_transform(images, self._no_draws)
        return self.to_input(images)

    def train_input(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the network's input of images, every one augmented by draws of its own."""
        if self.augmentation is None:
            return self.test_input(images)
        if self._moves:
            images = images.to(self.device, non_blocking=True)
        return self.to_input(self.augmentation(images, generator))

    def on_device(self, tensor: Tensor) -> Tensor:
        """Move a small tensor to the device."""
        return tensor.to(self.device, non_blocking=True) if self._moves else tensor

    def in_order(self, ids: Tensor, batch_size: int, experience: Experience) -> Iterator[Batch]:
        """Yield samples in order, under the test transform."""
        id_batches = list(torch.split(ids, batch_size)) if len(ids) else []
        for step, (part, images) in enumerate(zip(id_batches, self.table.batches(id_batches), strict=True)):
            place = (experience, "statistics", 0, step, len(id_batches))
            yield self._batch((self.test_input(images),), self.table.targets[part], part, place, len(part))

    def drawn(self, ids: Tensor, experience: Experience, generator: torch.Generator) -> Batch:
        """Return samples as one batch under the training augmentation, which draws from the given generator."""
        x = self.train_input(self.table.gather(ids), generator)
        return self._batch((x,), self.table.targets[ids], ids, (experience, "drawn", 0, 0, 1), len(ids))

    def steps_per_epoch(self, view: DataView | TensorView, batch_size: int) -> int:
        """Return the optimiser steps of an epoch of a view."""
        if isinstance(view, DataView) and view.order is not None:
            return len(view.order())
        return (
            len(split_batches(torch.empty(len(view), dtype=torch.int8), view.batch_size or batch_size))
            if len(view)
            else 0
        )

    def epoch(
        self,
        view: DataView | TensorView,
        batch_size: int,
        experience: Experience,
        phase: str,
        epoch: int,
        rng: RandomStreams,
        first_step: int = 0,
        steps: int | None = None,
    ) -> Iterator[Batch]:
        """Draw the order of an epoch now, and return its batches, from `first_step` on when a run is resumed inside it.

        An epoch of `steps` batches is cut off there, or begins the data anew, in another order, as often as it takes.
        """
        size = view.batch_size or batch_size
        place = (experience, phase, epoch)
        if isinstance(view, TensorView):
            order = _passes(lambda: split_batches(torch.randperm(len(view), generator=rng("order")), size), steps)
            return self._tensor_batches(view, order, first_step, place)
        parts = _passes(lambda: self._epoch_parts(view, size, rng), steps)
        return self._image_batches(view, [i for i, _ in parts], [t for _, t in parts], first_step, place, rng)

    def _epoch_parts(self, view: DataView, size: int, rng: RandomStreams) -> list[tuple[Tensor, Tensor]]:
        """Return the ids and labels of every batch of one pass."""
        if view.order is not None:
            return [(ids, self.table.targets[ids]) for ids in view.order()]
        ids, targets = self._epoch_order(view, rng)
        return list(zip(split_batches(ids, size), split_batches(targets, size), strict=True))

    def _image_batches(
        self,
        view: DataView,
        id_batches: list[Tensor],
        target_batches: list[Tensor],
        first_step: int,
        place: tuple[Experience, str, int],
        rng: RandomStreams,
    ) -> Iterator[Batch]:
        steps = len(id_batches)
        for step, images in enumerate(self.table.batches(id_batches[first_step:]), first_step):
            yield self._training_batch(view, images, target_batches[step], id_batches[step], (*place, step, steps), rng)

    def _epoch_order(self, view: DataView, rng: RandomStreams) -> tuple[Tensor, Tensor]:
        """Return the epoch's ids and labels (-1 where withheld) in the order of presentation."""
        ids, targets = view.ids, self.table.targets[view.ids]
        generator = rng("order")
        if view.unlabelled is not None and len(view.unlabelled):
            hidden = torch.full((len(view.unlabelled),), -1, dtype=targets.dtype)
            ids, targets = torch.cat([ids, view.unlabelled]), torch.cat([targets, hidden])
        if view.balanced:
            weights = 1.0 / torch.bincount(targets.clamp(min=0)).double()[targets.clamp(min=0)]
            order = torch.multinomial(weights, len(ids), replacement=True, generator=generator)
        else:
            order = torch.randperm(len(ids), generator=generator)
        return ids[order], targets[order]

    def _training_batch(
        self, view: DataView, images: Tensor, labels: Tensor, ids: Tensor, place: Place, rng: RandomStreams
    ) -> Batch:
        num_new, rows = len(ids), None
        if view.memory is not None and view.memory_batch and len(view.memory):
            rows = view.memory.sample(view.memory_batch, generator=rng("replay"))
            replayed = view.memory.ids[rows]
            images = torch.cat([images, self.table.gather(replayed)])
            ids, labels = torch.cat([ids, replayed]), torch.cat([labels, view.memory.targets[rows]])
        if view.augment:
            views = tuple(self.train_input(images, rng("augmentation")) for _ in range(view.views))
        else:
            views = (self.test_input(images),)
        return self._batch(views, labels, ids, place, num_new, rows)

    def _tensor_batches(
        self, view: TensorView, parts: list[Tensor], first_step: int, place: tuple[Experience, str, int]
    ) -> Iterator[Batch]:
        no_ids = torch.empty(0, dtype=torch.int64)
        for step in range(first_step, len(parts)):
            rows = parts[step].to(view.x.device)
            x = self.on_device(view.x[rows])
            yield self._batch((x,), view.y[rows], no_ids, (*place, step, len(parts)), len(rows))

    def _batch(
        self,
        views: tuple[Tensor, ...],
        targets: Tensor,
        ids: Tensor,
        place: Place,
        num_new: int,
        memory_rows: Tensor | None = None,
    ) -> Batch:
        tasks = self.table.task_ids
        task_ids = None if tasks is None or not len(ids) else self.on_device(tasks[ids])
        return Batch(views[0], self.on_device(targets), ids, num_new, task_ids, views, memory_rows, *place)


def sample_bytes(shape: Sequence[int]) -> int:
    """Return the bytes of one stored sample: a byte per value of an image, four per value of a feature vector."""
    size = 1
    for extent in shape:
        size *= int(extent)
    return size if len(shape) == 3 else 4 * size
