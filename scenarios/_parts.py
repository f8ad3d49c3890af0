"""What scenarios that cut one source share: which classes in which order, which samples, and seeded draws."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from clframe.data import DataRoot, ImageData, find_source
from clframe.errors import ConfigurationError, did_you_mean
from clframe.scenario import Scenario
from clframe.spec import field
from clframe.stream import AugmentationSpec, Stream, no_samples

__all__ = ["Material", "SourceScenario", "join", "rows_by_label", "seeded", "source_field"]

_VALID_SEED = 1993
"""Which samples are set aside must depend neither on the seed of a run nor on the class order."""

_CLASS_LISTS = ("imagenet100",)
"""The lists of classes beside this file."""

_LARGEST_SEED = 2**32 - 1
"""Of NumPy's legacy generator."""


def source_field(default: str) -> Any:
    """Return the field `source` with a default: the embedded digits wherever a scenario fits any data set."""
    return field(
        default=default, help="A known data set, a folder or archive of images, or path/to/file.py:Name of a data set."
    )


@dataclass(frozen=True, eq=False)
class Material:
    """The chosen samples of a source, from which a scenario cuts its index sets. Stream labels are 0 to K-1.

    Attributes:
        data: The opened source.
        order: (K,) source label of every stream label.
        names: (K,) of the classes.
        train_labels: (N,) int64 stream label of every training row, -1 for a class that isn't used.
        test_labels: (M,) int64, likewise.
        train: Training rows of every label, ascending.
        valid: Training rows of every label that were set aside, ascending.
        test: Test rows of every label, ascending.
    """

    data: ImageData
    order: tuple[int, ...]
    names: tuple[str, ...]
    train_labels: Tensor
    test_labels: Tensor
    train: list[Tensor]
    valid: list[Tensor]
    test: list[Tensor]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.order)


