"""Boundary-free streams: every sample once, classes numbered as they come, Si-Blurry's counts, schedules, repetition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clframe
from clframe.data import DataRoot
from clframe.errors import ConfigurationError
from clframe.scenarios._sequence import chunked
from clframe.scenarios.class_repetition import ClassRepetition
from clframe.scenarios.data_incremental import DataIncremental
from clframe.scenarios.gaussian_schedule import GaussianSchedule
from clframe.scenarios.online import Online
from clframe.scenarios.si_blurry import IBlurry, SiBlurry
from clframe.stream import Stream

SEQUENCES = [Online, SiBlurry, IBlurry, GaussianSchedule]
FINGERPRINTS = {
    "Online": "58bae16caf7dbb7f",
    "SiBlurry": "2452bc50a7e1fdcc",
    "IBlurry": "5a74c239e7f4e9d1",
    "GaussianSchedule": "3b0901c4cd03d2b0",
    "ClassRepetition": "d44139e45e2fe957",
    "DataIncremental": "ef0c32d46cfa1389",
}


def built(cls, **options) -> Stream:
    return cls(**options).build(DataRoot.resolve())


def presented(stream: Stream) -> torch.Tensor:
    return torch.cat([e.train for e in stream.experiences])


@pytest.mark.parametrize("cls", SEQUENCES)
def test_every_sample_is_presented_once_in_mini_experiences(cls):
    stream = built(cls, evaluate_every=100)
    rows = presented(stream)
    assert len(rows.unique()) == len(rows) == len(stream.train)
    assert {len(e.train) for e in stream.experiences[:-1]} == {100}
    assert not stream.boundaries
    assert stream.online
    seen: list[int] = []
    for e in stream.experiences:  # numbered as they first appear
        for label in stream.train.targets[e.train].tolist():
            if label not in seen:
                seen.append(label)
        assert e.num_seen_classes == len(seen)
        assert e.classes == tuple(sorted(set(stream.train.targets[e.train].tolist())))
    assert seen == list(range(10))
    tested = torch.cat([t.test for t in stream.tasks])
    assert len(tested.unique()) == len(tested) == len(stream.test)


@pytest.mark.parametrize("cls", [*SEQUENCES, ClassRepetition, DataIncremental])
def test_golden_fingerprints_and_seeds(cls):
    stream = built(cls)
    assert stream.fingerprint[:16] == FINGERPRINTS[cls.__name__]
    assert built(cls, stream_seed=1).fingerprint != stream.fingerprint


@given(st.integers(1, 300), st.integers(1, 60))
def test_chunks_keep_everything_in_order(count, size):
    parts = chunked(torch.arange(count), size)
    assert torch.cat(parts).tolist() == list(range(count))
    assert all(len(p) == size for p in parts[:-1])
    assert len(parts) == 1 or len(parts[-1]) >= size / 10


# ---- Si-Blurry


def rows_of(sizes: list[int]) -> list[np.ndarray]:
    bounds = np.cumsum([0, *sizes])
    return [np.arange(a, b) for a, b in itertools.pairwise(bounds)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=10, max_size=10),
    st.integers(1, 5),
    st.sampled_from([0, 20, 50, 100]),
    st.sampled_from([0, 10, 33, 100]),
    st.integers(0, 5),
    st.sampled_from([SiBlurry, IBlurry]),
)
@pytest.mark.filterwarnings("ignore:.*left out")
def test_dealing_loses_nothing_and_keeps_the_counts(sizes, tasks, disjoint, blurry, seed, cls):
    scenario = cls(num_tasks=tasks, disjoint_percent=disjoint, blurry_percent=blurry, stream_seed=seed)
    parts = scenario.deal(rows_of(sizes))
    own, shared = scenario.class_counts(10)
    assert len(parts) == tasks
    assert own == int(10 * disjoint / 100) // tasks * tasks
    assert shared == (10 - own) // tasks * tasks
    dealt = np.concatenate(parts)
    label = np.repeat(np.arange(10), sizes)
    assert len(np.unique(dealt)) == len(dealt)
    present = [set(label[p].tolist()) for p in parts]
    several = {c for c in range(10) if sum(c in p for p in present) > 1}
    assert len(several) <= shared  # disjoint classes are in one task alone
    if own + shared == 10:
        assert len(dealt) == sum(sizes)
    moved = sum(len(p) for p in parts)
    assert moved == len(dealt)


def test_the_blurry_share_that_changes_hands_is_the_declared_one():
    sizes = [100] * 10
    base = {"num_tasks": 5, "disjoint_percent": 50, "stream_seed": 3}
    still, moving = (SiBlurry(**base, blurry_percent=p).deal(rows_of(sizes)) for p in (0, 10))
    label = np.repeat(np.arange(10), sizes)
    homes = {c: i for i, part in enumerate(still) for c in set(label[part].tolist())}
    assert len(homes) == 10  # without exchange every class is in one task alone
    assert sum(len(p) for p in moving) == 1000
    away = sum(int(homes[c] != i) for i, part in enumerate(moving) for c in label[part].tolist())
    assert 0 < away <= 50  # 10 % of the 500 blurry samples; some of the pool come home again


def test_i_blurry_tasks_have_equally_many_classes_and_samples():
    parts = IBlurry(num_tasks=5, disjoint_percent=50, blurry_percent=10).deal(rows_of([100] * 20))
    assert {len(p) for p in parts} == {400}


def test_tasks_of_si_blurry_differ_in_size_and_may_be_empty():
    sizes = [[len(p) for p in SiBlurry(stream_seed=s).deal(rows_of([20] * 10))] for s in range(30)]
    assert any(0 in s for s in sizes)
    assert all(sum(s) == 200 for s in sizes)


def test_classes_left_over_are_told():
    with pytest.warns(UserWarning, match=r"1 of 9 classes are left out"):
        stream = built(SiBlurry, classes=9, num_tasks=2)
    assert stream.num_classes == 8


# ---- schedules


def test_a_narrow_schedule_is_one_class_after_the_other_and_a_wide_one_mixes():
    narrow, wide = (built(GaussianSchedule, width=w, order="seed:5") for w in (0.0, 3.0))
    labels = narrow.train.targets[presented(narrow)]
    assert labels.tolist() == sorted(labels.tolist())
    switches = (wide.train.targets[presented(wide)].diff() != 0).sum()
    assert switches > 500


def test_classes_peak_in_their_order():
    stream = built(GaussianSchedule, width=1.0)
    source = torch.tensor(stream.class_order)[stream.train.targets[presented(stream)]]
    means = [float((source == c).nonzero().float().mean()) for c in range(10)]
    assert means == sorted(means)


@pytest.mark.parametrize("boundary", [False, True])
def test_groups_of_the_online_stream_come_one_after_the_other(boundary):
    stream = built(Online, experiences=5, evaluate_every=100, order="seed:7" if boundary else "natural")
    source = torch.tensor(stream.class_order)[stream.train.targets[presented(stream)]]
    order = torch.empty(10, dtype=torch.int64)
    classes = Online(order="seed:7" if boundary else "natural")._class_order([str(k) for k in range(10)])
    order[torch.tensor(classes)] = torch.arange(10)
    groups = order[source] // 2
    assert groups.tolist() == sorted(groups.tolist())


# ---- repetition


def test_slots_split_every_class_over_its_places():
    stream = built(ClassRepetition, experiences=10, slots=3)
    assert all(len(e.classes) == 3 for e in stream.experiences)
    appearances = torch.tensor([c for e in stream.experiences for c in e.classes]).bincount()
    assert appearances.tolist() == [3] * 10
    rows = presented(stream)
    assert len(rows.unique()) == len(rows) == len(stream.train)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 10), st.integers(0, 20))
def test_any_number_of_slots_deals_fairly(experiences, slots, seed):
    scenario = ClassRepetition(experiences=experiences, slots=slots)
    dealt = scenario._deal(10, np.random.default_rng(seed))
    counts = np.bincount(dealt.ravel(), minlength=10)
    assert dealt.shape == (experiences, slots)
    assert all(len(set(row)) == slots for row in dealt.tolist())
    assert counts.max() - counts.min() <= 1


def test_sampling_repeats_classes_and_never_empties_an_experience():
    options = {"generator": "sampling", "experiences": 15, "samples": 40}
    stream = built(ClassRepetition, **options, repeat=0.0, first=0.5)
    assert stream.num_classes == 10
    assert all(len(e.train) for e in stream.experiences)
    often = built(ClassRepetition, **options, repeat=1.0, first=0.5)
    for before, after in zip(often.experiences, often.experiences[1:], strict=False):
        assert set(before.classes) <= set(after.classes)
    assert {len(e.train) for e in often.experiences} == {40}
    assert all(len(e.train.unique()) == len(e.train) for e in often.experiences)


def test_too_few_places_are_refused():
    with pytest.raises(ConfigurationError, match="at least 10 places in 3 experiences, received 2"):
        built(ClassRepetition, experiences=3, slots=2)


# ---- data-incremental


def test_samples_of_every_class_are_dealt_once():
    stream = built(DataIncremental, experiences=4, train_per_class=100)
    rows = presented(stream)
    assert len(rows.unique()) == len(rows) == 1000
    assert all(torch.bincount(stream.train.targets[e.train]).tolist() == [25] * 10 for e in stream.experiences)
    halved = built(DataIncremental, experiences=3, growth=0.5, train_per_class=70)
    assert [len(e.train) for e in halved.experiences] == [400, 200, 100]
    with pytest.raises(ConfigurationError, match="expected a sample of the class '0' for each of 5 experiences"):
        built(DataIncremental, train_per_class=4)


# ---- runs


def test_a_single_pass_takes_one_epoch(tmp_path):
    scenario = {"name": "si_blurry", "train_per_class": 30, "evaluate_every": 60}
    with pytest.raises(
        ConfigurationError, match=r"presents every sample once, but strategy\.epochs is 10: add --epochs 1"
    ):
        clframe.plan(scenario=scenario, strategy="replay")
    strategy = {"name": "replay", "form": "step", "memory_size": 50, "memory_batch": 10}
    run = clframe.run(scenario=scenario, strategy=strategy, epochs=1, run_dir=tmp_path / "run", progress=False)
    curve = run.result["values"]["classifier"]["global"]["seen_accuracy"]
    assert len(curve) == 5
    assert run.metric("average_incremental_accuracy") == pytest.approx(np.mean(curve))
    with pytest.raises(ConfigurationError, match="needs to be told where tasks end"):
        clframe.plan(scenario=scenario, strategy="ewc", epochs=1)
