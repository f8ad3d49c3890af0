"""Streams: a sequence of experiences cut from a source, and the tasks on which a model is scored.

Everything here is index sets over two tables, one of training and one of test samples; no image is touched when a
stream is made. Labels inside a stream are positions in the order in which classes first appear, so that the classes
seen after any experience are always the first K.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from clframe.data.reader import ImageReader
from clframe.errors import ConfigurationError, ContractError

__all__ = [
    "AugmentationSpec",
    "EvaluationTask",
    "Experience",
    "InputTransform",
    "Retrieval",
    "SampleTable",
    "Score",
    "Setting",
    "Stream",
    "no_samples",
]

Setting = Literal["class", "task", "domain"]
"""Class-incremental: no task id at test time. Task-incremental: task id given. Domain-incremental: labels shared."""

Score = Literal["accuracy", "squared_error"]
"""What a task is scored by; `squared_error` is for regression streams, where lower is better."""


class InputTransform(Protocol):
    """A fixed change of images that makes a domain, such as a pixel permutation; pure, and the same on every machine."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return the changed batch (B, H, W, C) uint8, or (B, D) float32 features."""
        ...

    def spec(self) -> Mapping[str, Any]:
        """Return plain values that say what the change is; equal ones mean equal changes."""
        ...


AugmentationSpec = str | Sequence[str | Mapping[str, Any]]
"""A preset's name, or a list of transforms: names, or mappings with a `name` and the transform's fields."""


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
        present: list[int] = torch.unique(domains).tolist()
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
class Retrieval:
    """Images to search among and images to search for, the same after every experience; nothing of it is trained on.

    Attributes:
        table: The images, of the stream's shape; their targets (N,) int64 are identities, apart from the stream's labels.
        gallery: (G,) ids of the images that are searched.
        queries: (Q,) ids of those that are searched for.
        pairs: (P, 2) int64, for verification: a position in `queries` and one in `gallery`, as often of one identity as of
            two.
        data_fingerprint: Of the images' content, where they aren't the stream's own.
    """

    table: SampleTable
    gallery: Tensor
    queries: Tensor
    pairs: Tensor
    data_fingerprint: str = ""

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of every id, identity and pair."""
        digest = hashlib.sha256(self.data_fingerprint.encode())
        identities = [self.table.targets[ids] for ids in (self.gallery, self.queries)]
        for column in (self.gallery, self.queries, self.pairs, *identities):
            digest.update(column.contiguous().numpy().tobytes() + b"|")
        return digest.hexdigest()

    def check(self, whole: str, shape: tuple[int, ...]) -> None:
        """Check that the parts fit together and the images are of the stream's shape.

        Raises:
            ContractError: They don't.
        """
        if tuple(self.table.images.shape) != shape:
            raise ContractError(f"{whole} needs a gallery of shape {shape}, received {tuple(self.table.images.shape)}.")
        for name in ("gallery", "queries"):
            ids = getattr(self, name)
            _check_ids(ids, self.table, f"{whole}: ids of {name}")
            if not len(ids):
                raise ContractError(f"{whole} needs {name}, received none.")
        sizes = torch.tensor([len(self.queries), len(self.gallery)])
        if self.pairs.ndim != 2 or self.pairs.shape[1] != 2 or bool(((self.pairs < 0) | (self.pairs >= sizes)).any()):
            raise ContractError(f"{whole} needs pairs of a position in its queries and one in its gallery.")
        if bool(torch.isin(self.gallery, self.queries).any()):
            raise ContractError(f"{whole} must not search for images that are in its gallery.")


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
        test_transform: What images that are not augmented pass through, such as a centre crop.
        data_fingerprint: Of the source's decoded content.
        pretrained: Whether the samples are features of a network that was trained elsewhere.
        retrieval: A gallery and queries by which the models of different experiences are compared.
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
    augmentation: AugmentationSpec = "standard"
    test_transform: AugmentationSpec = "none"
    data_fingerprint: str = ""
    pretrained: bool = False
    retrieval: Retrieval | None = None

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
        """A hash of every index set, label, order and domain: equal for identical streams, on any machine."""
        digest = hashlib.sha256()
        facts = [self.setting, self.class_order, self.data_fingerprint, self.score, self.boundaries, self.online]
        digest.update(json.dumps(facts).encode())
        for table in (self.train, self.test):
            for column in (table.targets, table.rows, table.domains, table.task_ids):
                digest.update(b"-" if column is None else column.contiguous().numpy().tobytes())
            if table.transforms:
                digest.update(json.dumps([dict(t.spec()) for t in table.transforms], sort_keys=True).encode())
        for e in self.experiences:
            digest.update(json.dumps([e.classes, e.task_id, e.query_budget]).encode())
            for ids in (e.train, e.valid, e.unlabelled, e.pool, e.forget):
                digest.update(ids.contiguous().numpy().tobytes() + b"|")
        for task in self.tasks:
            digest.update(json.dumps([task.classes, task.available_after, task.task_id]).encode())
            digest.update(task.test.contiguous().numpy().tobytes() + b"|" + task.valid.contiguous().numpy().tobytes())
        if self.retrieval is not None:
            digest.update(self.retrieval.fingerprint.encode())
        return digest.hexdigest()

    def first(self, count: int) -> Stream:
        """Return a stream that ends after its first `count` experiences, with the tasks that are seen by then.

        What is left is as it was: a method learns from it what it learns from the same experiences of the whole stream.
        `num_classes` stays too, since classes beyond are announced, though none of their samples is in any index set.

        Raises:
            ConfigurationError: There are fewer experiences.
        """
        whole = len(self.experiences)
        if count > whole:
            raise ConfigurationError(
                f"first_experiences: expected at most the {whole} experiences of the scenario {self.name!r}, received {count}."
            )
        if count == whole:
            return self
        kept = self.experiences[:count]
        ended = (*kept[:-1], dataclasses.replace(kept[-1], is_last=True))
        seen = [t for t in self.tasks if t.available_after <= count]
        return dataclasses.replace(
            self, experiences=ended, tasks=tuple(dataclasses.replace(t, index=j) for j, t in enumerate(seen))
        )

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
        whole = f"The scenario {self.name!r}"
        if not self.experiences or [t.index for t in self.tasks] != list(range(len(self.tasks))):
            raise ContractError(f"{whole} must number its tasks from 0 and have an experience.")
        seen = 0
        for i, e in enumerate(self.experiences):
            where = f"Experience {i + 1} of the scenario {self.name!r}"
            if (e.index, e.is_last) != (i, i == len(self.experiences) - 1):
                raise ContractError(f"{where} must have index {i}, and only the last one is_last.")
            for name in ("train", "valid", "unlabelled", "pool", "forget"):
                _check_ids(getattr(e, name), self.train, f"{where}: ids of {name}")
            self._check_labels(e, seen, where)
            seen = max(seen, e.num_seen_classes)
        for t in self.tasks:
            _check_ids(t.test, self.test, f"{whole}: test ids of task {t.index + 1}")
            _check_ids(t.valid, self.train, f"{whole}: validation ids of task {t.index + 1}")
            if any(not 0 <= c < self.num_classes for c in t.classes):
                raise ContractError(f"{whole} has {self.num_classes} classes, but task {t.index + 1} has {t.classes}.")
        self._check_validation(whole)
        if self.retrieval is not None:
            self.retrieval.check(whole, self.shape)

    def _check_labels(self, e: Experience, seen: int, where: str) -> None:
        """Check that the labels of an experience are announced, and the classes seen always the first ones."""
        new = tuple(sorted(e.new_classes))
        if self.setting != "domain" and new != tuple(range(seen, seen + len(new))):
            raise ContractError(f"{where} must introduce the labels from {seen} on, received {new}.")
        if e.classes and max(e.classes) >= e.num_seen_classes:
            raise ContractError(f"{where} has label {max(e.classes)}, but only {e.num_seen_classes} classes are seen.")
        if self.score == "accuracy" and len(e.train):
            labels = set(torch.unique(self.train.targets[e.train]).tolist())
            if not labels <= set(e.classes):
                raise ContractError(
                    f"{where} has training samples of the labels {sorted(labels - set(e.classes))}, which are not in its "
                    f"classes {e.classes}."
                )

    def _check_validation(self, whole: str) -> None:
        """Check that no experience trains on what is set aside."""
        held_out = torch.zeros(len(self.train), dtype=torch.bool)
        for valid in [*(e.valid for e in self.experiences), *(t.valid for t in self.tasks)]:
            held_out[valid] = True
        for e in self.experiences:
            for ids in (e.train, e.unlabelled, e.pool):
                if bool(held_out[ids].any()):
                    raise ContractError(
                        f"{whole} trains on {int(held_out[ids].sum())} validation samples in experience {e.index + 1}."
                    )


def _check_ids(ids: Tensor, table: SampleTable, what: str) -> None:
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= len(table)):
        raise ContractError(f"{what} must lie in 0..{len(table) - 1}.")
