"""Superclass domains: superclasses are the labels, and every experience shows another of their subclasses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch

from clframe.data import ImageData
from clframe.errors import ConfigurationError, did_you_mean
from clframe.scenarios._parts import SourceScenario, join
from clframe.spec import field
from clframe.stream import EvaluationTask, Experience, SampleTable, Stream

__all__ = ["CIFAR100_SUPERCLASSES", "SuperclassDomains"]

CIFAR100_SUPERCLASSES: dict[str, list[str]] = {
    "aquatic_mammals": ["beaver", "dolphin", "otter", "seal", "whale"],
    "fish": ["aquarium_fish", "flatfish", "ray", "shark", "trout"],
    "flowers": ["orchid", "poppy", "rose", "sunflower", "tulip"],
    "food_containers": ["bottle", "bowl", "can", "cup", "plate"],
    "fruit_and_vegetables": ["apple", "mushroom", "orange", "pear", "sweet_pepper"],
    "household_electrical_devices": ["clock", "keyboard", "lamp", "telephone", "television"],
    "household_furniture": ["bed", "chair", "couch", "table", "wardrobe"],
    "insects": ["bee", "beetle", "butterfly", "caterpillar", "cockroach"],
    "large_carnivores": ["bear", "leopard", "lion", "tiger", "wolf"],
    "large_man-made_outdoor_things": ["bridge", "castle", "house", "road", "skyscraper"],
    "large_natural_outdoor_scenes": ["cloud", "forest", "mountain", "plain", "sea"],
    "large_omnivores_and_herbivores": ["camel", "cattle", "chimpanzee", "elephant", "kangaroo"],
    "medium_mammals": ["fox", "porcupine", "possum", "raccoon", "skunk"],
    "non-insect_invertebrates": ["crab", "lobster", "snail", "spider", "worm"],
    "people": ["baby", "boy", "girl", "man", "woman"],
    "reptiles": ["crocodile", "dinosaur", "lizard", "snake", "turtle"],
    "small_mammals": ["hamster", "mouse", "rabbit", "shrew", "squirrel"],
    "trees": ["maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"],
    "vehicles_1": ["bicycle", "bus", "motorcycle", "pickup_truck", "train"],
    "vehicles_2": ["lawn_mower", "rocket", "streetcar", "tank", "tractor"],
}
"""The twenty superclasses of CIFAR-100 (Krizhevsky 2009) and their classes."""


class SuperclassDomains(SourceScenario):
    """Domain-incremental learning of superclasses: experience i shows the i-th subclass of every superclass.

    The labels are the superclasses, CIFAR-100's twenty unless `hierarchy` names others; they stay the same while their
    appearance changes. With `setting=task` the domain's number is given as task id.

    Version history:
        1: first version.
    """

    example: ClassVar[str] = (
        '--scenario.source digits --scenario.hierarchy \'{even: ["0", "2", "4"], odd: ["1", "3", "5"]}\''
    )

    source: str = field(
        default="cifar100",
        help="A known data set, a folder or archive of images, or path/to/file.py:Name of a data set.",
    )
    hierarchy: dict[str, list[str]] | None = field(
        default=None,
        help="Classes of every superclass, by name, equally many of each, in the order of the experiences; none: those of "
        "CIFAR-100.",
    )
    setting: Literal["domain", "task"] = field(default="domain", help="domain, or task (the domain's number is given).")

    def cut(self, data: ImageData) -> Stream:
        """Relabel by superclass; images are not touched.

        Raises:
            ConfigurationError: The source lacks a class, or superclasses have different numbers of classes.
        """
        hierarchy = CIFAR100_SUPERCLASSES if self.hierarchy is None else self.hierarchy
        members = self._members(hierarchy, data.class_names)
        found = self.material(data)
        place = {source: k for k, source in enumerate(found.order)}
        count = len(next(iter(members.values())))
        coarse = torch.full((found.num_classes + 1,), -1, dtype=torch.int64)
        groups: list[list[int]] = [[] for _ in range(count)]
        for label, classes in enumerate(members.values()):
            for i, source in enumerate(classes):
                if source not in place:
                    raise ConfigurationError(
                        f"scenario.classes: expected every class of the hierarchy, {data.class_names[source]!r} is missing: "
                        "leave classes out."
                    )
                coarse[place[source]] = label
                groups[i].append(place[source])
        every = tuple(range(len(members)))
        domain = torch.full((found.num_classes + 1,), 0, dtype=torch.int64)
        for i, group in enumerate(groups):
            domain[group] = i
        experiences, tasks = [], []
        for i, group in enumerate(groups):
            task_id = i if self.setting == "task" else None
            train, valid = join(found.train, group), join(found.valid, group)
            new = every if i == 0 else ()
            experiences.append(Experience(i, every, new, len(every), train, valid, task_id, i == count - 1))
            tasks.append(EvaluationTask(i, every, join(found.test, group), valid, i + 1, task_id))
        tables = [
            SampleTable(s.images, coarse[labels], task_ids=domain[labels] if self.setting == "task" else None)
            for s, labels in ((data.train, found.train_labels), (data.test, found.test_labels))
        ]
        return self.stream(
            data,
            name=self.title("superclass_domains"),
            experiences=tuple(experiences),
            tasks=tuple(tasks),
            train=tables[0],
            test=tables[1],
            class_names=tuple(members),
            class_order=tuple(range(len(members))),
            setting=self.setting,
        )

    def _members(self, hierarchy: Mapping[str, list[str]], names: tuple[str, ...]) -> dict[str, list[int]]:
        """Return the source labels of every superclass.

        Raises:
            ConfigurationError: A class is unknown or named twice, or the numbers differ.
        """
        if not hierarchy or len({len(c) for c in hierarchy.values()}) > 1 or not all(hierarchy.values()):
            sizes = {name: len(classes) for name, classes in hierarchy.items()}
            raise ConfigurationError(
                f"scenario.hierarchy: expected equally many classes of every superclass, received {sizes}."
            )
        flat = [c for classes in hierarchy.values() for c in classes]
        unknown = [c for c in flat if c not in names]
        if unknown:
            raise ConfigurationError(
                f"scenario.hierarchy: the source has no class {unknown[0]!r}.{did_you_mean(unknown[0], names)}"
            )
        if len(set(flat)) < len(flat):
            raise ConfigurationError("scenario.hierarchy: expected every class once; a class is named twice.")
        return {name: [names.index(c) for c in classes] for name, classes in hierarchy.items()}
