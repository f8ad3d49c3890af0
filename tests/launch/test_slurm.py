"""Sweeps on a real Slurm: options are checked against the cluster, jobs finish, resume, fail and outlive their watcher."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import clframe
from clframe.api import sweep
from clframe.errors import ConfigurationError
from clframe.launch.executors import slurm as module
from clframe.launch.sweep import Sweep, SweepRun
from tests.fakes import hear_interrupts
from tests.launch.conftest import Cluster, ask, child

BASE: dict[str, Any] = {
    "scenario": {"name": "split_digits", "classes": 4, "experiences": 2, "train_per_class": 20},
    "backbone": {"name": "mlp", "hidden": [8]},
    "epochs": 1,
}
LONG = {**BASE, "epochs": 100000}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_POLL", 0.5)


def plan(base: dict[str, Any] = BASE, **options: Any) -> dict[str, Any]:
    executor = {"name": "slurm", "partition": "small", "minutes": 10, **options}
    return {"out": "out", "base": base, "executor": executor}


def wait_until(what: Callable[[], Any], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def result(run: SweepRun) -> dict[str, Any]:
    values = json.loads((run.directory / "result.json").read_text())["values"]
    assert values
    return dict(values)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"partition": "smal"}, "executor.partition: expected one of small, received 'smal'. Did you mean 'small'?"),
        ({"minutes": 61}, "executor.minutes: expected at most the 60 minutes of the partition small, received 61: a run "
         "that takes longer goes on in a new job."),
        ({"memory_gb": 100}, "Requested node configuration is not available"),
        ({"gpus": 1}, "Invalid generic resource"),
        ({"cpus": 3}, "Requested node configuration is not available"),
        ({"constraint": "a100"}, "Invalid feature specification"),
    ],
)  # fmt: skip
def test_what_the_cluster_has_not_is_refused_before_anything_is_submitted(
    slurm: Cluster, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        sweep(plan(**options))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert slurm.jobs() == []
    assert list(tmp_path.iterdir()) == []


def test_an_array_finishes_a_failure_is_told_and_nothing_is_done_twice(
    slurm: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    given = {**plan(), "seeds": [0, 1], "grid": {"optimizer.lr": [0.1, 1e30]}, "threads": 1}
    made = sweep(given)
    assert [r.state for r in made.runs] == ["finished", "finished", "failed", "failed"]
    said = capfd.readouterr().err
    assert said.count("failed: Weights became infinite or NaN") == 2
    assert all(r.diverged for r in made.runs[2:])
    jobs = json.loads(Path("out/.sweep/jobs.json").read_text())
    assert len({job.partition("_")[0] for job in jobs.values()}) == 1, "one array"
    script = next(Path("out/.sweep/slurm").glob("*.sh")).read_text()
    assert "--cpus-per-task=1" in script
    assert "export OMP_NUM_THREADS=1" in script
    here = clframe.run(run_dir="here", progress=False, **made.runs[0].record)
    assert result(made.runs[0]) == here.result["values"]
    stamps = [(r.directory / "result.json").stat().st_mtime_ns for r in made.runs[:2]]
    assert sweep({**given, "grid": {"optimizer.lr": [0.1]}}).run() == 0
    assert [(r.directory / "result.json").stat().st_mtime_ns for r in made.runs[:2]] == stamps


@pytest.mark.parametrize("how", ["warned", "requeued"])
def test_a_preempted_job_goes_on_from_its_checkpoint(slurm: Cluster, how: str) -> None:
    """Warned by a signal some time before, which submitit answers, or thrown out by the scheduler at once."""
    base = {**BASE, "epochs": 3000}
    made = Sweep.from_plan(plan(base))
    (run,) = made.runs
    with child([sys.executable, "-c", f"import clframe; clframe.sweep({plan(base)!r})"]) as watcher:
        wait_until(lambda: (run.directory / "checkpoints" / "latest.pt").exists())
        (job,) = json.loads(Path("out/.sweep/jobs.json").read_text()).values()
        assert run.state == "unfinished"
        ask(*(["scancel", "--signal=USR2", job] if how == "warned" else ["scontrol", "requeue", job]))
        wait_until(lambda: slurm.jobs() == [f"{job} PENDING"] and not slurm.steps(job))
        ask("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm would wait two minutes
        _, err = watcher.communicate(timeout=120)
    assert (watcher.returncode, run.state) == (0, "finished"), err + "\n".join(run.said)
    events = clframe.load(run.directory).events()
    assert [e["resumed"] for e in events if e["event"] == "run"] == [False, True]
    epochs = [(e["experience"], e["epoch"]) for e in events if e["event"] == "epoch"]
    assert epochs == [(i, k) for i in (1, 2) for k in range(1, 3001)], "every epoch once"
    assert not run.log.exists()


def test_a_cancelled_job_is_told_with_its_log_and_the_watcher_can_go_and_come_back(
    slurm: Cluster, tmp_path: Path
) -> None:
    given = {**plan(LONG), "seeds": [0, 1]}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(given))
    first, second = Sweep.read("plan.yaml").runs
    command = [sys.executable, "-m", "clframe", "sweep", "plan.yaml"]

    with child(command, preexec_fn=hear_interrupts) as process:
        wait_until(lambda: first.begun and second.begun)
        jobs = json.loads(Path("out/.sweep/jobs.json").read_text())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    left = f"{jobs[first.name]} {jobs[second.name]}"
    assert err.splitlines()[-1] == (
        "clframe: interrupted; the jobs stay in Slurm's queue, and the same command watches them again "
        f"(`scancel {left}` ends them)."
    )
    assert sorted(slurm.jobs()) == sorted(f"{job} RUNNING" for job in jobs.values())
    with child(command, preexec_fn=hear_interrupts) as process:
        wait_until(lambda: "process" in Path("out/.sweep/lock").read_text())
        time.sleep(5)
        assert json.loads(Path("out/.sweep/jobs.json").read_text()) == jobs, "nothing was submitted again"
        assert len(slurm.jobs()) == 2
        ask("scancel", *jobs.values())
        out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    for run in (first, second):
        assert run.state == "failed"
        assert f"Slurm's job {jobs[run.name]} ended as CANCELLED before the run did (its log: " in run.complaint
        assert run.complaint in err
    assert out.count("failed") >= 2
