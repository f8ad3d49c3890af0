"""Executors: how many runs at a time, on which GPU, with how many threads; command lines; and what isn't installed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import clframe
from clframe.cli import main
from clframe.errors import ConfigurationError, RunDirectoryError
from clframe.launch.executors import Work, executor_for, local
from clframe.launch.executors.local import Local
from clframe.launch.sweep import Sweep
from clframe.launch.sweep_run import SweepRun

BASE: dict[str, Any] = {
    "scenario": {"name": "split_digits", "classes": 4, "experiences": 2, "train_per_class": 20},
    "backbone": {"name": "mlp", "hidden": [8]},
    "epochs": 1,
}
NOTE = """
import json, os, sys, time
began = time.monotonic()
time.sleep(0.5)
seen = {n: os.environ.get(n) for n in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
json.dump({**seen, "began": began, "ended": time.monotonic()}, open(sys.argv[1], "w"))
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Do runs that only note where they are, and return what they noted."""
    monkeypatch.setattr(
        Work, "command", lambda self, run: [sys.executable, "-c", NOTE, str(tmp_path / f"{run.name}.json")]
    )

    def do(count: int, devices: list[str], **options: Any) -> list[dict[str, Any]]:
        runs = [SweepRun({"device": devices[i % len(devices)]}, tmp_path / f"run-{i}") for i in range(count)]
        updates = [u for u in Local().run(Work(runs, tmp_path, **options)) if u is not None]
        assert [u.state for u in updates if u.ended] == ["finished"] * count
        return [json.loads((tmp_path / f"{run.name}.json").read_text()) for run in runs]

    return do


def most_at_a_time(found: list[dict[str, Any]]) -> int:
    return max(sum(n["began"] <= m["began"] < n["ended"] for n in found) for m in found)


def test_a_run_has_the_threads_of_the_plan_whatever_the_number_of_runs(
    notes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: pytest.fail("nothing here uses a GPU"))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    for options, threads in (({"processes": 1}, "1"), ({"processes": 2}, "1"), ({"processes": 2, "threads": 3}, "3")):
        assert {n["OMP_NUM_THREADS"] for n in notes(2, ["cpu"], **options)} == {threads}


def test_as_many_run_at_a_time_as_have_their_threads_on_the_cores(notes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    assert most_at_a_time(notes(5, ["cpu"], threads=2)) == 3
    assert most_at_a_time(notes(3, ["cpu"], threads=7)) == 1
    assert most_at_a_time(notes(4, ["cpu"], threads=2, processes=2)) == 2


def test_each_run_sees_one_gpu_and_they_are_shared_evenly(notes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = notes(6, ["auto", "cuda"])
    assert most_at_a_time(found) == 3, "one per GPU"
    assert sorted(n["CUDA_VISIBLE_DEVICES"] for n in found) == ["0", "0", "1", "1", "2", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-1a,7")
    found = notes(6, ["auto"], processes=6)
    assert most_at_a_time(found) == 6
    assert sorted(n["CUDA_VISIBLE_DEVICES"] for n in found) == ["5", "5", "7", "7", "GPU-1a", "GPU-1a"]


def test_a_run_that_chooses_its_device_itself_keeps_the_choice(notes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    found = notes(3, ["cpu", "cuda:1", "cuda"])
    assert [n["CUDA_VISIBLE_DEVICES"] for n in found] == ["0,1", "0,1", "0"]


def test_without_a_gpu_nothing_is_pinned(notes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert {n["CUDA_VISIBLE_DEVICES"] for n in notes(2, ["auto"])} == {None}


@pytest.mark.parametrize(
    ("script", "said", "complaint"),
    [
        ("import os; os.kill(os.getpid(), 9)", "", "ended by signal SIGKILL"),
        ("import sys; sys.exit('clframe: out of luck')", "exit code 1\nclframe: out of luck\n", "out of luck"),
        ("import sys; sys.exit(3)", "exit code 3\n", "exit code 3"),
        ("raise KeyError('a bug')", None, "KeyError: 'a bug'"),
    ],
)
@pytest.mark.parametrize("full", [False, True])
def test_what_a_process_said_is_kept_and_a_full_disk_doesnt_stop_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str | None, complaint: str, full: bool
) -> None:
    monkeypatch.setattr(Work, "command", lambda self, run: [sys.executable, "-c", script if run.name == "bad" else ""])
    if full:
        monkeypatch.setattr(SweepRun, "keep_log", lambda *_: (_ for _ in ()).throw(RunDirectoryError("no space")))
    runs = [SweepRun({"device": "cpu"}, tmp_path / name) for name in ("bad", "good")]
    updates = {u.run.name: u for u in Local().run(Work(runs, tmp_path, 1)) if u is not None and u.ended}
    assert updates["good"].state == "finished"
    assert updates["bad"].state == "failed"
    assert updates["bad"].complaint == (
        complaint if not full or "exit code" not in complaint else "ended with exit code 3"
    )
    assert runs[0].log.exists() != full
    if said is not None and not full:
        assert runs[0].log.read_text() in (said, f"{complaint}\n")
    assert not runs[0].diverged


# -- command lines -----------------------------------------------------------------------------------------------------------


def test_print_gives_a_line_per_run_that_does_it_from_any_folder_and_goes_on(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"out": "my out", "base": BASE, "seeds": [0, 1], "threads": 2}
    (tmp_path / "plan.yaml").write_text(json.dumps(given))
    assert main(["sweep", "plan.yaml", "--executor", "print"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert len(lines) == 2
    assert all("OMP_NUM_THREADS=2" in line for line in lines)
    first, second = Sweep.from_plan(given).runs
    assert (first.state, second.state) == ("missing", "missing")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(lines[0], shell=True, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert (done.returncode, first.state) == (0, "finished"), done.stderr
    assert list(elsewhere.iterdir()) == []
    assert main(["sweep", "plan.yaml", "--executor", "print"]) == 0
    assert capsys.readouterr().out.splitlines() == lines[1:], "what has finished has no line"
    (first.directory / "result.json").unlink()
    assert subprocess.run(shlex.split(lines[0]), capture_output=True, check=False).returncode == 0
    assert first.state == "finished"
    assert [e["resumed"] for e in clframe.load(first.directory).events("run")] == [False, True]


def test_a_worker_keeps_what_it_said_when_it_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"out": "out", "base": {**BASE, "optimizer": {"lr": 1e30}}}
    (tmp_path / "plan.yaml").write_text(json.dumps(given))
    (run,) = Sweep.from_plan(given).runs
    main(["sweep", "plan.yaml", "--executor", "print"])
    done = subprocess.run(capsys.readouterr().out, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert run.log.read_text() == f"exit code 5\n{done.stderr}"
    assert run.diverged
    assert run.complaint.startswith("Weights became infinite or NaN in experience 1")


# -- what isn't there ----------------------------------------------------------------------------------------------------------


def test_an_executor_that_isnt_installed_is_one_sentence_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Sweep.from_plan({"out": "out", "base": BASE}, executor="slurm")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "submitit" else pytest.fail(name))
    with pytest.raises(ConfigurationError) as caught:
        made.run()
    assert str(caught.value) == (
        "The executor slurm needs submitit, which isn't installed: run `pip install 'clframe[slurm]'`, or choose executor: local."
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigurationError) as caught:
        made.run()
    assert str(caught.value) == (
        "The executor slurm needs Slurm's sbatch, which isn't on this machine: start the sweep on a login node of the cluster, "
        "or choose executor: local."
    )
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_chooses_an_executor_and_keeps_the_options_of_the_same(tmp_path: Path) -> None:
    given = {"out": "out", "base": BASE, "executor": {"name": "slurm", "gpus": 2}}
    assert Sweep.from_plan(given, executor="slurm").plan.executor == executor_for({"name": "slurm", "gpus": 2})
    assert Sweep.from_plan(given, executor="local").plan.executor == Local()
    assert Sweep.from_plan(given).plan.executor == executor_for({"name": "slurm", "gpus": 2})
    assert main(["sweep", "nothing.yaml", "--executor", "lokal"]) == 2
