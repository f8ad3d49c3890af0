"""What boundary-free scenarios share: samples in one order, presented once, and scored every so many."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from clframe.data import ImageData
from clframe.scenarios._parts import Material, SourceScenario, join, source_field
from clframe.spec import field
from clframe.stream import EvaluationTask, Experience, SampleTable, Setting, Stream, no_samples

__all__ = ["SequenceScenario", "chunked", "sequence_stream"]


class SequenceScenario(SourceScenario):
    """Base of the scenarios that are one sequence of samples: each is presented once, and no boundary is told.

    The sequence is cut into mini-experiences of `evaluate_every` samples, after each of which the model is scored on the
    classes seen so far: the mean of these accuracies is `average_incremental_accuracy`, the any-time accuracy of the
    literature. Inside a mini-experience the order is drawn by the run.
    """

    settings: ClassVar[tuple[Setting, ...]] = ("class",)

    source: str = source_field("digits")
    evaluate_every: int = field(
        default=1000, ge=1, unit="samples", help="Samples of a mini-experience; the model is scored after each (1000)."
    )
    online: bool = field(default=True, help="Whether every sample may be presented only once (strategy.epochs 1).")
    stream_seed: int = field(
        default=0, ge=0, help="Seed of everything that the scenario draws; independent of the run's seed."
    )

    def sequence(self, found: Material) -> list[Tensor]:
        """Return the training rows in the order of presentation, part by part; a part may be empty."""
        raise NotImplementedError(f"{type(self).__name__} must say in which order samples come.")

    def cut(self, data: ImageData) -> Stream:
        """Cut an opened source into mini-experiences; images are not touched.

        Raises:
            ConfigurationError: The parameters don't fit the source.
        """
        found = self.material(data)
        rows = torch.cat([*self.sequence(found), no_samples()])
        name = type(self).__name__
        stream = sequence_stream(
            found, chunked(rows, self.evaluate_every), name=self.title(_snake(name)), augmentation=self.augmentation
        )
        stream = dataclasses.replace(stream, boundaries=False, online=self.online)
        stream.check()
        return stream


def chunked(rows: Tensor, size: int) -> list[Tensor]:
    """Cut a sequence into parts of `size`; a last part of less than a tenth of it joins the one before."""
    parts = list(torch.split(rows, size))
    if len(parts) > 1 and len(parts[-1]) < size / 10:
        last = parts.pop()
        parts[-1] = torch.cat([parts[-1], last])
    return parts


def sequence_stream(found: Material, parts: Sequence[Tensor], *, name: str, augmentation: object) -> Stream:
    """Make the stream whose experiences are parts of a sequence; classes are numbered as they first appear.

    Every test image of a class joins the evaluation task of the experience that shows the class first. Classes that
    never appear are left out.

    Args:
        found: The chosen samples.
        parts: Training rows of every experience; a row may come again in another experience.
        name: Of the stream.
        augmentation: That the protocol states.
    """
    labels = found.train_labels
    order, seen, new = _first_appearances(labels, parts)
    relabel = torch.full((found.num_classes + 1,), -1, dtype=torch.int64)  # the last place serves label -1
    relabel[order] = torch.arange(len(order))
    experiences: list[Experience] = []
    tasks: list[EvaluationTask] = []
    for i, rows in enumerate(parts):
        own = tuple(sorted(relabel[torch.unique(labels[rows])].tolist()))
        introduced = tuple(range(seen[i] - new[i], seen[i]))
        sources = [order[k] for k in introduced]
        valid = join(found.valid, sources)
        experiences.append(
            Experience(i, own, introduced, seen[i], rows, valid, is_last=i == len(parts) - 1),
        )
        if introduced:
            tasks.append(EvaluationTask(len(tasks), introduced, join(found.test, sources), valid, i + 1))
    return Stream(
        name=name,
        experiences=tuple(experiences),
        tasks=tuple(tasks),
        train=SampleTable(found.data.train.images, relabel[labels]),
        test=SampleTable(found.data.test.images, relabel[found.test_labels]),
        class_names=tuple(found.names[k] for k in order),
        class_order=tuple(found.order[k] for k in order),
        mean=found.data.mean,
        std=found.data.std,
        augmentation=augmentation,  # type: ignore[arg-type]
        data_fingerprint=found.data.fingerprint,
    )


def _first_appearances(labels: Tensor, parts: Sequence[Tensor]) -> tuple[list[int], list[int], list[int]]:
    """Return the labels in the order in which they first appear, and per part how many are seen and how many are new."""
    order: list[int] = []
    known: set[int] = set()
    seen, new = [], []
    for rows in parts:
        present = labels[rows]
        values, inverse = torch.unique(present, return_inverse=True)
        first = torch.full((len(values),), len(present)).scatter_reduce(
            0, inverse, torch.arange(len(present)), reduce="amin"
        )
        fresh = [v for v in values[first.argsort()].tolist() if v not in known]
        order += fresh
        known.update(fresh)
        seen.append(len(order))
        new.append(len(fresh))
    return order, seen, new


def _snake(name: str) -> str:
    """`SiBlurry` to `si_blurry`."""
    return "".join(f"_{c.lower()}" if c.isupper() and k else c.lower() for k, c in enumerate(name))
