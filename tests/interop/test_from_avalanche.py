"""A benchmark of Avalanche's as a stream: there and back is the same stream, and of others no sample or pixel is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

import clframe
from clframe.errors import ConfigurationError, DataError
from clframe.interop.avalanche import from_avalanche, to_avalanche
from clframe.interop.avalanche.library import require
from clframe.stream import Stream
from clframe.testing import synthetic_stream

DIGITS = {"source": "digits"}
THERE_AND_BACK: list[dict[str, Any]] = [
    {"name": "split", "experiences": 5},
    {"name": "split", "sizes": [1, 2, 3, 4], "order": "seed:1993", "valid_per_class": 3},
    {"name": "split", "experiences": 5, "setting": "task", "classes": [9, 8, 7, 6, 5]},
    {"name": "split", "experiences": 5, "setting": "domain"},
    {"name": "permuted", "experiences": 3},
    {"name": "rotated", "experiences": 3, "setting": "task", "valid_per_class": 2},
    {"name": "class_repetition", "generator": "sampling", "valid_per_class": 2},
    {"name": "si_blurry", "classes": 8, "num_tasks": 2, "valid_per_class": 3},
    {"name": "data_incremental", "valid_per_class": 2},
    {"name": "few_shot", "base": 6, "shots": 1},
    {"name": "online", "experiences": 5},
]


@pytest.mark.parametrize("scenario", THERE_AND_BACK, ids=lambda s: "-".join(map(str, s.values())))
def test_there_and_back_is_the_same_stream(scenario: dict[str, Any]) -> None:
    stream = clframe.open_scenario({**DIGITS, **scenario})
    again = from_avalanche(to_avalanche(stream))
    assert again.fingerprint == stream.fingerprint
    for ours, theirs in zip(stream.experiences, again.experiences, strict=True):
        assert (ours.new_classes, ours.num_seen_classes, ours.is_last) == (
            theirs.new_classes,
            theirs.num_seen_classes,
            theirs.is_last,
        )
    same = ("name", "class_names", "mean", "std", "augmentation", "test_transform", "boundaries", "online")
    assert all(getattr(again, f) == getattr(stream, f) for f in same)
    assert again.train.images is stream.train.images  # a view of the same images, nothing is copied


def rebuilt(benchmark: Any, **streams: list[Any]) -> Any:
    """A benchmark of some of another's datasets."""
    found = {n: [e.dataset for e in s] for n, s in benchmark.streams.items()} | streams
    return require("avalanche.benchmarks").benchmark_from_datasets(**found)


def test_what_was_changed_in_between_is_in_the_stream() -> None:
    stream = synthetic_stream()
    benchmark = to_avalanche(stream)
    train, test = ([e.dataset for e in s] for s in (benchmark.train_stream, benchmark.test_stream))
    shorter = from_avalanche(rebuilt(benchmark, train=train[:2], test=test[:2]))
    assert shorter.class_names == stream.class_names[:4]
    assert torch.equal(shorter.experiences[1].train, stream.experiences[1].train)
    backwards = from_avalanche(rebuilt(benchmark, train=train[::-1], test=test[::-1]))
    assert backwards.class_order == (4, 5, 2, 3, 0, 1)
    assert backwards.class_names == tuple(stream.class_names[k] for k in (4, 5, 2, 3, 0, 1))
    first = backwards.experiences[0]
    assert torch.equal(first.train, stream.experiences[2].train)
    assert set(backwards.train.targets[first.train].tolist()) == {0, 1}
    assert [(t.classes, t.available_after) for t in backwards.tasks] == [((0, 1), 1), ((2, 3), 2), ((4, 5), 3)]


def test_avalanches_own_validation_split_is_kept() -> None:
    split = require("avalanche.benchmarks").benchmark_with_validation_stream
    stream = synthetic_stream()
    again = from_avalanche(split(to_avalanche(stream), validation_size=0.25, shuffle=True))
    for old, new in zip(stream.experiences, again.experiences, strict=True):
        assert len(new.valid) == 3
        both = torch.cat([new.train, new.valid]).sort().values
        assert torch.equal(both, old.train.sort().values)
    assert all(torch.equal(t.valid, e.valid) for t, e in zip(again.tasks, again.experiences, strict=True))


