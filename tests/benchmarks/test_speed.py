"""The speed benchmark: its bare loops train what clframe trains, its counts are right, its table says what was recorded."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from clframe.data import DataRoot
from clframe.training.stepper import Stepper

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def speed(benchmark_module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return benchmark_module("speed")


def losses_of_clframe(
    job: Any, stream: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[float], dict[str, Any], Any]:
    """Train; returns every step's loss, the weights at the start of every phase, and the run."""
    from speed_suite.jobs import train_clframe

    losses, starts, make, step = [], {}, Stepper.__init__, Stepper.step

    def watched_make(self: Stepper, setup: Any, strategy: Any, begun: Any, *rest: Any) -> None:
        make(self, setup, strategy, begun, *rest)
        model = begun.train_modules[0] if begun.train_modules else strategy.network
        starts[f"{strategy.run.experience.index} {begun.phase.name}"] = copy.deepcopy(model.state_dict())

    def watched_step(self: Stepper, batch: Any) -> dict[str, Any]:
        found = step(self, batch)
        losses.append(float(found["total"]))
        return found

    monkeypatch.setattr(Stepper, "__init__", watched_make)
    monkeypatch.setattr(Stepper, "step", watched_step)
    return losses, starts, train_clframe(job, stream, 3)


@pytest.mark.parametrize("method", ["finetune", "replay", "ewc", "der", "foster"])
@pytest.mark.parametrize("backbone", ["mlp", "resnet8"])
def test_the_bare_loop_trains_what_clframe_trains(
    speed: ModuleType, method: str, backbone: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same weights at every phase's start, the same losses to rounding: equal work is compared."""
    from speed_suite.bare import train_bare
    from speed_suite.jobs import Job

    job = Job(
        method, backbone, classes=6, experiences=3, train_per_class=12, test_per_class=4, epochs=2, batch=16, memory=24
    )
    stream = job.stream(DataRoot.resolve(shared_data))
    losses, starts, ran = losses_of_clframe(job, stream, monkeypatch)

    def start(place: str, model: nn.Module) -> None:
        found = starts[place]
        named = [k for k in model.state_dict() if k in found]
        assert len(named) == len(model.state_dict())
        model.load_state_dict({k: found[k] for k in named})

    loop = train_bare(job, stream, 3, start)
    bare = [float(v) for v in loop.losses]
    assert bare == pytest.approx(losses, rel=2e-4)
    assert len(set(bare)) == len(bare) > 10
    assert loop.accuracy == pytest.approx(ran["final_accuracy"], abs=1 / 24 + 1e-9)
