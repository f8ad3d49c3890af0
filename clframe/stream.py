"""Streams: a sequence of experiences cut from a source, and the tasks on which a model is scored.

Everything here is index sets over two tables, one of training and one of test samples; no image is touched when a
stream is made. Labels inside a stream are positions in the order in which classes first appear, so that the classes
seen after any experience are always the first K.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from clframe.data.reader import ImageReader
from clframe.errors import ContractError

__all__ = ["EvaluationTask", "Experience", "InputTransform", "SampleTable", "Score", "Setting", "Stream", "no_samples"]

Setting = Literal["class", "task", "domain"]
"""Class-incremental: no task id at test time. Task-incremental: task id given. Domain-incremental: labels shared."""

Score = Literal["accuracy", "squared_error"]
"""What a task is scored by; `squared_error` is for regression streams, where lower is better."""

InputTransform = Callable[[Tensor], Tensor]
"""A fixed change of a batch of images (B, H, W, C) uint8 that makes a domain, such as a pixel permutation."""


def no_samples() -> Tensor:
    """Return an empty set of sample ids."""
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class SampleTable:
    """Every sample of a split by its id, the row number.

    A sample is an image of the source, seen through the input transform of its domain.

    Attributes:
        images: Where pixels (or features) come from.
        targets: (N,) int64 stream labels, or (N, D) float targets of a regression.
        rows: (N,) int64 row of each sample in `images`; None means the id itself.
        domains: (N,) int64 index into `transforms`; None when there are none.
        task_ids: (N,) int64 task of each sample where the scenario gives one, else None.
        transforms: The input transform of every domain.
    """

    images: ImageReader
    targets: Tensor
    rows: Tensor | None = None
    domains: Tensor | None = None
    task_ids: Tensor | None = None
    transforms: tuple[InputTransform, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    def gather(self, ids: Tensor) -> Tensor:
        """Return a copy of the images of some samples: (B, H, W, C) uint8, or (B, D) float32 features."""
        images = self.images.gather(ids if self.rows is None else self.rows[ids])
        return images if self.domains is None else self._through_domains(images, ids)

    def batches(self, id_batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the images of every batch of ids in order; a streaming reader prefetches them."""
        rows = id_batches if self.rows is None else [self.rows[ids] for ids in id_batches]
        for ids, images in zip(id_batches, self.images.batches(rows), strict=True):
            yield images if self.domains is None else self._through_domains(images, ids)

    def _through_domains(self, images: Tensor, ids: Tensor) -> Tensor:
        if self.domains is None:
            return images
        domains = self.domains[ids]
        present = domains.unique().tolist()
        if len(present) == 1:
            return self.transforms[present[0]](images)
        out = images.clone()
        for domain in present:
            chosen = domains == domain
            out[chosen] = self.transforms[domain](images[chosen])
        return out


@dataclass(frozen=True, eq=False)
class Experience:
    """One step of a stream: what a strategy may learn from now.

    Attributes:
        index: Position in the stream, from 0.
        classes: Stream labels among the labelled samples, ascending.
        new_classes: Those of them that no earlier experience had.
        num_seen_classes: K, the classes seen once this experience is over: the labels 0 to K-1.
        train: Ids of labelled training samples.
        valid: Ids of training samples set aside for validation; never trained on.
        task_id: Where the scenario gives one.
        is_last: Whether the stream ends here; only strategies tagged `needs_all_data` may look.
        unlabelled: Ids of training samples whose label is withheld.
        pool: Ids of samples whose label can be bought, `query_budget` of them.
        query_budget: How many labels of the pool the strategy may ask for (samples).
        forget: Ids of samples that must be unlearnt here.
    """

    index: int
    classes: tuple[int, ...]
    new_classes: tuple[int, ...]
    num_seen_classes: int
    train: Tensor
    valid: Tensor = field(default_factory=no_samples)
    task_id: int | None = None
    is_last: bool = False
    unlabelled: Tensor = field(default_factory=no_samples)
    pool: Tensor = field(default_factory=no_samples)
    query_budget: int = 0
    forget: Tensor = field(default_factory=no_samples)


