"""Sweeps that are killed, interrupted, out of space or started twice: everything is told, nothing is lost or done again."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import clframe
from clframe.cli import main
from clframe.errors import RunDirectoryError
from clframe.launch.sweep import Sweep, SweepRun
from clframe.tracking.lock import lock_folder
from tests.launch.conftest import child

BASE: dict[str, Any] = {
    "scenario": {"name": "split_digits", "classes": 4, "experiences": 2, "train_per_class": 20},
    "backbone": {"name": "mlp", "hidden": [8]},
}
COMMAND = [sys.executable, "-m", "clframe", "sweep", "plan.yaml"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_plan(epochs: int, **more: Any) -> tuple[SweepRun, ...]:
    plan = {"out": "out", "base": {**BASE, "epochs": epochs}, **more}
    Path("plan.yaml").write_text(yaml.safe_dump(plan))
    return Sweep.read("plan.yaml").runs


def wait_until(what: Callable[[], Any], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def checkpointed(run: SweepRun) -> bool:
    return (run.directory / "checkpoints" / "latest.pt").exists()


def process_of(run: SweepRun) -> int:
    """Who writes into a run directory, as its lock says."""
    found = re.match(r"process (\d+)", (run.directory / "lock").read_text())
    assert found is not None
    return int(found[1])


def gone(process: int) -> bool:
    return not Path(f"/proc/{process}").exists() or "State:\tZ" in Path(f"/proc/{process}/status").read_text()


def epochs_of(run: SweepRun) -> list[tuple[int, int, int]]:
    events = clframe.load(run.directory).events("epoch")
    return [(e["experience"], e["epoch"], e["steps"]) for e in events]


def test_a_sweep_killed_and_started_again_repeats_nothing(tmp_path: Path) -> None:
    epochs = 400
    first, second, third = write_plan(epochs, seeds=[0, 1, 2], processes=1)
    with child(COMMAND) as process:
        wait_until(lambda: first.state == "finished" and checkpointed(second))
        worker = process_of(second)
        process.kill()
        process.wait()
    wait_until(lambda: gone(worker), 5)  # a run ends with its sweep, or it would be in the next one's way
    assert [r.state for r in (first, second, third)] == ["finished", "unfinished", "missing"]
    kept = epochs_of(second)
    stamp = (first.directory / "result.json").stat().st_mtime_ns
    with child(COMMAND) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert [line.split()[0] for line in err.splitlines()] == ["1/2", "2/2"]
    assert (first.directory / "result.json").stat().st_mtime_ns == stamp
    for run in (first, second, third):
        # 40 samples an experience are one step of an epoch.
        assert epochs_of(run) == [(i, k, 1) for i in (1, 2) for k in range(1, epochs + 1)], "every step once"
        assert clframe.load(run.directory).result["counters"]["steps"] == 2 * epochs
    resumed = [e["resumed"] for e in clframe.load(second.directory).events("run")]
    assert resumed == [False, True]
    assert epochs_of(second)[: len(kept) - 1] == kept[:-1]


def test_a_worker_that_is_killed_is_told_the_others_go_on_and_it_resumes() -> None:
    first, second = write_plan(1500, seeds=[0, 1], processes=2)
    with child(COMMAND) as process:
        wait_until(lambda: checkpointed(first))
        os.kill(process_of(first), signal.SIGKILL)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert [r.state for r in (first, second)] == ["failed", "finished"]
    assert f"{first.name}: failed: ended by signal SIGKILL (see {first.log})" in err
    assert f"{first.name}: ended by signal SIGKILL (see {first.log})" in out
    assert not first.diverged
    with child(COMMAND) as process:
        _, err = process.communicate(timeout=120)
    assert (process.returncode, first.state) == (0, "finished"), err
    assert not first.log.exists()
    assert [e["resumed"] for e in clframe.load(first.directory).events("run")] == [False, True]


def test_two_sweeps_in_one_folder_are_one_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = write_plan(100000)
    with child(COMMAND) as process:
        wait_until(lambda: checkpointed(run))
        before = (run.directory / "config.yaml").stat().st_mtime_ns
        assert main(["sweep", "plan.yaml"]) == 4
        err = capsys.readouterr().err
        assert err == (
            f"clframe: The sweep's folder out is in use by process {process.pid} on {os.uname().nodename}: wait for it, or "
            "give the plan another `out`.\n"
        )
        assert main(["sweep", "plan.yaml", "--dry-run"]) == 0, "looking is allowed"
        assert not gone(process_of(run))
        process.send_signal(signal.SIGTERM)
        process.wait()
    assert (run.directory / "config.yaml").stat().st_mtime_ns == before
    wait_until(lambda: gone(process_of(run)), 5)
    lock_folder(Path("out/.sweep"), "The folder", "go").close()


def test_out_of_space_every_run_says_so_and_later_all_is_done(tmp_path: Path) -> None:
    """No file may grow beyond a few kilobytes, as on a full disk: a run directory can be made, a checkpoint can't."""
    runs = write_plan(2, seeds=[0, 1], processes=2, backbones=[{"name": "mlp", "hidden": [100]}])

    def no_space() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12000, resource.RLIM_INFINITY))

    with child(COMMAND, preexec_fn=no_space) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert [r.state for r in runs] == ["failed", "failed"]
    for run in runs:
        assert "latest.pt can't be written" in run.complaint, run.complaint
        assert f"{run.name}: failed: {run.complaint}" in err
    assert "Traceback" not in out + err
    with child(COMMAND) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert [r.state for r in runs] == ["finished", "finished"]


def test_a_folder_that_cant_be_made_or_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plan(1)
    (tmp_path / "out").write_text("a file")
    assert main(["sweep", "plan.yaml"]) == 4
    assert capsys.readouterr().err == (
        "clframe: The folder out of the sweep can't be made (Not a directory): choose another `out`.\n"
    )
    (tmp_path / "out").unlink()

    def full(path: Path, value: Any) -> None:
        raise RunDirectoryError(f"{path} can't be written (No space left on device): free some space.")

    monkeypatch.setattr("clframe.launch.executors.base.write_yaml", full)
    assert main(["sweep", "plan.yaml"]) == 4
    assert re.fullmatch(
        r"clframe: out/\.sweep/configs/split_digits-finetune-0-\w+\.yaml can't be written \(No space left on device\): free "
        r"some space\.\n",
        capsys.readouterr().err,
    )


def test_a_damaged_result_is_named_and_made_again(capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = write_plan(1)
    assert main(["sweep", "plan.yaml"]) == 0
    (run.directory / "result.json").write_text(json.dumps({"primary": 3}))
    capsys.readouterr()
    assert main(["sweep", "plan.yaml"]) == 4
    err = capsys.readouterr().err
    assert "result.json is damaged: delete that file, and the sweep makes it again." in err
    (run.directory / "result.json").unlink()
    assert main(["sweep", "plan.yaml"]) == 0
