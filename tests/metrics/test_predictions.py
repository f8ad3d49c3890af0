"""Kept predictions: round trips, damage, contradictions; tasks of unusual streams."""

from __future__ import annotations

import json
import pickle
import time
import zipfile
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clframe.errors import ClframeError, ConfigurationError, DataError, RunDirectoryError
from clframe.metrics import Predictions, Tasks, load_predictions, prediction_path


def sample(n=20, seed=0, **changes):
    rng = np.random.default_rng(seed)
    columns = {
        "sample": np.arange(n),
        "task": rng.integers(0, 2, n),
        "target": rng.integers(0, 4, n),
        "predicted": rng.integers(-1, 4, n),
        "predicted_local": rng.integers(-1, 4, n),
        "predicted_upto": rng.integers(-1, 4, n),
        "confidence": rng.random(n, dtype=np.float32),
        "energy": rng.random(n, dtype=np.float32),
        "entropy": rng.random(n, dtype=np.float32),
    }
    return {name: value for name, value in {**columns, **changes}.items() if value is not None}


def test_round_trip_is_exact_and_deterministic(tmp_path):
    kept = Predictions(**sample())
    path = prediction_path(tmp_path / "predictions", "test", 7, "nme")
    kept.save(path)
    again = Predictions.load(path)
    assert again.columns().keys() == kept.columns().keys()
    for name, column in kept.columns().items():
        np.testing.assert_array_equal(again.columns()[name], column)
        assert again.columns()[name].dtype == column.dtype
    first = path.read_bytes()
    time.sleep(0.01)
    kept.save(path)
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == ["0007-nme.npz"]


def test_contract_types():
    kept = Predictions(**sample())
    types = {name: str(column.dtype) for name, column in kept.columns().items()}
    assert types == {"sample": "int64", "task": "int32", "target": "int32", "predicted": "int32",
                     "predicted_local": "int32", "predicted_upto": "int32", "confidence": "float32",
                     "energy": "float32", "entropy": "float32"}  # fmt: skip


def test_record_is_not_the_callers_array():
    target = np.zeros(20, dtype=np.int32)
    kept = Predictions(**sample(target=target))
    target[:] = 3
    assert kept.target.max() == 0
    with pytest.raises(ValueError, match="read-only"):
        kept.target[0] = 1


def test_score_instead_of_classes(tmp_path):
    columns = sample(predicted=None, predicted_local=None, predicted_upto=None, score=np.linspace(0, 1, 20))
    Predictions(**columns).save(tmp_path / "0001-h.npz")
    assert Predictions.load(tmp_path / "0001-h.npz").score.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": np.zeros(19, int)}, "'target' has 19"),
        ({"target": np.zeros(20)}, "'target' should hold int32"),
        ({"target": np.zeros((20, 1), int)}, "one dimension"),
        ({"task": np.full(20, -1)}, "at least 0"),
        ({"predicted": np.full(20, -2)}, "at least -1"),
        ({"target": np.full(20, 2**33)}, "32 bits"),
        ({"score": np.zeros(20)}, "exactly one"),
        ({"predicted": None}, "exactly one"),
        ({"sample": np.zeros(20, int)}, "occur twice"),
        ({"sample": np.array(["a"] * 20)}, "'sample' should hold int64"),
    ],
)
def test_impossible_columns_are_refused(changes, words):
    with pytest.raises(DataError, match=words):
        Predictions(**sample(**changes))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"0003-nme\.npz.*no such file"):
        Predictions.load(tmp_path / "0003-nme.npz")


