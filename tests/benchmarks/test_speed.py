"""The speed benchmark: its bare loops train what clframe trains, its counts are right, its table says what was recorded."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clframe.data import DataRoot
from clframe.data.augment import ToInput
from clframe.models import backbone_config
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


@pytest.mark.parametrize("backbone", ["mlp", "resnet8", "resnet32"])
def test_operations_counted_by_hand_are_pytorchs(speed: ModuleType, backbone: str) -> None:
    from speed_suite.flops import forward, training
    from speed_suite.jobs import BACKBONES

    options = {k: v for k, v in BACKBONES[backbone].items() if k != "name"}
    network = backbone_config(backbone, options).build((3, 32, 32))
    with FlopCounterMode(display=False) as passed:
        features = network(torch.randn(2, 3, 32, 32))
    with FlopCounterMode(display=False) as back:
        features.sum().backward()
    assert passed.get_total_flops() == 2 * forward(backbone)
    assert passed.get_total_flops() + back.get_total_flops() == 2 * training(backbone)


@pytest.mark.parametrize("method", ["der", "foster"])
def test_clframe_needs_the_operations_of_the_equations(speed: ModuleType, method: str, shared_data: Path) -> None:
    """To one percent, with three experiences: a pass too many anywhere would cost more."""
    from speed_suite.flops import needed
    from speed_suite.jobs import Job, train_clframe

    job = Job(method, "resnet8", classes=6, experiences=3, train_per_class=12, test_per_class=4, batch=16, memory=24)
    stream = job.stream(DataRoot.resolve(shared_data))
    spent = sum(sum(m["step_flops"].values()) for m in train_clframe(job, stream, 0)["measured"])
    assert spent == pytest.approx(needed(job, stream), rel=0.01)


def test_contestants_take_turns_and_ratios_are_paired(speed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from speed_suite import timing

    calls: list[str] = []
    seconds = iter([1.0, 2.0, 10.0, 4.0, 2.0, 8.0])  # a, b, b, a, a, b

    def spends(call: Callable[[], Any]) -> tuple[dict[str, float], Any]:
        value = call()
        return dict.fromkeys(("cpu", "wall"), next(seconds)), value

    def contestant(name: str) -> Callable[[int], int]:
        return lambda number: calls.append(name) or number

    monkeypatch.setattr(timing, "timed", spends)
    found = timing.in_turn({"a": contestant("a"), "b": contestant("b")}, 3, "test")
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert found["all_cpu"] == {"a": [1.0, 4.0, 2.0], "b": [2.0, 10.0, 8.0]}
    assert found["cpu"] == {"a": 2.0, "b": 8.0}
    assert found["values"] == {"a": 2, "b": 2}
    assert timing.ratio(found, "b", "a") == 2.5


def test_targets_know_their_direction(speed: ModuleType) -> None:
    from speed_suite.timing import check

    assert check(1.03, 1.03)["met"]
    assert not check(1.04, 1.03)["met"]
    assert check(0.93, 0.92, at_most=False)["met"]
    assert not check(0.91, 0.92, at_most=False)["met"]


def test_record_and_page_are_written_part_by_part(speed: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    speed.main(["--parts", "memory", "--quick", "--out", str(out)])
    record = json.loads(out.read_text())
    part = record["parts"]["memory"]
    page = out.with_suffix(".md").read_text()
    assert part["quick"]
    assert f"reservoir of 2000 | {part['found']['reservoir']['2000']['bare']:.0f} µs |" in page
    assert "In the small form, which says nothing about speed: memory." in page
    assert "## Targets" not in page
    assert str(tmp_path) not in out.read_text() + page
    found = {"clframe --help": {"cpu": 0.04, "wall": 0.11}}
    record["parts"]["startup"] = {"quick": False, "seconds": 2.4, "load_before": 0.1, "found": found}
    out.write_text(json.dumps(record))
    speed.main(["--parts", "memory", "--quick", "--out", str(out)])
    again = json.loads(out.read_text())
    assert list(again["parts"]) == ["memory", "startup"]
    assert "| clframe --help | 0.04 s | 0.11 s |" in out.with_suffix(".md").read_text()


def test_the_pages_targets_are_the_records(speed: ModuleType) -> None:
    from speed_suite.table import page
    from speed_suite.timing import check

    both = {"bare": 2.0, "clframe": 2.1}
    job = {
        "cpu": both,
        "wall": both,
        "clframe_over_bare": 1.05,
        "targets": {"CPU time over the bare loop's": check(1.05, 1.03)},
    }
    counted = {
        **job,
        "flops": {"clframe": 110, "needed": 100},
        "targets": {"operations over those needed": check(1.1, 1.1)},
    }
    part = {
        "quick": False,
        "seconds": 61.0,
        "load_before": 0.0,
        "found": {"finetune resnet32": job, "der mlp": counted},
    }
    machine = {"processor": "Some CPU", "cores": 2, "threads": 1, "vector_instructions": "AVX2", "python": "3.11"}
    machine["packages"] = {"torch": "2"}
    text = page({"schema": 1, "machine": machine, "parts": {"training": part}})
    assert "| training, finetune resnet32 | CPU time over the bare loop's | 1.05 | ≤ 1.03 | **no** |" in text
    assert "| training, der mlp | operations over those needed | 1.1 | ≤ 1.1 | yes |" in text
    assert "| der mlp | 2.00 s | 2.10 s | 1.050 | 2.00 s | 2.10 s | 1.100 |" in text
    assert "training 61 s" in text
    assert "small form" not in text


def test_an_unknown_part_is_refused(speed: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.main(["--parts", "trainning"])
    assert "there is no part 'trainning': choose from training, avalanche" in capsys.readouterr().err


def test_memory_is_measured_in_a_process_of_its_own(speed: ModuleType, shared_data: Path) -> None:
    from speed_suite.children import apart, peak_megabytes
    from speed_suite.jobs import Job

    ballast = torch.ones(2**28)  # a gigabyte of this process, which the child must not be charged with
    found = apart("peak", "bare", json.dumps(vars(Job("finetune", "mlp", 4, 2, 4, 2))), str(shared_data))
    assert 50 < found["before"] <= found["megabytes"] < peak_megabytes() - 500
    assert peak_megabytes() > 1024
    del ballast


def test_avalanche_is_given_the_same_images(speed: ModuleType, shared_data: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("avalanche") is None:
        pytest.skip("needs avalanche-lib 0.6.0")
    from speed_suite.jobs import Job
    from speed_suite.peer import AvalancheJob

    stream = (job := Job("replay", "mlp", 6, 3, 4, 2, memory=12)).stream(DataRoot.resolve(shared_data))
    peer = AvalancheJob(job, stream, tmp_path)
    to_input = ToInput((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    for task, experience in zip(stream.tasks, peer.benchmark.test_stream, strict=True):
        ids = task.test.sort().values
        x = torch.stack([experience.dataset[k][0] for k in range(len(ids))])
        torch.testing.assert_close(x, to_input(stream.test.gather(ids)), rtol=1e-4, atol=1e-4)
        assert [experience.dataset[k][1] for k in range(len(ids))] == stream.test.targets[ids].tolist()
    assert [len(e.dataset) for e in peer.benchmark.train_stream] == [8, 8, 8]


def test_nmcs_gain_is_that_of_its_first_two_runs(benchmark_module: Callable[[str], ModuleType]) -> None:
    nmc = benchmark_module("nmc")
    row = {"method": "nmc", "order": nmc.ORDERS[0], "cold": True, "seconds": 30.0, "cpu_seconds": 20.0}
    later = {**row, "cold": False, "seconds": 0.5, "cpu_seconds": 0.2}
    other = {**later, "method": "simplecil", "cpu_seconds": 9.0}
    assert nmc.speedup([row, later, later, other]) == {"seconds": 60.0, "cpu_seconds": 100.0}
    assert nmc.speedup([later, later]) == {}
    recorded = json.loads(nmc.RESULTS.read_text())["backbones"]
    assert all(found["first_over_second_run"] == nmc.speedup(found["runs"]) for found in recorded.values())