@dataclass(frozen=True, eq=False)
class EvaluationTask:
    """What a model is scored on: one column of the accuracy matrix.

    Attributes:
        index: Column number j, from 0.
        classes: Stream labels of the task.
        test: Ids in the test table.
        valid: Ids in the training table that were set aside.
        available_after: Number of experiences after which the task counts as seen (1: after the first).
        task_id: Handed to the strategy at test time in the task-incremental setting.
    """

    index: int
    classes: tuple[int, ...]
    test: Tensor
    valid: Tensor
    available_after: int
    task_id: int | None = None


@dataclass(frozen=True, eq=False)
class Stream:
    """A whole experiment's data: experiences to learn from and tasks to be scored on.

    Attributes:
        name: The scenario's registered name.
        experiences: In the order of learning.
        tasks: The columns of the accuracy matrix.
        train: Table of training samples.
        test: Table of test samples.
        class_names: By stream label.
        class_order: Source label of every stream label.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, of pixels in [0, 1].
        setting: Which of the three settings the stream is.
        boundaries: Whether a strategy is told where tasks begin and end.
        online: Whether every sample may be presented only once.
        score: What tasks are scored by.
        augmentation: The augmentation that the scenario's protocol states, when the run names none.
        data_fingerprint: Of the source's decoded content.
    """

    name: str
    experiences: tuple[Experience, ...]
    tasks: tuple[EvaluationTask, ...]
    train: SampleTable
    test: SampleTable
    class_names: tuple[str, ...]
    class_order: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    setting: Setting = "class"
    boundaries: bool = True
    online: bool = False
    score: Score = "accuracy"
    augmentation: str = "standard"
    data_fingerprint: str = ""

    @property
    def num_classes(self) -> int:
        """Classes (or outputs of a regression) of the whole stream."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image, or (D,) of a feature vector."""
        return tuple(self.train.images.shape)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of every index set, label and order: equal for identical streams, on any machine."""
        digest = hashlib.sha256()
        digest.update(json.dumps([self.setting, self.class_order, self.data_fingerprint, self.score]).encode())
        for table in (self.train, self.test):
            for column in (table.targets, table.rows, table.domains, table.task_ids):
                digest.update(b"-" if column is None else column.contiguous().numpy().tobytes())
        for e in self.experiences:
            digest.update(json.dumps([e.classes, e.task_id, e.query_budget]).encode())
            for ids in (e.train, e.valid, e.unlabelled, e.pool, e.forget):
                digest.update(ids.contiguous().numpy().tobytes() + b"|")
        for task in self.tasks:
            digest.update(json.dumps([task.classes, task.available_after, task.task_id]).encode())
            digest.update(task.test.contiguous().numpy().tobytes() + b"|" + task.valid.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> list[dict[str, Any]]:
        """Return one row per experience: classes, samples, validation and test sizes."""
        rows = []
        for e in self.experiences:
            tested = [t for t in self.tasks if t.available_after == e.index + 1]
            row = {
                "experience": e.index + 1,
                "classes": len(e.classes),
                "new": len(e.new_classes),
                "train": len(e.train),
                "valid": len(e.valid),
                "test": sum(len(t.test) for t in tested),
            }
            rows.append(row)
        return rows

    def check(self) -> None:
        """Check that the parts fit together.

        Raises:
            ContractError: A rule of streams is broken; names the experience.
        """
        seen = 0
        for e in self.experiences:
            where = f"Experience {e.index + 1} of the scenario {self.name!r}"
            new = tuple(sorted(e.new_classes))
            if self.setting != "domain" and new != tuple(range(seen, seen + len(new))):
                raise ContractError(f"{where} must introduce the labels from {seen} on, received {new}.")
            seen = max(seen, e.num_seen_classes)
            if e.classes and max(e.classes) >= e.num_seen_classes:
                raise ContractError(
                    f"{where} has label {max(e.classes)}, but only {e.num_seen_classes} classes are seen."
                )
            for name, ids in (("train", e.train), ("valid", e.valid), ("unlabelled", e.unlabelled), ("pool", e.pool)):
                if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= len(self.train)):
                    raise ContractError(f"{where}: ids of {name} must lie in 0..{len(self.train) - 1}.")
            overlap = torch.isin(e.train, e.valid)
            if bool(overlap.any()):
                raise ContractError(f"{where} trains on {int(overlap.sum())} of its own validation samples.")
        if any(t.index != j for j, t in enumerate(self.tasks)) or not self.experiences:
            raise ContractError(f"The scenario {self.name!r} must number its tasks from 0 and have an experience.")
