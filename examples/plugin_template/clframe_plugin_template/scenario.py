"""A scenario: images made on the spot, cut by clframe's own generator of class splits."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

import clframe
from clframe.data import Arrays, DataRoot
from clframe.scenarios.split import Split


class Stripes(clframe.Scenario):
    """Noisy stripes; a class is an angle, and every experience brings some more.

    Version history:
        1: first version.
    """

    settings: ClassVar[tuple[str, ...]] = ("class",)

    classes: int = clframe.field(default=6, ge=2, help="Number of angles.")
    experiences: int = clframe.field(default=3, ge=1, help="Number of experiences; it divides the number of classes.")
    train_per_class: int = clframe.field(default=40, ge=1, unit="samples", help="Training images of every class.")
    test_per_class: int = clframe.field(default=20, ge=1, unit="samples", help="Test images of every class.")
    noise: float = clframe.field(default=40.0, ge=0, help="Standard deviation of the noise, in steps of 256.")
    stream_seed: int = clframe.field(default=0, ge=0, help="Seed of everything drawn; independent of the run's seed.")

    def build(self, root: DataRoot, *, download: bool = False) -> clframe.Stream:
        """Draw the images and cut them by class."""
        generator = np.random.default_rng(self.stream_seed)
        train, test = (self._draw(count, generator) for count in (self.train_per_class, self.test_per_class))
        names = tuple(f"{180 * k // self.classes} degrees" for k in range(self.classes))
        data = Arrays(x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1], class_names=names)
        stream = Split(source="arrays", experiences=self.experiences).cut(data.open(root))
        return dataclasses.replace(stream, name="stripes")

    def _draw(self, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Images (N, 8, 8) uint8 with their labels (N,)."""
        labels = np.repeat(np.arange(self.classes), count)
        angles, phases = np.pi * labels / self.classes, generator.uniform(0, 2 * np.pi, len(labels))
        y, x = np.mgrid[:8, :8]
        along = np.cos(angles)[:, None, None] * x + np.sin(angles)[:, None, None] * y
        waves = 128 + 100 * np.sin(1.5 * along + phases[:, None, None])
        noisy = waves + self.noise * generator.standard_normal(waves.shape)
        return noisy.clip(0, 255).astype(np.uint8), labels
