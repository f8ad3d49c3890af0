"""Tiny synthetic streams and a tiny backbone, to try a strategy in seconds without any data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clframe.data.reader import MemoryReader
from clframe.data.root import DataRoot
from clframe.errors import ConfigurationError
from clframe.models import Backbone, BackboneConfig
from clframe.scenario import Scenario
from clframe.spec import field
from clframe.stream import EvaluationTask, Experience, SampleTable, Score, Setting, Stream, no_samples

__all__ = ["SyntheticScenario", "TinyBackbone", "TinyNet", "synthetic_stream"]


class SyntheticScenario(Scenario):
    """A few small images per class, cut into experiences of any shape.

    Every class is a random pattern with noise, so that a network can learn it. A class that several experiences list
    comes back with new samples.

    Version history:
        1: first version.
    """

    experiences: list[list[int]] = field(
        default_factory=lambda: [[0, 1], [2, 3], [4, 5]], help="Classes of every experience; one may come back later."
    )
    train_per_class: int | list[int] = field(
        default=6, help="Samples of a class in an experience; a list gives a number for every experience."
    )
    odd: int = field(default=0, ge=0, unit="samples", help="Further samples of the first class of every experience.")
    test_per_class: int = field(default=3, ge=1, unit="samples", help="Test samples of every class.")
    valid_per_class: int = field(default=0, ge=0, unit="samples", help="Validation samples of every class.")
    unlabelled_per_class: int = field(default=0, ge=0, unit="samples", help="Samples whose label is withheld.")
    pool_per_class: int = field(default=0, ge=0, unit="samples", help="Samples whose label can be bought.")
    query_budget: int = field(default=0, ge=0, unit="samples", help="Labels that can be bought in every experience.")
    forget_per_experience: int = field(
        default=0, ge=0, unit="samples", help="Samples of the experience before that are to be unlearnt."
    )
    setting: Setting = field(default="class", help="class, task (ids given) or domain (labels shared).")
    score: Score = field(default="accuracy", help="accuracy, or squared_error for a regression.")
    boundaries: bool = field(default=True, help="Whether a strategy is told where tasks end.")
    online: bool = field(default=False, help="Whether every sample is presented only once.")
    size: int = field(default=8, ge=4, unit="pixels", help="Side of the square images.")
    channels: int = field(default=1, ge=1, help="Channels of the images.")
    seed: int = field(default=0, ge=0, help="Of patterns and noise.")

    def build(self, root: DataRoot | None = None, *, download: bool = False) -> Stream:
        """Draw the images and cut them.

        Raises:
            ConfigurationError: `train_per_class` doesn't have a number for every experience.
        """
        per_class = self.train_per_class
        counts = [per_class] * len(self.experiences) if isinstance(per_class, int) else list(per_class)
        if len(counts) != len(self.experiences):
            raise ConfigurationError(
                f"scenario.train_per_class: expected {len(self.experiences)} numbers, one per experience, received {len(counts)}."
            )
        return _Cutter(self, counts).stream()


def synthetic_stream(**options: Any) -> Stream:
    """Return the stream of a `SyntheticScenario`.

    >>> [e.classes for e in synthetic_stream(experiences=[[0, 1], [1, 2]]).experiences]
    [(0, 1), (1, 2)]
    """
    return SyntheticScenario(**options).build()


class _Split:
    """Collects the samples of one table."""

    def __init__(self) -> None:
        self.labels: list[int] = []
        self.domains: list[int] = []

    def add(self, label: int, domain: int, count: int) -> Tensor:
        """Append samples of a class and return their ids."""
        first = len(self.labels)
        self.labels += [label] * count
        self.domains += [domain] * count
        return torch.arange(first, first + count)


class _Cutter:
    """Builds one stream."""

    def __init__(self, scenario: SyntheticScenario, counts: list[int]) -> None:
        self.s = scenario
        self.counts = counts
        order = dict.fromkeys(c for group in scenario.experiences for c in group)
        self.order = tuple(order)
        self.label_of = {c: k for k, c in enumerate(order)}
        self.train, self.test = _Split(), _Split()
        self.shared_labels = scenario.setting == "domain"

    def stream(self) -> Stream:
        s = self.s
        experiences: list[Experience] = []
        tasks: list[EvaluationTask] = []
        seen = 0
        for i, group in enumerate(s.experiences):
            labels = sorted(range(len(group)) if self.shared_labels else (self.label_of[c] for c in group))
            new = tuple(c for c in labels if c >= seen)
            seen = max(seen, labels[-1] + 1)
            experiences.append(self._experience(i, tuple(labels), new, seen, experiences))
            scored = new if s.setting == "class" else tuple(labels)
            if scored:
                tasks.append(self._task(len(tasks), i, scored, experiences[-1]))
        regression = s.score == "squared_error"
        stream = Stream(
            name="synthetic",
            experiences=tuple(experiences),
            tasks=tuple(tasks),
            train=self._table(self.train, 1),
            test=self._table(self.test, 2),
            class_names=tuple(f"{'output' if regression else 'class'} {k}" for k in range(seen)),
            class_order=self.order[:seen],
            mean=(0.5,) * s.channels,
            std=(0.25,) * s.channels,
            setting=s.setting,
            boundaries=s.boundaries,
            online=s.online,
            score=s.score,
            augmentation="none",
            data_fingerprint=f"synthetic-{s.seed}-{s.size}-{s.channels}",
        )
        stream.check()
        return stream

    def _experience(
        self, i: int, labels: tuple[int, ...], new: tuple[int, ...], seen: int, before: list[Experience]
    ) -> Experience:
        s = self.s

        def draw(count: int) -> Tensor:
            return torch.cat([no_samples(), *(self.train.add(c, i, count) for c in labels)])

        train = torch.cat([draw(self.counts[i]), self.train.add(labels[0], i, s.odd)])
        return Experience(
            index=i,
            classes=labels,
            new_classes=new,
            num_seen_classes=seen,
            train=train,
            valid=draw(s.valid_per_class),
            task_id=i if s.setting == "task" else None,
            is_last=i == len(s.experiences) - 1,
            unlabelled=draw(s.unlabelled_per_class),
            pool=draw(s.pool_per_class),
            query_budget=s.query_budget,
            forget=before[-1].train[: s.forget_per_experience].clone() if before else no_samples(),
        )

    def _task(self, j: int, i: int, classes: tuple[int, ...], experience: Experience) -> EvaluationTask:
        test = torch.cat([self.test.add(c, i, self.s.test_per_class) for c in classes])
        return EvaluationTask(j, classes, test, experience.valid, i + 1, experience.task_id)

    def _table(self, split: _Split, part: int) -> SampleTable:
        """Draw the images of a split: the pattern of the class (and of the domain), and noise."""
        s = self.s
        generator = torch.Generator().manual_seed(s.seed)
        shape = (s.size, s.size, s.channels)
        kinds = len(s.experiences) if self.shared_labels else 1
        patterns = torch.randint(40, 216, (kinds, max(split.labels) + 1, *shape), generator=generator)
        labels, domains = torch.tensor(split.labels), torch.tensor(split.domains)
        generator.manual_seed(1000 * s.seed + part)
        noise = torch.randint(-40, 40, (len(labels), *shape), generator=generator)
        images = (patterns[domains if self.shared_labels else 0, labels] + noise).to(torch.uint8)
        targets = labels
        if s.score == "squared_error":
            targets = images.float().flatten(1)[:, : max(split.labels) + 1] / 255
        return SampleTable(MemoryReader(images), targets, task_ids=domains if s.setting == "task" else None)


class TinyNet(Backbone):
    """A convolution with BatchNorm, a projection with LayerNorm: what can go wrong with modes goes wrong here."""

    def __init__(self, channels: int, size: int, width: int) -> None:
        """Make the layers for images (channels, size, size)."""
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(width)
        side = (size + 1) // 2
        self.project = nn.Linear(width * side * side, 2 * width)
        self.norm = nn.LayerNorm(2 * width)
        self.feature_dim = 2 * width

    def forward(self, x: Tensor) -> Tensor:
        """Compute features: (B, C, H, W) to (B, D)."""
        return self.forward_stages(x)[0]

    def forward_stages(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute features and the convolution's map before its ReLU."""
        maps = self.bn(self.conv(x))
        return torch.relu(self.norm(self.project(maps.relu().flatten(1)))), (maps,)


class TinyBackbone(BackboneConfig):
    """A backbone for tests: two layers, BatchNorm and LayerNorm, for square images."""

    width: int = field(default=4, ge=1, help="Channels of the convolution; D is twice as much.")
    pretrained: bool = field(default=True, help="Stands for weights, so that methods which need some can be tried.")

    def make(self, input_shape: tuple[int, ...]) -> TinyNet:
        """Make the network.

        Raises:
            ConfigurationError: The input is no square image.
        """
        if len(input_shape) != 3 or input_shape[1] != input_shape[2]:
            raise ConfigurationError(f"TinyBackbone expects square images (C, H, H), received {input_shape}.")
        return TinyNet(input_shape[0], input_shape[1], self.width)
