"""Cutting a source into a stream: partitions, sizes, orders, limits, refusals."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clframe.config import resolve
from clframe.data import DataRoot
from clframe.errors import ConfigurationError
from clframe.scenarios import _parts as module
from clframe.scenarios.split import Split, SplitCIFAR100, SplitDigits, SplitSVHN
from clframe.spec import build

FIXTURE_OK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

SEED_1993 = """
68 56 78  8 23 84 90 65 74 76 40 89  3 92 55  9 26 80 43 38 58 70 77  1 85
19 17 50 28 53 13 81 45 82  6 59 83 16 15 44 91 41 72 60 79 52 20 10 31 54
37 95 14 71 96 98 97  2 64 66 42 22 35 86 24 34 87 21 99  0 88 27 18 94 11
12 47 25 30 46 62 69 36 61  7 63 75  5 32  4 51 48 73 93 39 67 29 49 57 33
"""


def cut(data, **options):
    return build(Split, {"source": "numbers", **options}, "scenario").cut(data)


def sizes(stream) -> list[int]:
    return [len(e.classes) for e in stream.experiences]


# ---- what is in a stream


def rows_of(labels: torch.Tensor, wanted, limit: int | None) -> list[int]:
    """By a plain loop: the rows of some source labels, at most the first so many of each."""
    found, taken = [], dict.fromkeys(wanted, 0)
    for row, label in enumerate(labels.tolist()):
        if label in taken and (limit is None or taken[label] < limit):
            taken[label] += 1
            found.append(row)
    return found


@FIXTURE_OK
@given(data=st.data(), setting=st.sampled_from(["class", "task", "domain"]), valid=st.integers(0, 2))
def test_a_split_is_an_exact_partition(source, data, setting, valid):
    classes = data.draw(st.integers(1, 12))
    used = data.draw(st.permutations(range(classes)))[: data.draw(st.integers(1, classes))]
    number = data.draw(st.sampled_from([n for n in range(1, len(used) + 1) if len(used) % n == 0]))
    train_limit, test_limit = (data.draw(st.sampled_from([None, 3, 5])) for _ in range(2))
    images = source(classes)
    stream = cut(images, experiences=number, classes=sorted(used), order=list(used), setting=setting, train_per_class=train_limit,
                 test_per_class=test_limit, valid_per_class=valid)  # fmt: skip
    width = len(used) // number
    assert stream.class_order == tuple(used)
    for i, (e, t) in enumerate(zip(stream.experiences, stream.tasks, strict=True)):
        group = used[i * width : (i + 1) * width]
        assert sorted(e.train.tolist() + e.valid.tolist()) == rows_of(images.train.targets, group, train_limit)
        assert t.test.tolist() == rows_of(images.test.targets, group, test_limit)
        assert torch.equal(t.valid, e.valid)
        shown = range(width) if setting == "domain" else range(i * width, (i + 1) * width)
        assert e.classes == t.classes == tuple(shown)
        assert e.new_classes == (tuple(shown) if setting != "domain" or i == 0 else ())
        assert e.num_seen_classes == (width if setting == "domain" else (i + 1) * width)
        assert (e.index, e.is_last, t.available_after) == (i, i == number - 1, i + 1)
        assert e.task_id == t.task_id == (i if setting == "task" else None)
        for table, ids, split in ((stream.train, e.train, images.train), (stream.test, t.test, images.test)):
            labels = [group.index(label) for label in split.targets[ids].tolist()]
            assert table.targets[ids].tolist() == [c if setting == "domain" else c + i * width for c in labels]
            assert table.task_ids is None if setting != "task" else (table.task_ids[ids] == i).all()
            assert torch.equal(table.gather(ids)[:, 0].long(), ids)  # the pixels are those of the row
        held = torch.bincount(stream.train.targets[e.valid], minlength=1)
        assert set(held[held > 0].tolist()) <= {valid}
        assert len(e.valid) == valid * width


def test_class_names_follow_the_order_and_domains_join_theirs(source):
    order = [3, 1, 0, 2]
    assert cut(source(4), experiences=2, order=order).class_names == ("c3", "c1", "c0", "c2")
    assert cut(source(4), experiences=2, order=order, setting="domain").class_names == ("c3/c0", "c1/c2")


def test_a_class_without_samples_is_no_obstacle(numbers):
    stream = cut(numbers([0, 0, 2], [0, 1], 3), experiences=3)
    assert [len(e.train) for e in stream.experiences] == [2, 0, 1]
    assert [len(t.test) for t in stream.tasks] == [1, 1, 0]


def test_classes_are_chosen_and_left_out_by_label_or_name(source):
    assert cut(source(), experiences=1, classes=["c7", 2, "4"]).class_order == (7, 2, 4)
    assert cut(source(), experiences=1, classes=6, exclude=["c1", 4, "5"]).class_names == ("c0", "c2", "c3")
    assert cut(source(), experiences=1, exclude="[c1,9]", classes="1,3,9").class_order == (3,)
    whole, part = (cut(source(), experiences=1, order="seed:3", exclude=e) for e in ([], ["c2"]))
    assert set(whole.class_order) - set(part.class_order) == {2}
    assert torch.equal(part.train.targets == -1, source().train.targets == 2)
    assert len(part.experiences[0].train) == 54


def test_a_list_in_a_file_becomes_part_of_the_record(source, tmp_path):
    file = tmp_path / "left out.txt"
    file.write_text("# shared\n\nc3   # a comment\n  c5\n7\n")
    given = build(Split, {"source": "digits", "experiences": 1, "exclude": str(file)}, "scenario")
    assert given.settled().exclude == ["c3", "c5", "7"]
    assert given.cut(source()).class_order == (0, 1, 2, 4, 6, 8, 9)
    record = resolve({"scenario": given}).record["scenario"]
    assert record["exclude"] == ["c3", "c5", "7"]
    file.write_text("# nothing\n")
    with pytest.raises(ConfigurationError, match=r"expected at least one class in .*left out\.txt"):
        given.settled()
    assert resolve({"scenario": record}).record["scenario"] == record


# ---- sizes


@pytest.mark.parametrize(
    ("options", "classes", "expected"),
    [
        ({"experiences": 10}, 100, [10] * 10),
        ({"experiences": 1}, 7, [7]),
        ({"experiences": 6, "base": 50}, 100, [50] + [10] * 5),
        ({"experiences": 11, "base": 50}, 100, [50] + [5] * 10),
        ({"experiences": 1, "base": 4}, 4, [4]),
        ({"increment": 10}, 100, [10] * 10),
        ({"increment": 30}, 100, [30, 30, 30, 10]),
        ({"increment": 10, "base": 50}, 100, [50] + [10] * 5),
        ({"increment": 15, "base": 50}, 100, [50, 15, 15, 15, 5]),
        ({"increment": 500}, 7, [7]),
        ({"increment": 2, "base": 7}, 7, [7]),
        ({"sizes": [1, 4, 2]}, 7, [1, 4, 2]),
        ({"sizes": "4,3"}, 7, [4, 3]),
    ],
)
def test_every_rule_of_sizes(source, options, classes, expected):
    assert sizes(cut(source(classes, 1, 1), **options)) == expected


@FIXTURE_OK
@given(classes=st.integers(1, 40), number=st.integers(1, 45), base=st.none() | st.integers(1, 42))
def test_a_number_of_experiences_divides_exactly_or_the_refusal_names_sizes_that_work(source, classes, number, base):
    data = source(classes, 1, 1)
    try:
        found = sizes(cut(data, experiences=number, base=base))
    except ConfigurationError as error:
        text = str(error)
        assert len(text.splitlines()) == 1
        if "--scenario.sizes" in text:
            suggested = text.split("--scenario.sizes ")[1].split(", or")[0]
            offered = sizes(cut(data, sizes=suggested))
            assert len(offered) == number
            assert sum(offered) == classes
            assert base is None or offered[0] == base
            rest = offered[base is not None :]
            assert max(rest) - min(rest) == 1
        else:
            assert number - (base is not None) > classes - (base or 0) or number == 1 or (base or 0) > classes
    else:
        rest = found[base is not None :]
        assert len(found) == number
        assert sum(found) == classes
        assert len(set(rest)) <= 1


def test_a_scenarios_own_number_gives_way_to_another_rule():
    root = DataRoot.resolve()
    assert sizes(SplitDigits().build(root)) == [2] * 5
    assert sizes(SplitDigits(increment=4).build(root)) == [4, 4, 2]
    assert sizes(SplitDigits(sizes=[7, 3]).build(root)) == [7, 3]
    assert sizes(SplitDigits(experiences=2).build(root)) == [5, 5]


# ---- orders


def test_the_literatures_order_is_the_golden_one(source):
    golden = tuple(int(n) for n in SEED_1993.split())
    assert cut(source(100, 1, 1), experiences=10, order="seed:1993").class_order == golden
    assert SplitCIFAR100(source="x").cut(source(100, 1, 1)).class_order == golden


@pytest.mark.parametrize("seed", [0, 1993, 1996, 2**32 - 1])
def test_a_seeded_order_is_numpys_legacy_permutation_and_leaves_its_generator_alone(source, seed):
    np.random.seed(seed)
    expected = np.random.permutation(30).tolist()
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    stream = cut(source(30, 1, 1), experiences=3, order=f"seed:{seed}")
    assert list(stream.class_order) == expected
    assert (np.random.get_state()[1] == before).all()


def test_a_seeded_order_of_a_choice_permutes_the_choice(source):
    stream = cut(source(100, 1, 1), experiences=5, classes=25, order="seed:1993")
    assert stream.class_order[:4] == (13, 22, 8, 6)
    chosen = cut(source(100, 1, 1), experiences=5, classes=list(range(50, 75)), order="seed:1993")
    assert chosen.class_order == tuple(50 + c for c in stream.class_order)
    assert cut(source(9), experiences=3, classes=[7, 2, 5]).class_order == (7, 2, 5)


# ---- validation


def test_validation_samples_are_the_same_whatever_the_order_and_disjoint_from_training(source):
    def held_out(**options) -> set[int]:
        stream = cut(source(10, 8), valid_per_class=3, **options)
        train = {i for e in stream.experiences for i in e.train.tolist()}
        valid = {i for e in stream.experiences for i in e.valid.tolist()}
        assert not train & valid
        assert len(train) == 50
        assert len(valid) == 30
        return valid

    usual = held_out(experiences=5)
    torch.manual_seed(7)
    for options in ({"experiences": 5}, {"experiences": 2}, {"experiences": 5, "order": "seed:1993"}, {"increment": 3}):
        assert held_out(**options) == usual
    few = cut(source(10, 8), experiences=1, classes=[4], valid_per_class=3).experiences[0].valid.tolist()
    assert set(few) == usual & set(np.flatnonzero(source(10, 8).train.targets == 4).tolist())


def test_validation_is_drawn_at_random_and_the_rest_stays(source):
    stream = cut(source(4, 200), experiences=2, valid_per_class=50)
    data = source(4, 200)
    own = np.flatnonzero(data.train.targets == 0)
    positions = np.searchsorted(own, [i for i in stream.experiences[0].valid.tolist() if data.train.targets[i] == 0])
    assert 60 < positions.mean() < 140


# ---- refusals


BAD = [
    ({}, "expected one of experiences, increment or sizes, received none"),
    ({"experiences": 5, "increment": 2}, "received experiences and increment"),
    (
        {"experiences": 3},
        "10 classes don't divide into 3 experiences; give a list of sizes.*--scenario.sizes 4,3,3, or an increment",
    ),
    ({"experiences": 4, "base": 5}, "5 classes don't divide into 3 experiences.*--scenario.sizes 5,2,2,1"),
    ({"experiences": 11}, "expected 1 to 10 experiences for 10 classes, received 11"),
    ({"experiences": 1, "base": 4}, "expected 2 to 7 experiences for 10 classes after a base of 4, received 1"),
    ({"experiences": 3, "base": 10}, "expected 1 to 1 experiences for 10 classes after a base of 10, received 3"),
    ({"experiences": 2, "base": 11}, "scenario.base: expected at most the 10 classes, received 11"),
    ({"increment": 2, "base": 11}, "scenario.base: expected at most the 10 classes, received 11"),
    ({"sizes": [5, 4]}, r"add up to the 10 classes, and no base, received \[5, 4\]"),
    ({"sizes": [5, 5], "base": 5}, r"received \[5, 5\] and base 5"),
    ({"sizes": []}, r"add up to the 10 classes, and no base, received \[\]"),
    ({"sizes": [11, -1]}, r"scenario.sizes: expected list\[int\].*≥ 1 classes.*received \[11, -1\]"),
    ({"experiences": 0}, "scenario.experiences: expected int ≥ 1.*received 0"),
    ({"experiences": 5, "order": "random"}, "scenario.order: expected natural, seed:N .*received 'random'"),
    ({"experiences": 5, "order": "seed:-1"}, "received 'seed:-1'"),
    ({"experiences": 5, "order": "seed:²"}, "received 'seed:²'"),
    ({"experiences": 5, "order": f"seed:{2**32}"}, f"up to {2**32 - 1}.*received 'seed:{2**32}'"),
    ({"experiences": 5, "order": [0, 1, 2]}, "scenario.order: expected each of the 10 labels once"),
    ({"experiences": 5, "classes": 11}, "scenario.classes: expected 1 to 10 classes, received 11"),
    ({"experiences": 5, "classes": 10**12}, "expected 1 to 10 classes"),
    ({"experiences": 5, "classes": 0}, "expected 1 to 10 classes, received 0"),
    ({"experiences": 5, "classes": [1, 1]}, r"at least one label, all different and in 0..9, received \[1, 1\]"),
    ({"experiences": 5, "classes": [9, 10]}, r"labels in 0..9, received 10"),
    ({"experiences": 5, "classes": ["c1", "cc2"]}, r"scenario.classes: .*received 'cc2'.*Did you mean 'c2'"),
    ({"experiences": 5, "exclude": ["c11"]}, r"scenario.exclude: expected names of classes .*received 'c11'"),
    ({"experiences": 5, "exclude": "nowhere.txt"}, "nowhere.txt can't be read"),
    ({"experiences": 1, "classes": 2, "exclude": [1, 0]}, "expected to leave some of the 2 classes"),
    ({"experiences": 5, "classes": []}, r"at least one label.*received \[\]"),
    (
        {"experiences": 5, "valid_per_class": 6},
        "expected fewer than the 6 training samples of the class 'c0', received 6",
    ),
    ({"sizes": [6, 4], "setting": "domain"}, r"equal size, received \[6, 4\]"),
    ({"experiences": 5, "setting": "classes"}, "scenario.setting: expected 'class' | 'task' | 'domain'"),
    ({"experiences": 5, "experience": 4}, "experience is not an option of Split. Did you mean 'experiences'?"),
]


@pytest.mark.parametrize(("options", "said"), BAD)
def test_bad_parameters_get_one_clear_sentence(source, options, said):
    with pytest.raises(ConfigurationError, match=said.replace(" | ", r" \| ")) as error:
        cut(source(10, 6), **options)
    assert len(str(error.value).splitlines()) == 1


# ---- what is stated, and what it costs


def test_digits_are_never_mirrored(source, monkeypatch):
    assert SplitSVHN().cut(source(10)).augmentation == ("random_crop",)
    assert SplitCIFAR100(experiences=5).cut(source(10)).augmentation == "standard"

    class Gentle(Split):
        """States its own."""

        augmentation = [{"name": "random_crop", "padding": 2}]  # noqa: RUF012 - as a user would write it

    assert Gentle(source="x", experiences=5).cut(source(10)).augmentation == [{"name": "random_crop", "padding": 2}]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("digits", "split_digits"),
        ("/data/my.set/birds.tar.gz", "split_birds"),
        ("here/own.py:Birds", "split_Birds"),
        ("birds/", "split_birds"),
    ],
)
def test_a_stream_is_called_after_its_source(given, name):
    assert Split(source=given).name == name


def test_a_thousand_experiences(source):
    stream = cut(source(1000, 4, 2), experiences=1000, setting="task", valid_per_class=1)
    assert len(stream.experiences) == len(stream.tasks) == 1000
    assert all(len(e.train) == 3 and len(t.test) == 2 for e, t in zip(stream.experiences, stream.tasks, strict=True))
    assert stream.train.task_ids.tolist() == stream.train.targets.tolist()


def test_a_million_labels_take_seconds_and_memory_of_the_order_of_the_labels(numbers):
    labels = np.random.default_rng(0).integers(0, 1000, 1_000_000)
    data = numbers(labels, labels[:50_000], 1000)
    tracemalloc.start()
    started = time.process_time()
    stream = cut(data, experiences=100, order="seed:1993", valid_per_class=5)
    spent, (_, python_peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent < 10
    assert python_peak < 80e6
    kept = [
        stream.train.targets,
        stream.test.targets,
        *(e.train for e in stream.experiences),
        *(e.valid for e in stream.experiences),
    ]
    assert sum(t.numel() * t.element_size() for t in kept) < 2.2 * 8 * 1_050_000
    assert sum(t.untyped_storage().nbytes() for t in kept) < 2.2 * 8 * 1_050_000  # no view holds on to something larger
    assert sum(len(e.train) + len(e.valid) for e in stream.experiences) == 1_000_000


def test_the_module_needs_a_source_only_when_it_builds(monkeypatch):
    monkeypatch.setattr(module, "find_source", lambda *a, **k: pytest.fail("opened on construction"))
    Split(source="nowhere", experiences=3)