class SourceScenario(Scenario):
    """Base of the scenarios that cut one source of images: it chooses classes, their order and samples."""

    augmentation: ClassVar[AugmentationSpec] = "standard"
    """What training images pass through when the run names nothing else; a subclass may state its own."""

    source: str = field(help="A known data set, a folder or archive of images, or path/to/file.py:Name of a data set.")
    order: str | list[int] = field(
        default="natural",
        help="Class order: natural, seed:N (NumPy's legacy permutation; the literature's is seed:1993), or a list of labels.",
    )
    classes: int | list[int | str] | str | None = field(
        default=None,
        ge=0,
        help="Use only these classes: labels or names, or the path of a text file with one on each line; a number means the "
        "first so many, imagenet100 the list of that name.",
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
        changes: dict[str, Any] = {}
        if isinstance(self.classes, str) and self.classes not in _CLASS_LISTS:
            changes["classes"] = self.class_list()
        if isinstance(self.exclude, str):
            changes["exclude"] = _listed(Path(self.exclude), "exclude")
        return self.replace(**changes) if changes else self

    def build(self, root: DataRoot, *, download: bool = False) -> Stream:
        """Open the source and cut it."""
        return self.cut(find_source(self.source, **self.source_options()).open(root, download=download))

    def source_options(self) -> dict[str, Any]:
        """Return the source's options that were set."""
        given = {
            "size": self.size,
            "skip_corrupt": self.skip_corrupt or None,
            "mode": None if self.mode == "auto" else self.mode,
        }
        return {name: value for name, value in given.items() if value is not None}

    def cut(self, data: ImageData) -> Stream:
        """Cut an opened source into a stream; images are not touched.

        Raises:
            ConfigurationError: The parameters don't fit the source.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how a source is cut.")

    def stream(self, data: ImageData, name: str, **parts: Any) -> Stream:
        """Put a stream together, with what it takes from its source, and check it.

        Args:
            data: The opened source.
            name: Of the stream.
            **parts: Everything else that a `Stream` needs or that differs from its defaults.

        Raises:
            ContractError: The parts don't fit together.
        """
        given = {"augmentation": self.augmentation, **parts}
        stream = Stream(name=name, mean=data.mean, std=data.std, data_fingerprint=data.fingerprint, **given)
        stream.check()
        return stream

    def title(self, prefix: str) -> str:
        """Return what tables call the stream: the prefix and the source's name."""
        last = self.source.rpartition(":")[2] if ":" in self.source else Path(self.source).name
        return f"{prefix}_{last.split('.')[0] or last}"

    def material(self, data: ImageData) -> Material:
        """Choose classes, their order and samples.

        Raises:
            ConfigurationError: The source hasn't got them.
        """
        order = self._class_order(data.class_names)
        relabel = torch.full((data.num_classes,), -1, dtype=torch.int64)
        relabel[torch.tensor(order)] = torch.arange(len(order))
        train_labels, test_labels = relabel[data.train.targets], relabel[data.test.targets]
        names = tuple(data.class_names[c] for c in order)
        rows = rows_by_label(train_labels, len(order), self.train_per_class)
        valid, train = self._set_aside(rows, order, names)
        test = rows_by_label(test_labels, len(order), self.test_per_class)
        return Material(data, tuple(order), names, train_labels, test_labels, train, valid, test)

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

    def only_named(self) -> list[str] | None:
        """Return the classes that `classes` names; None where it is a number, or labels are among them."""
        chosen = self.class_list() if isinstance(self.classes, str) else self.classes
        if not isinstance(chosen, list):
            return None
        names = [c for c in chosen if isinstance(c, str) and not c.isdecimal()]
        return names if len(names) == len(chosen) else None

    def class_list(self) -> list[int | str]:
        """Return what the file of `classes` lists.

        Raises:
            ConfigurationError: There is no such file, or it lists none.
        """
        known = self.classes in _CLASS_LISTS
        return _listed(Path(__file__).with_name(f"{self.classes}.txt") if known else Path(str(self.classes)), "classes")

    def _chosen_labels(self, names: Sequence[str]) -> list[int]:
        available = len(names)
        chosen = self.class_list() if isinstance(self.classes, str) else self.classes
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

    def _set_aside(
        self, rows: list[Tensor], order: Sequence[int], names: Sequence[str]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Take the validation samples out of every class: the same ones whatever the class order."""
        count = self.valid_per_class
        if not count:
            return [no_samples()] * len(rows), rows
        valid, kept = [], []
        for source_label, name, own in zip(order, names, rows, strict=True):
            if 0 < len(own) <= count:
                raise ConfigurationError(
                    f"scenario.valid_per_class: expected fewer than the {len(own)} training samples of the class "
                    f"{name!r}, received {count}."
                )
            generator = torch.Generator().manual_seed(_VALID_SEED + source_label)
            drawn = torch.randperm(len(own), generator=generator)
            valid.append(own[drawn[:count].sort().values])
            kept.append(own[drawn[count:].sort().values])
        return valid, kept


def _listed(file: Path, option: str) -> list[int | str]:
    """Read the classes that a text file lists.

    Raises:
        ConfigurationError: There is no such file, or it lists none.
    """
    try:
        lines = file.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(
            f"scenario.{option}: expected the path of a text file or a list of classes, but {file} can't be read: give the "
            "file's path, or a list in brackets such as [apple]."
        ) from None
    found: list[int | str] = [name for line in lines if (name := line.partition("#")[0].strip())]
    if not found:
        raise ConfigurationError(f"scenario.{option}: expected at least one class in {file}, received none.")
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


def rows_by_label(labels: Tensor, count: int, limit: int | None) -> list[Tensor]:
    """Return the rows of every label in the source's order, at most `limit` of each; one sort for all labels."""
    order = torch.argsort(labels, stable=True)
    sizes = torch.bincount(labels + 1, minlength=count + 1).tolist()  # label -1, of unused classes, comes first
    return [part[:limit] for part in torch.split(order, sizes)[1:]]


def join(rows: Sequence[Tensor], labels: Sequence[int]) -> Tensor:
    """Return the rows of some labels, ascending."""
    if not labels:
        return no_samples()
    return torch.cat([rows[c] for c in labels]).sort().values


def seeded(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return the generator of one purpose of a stream: independent of the run's seed, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