# -- other people's benchmarks --------------------------------------------------------------------------------------------


class Images(Dataset[Any]):
    """PIL images, or what a transform makes of them."""

    def __init__(
        self, counts: list[int], seed: int, transform: Callable[[Any], Any] | None = None, step: int = 1
    ) -> None:
        self.targets = [step * k + (step > 1) for k, n in enumerate(counts) for _ in range(n)]
        self.images = np.random.default_rng(seed).integers(0, 256, (len(self.targets), 6, 6, 3), dtype=np.uint8)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.images[index])
        return (self.transform(image) if self.transform else image), self.targets[index]

    def content(self) -> Counter[tuple[bytes, int]]:
        return Counter((i.tobytes(), t) for i, t in zip(self.images, self.targets, strict=True))


TRAIN, TEST = [5, 4, 7, 3, 6, 5], [2, 3, 2, 4, 2, 3]


def content(stream: Stream, table: Any, parts: list[torch.Tensor]) -> Counter[tuple[bytes, int]]:
    """The images and benchmark's labels of some parts of a stream."""
    ids = torch.cat(parts)
    labels = [stream.class_order[k] for k in table.targets[ids].tolist()]
    return Counter((i.numpy().tobytes(), t) for i, t in zip(table.gather(ids), labels, strict=True))


def same_as(stream: Stream, train: Images, test: Images) -> None:
    assert content(stream, stream.train, [e.train for e in stream.experiences]) == train.content()
    assert content(stream, stream.test, [t.test for t in stream.tasks]) == test.content()


def normalised(augment: bool) -> Any:
    from torchvision import transforms

    drawn = [transforms.RandomCrop(6, padding=2), transforms.RandomHorizontalFlip()] if augment else []
    return transforms.Compose([*drawn, transforms.ToTensor(), transforms.Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))])


@pytest.mark.parametrize("task_labels", [False, True])
def test_a_classic_benchmark_without_its_augmentation_and_normalisation(task_labels: bool) -> None:
    train, test = Images(TRAIN, 0, step=2), Images(TEST, 1, step=2)
    transform = {"train_transform": normalised(True), "eval_transform": normalised(False)}
    benchmark = require("avalanche.benchmarks").nc_benchmark(
        train, test, n_experiences=3, task_labels=task_labels, seed=1, **transform
    )
    stream = from_avalanche(benchmark, name="odd", class_names={2 * k + 1: f"class {2 * k + 1}" for k in range(6)})
    same_as(stream, train, test)
    assert stream.setting == ("task" if task_labels else "class")
    assert [e.task_id for e in stream.experiences] == ([0, 1, 2] if task_labels else [None] * 3)
    for experience, theirs in zip(stream.experiences, benchmark.train_stream, strict=True):
        assert {stream.class_order[k] for k in experience.classes} == set(theirs.classes_in_this_experience)
    assert stream.class_names == tuple(f"class {c}" for c in stream.class_order)
    pixels = torch.from_numpy(train.images).double() / 255
    assert stream.mean == pytest.approx(pixels.mean(dim=(0, 1, 2)).tolist(), abs=1e-5)
    assert stream.std == pytest.approx(pixels.std(dim=(0, 1, 2), unbiased=False).tolist(), abs=1e-5)


