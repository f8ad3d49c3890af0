"""Split: the classes of one source, cut into experiences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from clframe.data import ImageData, ImageSet
from clframe.errors import ConfigurationError
from clframe.scenarios._grouping import GroupedScenario
from clframe.scenarios._parts import join
from clframe.spec import field
from clframe.stream import AugmentationSpec, EvaluationTask, Experience, SampleTable, Setting, Stream

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


class Split(GroupedScenario):
    """Class-, task- or domain-incremental learning of one source whose classes are cut into groups.

    Class- and task-incremental are two views of the same groups: a run without task ids reports both, accuracy over all
    classes seen and accuracy within the sample's own task. With `setting=task` the id is also given to the strategy, in
    training and at test time. With `setting=domain` every group is relabelled 0, 1, … and shares one fixed head.

    Version history:
        1: first version.
    """

    prefix: ClassVar[str] = "split"
    """What the name of the stream begins with."""

    example: ClassVar[str] = "--scenario.source digits --scenario.experiences 5"

    setting: Setting = field(default="class", help="class, task (ids given) or domain (labels shared).")

    def cut(self, data: ImageData) -> Stream:
        """Cut an opened source into a stream; images are not touched.

        Raises:
            ConfigurationError: The parameters don't fit the source's classes.
        """
        found = self.material(data)
        groups = self.groups(found.num_classes)
        if self.setting == "domain" and len({len(g) for g in groups}) > 1:
            raise ConfigurationError(
                f"scenario: the domain-incremental setting needs experiences of equal size, received {[len(g) for g in groups]}: "
                "choose a number of experiences that divides the classes."
            )
        shown = [tuple(range(len(g))) for g in groups] if self.setting == "domain" else groups
        experiences, tasks = [], []
        for i, group in enumerate(groups):
            task_id = i if self.setting == "task" else None
            experience = Experience(
                index=i,
                classes=shown[i],
                new_classes=shown[i] if self.setting != "domain" or i == 0 else (),
                num_seen_classes=len(shown[0]) if self.setting == "domain" else group[-1] + 1,
                train=join(found.train, group),
                valid=join(found.valid, group),
                task_id=task_id,
                is_last=i == len(groups) - 1,
            )
            experiences.append(experience)
            tasks.append(EvaluationTask(i, shown[i], join(found.test, group), experience.valid, i + 1, task_id))
        return self.stream(
            data,
            name=self.name,
            experiences=tuple(experiences),
            tasks=tuple(tasks),
            train=self._table(data.train, found.train_labels, groups),
            test=self._table(data.test, found.test_labels, groups),
            class_names=self._domain_names(found.names, groups) if self.setting == "domain" else found.names,
            class_order=found.order,
            setting=self.setting,
        )

    @property
    def name(self) -> str:
        """What tables call the stream."""
        return self.title(self.prefix)

    def _table(self, split: ImageSet, labels: Tensor, groups: Sequence[tuple[int, ...]]) -> SampleTable:
        owner = torch.empty(sum(map(len, groups)) + 1, dtype=torch.int64)  # the last row serves label -1
        first = owner.clone()
        owner[-1] = first[-1] = 0
        for i, group in enumerate(groups):
            owner[list(group)], first[list(group)] = i, group[0]
        if self.setting == "domain":
            labels = torch.where(labels >= 0, labels - first[labels], labels)
        return SampleTable(split.images, labels, task_ids=owner[labels] if self.setting == "task" else None)

    def _domain_names(self, names: Sequence[str], groups: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
        return tuple("/".join(names[g[k]] for g in groups) for k in range(len(groups[0])))


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

    example: ClassVar[str] = "--scenario.source digits --scenario.increment 2"
    usual_experiences: ClassVar[int | None] = 10
    source: str = field(default="cifar100", help="The data set.")
    order: str | list[int] = field(default="seed:1993", help="Class order: natural, seed:N or a list of labels.")


class SplitTinyImageNet(Split):
    """Split Tiny-ImageNet (64×64 pixels, 200 classes or the first 100): ten experiences in seed-1993 order by default.

    Training images are cropped after padding by 4 pixels and mirrored, as in the replay literature (mammoth); test images
    are used as they are.
    """

    example: ClassVar[str] = "--scenario.source digits --scenario.increment 2"
    augmentation: ClassVar[AugmentationSpec] = "crop_flip"
    usual_experiences: ClassVar[int | None] = 10
    source: str = field(default="tiny_imagenet", help="The data set.")
    order: str | list[int] = field(default="seed:1993", help="Class order: natural, seed:N or a list of labels.")


class SplitFolder(Split):
    """Split of any images in folders named by class, or in parquet files: give the folder or archive as `source`.

    The layout is `train/CLASS/…` beside `test/CLASS/…` or `val/CLASS/…`, as a folder, zip or tar; or a folder of parquet
    files as the Hugging Face hub stores them. Images of many sizes need `size`.
    """

    example: ClassVar[str] = "--scenario.source digits --scenario.experiences 5"

    image_column: str | None = field(
        default=None, help="Of parquet files: the column of images; none: found by its type."
    )
    label_column: str | None = field(
        default=None, help="Of parquet files: the column of labels; none: found by its type."
    )
    train_files: str | None = field(
        default=None, help="Of parquet files: pattern of those to train on, such as data/train-*; none: by their names."
    )
    test_files: str | None = field(default=None, help="Of parquet files: likewise of those to test on.")

    def source_options(self) -> dict[str, Any]:
        """Return the source's options that were set."""
        columns = ("image_column", "label_column", "train_files", "test_files")
        given = {name: getattr(self, name) for name in columns}
        return super().source_options() | {name: value for name, value in given.items() if value is not None}
