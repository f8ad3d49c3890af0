"""From index sets to batches: nothing lost, nothing doubled, everything repeatable."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from clframe.data import DataRoot, ImageFolder, MemoryReader
from clframe.data.augment import HorizontalFlip, Pipeline, ToInput
from clframe.memory import ExemplarMemory
from clframe.strategy import Batch, DataView, TensorView
from clframe.stream import Experience, SampleTable
from clframe.training.batches import BatchMaker, sample_bytes, split_batches
from clframe.training.seeds import RandomStreams

CPU = torch.device("cpu")


def make(count: int = 30, classes: int = 3, task_ids: Tensor | None = None, augmented: bool = False) -> BatchMaker:
    """Images whose every pixel is the sample's id, so that a batch tells where it came from."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 4, 4, 1).contiguous()
    table = SampleTable(MemoryReader(images), torch.arange(count) % classes, task_ids=task_ids)
    return BatchMaker(table, ToInput((0.0,), (1.0,)), CPU, Pipeline((HorizontalFlip(),)) if augmented else None)


EXPERIENCE = Experience(0, (0, 1, 2), (0, 1, 2), 3, torch.arange(30))


def epoch(
    maker: BatchMaker, view: DataView | TensorView, epoch: int = 0, size: int = 4, first: int = 0, seed: int = 0
) -> list[Batch]:
    streams = RandomStreams(seed)
    streams.enter("epoch", 0, 0, epoch)
    return list(maker.epoch(view, size, EXPERIENCE, "train", epoch, streams, first))


def pixels(batch: Batch) -> list[int]:
    return (batch.x[:, 0, 0, 0] * 255).round().long().tolist()


@given(st.integers(0, 40), st.integers(1, 9))
def test_split_batches_keeps_every_id_and_leaves_no_single_one(count: int, size: int) -> None:
    parts = split_batches(torch.arange(count), size)
    assert torch.cat([torch.empty(0, dtype=torch.int64), *parts]).tolist() == list(range(count))
    assert all(len(p) == size for p in parts[:-2])
    assert all(0 < len(p) <= size + 1 for p in parts)
    if len(parts) > 1 and size > 1:
        assert len(parts[-1]) > 1


def test_an_epoch_presents_every_id_once_with_its_own_image_and_label() -> None:
    ids = torch.tensor([3, 17, 4, 29, 8, 11, 0, 22, 5, 6, 13])
    maker = make()
    batches = epoch(maker, DataView(ids))
    assert len(batches) == maker.steps_per_epoch(DataView(ids), 4) == 3
    assert Counter(i for b in batches for i in b.ids.tolist()) == Counter(ids.tolist())
    for step, b in enumerate(batches):
        assert pixels(b) == b.ids.tolist()
        assert b.y.tolist() == (b.ids % 3).tolist()
        assert (b.step, b.num_steps, b.num_new, b.phase, b.epoch) == (step, 3, len(b.ids), "train", 0)
        assert b.task_ids is None
        assert b.memory_rows is None
        assert b.experience is EXPERIENCE


def test_nothing_gives_no_batch() -> None:
    empty = DataView(torch.empty(0, dtype=torch.int64))
    assert epoch(make(), empty) == []
    assert make().steps_per_epoch(empty, 4) == 0
    assert list(make().in_order(empty.ids, 4, EXPERIENCE)) == []


def test_orders_differ_between_epochs_and_seeds_and_repeat() -> None:
    view = DataView(torch.arange(20))

    def order(epoch_index: int, seed: int) -> list[int]:
        return [i for b in epoch(make(), view, epoch_index, seed=seed) for i in b.ids.tolist()]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(e, s)) for e in range(3) for s in range(3)}) == 9


