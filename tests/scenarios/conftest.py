"""Sources made of numbers, so that cutting is tested alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from clframe.data import ImageData, ImageSet, MemoryReader


def numbers(train: list[int] | np.ndarray, test: list[int] | np.ndarray, classes: int) -> ImageData:
    """A source whose samples have these labels, and one feature, their row."""
    sets = []
    for labels in (train, test):
        rows = torch.arange(len(labels), dtype=torch.float32)[:, None]
        sets.append(ImageSet(MemoryReader(rows), torch.as_tensor(np.asarray(labels), dtype=torch.int64)))
    return ImageData("numbers", sets[0], sets[1], tuple(f"c{i}" for i in range(classes)), (), (), "fixed")


def shuffled(classes: int, per_class: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), per_class))


@pytest.fixture(name="numbers")
def numbers_fixture() -> Callable[..., ImageData]:
    return numbers


@pytest.fixture
def source() -> Callable[..., ImageData]:
    def make(classes: int = 10, per_class: int = 6, test_per_class: int = 3) -> ImageData:
        return numbers(shuffled(classes, per_class), shuffled(classes, test_per_class, 1), classes)

    return make
