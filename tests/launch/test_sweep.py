"""Sweeps: every combination once, a process each, what is done is skipped, what failed stops nothing."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import clframe
from clframe.api import sweep
from clframe.cli import main
from clframe.config import resolve
from clframe.errors import ConfigurationError, DataError
from clframe.launch.executors import local
from clframe.launch.sweep import Sweep, SweepRun
from clframe.strategies.finetune import Finetune
from clframe.tracking.rundir import run_name
from clframe.training.trainer import Stopped
from tests.fakes import hear_interrupts

BASE: dict[str, Any] = {
    "scenario": {"name": "split_digits", "classes": 4, "experiences": 2, "train_per_class": 20},
    "backbone": {"name": "mlp", "hidden": [8]},
    "epochs": 1,
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan(**more: Any) -> dict[str, Any]:
    return {"out": "out", "base": BASE, **more}


def finish(run: SweepRun) -> None:
    clframe.run(run_dir=run.directory, progress=False, **run.record)


# -- what a plan means -----------------------------------------------------------------------------------------------------


def test_every_combination_once_with_seeds_fastest() -> None:
    made = Sweep.from_plan(
        plan(
            strategies=["finetune", {"name": "replay", "memory-size": 8}],
            backbones=["mlp", {"name": "mlp", "hidden": [4]}],
            seeds=[0, 1],
            grid={"optimizer.lr": [0.1, 0.01], "batch-size": [16]},
            processes=3,
        )
    )
    chosen = [
        (r.record["strategy"]["name"], r.record["backbone"]["hidden"], r.record["optimizer"]["lr"], r.record["seed"])
        for r in made.runs
    ]
    expected = [
        (s, h, lr, seed)
        for s in ("finetune", "replay")
        for h in ([400, 400], [4])
        for lr in (0.1, 0.01)
        for seed in (0, 1)
    ]
    # A backbone named again without options keeps those of the base.
    assert chosen == [(s, [8] if h == [400, 400] else h, lr, seed) for s, h, lr, seed in expected]
    assert all(r.record["batch_size"] == 16 for r in made.runs)
    assert len({r.directory for r in made.runs}) == len(made.runs)
    assert made.plan.processes == 3


def test_a_plan_without_axes_is_one_run() -> None:
    (run,) = Sweep.from_plan(plan()).runs
    assert run.record == resolve(BASE).record
    assert re.fullmatch(r"out/split_digits-finetune-0-[0-9a-f]{8}", str(run.directory))


def test_configurations_of_ones_own_are_done_in_their_own_directories(tmp_path: Path) -> None:
    records = [resolve({**BASE, "seed": seed, "epochs": seed + 1}).record for seed in (0, 1)]
    made = Sweep.of_configs(records, tmp_path / "own", 1)
    assert [r.directory for r in made.runs] == [tmp_path / "own" / run_name(r) for r in records]
    assert [r.record for r in made.runs] == records
    assert made.run() == 0
    stamps = [(r.directory / "result.json").stat().st_mtime_ns for r in made.runs]
    assert Sweep.of_configs(records, tmp_path / "own", 1).run() == 0
    assert [(r.directory / "result.json").stat().st_mtime_ns for r in made.runs] == stamps


def test_a_run_that_stands_twice_is_done_once() -> None:
    assert len(Sweep.from_plan(plan(seeds=[0, 0], strategies=["finetune", {"name": "finetune"}])).runs) == 1


def test_the_plan_is_left_as_it_was() -> None:
    given = plan(strategies=["ewc"], grid={"strategy.strength": [1, 2]})
    before = json.dumps(given)
    Sweep.from_plan(given)
    assert json.dumps(given) == before


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"strateges": ["ewc"]}, ["strateges is not an option of a sweep. Did you mean 'strategies'?"]),
        ({"out": None, "seeds": 3}, [
            "out must be given: the folder for the runs.", "seeds: expected a list of at least one, received 3: write [3]."]),
        ({"grid": {"seed": 3}, "processes": 0}, [
            "grid.seed: expected a list of values, received 3: write [3].", "processes: expected int ≥ 1, received 0."]),
        ({"threads": 0, "executor": "slrum"}, [
            "threads: expected int ≥ 1, received 0.",
            "executor: expected one of local, slurm, print, received 'slrum'. Did you mean 'slurm'?"]),
        ({"executor": {"name": "slurm", "partion": "gpu", "minutes": 0}}, [
            "executor.partion is not an option of Slurm. Did you mean 'partition'?",
            "executor.minutes: expected int ≥ 2 minutes, received 0."]),
        ({"executor": {"partition": "gpu"}}, [
            "executor: expected one of local, slurm, print, received {'partition': 'gpu'}."]),
        ({"executor": 3}, ["executor: expected one of local, slurm, print, received 3."]),
        ({"base": [1]}, ["base: expected a mapping, received [1]: write it as name: value."]),
        (
            {"strategies": ["ewc", "replai", {"name": "replay", "memory_sise": 3}], "seeds": [0, 1]},
            [
                "There is no strategy named 'replai'. Did you mean 'replay'?",
                "strategy.memory_sise is not an option of Replay. Did you mean 'memory_size'?",
            ],
        ),
        (
            {"grid": {"optimizer.lr": [0.1, -1, "x"]}},
            ["optimizer.lr: expected float > 0, received -1.", "optimizer.lr: expected float > 0, received 'x'."],
        ),
        ({"strategies": [3]}, ["strategy: expected a name, a mapping with a name and options, or an object, received int."]),
    ],
)  # fmt: skip
def test_all_problems_of_a_plan_at_once(bad: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Sweep.from_plan(plan(**bad))
    assert str(caught.value).split("\n") == said


def test_what_only_the_data_shows_is_found_before_the_first_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_start", lambda *_: pytest.fail("a run was started"))
    scenarios = [{"name": "split_digits", "experiences": 3}, {"name": "split_digits", "experiences": 4}]
    with pytest.raises(ConfigurationError) as caught:
        sweep({"out": "out", "scenarios": scenarios, "seeds": [0, 1]})
    assert [line[:50] for line in str(caught.value).split("\n")] == [
        "scenario.experiences: 10 classes don't divide into"
    ] * 2
    with pytest.raises(DataError):
        sweep({"out": "out", "scenarios": ["split_svhn"]})
    assert list(tmp_path.iterdir()) == []


# -- plans in Python -------------------------------------------------------------------------------------------------------


def test_a_python_file_gives_a_plan_or_a_function_and_its_own_classes_can_be_used(tmp_path: Path) -> None:
    text = f"""