def test_task_ids_follow_their_samples() -> None:
    tasks = torch.arange(30) // 10
    for b in epoch(make(task_ids=tasks), DataView(torch.arange(30))):
        assert b.task_ids is not None
        assert b.task_ids.tolist() == (b.ids // 10).tolist()


def test_withheld_labels_are_minus_one_and_mixed_in() -> None:
    labelled, hidden = torch.arange(10), torch.arange(10, 26)
    view = DataView(labelled, unlabelled=hidden)
    assert len(view) == 26
    batches = epoch(make(), view)
    ids, labels = torch.cat([b.ids for b in batches]), torch.cat([b.y for b in batches])
    assert sorted(ids.tolist()) == list(range(26))
    assert torch.equal(labels == -1, ids >= 10)
    assert torch.equal(labels[ids < 10], ids[ids < 10] % 3)
    assert any(0 < int((b.y == -1).sum()) < len(b.y) for b in batches)


def test_a_balanced_view_draws_every_class_alike() -> None:
    ids = torch.cat([torch.arange(0, 30, 3), torch.tensor([1, 2])])  # 10 of class 0, one each of 1 and 2
    counts: Counter[int] = Counter()
    for e in range(200):
        batches = epoch(make(), DataView(ids, balanced=True), e, size=12)
        assert sum(len(b.ids) for b in batches) == 12
        counts.update(torch.cat([b.y for b in batches]).tolist())
    share = [counts[c] / 2400 for c in range(3)]
    assert share == pytest.approx([1 / 3] * 3, abs=0.04)  # four standard deviations


def memory_of(ids: list[int]) -> ExemplarMemory:
    memory = ExemplarMemory(10, policy="ring")
    memory.observe(torch.tensor(ids), torch.tensor(ids) % 3, generator=torch.Generator())
    return memory


def test_replayed_samples_come_last_with_their_rows() -> None:
    memory = memory_of([20, 21, 22, 23, 24])
    batches = epoch(make(), DataView(torch.arange(8), memory=memory, memory_batch=3))
    for b in batches:
        assert b.memory_rows is not None
        assert (b.num_new, len(b.ids), len(b.x), len(b.y)) == (4, 7, 7, 7)
        assert bool((b.ids[:4] < 8).all())
        assert torch.equal(b.ids[4:], memory.ids[b.memory_rows])
        assert torch.equal(b.y[4:], memory.targets[b.memory_rows])
        assert pixels(b) == b.ids.tolist()
        assert len(set(b.memory_rows.tolist())) == 3
    assert not torch.equal(batches[0].memory_rows, batches[1].memory_rows)  # type: ignore[arg-type]


def test_an_empty_memory_adds_nothing() -> None:
    view = DataView(torch.arange(8), memory=ExemplarMemory(5, policy="ring"), memory_batch=3)
    assert all(len(b.ids) == b.num_new == 4 and b.memory_rows is None for b in epoch(make(), view))


def test_views_are_augmented_each_on_its_own() -> None:
    images = torch.randint(0, 255, (32, 4, 4, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    table = SampleTable(MemoryReader(images), torch.zeros(32, dtype=torch.int64))
    maker = BatchMaker(table, ToInput((0.0,), (1.0,)), CPU, Pipeline((HorizontalFlip(),)))
    (b,) = epoch(maker, DataView(torch.arange(32), views=2), size=32)
    assert len(b.views) == 2
    assert b.x is b.views[0]
    plain = maker.test_input(images[b.ids])
    mirrored = plain.flip(3)
    sides = []
    for view in b.views:
        is_plain, is_mirrored = ((view == other).flatten(1).all(1) for other in (plain, mirrored))
        assert bool((is_plain ^ is_mirrored).all())
        sides.append(is_plain)
    assert not torch.equal(*sides)
    (b,) = epoch(maker, DataView(torch.arange(32), augment=False), size=32)
    assert torch.equal(b.x, maker.test_input(images[b.ids]))


def test_a_tensor_view_keeps_rows_together() -> None:
    x = torch.randn(11, 5)
    view = TensorView(x, torch.arange(11), batch_size=3)
    batches = epoch(make(), view, size=100)
    assert [len(b.x) for b in batches] == [3, 3, 3, 2]
    assert make().steps_per_epoch(view, 100) == 4
    seen = torch.cat([b.y for b in batches])
    assert sorted(seen.tolist()) == list(range(11))
    assert seen.tolist() != list(range(11))
    assert torch.equal(torch.cat([b.x for b in batches]), x[seen])
    assert all(len(b.ids) == 0 and b.task_ids is None for b in batches)


@pytest.mark.parametrize("kind", ["images", "memory", "tensors"])
@pytest.mark.parametrize("done", [1, 3, 4])
def test_a_resumed_epoch_goes_on_identically(kind: str, done: int) -> None:
    maker = make(augmented=True)
    views: dict[str, DataView | TensorView] = {
        "images": DataView(torch.arange(18)),
        "memory": DataView(torch.arange(18), memory=memory_of([20, 21, 22, 23, 24]), memory_batch=2),
        "tensors": TensorView(torch.randn(18, 2), torch.arange(18)),
    }
    streams = RandomStreams(0)
    streams.enter("epoch", 0, 0, 0)
    whole = maker.epoch(views[kind], 4, EXPERIENCE, "train", 0, streams)
    for _ in range(done):
        next(whole)
    saved = streams.state_dict()
    rest = list(whole)
    streams = RandomStreams(0)
    streams.enter("epoch", 0, 0, 0)
    resumed = maker.epoch(views[kind], 4, EXPERIENCE, "train", 0, streams, done)
    streams.load_state_dict(saved)
    again = list(resumed)
    assert len(again) == len(rest) == 5 - done
    for a, b in zip(rest, again, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
        assert torch.equal(a.ids, b.ids)
        assert a.step == b.step


def test_a_batch_of_its_own_is_augmented_by_its_own_draws() -> None:
    images = torch.randint(0, 255, (30, 4, 4, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    table = SampleTable(MemoryReader(images), torch.arange(30) % 3, task_ids=torch.arange(30) // 10)
    maker = BatchMaker(table, ToInput((0.0,), (1.0,)), CPU, Pipeline((HorizontalFlip(),)))
    ids = torch.tensor([21, 3, 8, 8, 15, 29])
    batch = maker.drawn(ids, EXPERIENCE, torch.Generator().manual_seed(1))
    assert batch.ids.tolist() == ids.tolist()
    assert batch.y.tolist() == (ids % 3).tolist()
    assert batch.task_ids is not None
    assert batch.task_ids.tolist() == (ids // 10).tolist()
    assert batch.num_new == 6
    plain = maker.test_input(images[ids])
    is_plain, is_mirrored = ((batch.x == other).flatten(1).all(1) for other in (plain, plain.flip(3)))
    assert bool((is_plain ^ is_mirrored).all())
    assert bool(is_plain.any())
    assert bool(is_mirrored.any())
    assert torch.equal(maker.drawn(ids, EXPERIENCE, torch.Generator().manual_seed(1)).x, batch.x)


def test_in_order_is_in_order_and_not_augmented() -> None:
    maker = make(augmented=True)
    ids = torch.tensor([5, 3, 9, 1, 7])
    batches = list(maker.in_order(ids, 2, EXPERIENCE))
    assert [b.ids.tolist() for b in batches] == [[5, 3], [9, 1], [7]]
    assert [pixels(b) for b in batches] == [[5, 3], [9, 1], [7]]


def test_a_streaming_reader_gives_the_same_batches(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    root = DataRoot.resolve(tmp_path)
    both = [ImageFolder(path=str(tmp_path / "set"), mode=mode).open(root).train for mode in ("store", "stream")]
    assert [type(s.images).__name__ for s in both] == ["MemoryReader", "StreamingReader"]
    found = []
    for part in both:
        maker = BatchMaker(
            SampleTable(part.images, part.targets), ToInput((0.5,) * 3, (0.2,) * 3), CPU, Pipeline((HorizontalFlip(),))
        )
        found.append(epoch(maker, DataView(torch.arange(12)), size=5))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)


def test_bytes_of_a_stored_sample() -> None:
    assert sample_bytes((3, 32, 32)) == 3072
    assert sample_bytes((512,)) == 2048
