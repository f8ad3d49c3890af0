"""Split: the classes of one source, cut into experiences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clframe.data import DataRoot, ImageData, find_source
from clframe.errors import ConfigurationError
from clframe.scenario import Scenario
from clframe.spec import field
from clframe.stream import EvaluationTask, Experience, SampleTable, Setting, Stream

__all__ = [
    "Split",
    "SplitCIFAR10",
    "SplitCIFAR100",
    "SplitDigits",
    "SplitFashionMNIST",
    "SplitFolder",
    "SplitMNIST",
    "SplitSVHN",
    "SplitTinyImageNet",
]

_VALID_SEED = 1993
"""Which samples are set aside must not depend on the seed of a run."""


class Split(Scenario):
    """Class-, task- or domain-incremental learning of one source whose classes are cut into groups.

    Class- and task-incremental are two views of the same groups: a run without task ids reports both, accuracy over all
    classes seen and accuracy within the sample's own task. With `setting=task` the id is also given to the strategy, in
    training and at test time. With `setting=domain` every group is relabelled 0, 1, … and shares one fixed head.

    Version history:
        1: first version.
    """

    source: str = field(help="A known data set, a folder or archive of images, or path/to/file.py:Name of a data set.")
    experiences: int | None = field(default=None, ge=1, help="Number of experiences, which must divide the classes (less `base`).")
    increment: int | None = field(default=None, ge=1, unit="classes", help="Classes of every experience; the last takes the remainder.")
    sizes: list[int] | None = field(default=None, help="Classes of every experience, one by one.")
    base: int | None = field(default=None, ge=1, unit="classes", help="Classes of the first experience (50 for the B50 protocols).")
    order: str | list[int] = field(
        default="natural",
        help="Class order: natural, seed:N (NumPy's legacy permutation; the literature's is seed:1993), or a list of labels.",
    )
    setting: Setting = field(default="class", help="class, task (ids given) or domain (labels shared).")
    classes: int | list[int] | None = field(default=None, help="Use only these source labels; a number means the first so many.")
    train_per_class: int | None = field(default=None, ge=1, unit="samples", help="Use only the first so many of every class.")
    test_per_class: int | None = field(default=None, ge=1, unit="samples", help="Use only the first so many of every class.")
    valid_per_class: int = field(default=0, ge=0, unit="samples", help="Training samples of every class set aside for validation.")
    size: int | None = field(default=None, ge=1, unit="pixels", help="Resize the images of a folder or archive to this square.")
    skip_corrupt: bool = field(default=False, help="Leave out image files that can't be read, instead of stopping.")

    def build(self, root: DataRoot, *, download: bool = False) -> Stream:
        """Open the source and cut it."""
        options = {"size": self.size} if self.size is not None else {}
        if self.skip_corrupt:
            options["skip_corrupt"] = True
        return self.cut(find_source(self.source, **options).open(root, download=download))

    def cut(self, data: ImageData) -> Stream:
        """Cut an opened source into a stream; images are not touched.

        Raises:
            ConfigurationError: The parameters don't fit the source's classes.
        """
        order = self._class_order(data.num_classes)
        sizes = self._sizes(len(order))
        groups = [tuple(range(stop - size, stop)) for size, stop in zip(sizes, np.cumsum(sizes), strict=True)]
        relabel = torch.full((data.num_classes,), -1, dtype=torch.int64)
        relabel[torch.tensor(order)] = torch.arange(len(order))
        train_rows = _rows_by_label(relabel[data.train.targets], len(order), self.train_per_class)
        test_rows = _rows_by_label(relabel[data.test.targets], len(order), self.test_per_class)
        valid_rows, train_rows = self._set_aside(train_rows)
        shown = [tuple(range(len(g))) for g in groups] if self.setting == "domain" else groups
        names = tuple(data.class_names[c] for c in order)
        experiences, tasks = [], []
        for i, group in enumerate(groups):
            task_id = i if self.setting == "task" else None
            experience = Experience(
                index=i,
                classes=shown[i],
                new_classes=shown[i] if self.setting != "domain" or i == 0 else (),
                num_seen_classes=len(shown[0]) if self.setting == "domain" else group[-1] + 1,
                train=_join(train_rows, group),
                valid=_join(valid_rows, group),
                task_id=task_id,
                is_last=i == len(groups) - 1,
            )
            experiences.append(experience)
            tasks.append(EvaluationTask(i, shown[i], _join(test_rows, group), experience.valid, i + 1, task_id))
        stream = Stream(
            name=self.name,
            experiences=tuple(experiences),
            tasks=tuple(tasks),
            train=self._table(data.train, relabel, groups),
            test=self._table(data.test, relabel, groups),
            class_names=self._domain_names(names, groups) if self.setting == "domain" else names,
            class_order=tuple(order),
            mean=data.mean,
            std=data.std,
            setting=self.setting,
            data_fingerprint=data.fingerprint,
        )
        stream.check()
        return stream

    @property
    def name(self) -> str:
        """What tables call the stream."""
        return f"split_{self.source}"

    def _table(self, split: Any, relabel: Tensor, groups: Sequence[tuple[int, ...]]) -> SampleTable:
        labels = relabel[split.targets]
        owner = torch.empty(sum(map(len, groups)) + 1, dtype=torch.int64)  # the last row serves label -1
        first = owner.clone()
        owner[-1] = first[-1] = 0
        for i, group in enumerate(groups):
            owner[list(group)], first[list(group)] = i, group[0]
        if self.setting == "domain":
            labels = torch.where(labels >= 0, labels - first[labels], labels)
        return SampleTable(split.images, labels, task_ids=owner[labels] if self.setting == "task" else None)

    def _class_order(self, available: int) -> list[int]:
        """Return the source labels in the order in which they are learnt."""
        chosen = self.classes
        labels = list(range(available)) if chosen is None else list(range(chosen)) if isinstance(chosen, int) else list(chosen)
        if not labels or len(set(labels)) != len(labels) or not set(labels) <= set(range(available)):
            raise ConfigurationError(
                f"scenario.classes: expected different labels in 0..{available - 1}, at least one, received {self.classes}."
            )
        if isinstance(self.order, list):
            if sorted(self.order) != sorted(labels):
                raise ConfigurationError(f"scenario.order: expected each of the {len(labels)} labels once, received {self.order}.")
            return list(self.order)
        if self.order == "natural":
            return labels
        kind, _, seed = self.order.partition(":")
        if kind != "seed" or not seed.isdigit():
            raise ConfigurationError(f"scenario.order: expected natural, seed:N or a list of labels, received {self.order!r}.")
        return [labels[k] for k in np.random.RandomState(int(seed)).permutation(len(labels)).tolist()]

    def _sizes(self, total: int) -> list[int]:
        """Return the number of classes of every experience."""
        ways = [n for n in ("experiences", "increment", "sizes") if getattr(self, n) is not None]
        if len(ways) != 1:
            given = " and ".join(ways) if ways else "none"
            raise ConfigurationError(f"scenario: expected one of experiences, increment or sizes, received {given}.")
        sizes = self._equal_sizes(total) if self.sizes is None else list(self.sizes)
        if self.sizes is not None and (sum(sizes) != total or min(sizes) < 1 or self.base is not None):
            raise ConfigurationError(
                f"scenario.sizes: expected positive numbers that add up to the {total} classes (and no base), received {sizes}."
            )
        if self.setting == "domain" and len(set(sizes)) > 1:
            raise ConfigurationError(
                f"scenario: the domain-incremental setting needs experiences of equal size, received {sizes}: "
                "choose a number of experiences that divides the classes."
            )
        return sizes

    def _equal_sizes(self, total: int) -> list[int]:
        base = self.base or 0
        if base > total:
            raise ConfigurationError(f"scenario.base: expected at most the {total} classes, received {base}.")
        first, rest = ([base] if base else []), total - base
        if self.increment is not None:
            whole, remainder = divmod(rest, self.increment)
            return first + [self.increment] * whole + ([remainder] if remainder else [])
        count = (self.experiences or 1) - len(first)
        if count > rest or (count < 1 and rest):
            raise ConfigurationError(
                f"scenario.experiences: expected at most one experience per class ({total}), received {self.experiences}."
            )
        if rest and rest % count:
            example = [rest // count + (k < rest % count) for k in range(count)]
            raise ConfigurationError(
                f"scenario.experiences: {rest} classes don't divide into {count} experiences; give a list of sizes, for instance "
                f"--scenario.sizes {','.join(map(str, first + example))}, or an increment, whose last experience takes the remainder."
            )
        return first + [rest // count] * count if rest else first

    def _set_aside(self, rows: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Take the validation samples out of every class, the same ones whatever the run's seed."""
        generator = torch.Generator().manual_seed(_VALID_SEED)
        valid, kept = [], []
        for label, own in enumerate(rows):
            if self.valid_per_class >= len(own) > 0 and self.valid_per_class:
                raise ConfigurationError(
                    f"scenario.valid_per_class: class {label} has {len(own)} training samples; expected fewer than that, "
                    f"received {self.valid_per_class}."
                )
            order = torch.randperm(len(own), generator=generator)
            valid.append(own[order[: self.valid_per_class].sort().values])
            kept.append(own[order[self.valid_per_class :].sort().values])
        return valid, kept

    def _domain_names(self, names: Sequence[str], groups: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
        return tuple("/".join(names[g[k]] for g in groups) for k in range(len(groups[0])))


def _rows_by_label(labels: Tensor, count: int, limit: int | None) -> list[Tensor]:
    """Return the rows of every label in the source's order, at most `limit` of each; one sort for all labels."""
    order = torch.argsort(labels, stable=True)
    sizes = torch.bincount(labels + 1, minlength=count + 1).tolist()  # label -1, of unused classes, comes first
    return [part[:limit] for part in order.split(sizes)[1:]]


def _join(rows: Sequence[Tensor], labels: Sequence[int]) -> Tensor:
    return torch.cat([rows[c] for c in labels]).sort().values


class SplitDigits(Split):
    """Scikit-learn's handwritten digits (8×8 pixels, embedded): five experiences of two digits by default."""

    source: str = field(default="digits", help="The data set.")
    experiences: int | None = field(default=5, ge=1, help="Number of experiences.")


class SplitMNIST(Split):
    """Split MNIST: five experiences of two digits by default."""

    source: str = field(default="mnist", help="The data set.")
    experiences: int | None = field(default=5, ge=1, help="Number of experiences.")


class SplitFashionMNIST(Split):
    """Split Fashion-MNIST: five experiences of two kinds of clothing by default."""

    source: str = field(default="fashion_mnist", help="The data set.")
    experiences: int | None = field(default=5, ge=1, help="Number of experiences.")


class SplitSVHN(Split):
    """Split SVHN: five experiences of two digits by default."""

    source: str = field(default="svhn", help="The data set.")
    experiences: int | None = field(default=5, ge=1, help="Number of experiences.")


class SplitCIFAR10(Split):
    """Split CIFAR-10: five experiences of two classes by default."""

    source: str = field(default="cifar10", help="The data set.")
    experiences: int | None = field(default=5, ge=1, help="Number of experiences.")


class SplitCIFAR100(Split):
    """Split CIFAR-100: ten experiences of ten classes in the literature's order (seed 1993) by default."""

    source: str = field(default="cifar100", help="The data set.")
    experiences: int | None = field(default=10, ge=1, help="Number of experiences.")
    order: str | list[int] = field(default="seed:1993", help="Class order: natural, seed:N or a list of labels.")


class SplitTinyImageNet(Split):
    """Split Tiny-ImageNet (64×64 pixels, 200 classes or the first 100): ten experiences in seed-1993 order by default."""

    source: str = field(default="tiny_imagenet", help="The data set.")
    experiences: int | None = field(default=10, ge=1, help="Number of experiences.")
    order: str | list[int] = field(default="seed:1993", help="Class order: natural, seed:N or a list of labels.")


class SplitFolder(Split):
    """Split of a folder or archive of images (`train/CLASS/…`, and `test/` or `val/`): give it as `source`."""
