"""A stream as an Avalanche benchmark: the same images, labels and task labels, and nothing lost or copied."""

from __future__ import annotations

import dataclasses
import tracemalloc
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import clframe
from clframe.data.augment import ToInput, build_augmentation
from clframe.data.reader import MemoryReader
from clframe.errors import ConfigurationError
from clframe.interop.avalanche import to_avalanche
from clframe.stream import SampleTable, Stream
from clframe.testing import synthetic_stream
from clframe.testing.check import global_rng_unchanged

SPLIT = {"name": "split", "source": "digits"}


def everything(stream: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Images, labels and task labels of every experience, as Avalanche's own loops would load them."""
    found = []
    for experience in stream:
        batches = list(DataLoader(experience.dataset.eval(), batch_size=7))
        found.append(tuple(torch.cat(parts) for parts in zip(*batches, strict=True)))
    return found  # type: ignore[return-value]


def as_in_a_run(table: SampleTable, ids: Tensor, stream: Stream) -> Tensor:
    """What a network's input is by definition: pixels in [0, 1], less the mean, by the deviation."""
    images = table.gather(ids)
    if images.is_floating_point():
        return images
    mean, std = torch.tensor(stream.mean), torch.tensor(stream.std)
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "scenario",
    [
        SPLIT | {"experiences": 5},
        SPLIT | {"sizes": [4, 1, 5], "order": "seed:3"},
        SPLIT | {"experiences": 1},
        SPLIT | {"experiences": 5, "setting": "task"},
        {"name": "rotated", "source": "digits", "experiences": 3},
        {"name": "permuted", "source": "digits", "experiences": 2, "setting": "class"},
        {"name": "class_repetition", "source": "digits", "experiences": 5},
        {"name": "feature_stream", "scenario": "split_digits", "backbone": {"name": "mlp", "hidden": [6]}},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_every_sample_is_there_as_a_run_would_see_it(scenario: dict[str, Any]) -> None:
    stream = clframe.open_scenario(scenario)
    benchmark = to_avalanche(stream)
    for table, parts, found in (
        (stream.train, [(e.train, e.task_id) for e in stream.experiences], everything(benchmark.train_stream)),
        (stream.test, [(t.test, t.task_id) for t in stream.tasks], everything(benchmark.test_stream)),
    ):
        assert len(parts) == len(found)
        for (ids, task_id), (x, y, tasks) in zip(parts, found, strict=True):
            torch.testing.assert_close(x, as_in_a_run(table, ids, stream), rtol=1e-5, atol=1e-5)
            assert torch.equal(y, table.targets[ids])
            assert set(tasks.tolist()) == {task_id if stream.setting == "task" else 0}


def test_the_classes_and_what_they_stand_for() -> None:
    stream = clframe.open_scenario(SPLIT | {"sizes": [2, 3, 5], "order": "seed:3"})
    benchmark = to_avalanche(stream)
    seen: set[int] = set()
    for ours, theirs in zip(stream.experiences, benchmark.train_stream, strict=True):
        assert theirs.classes_in_this_experience == set(ours.classes)
        assert theirs.previous_classes == seen
        seen |= set(ours.classes)
        assert theirs.classes_seen_so_far == seen
        assert theirs.logging().current_experience == ours.index
    assert benchmark.class_order == stream.class_order
    assert benchmark.class_names == stream.class_names


def test_validation_samples_have_a_stream_of_their_own_where_there_are_some() -> None:
    stream = synthetic_stream(experiences=[[0, 1], [1, 2], [3, 0]], valid_per_class=2)
    benchmark = to_avalanche(stream)
    assert list(benchmark.streams) == ["train", "test", "valid"]
    for task, (_, y, _) in zip(stream.tasks, everything(benchmark.valid_stream), strict=True):
        assert torch.equal(y, stream.train.targets[task.valid])
    assert "valid" not in to_avalanche(synthetic_stream()).streams


def test_the_test_transform_is_part_of_what_a_run_sees() -> None:
    stream = dataclasses.replace(synthetic_stream(), test_transform=[{"name": "center_crop", "size": 4}])
    image = to_avalanche(stream).test_stream[0].dataset[0][0]
    whole = stream.test.gather(stream.tasks[0].test[:1])
    cropped = build_augmentation(stream.test_transform, stream.shape)(whole, torch.Generator())
    assert torch.equal(image, ToInput(stream.mean, stream.std)(cropped)[0])


def test_training_images_are_augmented_on_request_and_only_they() -> None:
    stream = synthetic_stream()
    dataset = to_avalanche(stream, augmentation="crop_flip").train_stream[0].dataset
    plain = to_avalanche(stream).train_stream[0].dataset
    torch.manual_seed(0)
    first = [dataset[i][0] for i in range(12)]
    assert any(not torch.equal(a, plain[i][0]) for i, a in enumerate(first))
    torch.manual_seed(0)
    assert all(torch.equal(dataset[i][0], a) for i, a in enumerate(first))
    with global_rng_unchanged("Reading without augmentation"):
        assert all(torch.equal(dataset.eval()[i][0], plain[i][0]) for i in range(12))


def test_no_image_is_copied_or_read_by_converting() -> None:
    """Less than 100 bytes a sample beside the stream's own images, whatever their size."""
    stream = synthetic_stream(experiences=[[c, c + 1] for c in range(0, 20, 2)], train_per_class=200, size=32)
    read: list[int] = []

    class Watched(MemoryReader):
        def gather(self, indices: Tensor) -> Tensor:
            read.append(len(indices))
            return super().gather(indices)

    tables = {n: dataclasses.replace(t, images=Watched(t.images.tensor)) for n, t in (("train", stream.train), ("test", stream.test))}  # type: ignore[attr-defined]  # fmt: skip
    watched = dataclasses.replace(stream, **tables)
    to_avalanche(watched)  # imports
    tracemalloc.start()
    try:
        benchmark = to_avalanche(watched)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used / (len(stream.train) + len(stream.test)) < 100
    assert not read
    assert len(benchmark.train_stream[0].dataset[3][0].shape) == 3
    assert read == [1]


def test_converting_draws_nothing_and_changes_no_filter(recwarn: pytest.WarningsRecorder) -> None:
    import warnings

    filters = list(warnings.filters)
    with global_rng_unchanged("to_avalanche"):
        to_avalanche(synthetic_stream(valid_per_class=1))
    assert list(warnings.filters) == filters
    assert not [w for w in recwarn if "avalanche" in str(w.filename)]


REFUSED = [
    ({"score": "squared_error", "experiences": [[0, 1], [0, 1]]}, "targets that are no classes"),
    ({"unlabelled_per_class": 1}, "samples without labels"),
    ({"pool_per_class": 2, "query_budget": 1}, "labels to buy"),
    ({"forget_per_experience": 1}, "samples to unlearn"),
    ({"train_per_class": [3, 0, 3]}, "experiences without training samples"),
]


@pytest.mark.parametrize(("options", "what"), REFUSED)
def test_what_avalanche_has_no_form_for_is_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigurationError, match=f"Avalanche has no form for {what}, which the scenario 'synthetic'"):
        to_avalanche(synthetic_stream(**options))


def test_without_avalanche_the_bridge_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ConfigurationError, match=r"expects avalanche-lib 0\.6\.0, found none: pip install"):
        to_avalanche(synthetic_stream())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.5.0")
    with pytest.raises(ConfigurationError, match=r"found 0\.5\.0"):
        to_avalanche(synthetic_stream())