from clframe.strategies.ewc import EWC
from clframe.strategies.finetune import Finetune

class Mine(Finetune):
    pass

def plan():
    return {{"out": "out", "base": {BASE!r}, "strategies": ("finetune", EWC(strength=3.0), Mine()), "seeds": range(5, 6)}}
"""
    (tmp_path / "plan.py").write_text(text)
    plain, ewc, mine = Sweep.read("plan.py").runs
    assert plain.record["strategy"]["name"] == "finetune"
    assert (ewc.record["strategy"]["name"], ewc.record["strategy"]["strength"]) == ("ewc", 3.0)
    assert mine.record["strategy"]["name"] == f"{tmp_path / 'plan.py'}:Mine"
    assert [r.record["seed"] for r in (plain, ewc, mine)] == [5, 5, 5]
    (tmp_path / "mapping.py").write_text(text + "plan = {**plan(), 'strategies': [Mine()]}\n")
    (mine,) = clframe.sweep("mapping.py").runs
    assert mine.state == "finished"
    assert sorted(p.name for p in (mine.directory / "source").iterdir()) == ["mapping.py"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "a.py has nothing named 'plan'."),
        ("plan = [1]", "Expected plan in a.py to be a mapping of a sweep's options, or a function that returns one, received list."),
        ("def plan(): raise OSError('no data')", "The function plan of a.py failed (OSError: no data): correct it there."),
        ("def plan(", "Importing a.py failed (SyntaxError: "),
    ],
)  # fmt: skip
def test_a_python_file_without_a_plan_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        Sweep.read("a.py")
    assert str(caught.value).startswith(said)
    with pytest.raises(ConfigurationError, match=r"There is no file none\.py"):
        Sweep.read("none.py")


def test_an_object_that_no_other_process_finds_is_refused() -> None:
    class Hidden(Finetune):
        pass

    for axis, given, name in (("strategies", Hidden(), "Hidden"), ("backbones", torch.nn.Linear(64, 4), "Linear")):
        with pytest.raises(ConfigurationError) as caught:
            Sweep.from_plan(plan(**{axis: [given]}))
        assert re.fullmatch(
            rf"The \w+ '.*{name}' of a sweep must be known by name to the processes that do its runs: put its class into a "
            r"file, and give it as path/to/file.py:Name.",
            str(caught.value),
        )


# -- states ----------------------------------------------------------------------------------------------------------------


def test_states_and_table() -> None:
    made = Sweep.from_plan(plan(seeds=[0, 1, 2, 3]))
    first, second, third, fourth = made.runs
    finish(first)
    finish(second)
    (second.directory / "result.json").unlink()
    third.log.write_text("a warning\nclframe: out of luck\n")
    assert [r.state for r in made.runs] == ["finished", "unfinished", "failed", "missing"]
    table = made.table()
    column = [c.title for c in table.heads].index("final score")
    score = clframe.load(first.directory).metric("final_accuracy")
    assert [row[column] for row in table.rows] == [f"{100 * score:.2f} %", None, None, None]
    assert list(table.notes) == [f"{third.name}: out of luck (see {third.log})"]
    assert fourth.headline is None


# -- running -----------------------------------------------------------------------------------------------------------------


def test_from_the_command_line_finished_runs_are_skipped_unfinished_resumed_and_failures_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = plan(seeds=[0, 1], strategies=["finetune"], grid={"optimizer.lr": [0.1, 1e30]}, processes=2)
    given["base"] = {**BASE, "epochs": 4}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(given))
    done, half, bad, worse = Sweep.read("plan.yaml").runs
    assert [r.record["optimizer"]["lr"] for r in (done, half, bad, worse)] == [0.1, 0.1, 1e30, 1e30]
    finish(done)
    reference = clframe.run(run_dir="reference", progress=False, **half.record).result
    with pytest.raises(Stopped):
        clframe.run(run_dir=half.directory, progress=False, stop_after=2, **half.record)
    stamp = (done.directory / "result.json").stat().st_mtime_ns

    assert main(["sweep", "plan.yaml", "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert [len(re.findall(rf"\b{s}\b", listed)) for s in ("finished", "unfinished", "missing", "failed")] == [
        1,
        1,
        2,
        0,
    ]

    assert main(["sweep", "plan.yaml"]) == 1
    said = capsys.readouterr()
    assert [r.state for r in (done, half, bad, worse)] == ["finished", "finished", "failed", "failed"]
    assert (done.directory / "result.json").stat().st_mtime_ns == stamp
    resumed = json.loads((half.directory / "result.json").read_text())
    assert resumed["values"] == reference["values"]
    assert yaml.safe_load((half.directory / "config.yaml").read_text()) == half.record
    assert any(e["event"] == "run" and e["resumed"] for e in clframe.load(half.directory).events())
    assert "became infinite or NaN" in bad.log.read_text()
    lines = said.err.splitlines()
    assert sorted(line.split(" ")[0] for line in lines) == ["1/3", "2/3", "3/3"]
    assert sum("failed: Weights became" in line and str(bad.log.name)[:20] in line for line in lines) == 2
    assert "\x1b" not in said.out + said.err
    assert sorted(p.name for p in Path("out").iterdir()) == sorted(
        [
            done.name,
            half.name,
            bad.name,
            worse.name,
            bad.log.name,
            worse.log.name,
            ".sweep",
            "comparison.md",
            "report.html",
        ]
    )
    table = clframe.compare([done.directory, half.directory])
    assert Path("out/comparison.md").read_text().strip() == table.render("markdown").strip()
    assert str(table) in said.out


def test_from_python_a_success_takes_the_old_log_away_and_what_is_done_is_not_started(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (run,) = Sweep.from_plan(plan()).runs
    run.log.parent.mkdir()
    run.log.write_text("clframe: of yesterday\n")
    assert run.state == "failed"
    made = clframe.sweep(plan(), processes=1)
    assert [r.state for r in made.runs] == ["finished"]
    assert not run.log.exists()
    assert capfd.readouterr() == ("", f"1/1 {run.name}: finished\n")
    assert Path("out/comparison.md").is_file()
    monkeypatch.setattr(local, "_start", lambda *_: pytest.fail("nothing was left to do"))
    assert made.run(99) == 0
    with pytest.raises(ConfigurationError, match="processes: expected int ≥ 1, received 0"):
        made.run(0)


def test_from_python_a_sweep_can_be_quiet_and_still_says_what_failed(capfd: pytest.CaptureFixture[str]) -> None:
    given = plan(strategies=["finetune", {"name": "finetune", "first_epochs": 2}])
    bad = Sweep.from_plan(given).runs[1]
    bad.directory.mkdir(parents=True)
    (bad.directory / "config.yaml").write_text("nothing\n")
    made = clframe.sweep(given, processes=1, progress=False)
    assert capfd.readouterr() == ("", "")
    assert [r.state for r in made.runs] == ["finished", "failed"]
    assert bad.name in "".join(made.table().notes)


def test_ctrl_c_stops_the_children_and_the_same_command_goes_on(tmp_path: Path) -> None:
    given = plan(seeds=[0, 1, 2], processes=2)
    given["base"] = {**BASE, "epochs": 100000}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(given))
    command = [sys.executable, "-m", "clframe", "sweep", "plan.yaml"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=hear_interrupts
    ) as process:
        deadline = time.monotonic() + 90
        while len(list(tmp_path.glob("out/*/checkpoints/latest.pt"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "clframe: interrupted; the same command continues the sweep."
    assert "Traceback" not in err
    states = [r.state for r in Sweep.read("plan.yaml").runs]
    assert states == ["unfinished", "unfinished", "missing"]
    sizes = [p.stat().st_size for p in sorted(tmp_path.glob("out/*/events.jsonl"))]
    time.sleep(0.3)
    assert [p.stat().st_size for p in sorted(tmp_path.glob("out/*/events.jsonl"))] == sizes, "nobody writes any more"
