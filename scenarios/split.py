"""Split: the classes of one source, cut into experiences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from clframe.data import DataRoot, ImageData, ImageSet, find_source
from clframe.errors import ConfigurationError, did_you_mean
from clframe.scenario import Scenario
from clframe.spec import field
from clframe.stream import AugmentationSpec, EvaluationTask, Experience, SampleTable, Setting, Stream, no_samples

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
"""Which samples are set aside must depend neither on the seed of a run nor on the class order."""

_LARGEST_SEED = 2**32 - 1
"""Of NumPy's legacy generator."""


class Split(Scenario):
    """Class-, task- or domain-incremental learning of one source whose classes are cut into groups.

    Class- and task-incremental are two views of the same groups: a run without task ids reports both, accuracy over all
    classes seen and accuracy within the sample's own task. With `setting=task` the id is also given to the strategy, in
    training and at test time. With `setting=domain` every group is relabelled 0, 1, … and shares one fixed head.

    Version history:
        1: first version.
    """

    augmentation: ClassVar[AugmentationSpec] = "standard"
    """What training images pass through when the run names nothing else; a subclass may state its own."""
    usual_experiences: ClassVar[int | None] = None
    """Number of experiences when neither `experiences` nor `increment` nor `sizes` is given."""

    source: str = field(help="A known data set, a folder or archive of images, or path/to/file.py:Name of a data set.")
    experiences: int | None = field(
        default=None,
        ge=1,
        help="Number of experiences, the base one included; it must divide the classes (less `base`).",
    )
    increment: int | None = field(
        default=None, ge=1, unit="classes", help="Classes of every experience; the last takes the remainder."
    )
    sizes: list[int] | None = field(default=None, ge=1, unit="classes", help="Classes of every experience, one by one.")
    base: int | None = field(
        default=None, ge=1, unit="classes", help="Classes of the first experience (50 for the B50 protocols)."
    )
    order: str | list[int] = field(
        default="natural",
        help="Class order: natural, seed:N (NumPy's legacy permutation; the literature's is seed:1993), or a list of labels.",
    )
    setting: Setting = field(default="class", help="class, task (ids given) or domain (labels shared).")
    classes: int | list[int | str] | None = field(
        default=None, ge=0, help="Use only these classes, by source label or name; a number means the first so many."
    )
    exclude: str | list[int | str] | None = field(
        default=None,
        ge=0,
        help="Leave out these classes: labels or names, or the path of a text file with one on each line (# begins a "
        "comment). Counted after `classes` has chosen.",
    )
    train_per_class: int | None = field(
        default=None, ge=1, unit="samples", help="Use only the first so many training samples of every class."
    )
    test_per_class: int | None = field(
        default=None, ge=1, unit="samples", help="Use only the first so many test samples of every class."
    )
    valid_per_class: int = field(
        default=0, ge=0, unit="samples", help="Training samples of every class set aside for validation."
    )
    size: int | None = field(
        default=None, ge=1, unit="pixels", help="Resize the images of a folder or archive to this square."
    )
    skip_corrupt: bool = field(default=False, help="Leave out image files that can't be read, instead of stopping.")
    mode: Literal["auto", "store", "stream"] = field(
        default="auto",
        help="Images of a folder or archive: decoded once into a store mapped from the cache, or decoded by worker "
        "processes at every use; auto: a store up to 8 GiB.",
    )

    def settled(self) -> Self:
        """Put the classes that a file names into the place of its path."""
        return self.replace(exclude=_listed(Path(self.exclude))) if isinstance(self.exclude, str) else self

    def build(self, root: DataRoot, *, download: bool = False) -> Stream:
        """Open the source and cut it."""
        given = {
            "size": self.size,
            "skip_corrupt": self.skip_corrupt or None,
            "mode": None if self.mode == "auto" else self.mode,
        }
        options = {name: value for name, value in given.items() if value is not None}
        return self.cut(find_source(self.source, **options).open(root, download=download))

    def cut(self, data: ImageData) -> Stream:
        """Cut an opened source into a stream; images are not touched.

        Raises:
            ConfigurationError: The parameters don't fit the source's classes.
        """
        order = self._class_order(data.class_names)
        sizes = self._sizes(len(order))
        groups = [tuple(range(stop - size, stop)) for size, stop in zip(sizes, np.cumsum(sizes), strict=True)]
        relabel = torch.full((data.num_classes,), -1, dtype=torch.int64)
        relabel[torch.tensor(order)] = torch.arange(len(order))
        train_rows = _rows_by_label(relabel[data.train.targets], len(order), self.train_per_class)
        test_rows = _rows_by_label(relabel[data.test.targets], len(order), self.test_per_class)
        valid_rows, train_rows = self._set_aside(train_rows, order, data.class_names)
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
            augmentation=self.augmentation,
            data_fingerprint=data.fingerprint,
        )
        stream.check()
        return stream

    @property
    def name(self) -> str:
        """What tables call the stream."""
        last = self.source.rpartition(":")[2] if ":" in self.source else Path(self.source).name
        return f"split_{last.split('.')[0] or last}"

    def _table(self, split: ImageSet, relabel: Tensor, groups: Sequence[tuple[int, ...]]) -> SampleTable:
        labels = relabel[split.targets]
        owner = torch.empty(sum(map(len, groups)) + 1, dtype=torch.int64)  # the last row serves label -1
        first = owner.clone()
        owner[-1] = first[-1] = 0
        for i, group in enumerate(groups):
            owner[list(group)], first[list(group)] = i, group[0]
        if self.setting == "domain":
            labels = torch.where(labels >= 0, labels - first[labels], labels)
        return SampleTable(split.images, labels, task_ids=owner[labels] if self.setting == "task" else None)

    def _class_order(self, names: Sequence[str]) -> list[int]:
        """Return the source labels in the order in which they are learnt."""
        labels = self._chosen_labels(names)
        if isinstance(self.order, list):
            if sorted(self.order) != sorted(labels):
                raise ConfigurationError(
                    f"scenario.order: expected each of the {len(labels)} labels once, received {self.order}."
                )
            return list(self.order)
        if self.order == "natural":
            return labels
        kind, _, seed = self.order.partition(":")
        if kind != "seed" or not (seed.isascii() and seed.isdigit()) or int(seed) > _LARGEST_SEED:
            raise ConfigurationError(
                f"scenario.order: expected natural, seed:N with N up to {_LARGEST_SEED}, or a list of labels, received "
                f"{self.order!r}."
            )
        return [labels[k] for k in np.random.RandomState(int(seed)).permutation(len(labels)).tolist()]

    def _chosen_labels(self, names: Sequence[str]) -> list[int]:
        available, chosen = len(names), self.classes
        if isinstance(chosen, list):
            labels = [_label(c, names, "classes") for c in chosen]
            if not labels or len(set(labels)) != len(labels):
                raise ConfigurationError(
                    f"scenario.classes: expected at least one label, all different and in 0..{available - 1}, received {chosen}."
                )
        elif chosen is not None and not 1 <= chosen <= available:
            raise ConfigurationError(f"scenario.classes: expected 1 to {available} classes, received {chosen}.")
        else:
            labels = list(range(available if chosen is None else chosen))
        left_out = {_label(c, names, "exclude") for c in self.settled().exclude or ()}
        if left_out >= set(labels):
            raise ConfigurationError(
                f"scenario.exclude: expected to leave some of the {len(labels)} classes, received all of them."
            )
        return [label for label in labels if label not in left_out]

    def _sizes(self, total: int) -> list[int]:
        """Return the number of classes of every experience."""
        ways = [n for n in ("experiences", "increment", "sizes") if getattr(self, n) is not None]
        if len(ways) > 1 or not (ways or self.usual_experiences):
            given = " and ".join(ways) if ways else "none"
            raise ConfigurationError(f"scenario: expected one of experiences, increment or sizes, received {given}.")
        if self.increment is not None:
            sizes = self._by_increment(total, self.increment)
        elif self.sizes is not None:
            sizes = list(self.sizes)
            if sum(sizes) != total or min(sizes) < 1 or self.base is not None:
                raise ConfigurationError(
                    f"scenario.sizes: expected positive numbers that add up to the {total} classes, and no base, received "
                    f"{sizes}{'' if self.base is None else f' and base {self.base}'}."
                )
        else:
            sizes = self._by_number(total, self.experiences or self.usual_experiences or 1)
        if self.setting == "domain" and len(set(sizes)) > 1:
            raise ConfigurationError(
                f"scenario: the domain-incremental setting needs experiences of equal size, received {sizes}: "
                "choose a number of experiences that divides the classes."
            )
        return sizes

    def _first(self, total: int) -> list[int]:
        if self.base is not None and self.base > total:
            raise ConfigurationError(f"scenario.base: expected at most the {total} classes, received {self.base}.")
        return [] if self.base is None else [self.base]

    def _by_increment(self, total: int, increment: int) -> list[int]:
        first = self._first(total)
        whole, remainder = divmod(total - sum(first), increment)
        return first + [increment] * whole + ([remainder] if remainder else [])

    def _by_number(self, total: int, number: int) -> list[int]:
        first = self._first(total)
        rest, count = total - sum(first), number - len(first)
        if count > rest or (rest and count < 1):
            after = f" after a base of {self.base}" if first else ""
            least = len(first) + (rest > 0)
            raise ConfigurationError(
                f"scenario.experiences: expected {least} to {len(first) + rest} experiences for {total} classes{after}, "
                f"received {number}."
            )
        if rest and rest % count:
            example = [rest // count + (k < rest % count) for k in range(count)]
            raise ConfigurationError(
                f"scenario.experiences: {rest} classes don't divide into {count} experiences; give a list of sizes instead, "
                f"for instance --scenario.sizes {','.join(map(str, first + example))}, or an increment, whose last experience "
                "takes the remainder."
            )
        return first + [rest // count] * count if rest else first

    def _set_aside(
        self, rows: list[Tensor], order: Sequence[int], names: Sequence[str]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Take the validation samples out of every class: the same ones whatever the class order."""
        count = self.valid_per_class
        if not count:
            return [no_samples()] * len(rows), rows
        valid, kept = [], []
        for source_label, own in zip(order, rows, strict=True):
            if 0 < len(own) <= count:
                raise ConfigurationError(
                    f"scenario.valid_per_class: expected fewer than the {len(own)} training samples of the class "
                    f"{names[source_label]!r}, received {count}."
                )
            generator = torch.Generator().manual_seed(_VALID_SEED + source_label)
            drawn = torch.randperm(len(own), generator=generator)
            valid.append(own[drawn[:count].sort().values])
            kept.append(own[drawn[count:].sort().values])
        return valid, kept

    def _domain_names(self, names: Sequence[str], groups: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
        return tuple("/".join(names[g[k]] for g in groups) for k in range(len(groups[0])))


def _listed(file: Path) -> list[int | str]:
    """Read the classes that a text file lists.

    Raises:
        ConfigurationError: There is no such file, or it lists none.
    """
    try:
        lines = file.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(
            f"scenario.exclude: expected the path of a text file or a list of classes, but {file} can't be read: give the "
            "file's path, or a list in brackets such as [apple]."
        ) from None
    found: list[int | str] = [name for line in lines if (name := line.partition("#")[0].strip())]
    if not found:
        raise ConfigurationError(f"scenario.exclude: expected at least one class in {file}, received none.")
    return found


def _label(given: int | str, names: Sequence[str], option: str) -> int:
    """Return the source label of a class that is given by label or name.

    Raises:
        ConfigurationError: The source has no such class.
    """
    if given in names:
        return names.index(str(given))
    if isinstance(given, int) or given.isdecimal():
        if 0 <= int(given) < len(names):
            return int(given)
        hint = ""
    else:
        hint = did_you_mean(given, names)
    raise ConfigurationError(
        f"scenario.{option}: expected names of classes or labels in 0..{len(names) - 1}, received {given!r}.{hint}"
    )


def _rows_by_label(labels: Tensor, count: int, limit: int | None) -> list[Tensor]:
    """Return the rows of every label in the source's order, at most `limit` of each; one sort for all labels."""
    order = torch.argsort(labels, stable=True)
    sizes = torch.bincount(labels + 1, minlength=count + 1).tolist()  # label -1, of unused classes, comes first
    return [part[:limit] for part in torch.split(order, sizes)[1:]]


def _join(rows: Sequence[Tensor], labels: Sequence[int]) -> Tensor:
    return torch.cat([rows[c] for c in labels]).sort().values


class SplitDigits(Split):
    """Scikit-learn's handwritten digits (8×8 pixels, embedded): five experiences of two digits by default."""

    usual_experiences: ClassVar[int | None] = 5
    source: str = field(default="digits", help="The data set.")


class SplitMNIST(Split):
    """Split MNIST: five experiences of two digits by default."""

    usual_experiences: ClassVar[int | None] = 5
    source: str = field(default="mnist", help="The data set.")


class SplitFashionMNIST(Split):
    """Split Fashion-MNIST: five experiences of two kinds of clothing by default."""

    usual_experiences: ClassVar[int | None] = 5
    source: str = field(default="fashion_mnist", help="The data set.")


class SplitSVHN(Split):
    """Split SVHN: five experiences of two digits by default; digits are cropped, never mirrored."""

    augmentation: ClassVar[AugmentationSpec] = ("random_crop",)
    usual_experiences: ClassVar[int | None] = 5
    source: str = field(default="svhn", help="The data set.")


class SplitCIFAR10(Split):
    """Split CIFAR-10: five experiences of two classes by default."""

    usual_experiences: ClassVar[int | None] = 5
    source: str = field(default="cifar10", help="The data set.")


class SplitCIFAR100(Split):
    """Split CIFAR-100: ten experiences of ten classes in the literature's order (seed 1993) by default."""

    usual_experiences: ClassVar[int | None] = 10
    source: str = field(default="cifar100", help="The data set.")
    order: str | list[int] = field(default="seed:1993", help="Class order: natural, seed:N or a list of labels.")


class SplitTinyImageNet(Split):
    """Split Tiny-ImageNet (64×64 pixels, 200 classes or the first 100): ten experiences in seed-1993 order by default."""

    usual_experiences: ClassVar[int | None] = 10
    source: str = field(default="tiny_imagenet", help="The data set.")
    order: str | list[int] = field(default="seed:1993", help="Class order: natural, seed:N or a list of labels.")


class SplitFolder(Split):
    """Split of a folder or archive of images (`train/CLASS/…`, and `test/` or `val/`): give it as `source`."""
