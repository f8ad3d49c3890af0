"""The fresh reference beside a run: the same steps, its gap in the result, its cost counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import clframe
from clframe.errors import ConfigurationError
from clframe.metrics import fresh_gap
from clframe.reference import fresh_config, steps_of
from clframe.results import metrics_of
from clframe.training.trainer import Stopped

CONFIG = {
    "scenario": {"name": "plasticity", "kind": "permuted_labels", "experiences": 3, "train_per_class": 10},
    "backbone": {"name": "mlp", "hidden": [16]},
    "epochs": 2,
    "batch_size": 16,
    "progress": False,
}


def test_the_gap_is_added_to_the_runs_result(tmp_path: Path) -> None:
    run = clframe.run(run_dir=tmp_path / "run", strategy={"name": "replay", "memory_size": 50}, **CONFIG)
    assert "fresh_gap" in run.result["absent"]
    reference = clframe.fresh_reference(run, progress=False)
    assert reference.path == tmp_path / "run" / "fresh"
    assert steps_of(reference.directory) == steps_of(run.directory) == [14, 20, 20]  # exemplars make more steps
    own, fresh = run.matrix()[1:], reference.matrix()[1:]
    again = clframe.load(run.path)
    assert again.metric("fresh_gap") == pytest.approx(np.diag(fresh) - np.diag(own))
    assert again.metric("fresh_gap") == pytest.approx(fresh_gap(own, np.diag(fresh)))
    assert again.metric("fresh_gap_mean") == pytest.approx((np.diag(fresh) - np.diag(own)).mean())
    assert metrics_of(again.directory).get("fresh_gap") == again.metric("fresh_gap")
    counters = again.result["counters"]
    assert (counters["steps"], counters["fresh_steps"]) == (54, 54)
    assert counters["fresh_train_seconds"] > 0


def test_all_but_the_method_stays_as_it_was(tmp_path: Path) -> None:
    run = clframe.run(run_dir=tmp_path / "run", strategy="ewc", seed=3, **{**CONFIG, "epochs": 1})
    chosen, given = fresh_config(run), run.config
    assert chosen["strategy"] == {"name": "fresh", "epochs": 1, "loss_over": "auto"}
    assert chosen["steps_per_experience"] == [7, 7, 7]
    changed = {key for key in given if chosen[key] != given[key]}
    assert changed == {"strategy", "steps_per_experience"}


def test_it_goes_on_where_it_was_stopped_and_is_not_repeated(tmp_path: Path) -> None:
    run = clframe.run(run_dir=tmp_path / "run", strategy="finetune", **CONFIG)
    with pytest.raises(Stopped):
        clframe.fresh_reference(run, progress=False, stop_after=9)
    assert metrics_of(run.directory).absent["fresh_gap"]
    reference = clframe.fresh_reference(run.path, progress=False)
    whole = clframe.run(run_dir=tmp_path / "whole", progress=False, **fresh_config(run))
    assert np.array_equal(reference.matrix(), whole.matrix(), equal_nan=True)
    gap = clframe.load(run.path).metric("fresh_gap")
    assert gap[0] == 0  # both begin with the same network, and see the same batches
    assert any(gap[1:])
    written = (reference.path / "result.json").stat().st_mtime_ns
    clframe.fresh_reference(run, progress=False)
    assert (reference.path / "result.json").stat().st_mtime_ns == written


def test_a_run_that_is_not_finished_or_takes_no_steps_has_none(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        clframe.run(run_dir=tmp_path / "run", strategy="finetune", stop_after=5, **CONFIG)
    with pytest.raises(ConfigurationError, match="which isn't: resume it first"):
        clframe.fresh_reference(tmp_path / "run")
    clframe.resume(tmp_path / "run", progress=False)
    events = tmp_path / "run" / "events.jsonl"
    kept = [line for line in events.read_text().splitlines() if json.loads(line)["event"] != "epoch"]
    events.write_text("\n".join(kept) + "\n")
    with pytest.raises(ConfigurationError, match="took none: choose a strategy that trains by steps"):
        clframe.fresh_reference(tmp_path / "run")