@pytest.mark.parametrize("undone", [False, True])
def test_tensors_are_turned_back_into_pixels(undone: bool) -> None:
    """Floats in [0, 1] by themselves; normalised ones with the mean and deviation, without which they are refused."""
    from torchvision import transforms

    transform = normalised(False) if undone else transforms.ToTensor()
    train, test = Images(TRAIN, 0, transform), Images(TEST, 1, transform)
    utils = require("avalanche.benchmarks.utils")
    datasets = [utils.as_classification_dataset(d) for d in (train, test)]
    benchmark = require("avalanche.benchmarks").benchmark_from_datasets(train=datasets[:1], test=datasets[1:])
    if not undone:
        return same_as(from_avalanche(benchmark), train, test)
    with pytest.raises(DataError, match=r"from -.* give the mean= and std= of its Normalize"):
        from_avalanche(benchmark)
    stream = from_avalanche(benchmark, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    same_as(stream, train, test)
    assert (stream.mean, stream.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    vectors = from_avalanche(benchmark, features=True)
    assert vectors.shape == (108,)
    return None


def test_frozen_transforms_stay() -> None:
    """They make a domain, as the permutation of PermutedMNIST does."""
    utils = require("avalanche.benchmarks.utils")
    train, test = Images(TRAIN, 0), Images(TEST, 1)

    def turned(dataset: Images) -> Any:
        flip = lambda image: image.transpose(Image.Transpose.ROTATE_180)  # noqa: E731
        attributes = [utils.DataAttribute(dataset.targets, "targets")]
        group = utils.TransformGroups({"train": (flip, None), "eval": (flip, None)})
        return utils.make_avalanche_dataset(dataset, data_attributes=attributes, frozen_transform_groups=group)

    plain = [utils.as_classification_dataset(d) for d in (train, test)]
    benchmark = require("avalanche.benchmarks").benchmark_from_datasets(
        train=[plain[0], turned(train)], test=[plain[1], turned(test)]
    )
    stream = from_avalanche(benchmark)
    assert stream.setting == "domain"
    first, second = (stream.train.gather(e.train) for e in stream.experiences)
    assert torch.equal(second, first.flip(1, 2))


def test_one_test_set_for_all_experiences_is_one_task_that_is_seen_at_once() -> None:
    benchmarks = require("avalanche.benchmarks")
    train, test = Images([12] * 3, 0), Images([2] * 3, 1)
    benchmark = benchmarks.ni_benchmark(train, test, n_experiences=4, balance_experiences=True, seed=0)
    stream = from_avalanche(benchmark, setting="domain")
    same_as(stream, train, test)
    assert [(len(t.test), t.available_after) for t in stream.tasks] == [(6, 1)]


def test_a_stream_without_a_length_is_read_too() -> None:
    utils, benchmarks = require("avalanche.benchmarks.utils"), require("avalanche.benchmarks")
    from torchvision import transforms

    train, test = Images([12] * 3, 0, transforms.ToTensor()), Images([2] * 3, 1, transforms.ToTensor())
    benchmark = benchmarks.new_instances_benchmark(
        utils.as_classification_dataset(train), utils.as_classification_dataset(test), num_experiences=4
    )
    same_as(from_avalanche(benchmark, setting="domain"), train, test)


def test_what_cannot_be_a_stream_is_refused() -> None:
    utils, benchmarks = require("avalanche.benchmarks.utils"), require("avalanche.benchmarks")
    datasets = [utils.as_classification_dataset(Images(c, s)) for c, s in ((TRAIN, 0), (TEST, 1))]
    only = benchmarks.benchmark_from_datasets(train=datasets[:1])
    with pytest.raises(DataError, match="the streams train and test, received train"):
        from_avalanche(only)
    whole = benchmarks.benchmark_from_datasets(train=datasets[:1], test=datasets[1:])
    with pytest.raises(ConfigurationError, match="mean and std together"):
        from_avalanche(whole, mean=(0.5,) * 3)
    with pytest.raises(ConfigurationError, match="Expected class_names for the labels"):
        from_avalanche(whole, class_names=["a", "b"])
    two = benchmarks.benchmark_from_datasets(
        train=[datasets[0].subset(range(5, 9)), datasets[0].subset(range(5))], test=datasets[1:]
    )
    assert from_avalanche(two).class_order[:2] == (1, 0)
    small = Images(TEST, 1)
    small.images = small.images[:, :4]
    mixed = benchmarks.benchmark_from_datasets(train=datasets[:1], test=[utils.as_classification_dataset(small)])
    with pytest.raises(DataError, match="one shape"):
        from_avalanche(mixed)


def test_a_run_takes_it_as_its_scenario(tmp_path: Any) -> None:
    train, test = Images(TRAIN, 0), Images(TEST, 1)
    benchmark = require("avalanche.benchmarks").nc_benchmark(train, test, n_experiences=3, task_labels=False, seed=0)
    stream = from_avalanche(benchmark, name="odd")
    run = clframe.run(scenario=stream, epochs=1, progress=False, run_dir=tmp_path / "run")
    assert run.matrix().shape == (4, 3)
    assert run.config["scenario"] == {"name": "python:odd", "fingerprint": stream.fingerprint}
