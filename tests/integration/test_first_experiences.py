"""A part of a stream, scored on validation samples: what hyperparameters may be chosen by."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clframe
from clframe.config import resolve
from clframe.data.reader import MemoryReader
from clframe.errors import ConfigurationError
from clframe.launch.build import open_stream
from clframe.results import metrics_of, predictions_of, summary_of
from clframe.stream import Stream
from clframe.testing import TinyBackbone, synthetic_stream
from clframe.tracking.rundir import spec_hash
from clframe.training.trainer import Stopped

SMALL: dict[str, Any] = {
    "scenario": {"name": "split_digits", "classes": 6, "experiences": 3, "train_per_class": 20, "valid_per_class": 5},
    "backbone": {"name": "mlp", "hidden": [8]},
    "epochs": 2,
}


def run(where: Path, **config: Any) -> clframe.Run:
    return clframe.run(run_dir=where, progress=False, **{**SMALL, **config})


@pytest.mark.parametrize(
    "strategy", [{"name": "replay", "memory_size": 12}, {"name": "foster", "memory_size": 12}, {"name": "ewc"}]
)
def test_the_first_experiences_alone_are_those_of_the_whole_stream_bit_for_bit(
    tmp_path: Path, strategy: dict[str, Any]
) -> None:
    whole, part = run(tmp_path / "a", strategy=strategy), run(tmp_path / "b", strategy=strategy, first_experiences=2)
    assert len(part.directory.stream["experiences"]) == 2
    assert part.matrix().shape == (3, 2)
    theirs, ours = (predictions_of(r.directory) for r in (whole, part))
    assert list(theirs) == list(ours)
    for head, kept in ours.items():
        assert tuple(kept) == tuple(theirs[head])[:-1] != ()
        for i, predictions in kept.items():
            assert np.array_equal(predictions.predicted, theirs[head][i].predicted)
            assert np.array_equal(predictions.energy, theirs[head][i].energy)


def test_a_method_that_learns_at_the_end_learns_at_the_end_of_the_part(tmp_path: Path) -> None:
    part = run(tmp_path / "part", strategy="joint", first_experiences=2)
    assert [e["experience"] for e in part.events("evaluation")] == [2]
    assert {e["steps"] for e in part.events("epoch")} == {1}, "60 samples of two experiences in one batch"


def test_the_part_is_another_run_and_another_stream_and_can_be_loaded(tmp_path: Path) -> None:
    part = run(tmp_path / "part", first_experiences=2)
    records = [resolve({**SMALL, "first_experiences": n}).record for n in (None, 2, 3)]
    assert len({spec_hash(r) for r in records}) == 3
    streams = [open_stream(resolve({**SMALL, "first_experiences": n}), None, False) for n in (None, 2, 3)]
    assert streams[0].fingerprint == streams[2].fingerprint != streams[1].fingerprint
    assert summary_of(part.directory).scenario_hash == streams[1].fingerprint, "never ranked with whole streams"
    assert part.model.num_classes == 4
    assert clframe.resume(part.path).result == part.result


def test_a_part_keeps_the_rules_of_streams() -> None:
    for options in ({}, {"setting": "domain"}, {"setting": "task"}, {"score": "squared_error", "setting": "domain"}):
        whole = synthetic_stream(valid_per_class=2, forget_per_experience=2, **options)
        for count in (1, 2, 3):
            part = whole.first(count)
            part.check()
            assert [e.train.tolist() for e in part.experiences] == [e.train.tolist() for e in whole.experiences[:count]]
            assert [t.test.tolist() for t in part.tasks] == [t.test.tolist() for t in whole.tasks[:count]]
            assert all(t.available_after <= count for t in part.tasks)
    later = dataclasses.replace(whole.tasks[0], available_after=3)
    mixed = dataclasses.replace(whole, tasks=(later, *whole.tasks[1:]))
    mixed.first(2).check()
    assert [t.test.tolist() for t in mixed.first(2).tasks] == [whole.tasks[1].test.tolist()]


class _Sealed(MemoryReader):
    """Images that nobody may look at."""

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        pytest.fail("a test image was looked at")


def sealed(**options: Any) -> Stream:
    stream = synthetic_stream(**options)
    reader = stream.test.images
    assert isinstance(reader, MemoryReader)
    images = _Sealed(reader.gather(torch.arange(len(stream.test))))
    return dataclasses.replace(stream, test=dataclasses.replace(stream.test, images=images))


def test_scored_on_validation_samples_no_test_image_is_looked_at(tmp_path: Path) -> None:
    options = {"strategy": "finetune", "backbone": TinyBackbone(), "epochs": 2, "batch_size": 4, "progress": False}
    both = clframe.run(run_dir=tmp_path / "both", scenario=synthetic_stream(valid_per_class=4), **options)
    stream = sealed(valid_per_class=4)
    valid = clframe.run(run_dir=tmp_path / "valid", scenario=stream, scored_on="valid", **options)
    assert sorted(p.name for p in (valid.path / "predictions").iterdir()) == ["valid"]
    assert valid.result["stream"] == "valid"
    assert both.result["stream"] == "test"
    expected = metrics_of(both.directory, "valid")
    assert valid.report.values == expected.values != both.report.values
    assert np.array_equal(valid.matrix(), valid.matrix(), equal_nan=True)
    assert valid.metric("final_accuracy") == np.nanmean(valid.matrix()[-1])  # tasks of one size
    assert [e["experience"] for e in valid.events("evaluation")] == [1, 2, 3]
    with pytest.raises(pytest.fail.Exception, match="looked at"):
        clframe.run(run_dir=tmp_path / "test", scenario=stream, **options)


def test_a_stopped_run_of_a_part_resumes_to_the_same_end(tmp_path: Path) -> None:
    options = {"first_experiences": 2, "scored_on": "valid"}
    whole = run(tmp_path / "whole", **options)
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", stop_after=3, **options)
    resumed = clframe.resume(tmp_path / "stopped", progress=False)
    assert resumed.result["values"] == whole.result["values"]
    assert json.loads((resumed.path / "stream.json").read_text()) == whole.directory.stream


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"first_experiences": 4}, "first_experiences: expected at most the 3 experiences of the scenario 'split_digits', "
         "received 4."),
        ({"first_experiences": 0}, "first_experiences: expected int ≥ 1 experiences or None, received 0."),
        ({"scored_on": "train"}, "scored_on: expected 'test' | 'valid', received 'train'."),
        ({"scored_on": "valid", "scenario": "split_digits"}, "scored_on: expected a scenario with validation samples for "
         "valid, but 'split_digits' sets none aside: give scenario.valid_per_class, or leave scored_on at test."),
    ],
)  # fmt: skip
def test_bad_options_are_refused_before_anything_is_made(tmp_path: Path, bad: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        run(tmp_path / "run", **bad)
    assert str(caught.value) == said
    assert list(tmp_path.iterdir()) == []
