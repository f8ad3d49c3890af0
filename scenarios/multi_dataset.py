"""Several data sets, one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from clframe.data import DataRoot, ImageData, ImageReader, find_source
from clframe.data.joined import JoinedReader
from clframe.errors import ConfigurationError
from clframe.scenario import Scenario
from clframe.scenarios._parts import rows_by_label
from clframe.spec import field
from clframe.stream import AugmentationSpec, EvaluationTask, Experience, SampleTable, Setting, Stream

__all__ = ["MultiDataset"]


class MultiDataset(Scenario):
    """Several data sets one after the other, each an experience of its own.

    NEVIS'22 (Bornschein et al. 2022) in small, or data sets as domains. With `setting=task` each has its own classes
    and the task id is given, so that `--head multi` has a head per data set; with `setting=class` the id is withheld;
    with `setting=domain` all data sets share the labels 0, 1, … and must have equally many classes (digits of MNIST,
    SVHN and USPS, say). Images are brought to `size` and, where one data set has colours, to three channels. Normalised
    by the mean of the data sets' own statistics. What a run costs per experience is in its record (`counters`,
    `events.jsonl`).

    Version history:
        1: first version.
    """

    example: ClassVar[str] = "--scenario.sources digits,digits"
    augmentation: ClassVar[AugmentationSpec] = "none"

    sources: list[str] = field(
        default_factory=lambda: ["mnist", "fashion_mnist", "svhn", "cifar10"],
        help="Data sets in the order of learning: known names, folders or archives, or path/to/file.py:Name.",
    )
    setting: Setting = field(default="task", help="task (ids given), class, or domain (labels shared).")
    size: int | None = field(
        default=None, ge=1, unit="pixels", help="Side to which all images are resized; none: the largest data set's."
    )
    train_per_class: int | None = field(
        default=None, ge=1, unit="samples", help="Use only the first so many training samples of every class."
    )
    test_per_class: int | None = field(
        default=None, ge=1, unit="samples", help="Use only the first so many test samples of every class."
    )

    def build(self, root: DataRoot, *, download: bool = False) -> Stream:
        """Open all data sets and lay them one after the other.

        Raises:
            ConfigurationError: There is none, or they can't share labels.
        """
        if not self.sources:
            raise ConfigurationError("scenario.sources: expected at least one data set, received none.")
        found = [find_source(s).open(root, download=download) for s in self.sources]
        sizes = [d.num_classes for d in found]
        if self.setting == "domain" and len(set(sizes)) > 1:
            raise ConfigurationError(
                f"scenario.sources: data sets that share labels need equally many classes, received {sizes}: use the setting "
                "task or class."
            )
        shape = self._shape(found)
        firsts = [0 if self.setting == "domain" else sum(sizes[:k]) for k in range(len(found))]
        train, trained = self._table([d.train.images for d in found], [d.train.targets for d in found], firsts, shape)
        test, tested = self._table([d.test.images for d in found], [d.test.targets for d in found], firsts, shape)
        parts = [(self.train_per_class, train, trained), (self.test_per_class, test, tested)]
        new, held = ([self._limited(t, ids, limit) for ids in rows] for limit, t, rows in parts)
        experiences, tasks = [], []
        for i, (first, count) in enumerate(zip(firsts, sizes, strict=True)):
            own = tuple(range(first, first + count))
            task_id = i if self.setting == "task" else None
            fresh = own if self.setting != "domain" or i == 0 else ()
            last = i == len(found) - 1
            experiences.append(Experience(i, own, fresh, own[-1] + 1, new[i], task_id=task_id, is_last=last))
            tasks.append(EvaluationTask(i, own, held[i], held[i][:0], i + 1, task_id))
        names = found[0].class_names
        if self.setting != "domain":
            names = tuple(f"{d.name}/{n}" for d in found for n in d.class_names)
        means, deviations = (torch.tensor([_spread(getattr(d, n), shape[0]) for d in found]) for n in ("mean", "std"))
        stream = Stream(
            name="multi_" + "_".join(d.name for d in found),
            experiences=tuple(experiences),
            tasks=tuple(tasks),
            train=train,
            test=test,
            class_names=names,
            class_order=tuple(range(len(names))),
            mean=tuple(means.mean(0).tolist()),
            std=tuple(deviations.mean(0).tolist()),
            setting=self.setting,
            augmentation=self.augmentation,
            data_fingerprint=hashlib.sha256(
                " ".join([*(d.fingerprint for d in found), str(shape)]).encode()
            ).hexdigest(),
        )
        stream.check()
        return stream

    def _shape(self, found: Sequence[ImageData]) -> tuple[int, int, int]:
        """Return the (C, H, W) of all images."""
        shapes = [d.shape for d in found]
        if any(len(s) != 3 for s in shapes):
            raise ConfigurationError("scenario.sources: expected data sets of images, received one of features.")
        size = self.size or max(max(s[1:]) for s in shapes)
        return max(s[0] for s in shapes), size, size

    def _table(
        self, images: list[ImageReader], targets: list[Tensor], firsts: Sequence[int], shape: tuple[int, int, int]
    ) -> tuple[SampleTable, list[Tensor]]:
        """Join the data sets' readers and labels; returns the table and every data set's ids."""
        counts = torch.tensor([len(t) for t in targets])
        owner = torch.repeat_interleave(torch.arange(len(targets)), counts)
        labels = torch.cat(targets) + torch.tensor(list(firsts))[owner]
        task_ids = owner if self.setting == "task" else None
        table = SampleTable(JoinedReader(images, shape), labels, task_ids=task_ids)
        ends = counts.cumsum(0).tolist()
        return table, [torch.arange(e - n, e) for e, n in zip(ends, counts.tolist(), strict=True)]

    def _limited(self, table: SampleTable, ids: Tensor, limit: int | None) -> Tensor:
        """Return at most `limit` of the ids of every class."""
        if limit is None:
            return ids
        labels = table.targets[ids]
        rows = rows_by_label(labels, int(labels.max()) + 1, limit)
        return ids[torch.cat(rows).sort().values]


def _spread(values: tuple[float, ...], channels: int) -> list[float]:
    """Repeat a grey data set's statistic to all channels."""
    return list(values) * channels if len(values) == 1 else list(values)
