"""Trackers watch: whatever they do, the run's result is the same bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clframe
from clframe.tracking.progress import Progress
from clframe.tracking.rundir import Tracker

Tree = Callable[[Path], dict[str, Any]]
CONFIG: dict[str, Any] = {
    "scenario": {"name": "split_digits", "classes": 4, "experiences": 2, "train_per_class": 40},
    "strategy": {"name": "replay", "memory_size": 8, "epochs": 2},
    "backbone": {"name": "mlp", "hidden": [8], "dropout": 0.2},
    "measure": "none",  # seconds and memory are never twice the same
}


class Watcher(Tracker):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.closed = 0

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        self.seen.append((kind, dict(values)))

    def close(self) -> None:
        self.closed += 1


class Meddler(Watcher):
    """Draws random numbers and changes what it is given."""

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        torch.rand(3)
        random.seed(1)
        np.random.seed(1)
        for value in values.values():
            if isinstance(value, (dict, list)):
                value.clear()
        if isinstance(values, dict):
            values.clear()


class Raiser(Watcher):
    """Fails at one kind of event, or when it is closed."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        super().event(kind, values)
        if kind == self.at:
            raise OSError("no network")

    def close(self) -> None:
        super().close()
        if self.at == "close":
            raise OSError("no network")


def run(path: Path, *trackers: Tracker) -> clframe.Run:
    return clframe.run(run_dir=path, track=list(trackers), progress=False, **CONFIG)


def outcome(directory: Path) -> dict[str, Any]:
    """What a run gives: every number but times."""
    result = json.loads((directory / "result.json").read_text())
    result["counters"].pop("train_seconds")
    kept = {p.name: p.read_bytes() for p in sorted((directory / "predictions").rglob("*.npz"))}
    weights = (directory / "checkpoints" / "model.safetensors").read_bytes()
    untimed = [
        {k: v for k, v in e.items() if k not in ("time", "train_seconds")} for e in clframe.load(directory).events()
    ]
    return {"result": result, "kept": kept, "weights": weights, "events": untimed}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("reference") / "run"
    run(path)
    return outcome(path)


def test_a_tracker_is_told_what_the_log_holds(tmp_path: Path, reference: dict[str, Any]) -> None:
    watcher = Watcher()
    run(tmp_path / "run", watcher)
    told = [(kind, v) for kind, v in watcher.seen if kind != "steps"]
    logged = clframe.load(tmp_path / "run").events()
    assert [k for k, _ in told] == [e["event"] for e in logged]
    assert all({**e, **v} == e for (_, v), e in zip(told, logged, strict=True))
    assert watcher.closed == 1
    assert outcome(tmp_path / "run") == reference
    steps = sum(v["steps"] for kind, v in watcher.seen if kind == "steps")
    assert steps == reference["result"]["counters"]["steps"]


def test_a_tracker_can_change_nothing(tmp_path: Path, reference: dict[str, Any]) -> None:
    behind = Watcher()
    run(tmp_path / "run", Meddler(), behind)
    assert outcome(tmp_path / "run") == reference
    assert all(values for _, values in behind.seen), "what one tracker clears another still gets"


@pytest.mark.parametrize("at", ["run", "experience", "epoch", "evaluation", "finished", "close"])
def test_a_tracker_that_raises_is_dropped_with_a_warning(tmp_path: Path, reference: dict[str, Any], at: str) -> None:
    raiser, behind = Raiser(at), Watcher()
    with pytest.warns(
        UserWarning, match=r"The tracker Raiser failed \(OSError: no network\) and is dropped; the run goes on"
    ):
        run(tmp_path / "run", raiser, behind)
    assert outcome(tmp_path / "run") == reference
    if at != "close":
        assert [kind for kind, _ in raiser.seen].count(at) == 1, "it isn't asked again"
    assert behind.seen[-1][0] == "finished"
    assert behind.closed == 1


def test_progress_draws_a_bar_or_plain_lines(
    tmp_path: Path, reference: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "live", Progress(live=True))
    assert "experience 1/2" in capsys.readouterr().err
    assert outcome(tmp_path / "live") == reference
    run(tmp_path / "plain", Progress(live=False))
    lines = capsys.readouterr().err.splitlines()
    final = reference["result"]["values"]["classifier"]["global"]["final_accuracy"]
    assert len(lines) == 2
    assert lines[1].startswith(f"experience 2/2: classifier {100 * final:.2f} %, nme ")


def test_a_run_stopped_by_a_tracker_of_its_own_choosing_goes_on(tmp_path: Path, reference: dict[str, Any]) -> None:
    class Interrupt(Tracker):
        def event(self, kind: str, values: Mapping[str, Any]) -> None:
            if kind == "evaluation":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", Interrupt())
    clframe.resume(tmp_path / "run", progress=False)
    found = outcome(tmp_path / "run")
    assert {k: found[k] for k in ("result", "kept", "weights")} == {
        k: reference[k] for k in ("result", "kept", "weights")
    }
