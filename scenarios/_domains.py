"""What scenarios share in which every experience shows the same classes in another way: a domain per experience."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from clframe.data import ImageData, ImageSet
from clframe.errors import ConfigurationError
from clframe.scenarios._parts import Material, SourceScenario, join, seeded, source_field
from clframe.spec import field
from clframe.stream import EvaluationTask, Experience, InputTransform, SampleTable, Setting, Stream

__all__ = ["DomainScenario"]


class DomainScenario(SourceScenario):
    """Base of the scenarios whose experiences are domains: all classes, each time through another change of the images."""

    source: str = source_field("digits")
    experiences: int = field(default=5, ge=1, help="Number of domains, one per experience.")
    setting: Setting = field(
        default="domain",
        help="domain: labels shared; task: labels shared within a head per domain, ids given; class: every domain has "
        "classes of its own.",
    )
    images: Literal["all", "shares"] = field(
        default="all",
        help="Whether every domain shows all training images, or each image appears in one domain only (equal shares, "
        "drawn by `domain_seed`). Test images appear in every domain.",
    )
    domain_seed: int = field(default=0, ge=0, help="Seed of what makes the domains; independent of the run's seed.")

    def domains(self, shape: tuple[int, ...]) -> Sequence[InputTransform]:
        """Return the change of images (C, H, W) or features (D,) of every experience."""
        raise NotImplementedError(f"{type(self).__name__} must say what its domains are.")

    def relabelled(self, domain: int, labels: Tensor) -> Tensor:
        """Return the labels (N,) that a domain shows instead of those of the source; by default the same."""
        return labels

    def title_prefix(self) -> str:
        """Return what the stream's name begins with."""
        return type(self).__name__.lower()

    def cut(self, data: ImageData) -> Stream:
        """Show an opened source through every domain; images are not touched.

        Raises:
            ConfigurationError: The parameters don't fit the source.
        """
        found = self.material(data)
        transforms = tuple(self.domains(tuple(data.train.images.shape)))
        count, classes = len(transforms), found.num_classes
        every = tuple(range(classes))
        train_rows = self._train_rows(found, count)
        valid_rows, test_rows = join(found.valid, every), join(found.test, every)
        train, parts = self._table(
            data.train, found.train_labels, [torch.cat([t, valid_rows]) for t in train_rows], transforms, classes
        )
        test, tests = self._table(data.test, found.test_labels, [test_rows] * count, transforms, classes)
        experiences, tasks = [], []
        for i in range(count):
            separate = self.setting != "domain"
            own = tuple(range(i * classes, (i + 1) * classes)) if separate else every
            task_id = i if self.setting == "task" else None
            new, kept = len(train_rows[i]), parts[i]
            experience = Experience(
                index=i,
                classes=own,
                new_classes=own if separate or i == 0 else (),
                num_seen_classes=own[-1] + 1,
                train=kept[:new],
                valid=kept[new:],
                task_id=task_id,
                is_last=i == count - 1,
            )
            experiences.append(experience)
            tasks.append(EvaluationTask(i, own, tests[i], experience.valid, i + 1, task_id))
        repeats = 1 if self.setting == "domain" else count
        names = found.names if repeats == 1 else tuple(f"{n} ({i + 1})" for i in range(count) for n in found.names)
        return self.stream(
            data,
            name=self.title(self.title_prefix()),
            experiences=tuple(experiences),
            tasks=tuple(tasks),
            train=train,
            test=test,
            class_names=names,
            class_order=found.order * repeats,
            setting=self.setting,
        )

    def _train_rows(self, found: Material, count: int) -> list[Tensor]:
        """Return the training rows of every domain, ascending."""
        every = range(found.num_classes)
        if self.images == "all":
            return [join(found.train, list(every))] * count
        shares: list[list[Tensor]] = [[] for _ in range(count)]
        for c in every:
            rows = found.train[c]
            if len(rows) < count:
                raise ConfigurationError(
                    f"scenario.images: expected at least {count} training images of the class {found.names[c]!r} for "
                    f"{count} shares, received {len(rows)}: use fewer experiences, or images all."
                )
            drawn = torch.from_numpy(seeded(self.domain_seed, "shares", found.order[c]).permutation(len(rows)))
            for share, part in zip(shares, torch.tensor_split(rows[drawn], count), strict=True):
                share.append(part)
        return [torch.cat(share).sort().values for share in shares]

    def _table(
        self,
        split: ImageSet,
        labels: Tensor,
        rows: Sequence[Tensor],
        transforms: tuple[InputTransform, ...],
        classes: int,
    ) -> tuple[SampleTable, list[Tensor]]:
        """Lay the rows of all domains one after the other; returns the table and the ids of every domain."""
        sizes = [len(r) for r in rows]
        owner = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(sizes))
        joined = torch.cat(list(rows))
        shown = torch.cat([self.relabelled(i, labels[r]) for i, r in enumerate(rows)])
        targets = shown + (owner * classes if self.setting != "domain" else 0)
        task_ids = owner if self.setting == "task" else None
        table = SampleTable(split.images, targets, rows=joined, domains=owner, task_ids=task_ids, transforms=transforms)
        return table, list(torch.split(torch.arange(len(joined)), sizes))
