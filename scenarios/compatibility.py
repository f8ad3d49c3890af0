"""Compatibility: a growing sequence of models whose features are compared on one gallery and one set of queries."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from clframe.data import DataRoot, ImageData, find_source
from clframe.data.joined import JoinedReader
from clframe.errors import ConfigurationError
from clframe.scenarios._parts import Material, rows_by_label, seeded, source_field
from clframe.scenarios.split import Split
from clframe.spec import field
from clframe.stream import Retrieval, SampleTable, Setting, Stream

__all__ = ["Compatibility"]


class Compatibility(Split):
    """Class-incremental learning whose models are compared by searching an old model's gallery with a newer one.

    Biondi et al. 2023, "CoReS: Compatible Representations via Stationarity", TPAMI. Gallery and queries are one fixed cut
    of test images, the same after every experience, and of identities that no model has learnt: classes held out of the
    stream (the last of the class order), or another data set (`gallery_source`, CIFAR-10 for a stream of CIFAR-100);
    `held_out=0` alone takes the stream's own classes. A share of every identity's images is the gallery, the rest are
    queries; verification pairs join a query and a gallery image. `clframe audit compatibility` compares the models that a
    run with `keep_models` has kept.

    Version history:
        1: first version.
    """

    settings: ClassVar[tuple[Setting, ...]] = ("class",)
    prefix: ClassVar[str] = "compatibility"
    usual_experiences: ClassVar[int | None] = 4

    source: str = source_field("digits")
    held_out: int | None = field(
        default=None,
        ge=0,
        unit="classes",
        help="Left out of the stream for gallery and queries, the last of the class order; 0: the stream's own classes "
        "serve; none: 2, or 0 with a gallery_source.",
    )
    gallery_source: str | None = field(
        default=None, help="Another data set whose test images make gallery and queries, brought to the stream's shape."
    )
    gallery_share: float = field(
        default=0.5, gt=0, lt=1, help="Share of every identity's images that make the gallery; the rest are queries."
    )
    pairs: int = field(
        default=1000,
        ge=20,
        unit="pairs",
        help="For verification: half of one identity, half of two; fewer where there aren't so many (CoReS: 6000).",
    )
    stream_seed: int = field(default=0, ge=0, help="Seed of gallery and pairs; independent of the run's seed.")

    def build(self, root: DataRoot, *, download: bool = False) -> Stream:
        """Open the sources and cut them."""
        stream = super().build(root, download=download)
        if self.gallery_source is None:
            return stream
        other = find_source(self.gallery_source).open(root, download=download)
        shape = stream.shape
        if len(other.shape) != 3 or len(shape) != 3:
            raise ConfigurationError(
                "scenario.gallery_source: expected a stream and a gallery of images, received features."
            )
        images = other.test.images
        if other.shape != shape:
            images = JoinedReader([images], (shape[0], shape[1], shape[2]))
        labels = other.test.targets
        rows = rows_by_label(labels, other.num_classes, self.test_per_class)
        found = self._retrieval(SampleTable(images, labels), rows, range(other.num_classes))
        return self._checked(stream, dataclasses.replace(found, data_fingerprint=other.fingerprint))

    def cut(self, data: ImageData) -> Stream:
        """Cut a source into a stream, and test images of its classes into gallery and queries.

        Raises:
            ConfigurationError: The setting isn't class-incremental, or there is nothing to search.
        """
        if self.setting != "class":
            raise ConfigurationError(f"scenario.setting: compatibility expects class, received {self.setting!r}.")
        stream = super().cut(data)
        if self.gallery_source is not None:
            return stream
        whole = super().material(data)
        first = stream.num_classes if self._left_out() else 0
        table = SampleTable(data.test.images, whole.test_labels)
        return self._checked(stream, self._retrieval(table, whole.test[first:], whole.order[first:]))

    def material(self, data: ImageData) -> Material:
        """Leave out the classes of gallery and queries.

        Raises:
            ConfigurationError: None would be left.
        """
        found, count = super().material(data), self._left_out()
        keep = found.num_classes - count
        if keep < 1:
            raise ConfigurationError(
                f"scenario.held_out: expected fewer than the {found.num_classes} classes, received {count}."
            )
        return Material(
            data,
            found.order[:keep],
            found.names[:keep],
            torch.where(found.train_labels < keep, found.train_labels, -1),
            torch.where(found.test_labels < keep, found.test_labels, -1),
            found.train[:keep],
            found.valid[:keep],
            found.test[:keep],
        )

    def _left_out(self) -> int:
        """Return how many classes are held out.

        Raises:
            ConfigurationError: Another data set makes the gallery, or a single class would.
        """
        other = self.gallery_source is not None
        count = (0 if other else 2) if self.held_out is None else self.held_out
        if count and other:
            raise ConfigurationError(
                f"scenario.held_out: expected 0 beside a gallery_source, whose images make the gallery, received {count}."
            )
        if count == 1:
            raise ConfigurationError("scenario.held_out: expected 0, or at least 2 classes to tell apart, received 1.")
        return count

    def _checked(self, stream: Stream, retrieval: Retrieval) -> Stream:
        stream = dataclasses.replace(stream, retrieval=retrieval)
        stream.check()
        return stream

    def _retrieval(self, table: SampleTable, rows: Sequence[Tensor], names: Sequence[int]) -> Retrieval:
        """Cut the images of every identity into gallery and queries, and draw the pairs.

        Args:
            table: The images with their identities.
            rows: Ids of every identity's images.
            names: A number for each identity, which its draw depends on: the same cut in any class order.

        Raises:
            ConfigurationError: An identity has a single image, or there is only one identity.
        """
        if len(rows) < 2:
            raise ConfigurationError(
                f"scenario: a gallery needs at least 2 identities to tell apart, received {len(rows)}."
            )
        gallery, queries = [], []
        for own, name in zip(rows, names, strict=True):
            if len(own) < 2:
                raise ConfigurationError(
                    f"scenario: every identity needs an image for the gallery and one to search for, but {name} has "
                    f"{len(own)} test images."
                )
            count = min(max(1, round(self.gallery_share * len(own))), len(own) - 1)
            drawn = torch.from_numpy(seeded(self.stream_seed, "gallery", name).permutation(len(own)))
            gallery.append(own[drawn[:count].sort().values])
            queries.append(own[drawn[count:].sort().values])
        pairs = self._pairs([len(q) for q in queries], [len(g) for g in gallery])
        return Retrieval(table, torch.cat(gallery), torch.cat(queries), pairs)

    def _pairs(self, queries: Sequence[int], gallery: Sequence[int]) -> Tensor:
        """Draw pairs (P, 2) without repetition, of one identity and of two in turn.

        Args:
            queries: How many there are of every identity, identity after identity.
            gallery: Likewise.
        """
        mine, theirs = np.asarray(queries), np.asarray(gallery)
        same_ends, owner = np.cumsum(mine * theirs), np.repeat(np.arange(len(mine)), mine)
        other_ends = np.cumsum(theirs.sum() - theirs[owner])
        first_query, first_gallery = np.cumsum(mine) - mine, np.cumsum(theirs) - theirs
        count = min(self.pairs // 2, int(same_ends[-1]), int(other_ends[-1]))
        draws = seeded(self.stream_seed, "pairs")
        same = draws.choice(same_ends[-1], count, replace=False)
        identity = np.searchsorted(same_ends, same, side="right")
        inside = same - (same_ends - mine * theirs)[identity]
        alike = first_query[identity] + inside // theirs[identity], first_gallery[identity] + inside % theirs[identity]
        other = draws.choice(other_ends[-1], count, replace=False)
        query = np.searchsorted(other_ends, other, side="right")
        place = other - (other_ends - (theirs.sum() - theirs[owner]))[query]
        place += np.where(place >= first_gallery[owner[query]], theirs[owner[query]], 0)
        both = np.stack([np.stack(alike, axis=1), np.stack([query, place], axis=1)], axis=1)
        return torch.from_numpy(both.reshape(-1, 2).astype(np.int64))
