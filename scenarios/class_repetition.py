"""Class-incremental with repetition: classes come back after their first appearance."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from clframe.data import ImageData
from clframe.errors import ConfigurationError
from clframe.scenarios._parts import Material, SourceScenario, seeded, source_field
from clframe.scenarios._sequence import sequence_stream
from clframe.spec import field
from clframe.stream import Setting, Stream

__all__ = ["ClassRepetition"]


class ClassRepetition(SourceScenario):
    """Class-incremental learning with repetition: classes seen before come back in later experiences.

    Hemati et al. 2023, "Class-Incremental Learning with Repetition", CoLLAs. `generator=slots`: every experience has
    `slots` places for classes; the places of all experiences are dealt to the classes equally, and a class's samples
    are split over its places without repetition. `generator=sampling`: a class first appears in an experience drawn
    from a geometric distribution of parameter `first`, then comes again in each later one with probability `repeat`; an
    experience shares `samples` equally among its classes, drawn without replacement inside it, so that samples repeat
    across experiences. Every experience has a class, and every class appears.

    Version history:
        1: first version.
    """

    settings: ClassVar[tuple[Setting, ...]] = ("class",)

    source: str = source_field("digits")
    experiences: int = field(default=20, ge=1, help="Number of experiences.")
    generator: Literal["slots", "sampling"] = field(default="slots", help="How classes are dealt, see above.")
    slots: int = field(default=4, ge=1, unit="classes", help="slots: classes of every experience.")
    samples: int = field(default=200, ge=1, unit="samples", help="sampling: training samples of every experience.")
    first: float = field(default=0.2, gt=0, le=1, help="sampling: parameter of the first appearance; 1: all at once.")
    repeat: float = field(default=0.2, ge=0, le=1, help="sampling: probability that a seen class comes again.")
    stream_seed: int = field(
        default=0, ge=0, help="Seed of everything that the scenario draws; independent of the run's seed."
    )

    def cut(self, data: ImageData) -> Stream:
        """Deal the classes to experiences; images are not touched.

        Raises:
            ConfigurationError: There are fewer places than classes, or fewer samples than places.
        """
        found = self.material(data)
        parts = self._by_slots(found) if self.generator == "slots" else self._by_sampling(found)
        stream = sequence_stream(found, parts, name=self.title("class_repetition"), augmentation=self.augmentation)
        stream.check()
        return stream

    def _by_slots(self, found: Material) -> list[Tensor]:
        """Give every class equally many places (one more to some), no class twice in an experience."""
        classes, places = found.num_classes, self.experiences * self.slots
        if places < classes or self.slots > classes:
            raise ConfigurationError(
                f"scenario.slots: expected 1 to {classes} and at least {classes} places in {self.experiences} experiences, "
                f"received {self.slots}: change slots or experiences."
            )
        draw = seeded(self.stream_seed, "slots")
        chosen = self._deal(classes, draw)
        shares = {c: np.flatnonzero((chosen == c).any(axis=1)) for c in range(classes)}
        parts: list[list[Tensor]] = [[] for _ in range(self.experiences)]
        for c, owners in shares.items():
            rows = found.train[c]
            if len(rows) < len(owners):
                raise ConfigurationError(
                    f"scenario.slots: expected at least {len(owners)} samples of the class {found.names[c]!r} for as many "
                    f"places, received {len(rows)}: use fewer experiences or slots."
                )
            drawn = rows[torch.from_numpy(draw.permutation(len(rows)))]
            for i, part in zip(owners.tolist(), torch.tensor_split(drawn, len(owners)), strict=True):
                parts[i].append(part)
        return [torch.cat(p).sort().values for p in parts]

    def _deal(self, classes: int, draw: np.random.Generator) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """Return the (experiences, slots) classes: always those with the most places left, ties drawn."""
        left = np.full(classes, self.experiences * self.slots // classes)
        left[draw.permutation(classes)[: self.experiences * self.slots % classes]] += 1
        rows = []
        for i in range(self.experiences):
            # a class with as many places left as there are experiences can't wait any longer
            urgent = left >= self.experiences - i
            keys = draw.random(classes) * (left > 0) + urgent
            chosen = np.argsort(-keys, kind="stable")[: self.slots]
            left[chosen] -= 1
            rows.append(chosen)
        return np.stack(rows)

    def _by_sampling(self, found: Material) -> list[Tensor]:
        """Draw first appearances and repetitions, then samples."""
        draw, classes = seeded(self.stream_seed, "sampling"), found.num_classes
        starts = np.minimum(draw.geometric(self.first, classes) - 1, self.experiences - 1)
        starts[int(draw.integers(classes))] = 0  # the first experience isn't empty
        again = draw.random((self.experiences, classes)) < self.repeat
        steps = np.arange(self.experiences)[:, None]
        present = (starts == steps) | (again & (starts < steps))
        parts = []
        for row, seen in zip(present, starts <= steps, strict=True):
            if not row.any():  # nobody came: one of the classes seen does
                row[draw.choice(np.flatnonzero(seen))] = True
            own = np.flatnonzero(row).tolist()
            sizes = [len(p) for p in np.array_split(np.arange(self.samples), len(own))]
            drawn = [self._draw(found.train[c], n, draw) for c, n in zip(own, sizes, strict=True)]
            parts.append(torch.cat(drawn).sort().values)
        return parts

    def _draw(self, rows: Tensor, count: int, draw: np.random.Generator) -> Tensor:
        return rows[torch.from_numpy(draw.permutation(len(rows))[:count])]
