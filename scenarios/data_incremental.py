"""Data-incremental: every experience brings new samples of the same classes."""

from __future__ import annotations

from typing import ClassVar

import torch

from clframe.data import ImageData
from clframe.errors import ConfigurationError
from clframe.scenarios._parts import SourceScenario, join, seeded, source_field
from clframe.spec import field
from clframe.stream import EvaluationTask, Experience, SampleTable, Setting, Stream

__all__ = ["DataIncremental"]


class DataIncremental(SourceScenario):
    """New samples of the same classes: every class's images are dealt to the experiences, one test set for all.

    Version history:
        1: first version.
    """

    settings: ClassVar[tuple[Setting, ...]] = ("domain",)

    source: str = source_field("digits")
    experiences: int = field(default=5, ge=1, help="Number of experiences.")
    growth: float = field(
        default=1.0, gt=0, help="Size of an experience relative to the one before; 1: equal sizes, 0.5: ever fewer."
    )
    stream_seed: int = field(default=0, ge=0, help="Seed of the dealing; independent of the run's seed.")

    def cut(self, data: ImageData) -> Stream:
        """Deal the samples of every class; images are not touched.

        Raises:
            ConfigurationError: A class has too few samples.
        """
        found = self.material(data)
        every = tuple(range(found.num_classes))
        weights = torch.tensor([self.growth**i for i in range(self.experiences)], dtype=torch.float64)
        bounds = (weights.cumsum(0) / weights.sum())[:-1]
        parts: list[list[torch.Tensor]] = [[] for _ in range(self.experiences)]
        for c, rows in enumerate(found.train):
            order = torch.from_numpy(seeded(self.stream_seed, "deal", found.order[c]).permutation(len(rows)))
            cuts = (bounds * len(rows)).round().long()
            shares = torch.tensor_split(rows[order], cuts)
            if any(not len(s) for s in shares):
                raise ConfigurationError(
                    f"scenario.experiences: expected a sample of the class {found.names[c]!r} for each of "
                    f"{self.experiences} experiences, received {len(rows)} in all: use fewer experiences or a growth nearer 1."
                )
            for part, share in zip(parts, shares, strict=True):
                part.append(share)
        valid, test = join(found.valid, every), join(found.test, every)
        experiences = tuple(
            Experience(
                index=i,
                classes=every,
                new_classes=every if i == 0 else (),
                num_seen_classes=len(every),
                train=torch.cat(part).sort().values,
                valid=valid,
                is_last=i == self.experiences - 1,
            )
            for i, part in enumerate(parts)
        )
        return self.stream(
            data,
            name=self.title("data_incremental"),
            experiences=experiences,
            tasks=(EvaluationTask(0, every, test, valid, 1),),
            train=SampleTable(data.train.images, found.train_labels),
            test=SampleTable(data.test.images, found.test_labels),
            class_names=found.names,
            class_order=found.order,
            setting="domain",
        )
