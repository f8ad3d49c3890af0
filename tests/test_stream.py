"""Streams: what is refused, what a fingerprint tells apart, and samples seen through domains."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from clframe.data import MemoryReader
from clframe.errors import ContractError
from clframe.stream import EvaluationTask, Experience, SampleTable, Stream, no_samples
from clframe.testing.streams import synthetic_stream


def changed(stream: Stream, which: int, /, **changes) -> Stream:
    experiences = list(stream.experiences)
    experiences[which] = dataclasses.replace(experiences[which], **changes)
    return dataclasses.replace(stream, experiences=tuple(experiences))


def task_changed(stream: Stream, which: int, /, **changes) -> Stream:
    tasks = list(stream.tasks)
    tasks[which] = dataclasses.replace(tasks[which], **changes)
    return dataclasses.replace(stream, tasks=tuple(tasks))


WRONG = [
    (lambda s: changed(s, 1, new_classes=(3, 4)), r"Experience 2 .* must introduce the labels from 2 on, received \(3, 4\)"),
    (lambda s: changed(s, 2, num_seen_classes=5), "Experience 3 .* has label 5, but only 5 classes are seen"),
    (lambda s: changed(s, 0, train=torch.tensor([0, 10**6])), "Experience 1 .*ids of train must lie in 0..59"),
    (lambda s: changed(s, 0, pool=torch.tensor([-1])), "ids of pool must lie in"),
    (lambda s: changed(s, 0, train=s.experiences[1].train), r"samples of the labels \[2, 3\], which are not in its classes \(0, 1\)"),
    (lambda s: changed(s, 1, pool=s.experiences[1].valid[:2]), "trains on 2 validation samples in experience 2"),
    (lambda s: changed(s, 1, train=torch.cat([s.experiences[1].train, s.experiences[1].valid[:3]])), "on 3 validation samples"),
    (lambda s: changed(s, 2, unlabelled=s.experiences[0].valid), "trains on 4 validation samples in experience 3"),
    (lambda s: changed(s, 1, index=0), "Experience 2 .* must have index 1"),
    (lambda s: changed(s, 1, is_last=True), "Experience 2 .* only the last one is_last"),
    (lambda s: changed(s, 2, is_last=False), "Experience 3 .* only the last one is_last"),
    (lambda s: task_changed(s, 1, index=0), "must number its tasks from 0"),
    (lambda s: task_changed(s, 1, test=torch.tensor([99])), "test ids of task 2 must lie in 0..17"),
    (lambda s: task_changed(s, 1, classes=(2, 6)), r"has 6 classes, but task 2 has \(2, 6\)"),
    (lambda s: dataclasses.replace(s, experiences=()), "have an experience"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_a_broken_rule_is_named(change, said):
    stream = synthetic_stream(valid_per_class=2, unlabelled_per_class=2)
    stream.check()
    with pytest.raises(ContractError, match=said) as error:
        change(stream).check()
    assert len(str(error.value).splitlines()) == 1


CHANGES = [
    lambda s: changed(s, 0, train=s.experiences[0].train.flip(0)),
    lambda s: changed(s, 1, valid=s.experiences[1].train[:1]),
    lambda s: changed(s, 1, query_budget=1),
    lambda s: task_changed(s, 2, test=s.tasks[2].test[1:]),
    lambda s: task_changed(s, 0, available_after=2),
    lambda s: dataclasses.replace(s, class_order=(1, 0, 2, 3, 4, 5)),
    lambda s: dataclasses.replace(s, setting="task"),
    lambda s: dataclasses.replace(s, data_fingerprint="other"),
    lambda s: dataclasses.replace(s, train=dataclasses.replace(s.train, targets=1 - s.train.targets)),
    lambda s: dataclasses.replace(s, test=dataclasses.replace(s.test, task_ids=torch.zeros(18, dtype=torch.int64))),
]


def test_fingerprints_tell_streams_apart_and_equal_ones_not():
    stream = synthetic_stream()
    assert stream.fingerprint == synthetic_stream().fingerprint
    assert len({stream.fingerprint, *(change(stream).fingerprint for change in CHANGES)}) == 1 + len(CHANGES)


def table(count: int = 12, domains: bool = True) -> SampleTable:
    pixels = torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1).expand(count, 2, 2, 1).contiguous()
    return SampleTable(
        MemoryReader(pixels),
        torch.zeros(count, dtype=torch.int64),
        rows=torch.arange(count).flip(0),
        domains=torch.arange(count) % 3 if domains else None,
        transforms=(lambda x: x, lambda x: x + 100, lambda x: 255 - x),
    )


def test_a_sample_is_seen_through_its_own_domain():
    ids = torch.tensor([4, 0, 5, 5, 11, 1])
    expected = [{0: row, 1: row + 100, 2: 255 - row}[i % 3] for i, row in ((i, 11 - i) for i in ids.tolist())]
    for images in (table().gather(ids), *table().batches([ids])):
        assert images[:, 0, 0, 0].tolist() == expected
    parts = torch.cat(list(table().batches([ids[:1], ids[1:]])))  # one domain alone takes the short way
    assert parts[:, 1, 1, 0].tolist() == expected
    assert table(domains=False).gather(ids)[:, 0, 0, 0].tolist() == (11 - ids).tolist()


def test_a_batch_can_be_changed_without_changing_the_source():
    samples = table(domains=False)
    samples.gather(torch.tensor([3])).zero_()
    assert samples.gather(torch.tensor([3]))[0, 0, 0, 0] == 8


def test_describe_counts_every_experience():
    rows = synthetic_stream(valid_per_class=1, train_per_class=[3, 4, 5], test_per_class=2).describe()
    assert [list(r.values()) for r in rows] == [[i, 2, 2, n, 2, 4] for i, n in ((1, 6), (2, 8), (3, 10))]


def test_a_stream_may_state_its_augmentation_as_a_list():
    experience = Experience(0, (0,), (0,), 1, torch.arange(2), is_last=True)
    samples = SampleTable(MemoryReader(torch.zeros(2, 4, 4, 1, dtype=torch.uint8)), torch.zeros(2, dtype=torch.int64))
    task = EvaluationTask(0, (0,), torch.arange(2), no_samples(), 1)
    options = {"class_names": ("a",), "class_order": (0,), "mean": (0.5,), "std": (0.5,)}
    stream = Stream("one", (experience,), (task,), samples, samples, augmentation=["random_crop"], **options)
    stream.check()
    from clframe.config import resolve
    from clframe.launch.build import build_setup

    def transforms(**run) -> list[str]:
        setup = build_setup(resolve({"scenario": stream, "device": "cpu", **run}), stream)
        return [] if setup.augmentation is None else [type(t).__name__ for t in setup.augmentation.transforms]

    assert transforms() == ["RandomCrop"]
    assert transforms(augmentation="none") == []
    assert transforms(augmentation="crop_flip") == ["RandomCrop", "HorizontalFlip"]


class Negative:
    """A domain of inverted images."""

    def __init__(self, top: int = 255) -> None:
        self.top = top

    def __call__(self, images):
        return self.top - images

    def spec(self):
        return {"name": "negative", "top": self.top}


def test_the_fingerprint_covers_domains():
    def made(top: int):
        stream = synthetic_stream()
        domains = torch.zeros(len(stream.train), dtype=torch.int64)
        train = dataclasses.replace(stream.train, domains=domains, transforms=(Negative(top),))
        return dataclasses.replace(stream, train=train).fingerprint

    assert made(255) == made(255)
    assert len({made(255), made(254), synthetic_stream().fingerprint}) == 3