def damaged(kind, good):
    if kind == "empty":
        return b""
    if kind == "cut":
        return good[: len(good) // 2]
    if kind == "text":
        return b"hello"
    if kind == "pickle":
        return pickle.dumps({"a": 1})
    middle = len(good) // 3
    return good[:middle] + bytes(b ^ 0xFF for b in good[middle : middle + 40]) + good[middle + 40 :]


@pytest.mark.parametrize("kind", ["empty", "cut", "text", "pickle", "flipped"])
def test_damaged_file_is_named(tmp_path, kind):
    path = tmp_path / "0002-classifier.npz"
    Predictions(**sample()).save(path)
    path.write_bytes(damaged(kind, path.read_bytes()))
    with pytest.raises(RunDirectoryError, match=r"0002-classifier\.npz"):
        Predictions.load(path)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_flipped_byte_never_escapes_as_another_error(tmp_path_factory, place, change):
    path = tmp_path_factory.mktemp("flip") / "0001-h.npz"
    Predictions(**sample()).save(path)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= change
    path.write_bytes(bytes(content))
    expected = nullcontext() if readable(path) else pytest.raises(RunDirectoryError, match=r"0001-h\.npz")
    with expected:
        np.testing.assert_array_equal(Predictions.load(path).target, Predictions(**sample()).target)


def readable(path):
    """Whether every byte that a zip reader checks is intact, and every column has its name."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None and {n.removesuffix(".npy") for n in archive.namelist()} == set(sample())
    except Exception:
        return False


def test_objects_and_foreign_columns_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", sample=np.array([{}], dtype=object))
    np.savez(tmp_path / "b.npz", **sample(), extra=np.zeros(20))
    np.savez(tmp_path / "c.npz", sample=np.arange(3))
    np.save(tmp_path / "d.npz.npy", np.arange(3))
    for name in ("a.npz", "b.npz", "c.npz", "d.npz.npy"):
        with pytest.raises(RunDirectoryError, match=name[0] + r"\.npz"):
            Predictions.load(tmp_path / name)


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    path = tmp_path / "0001-h.npz"
    Predictions(**sample(seed=1)).save(path)
    before = path.read_bytes()
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(RunDirectoryError, match=r"0001-h\.npz.*No space left"):
        Predictions(**sample()).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["0001-h.npz"]
    assert path.read_bytes() == before


def test_load_predictions_by_head_and_number(tmp_path):
    for i, head in [(10, "nme"), (2, "nme"), (0, "nme"), (2, "classifier")]:
        Predictions(**sample()).save(prediction_path(tmp_path, "test", i, head))
    Predictions(**sample()).save(prediction_path(tmp_path, "valid", 1, "nme"))
    (tmp_path / "test" / ".0003-nme.npz.77.tmp").write_bytes(b"half")
    (tmp_path / "test" / "notes.npz").write_bytes(b"other")
    found = load_predictions(tmp_path, "test")
    assert {head: list(rows) for head, rows in found.items()} == {"classifier": [2], "nme": [0, 2, 10]}


def test_tasks_of_a_split():
    tasks = Tasks.split([2, 3, 1])
    assert tasks.learned == (1, 2, 3)
    assert tasks.tasks_seen(0) == ()
    assert tasks.tasks_seen(2) == (0, 1)
    assert list(tasks.new_classes(2)) == [2, 3, 4]
    assert (tasks.num_tasks, tasks.num_experiences, tasks.num_classes) == (3, 3, 6)


def test_tasks_of_a_blurry_stream():
    tasks = Tasks(classes=((0, 3), (1, 2), ()), seen=(0, 2, 2, 4, 4), task_ends=(2, 4, 5), evaluation_interval=100)
    assert tasks.learned == (4, 4, 6)
    assert tasks.tasks_seen(2) == ()
    assert tasks.tasks_seen(2, partly=True) == (0, 1)
    assert tasks.tasks_seen(5) == (0, 1)
    assert list(tasks.new_classes(3)) == []
    assert [tasks.first_seen(c) for c in range(5)] == [2, 2, 4, 4, 6]


def test_tasks_of_a_domain_incremental_stream():
    tasks = Tasks(classes=((0, 1),) * 3, seen=(2, 2, 2), introduced=(1, 2, 3))
    assert tasks.tasks_seen(2) == tasks.tasks_seen(2, partly=True) == (0, 1)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.booleans())
def test_tasks_json_round_trip(sizes, extended):
    tasks = Tasks.split(sizes)
    if extended:
        n = len(sizes)
        tasks = Tasks(tasks.classes, tasks.seen, introduced=(1,) * n, task_ends=(n,), evaluation_interval=10)
    assert Tasks.from_dict(json.loads(json.dumps(tasks.to_dict()))) == tasks


@pytest.mark.parametrize(
    "bad",
    [
        {"classes": (), "seen": (1,)},
        {"classes": ((0,),), "seen": ()},
        {"classes": ((0, 0),), "seen": (1,)},
        {"classes": ((-1,),), "seen": (1,)},
        {"classes": ((0,),), "seen": (2, 1)},
        {"classes": ((0,),), "seen": (1,), "introduced": (1, 2)},
        {"classes": ((0,),), "seen": (1,), "introduced": (0,)},
        {"classes": ((0,),), "seen": (1, 1), "task_ends": (1,)},
        {"classes": ((0,),), "seen": (1, 1), "task_ends": (2, 2)},
    ],
)
def test_contradicting_tasks_are_refused(bad):
    with pytest.raises(ConfigurationError, match=r"correct it|give both"):
        Tasks(**bad)


@pytest.mark.parametrize(
    "bad", [{}, {"classes": [[0]]}, {"classes": [[0]], "seen": [1], "more": 1}, {"classes": 3, "seen": [1]}]
)
def test_unreadable_tasks(bad):
    with pytest.raises((DataError, ClframeError), match="tasks of a stream"):
        Tasks.from_dict(bad)
