"""W&B is sent the run's own numbers, offline and online, once each; and what stands in its way is said in a sentence."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import clframe
from clframe.errors import ConfigurationError
from clframe.tracking.rundir import group_name
from clframe.training.trainer import Stopped
from tests.tracking.fake_wandb import Server, key_of, records, rows_of

CONFIG: dict[str, Any] = {
    "scenario": {"name": "split_digits", "classes": 6, "experiences": 3, "train_per_class": 40},
    "strategy": {"name": "replay", "memory_size": 12, "epochs": 2},
    "backbone": {"name": "mlp", "hidden": [8]},
}


@pytest.fixture(autouse=True, scope="module")
def _nobody() -> Iterator[None]:
    """No login and no settings of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("NETRC", os.devnull)
        yield


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> clframe.Run:
    """A run that W&B has watched offline, stopped in its second experience and resumed."""
    directory = tmp_path_factory.mktemp("offline") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        with pytest.raises(Stopped):
            clframe.run(
                run_dir=directory, track={"name": "wandb", "project": "mine"}, progress=False, stop_after=9, **CONFIG
            )
        return clframe.resume(directory, progress=False)


def files(run: clframe.Run) -> list[Path]:
    return sorted((run.path / "wandb").glob("offline-run-*/run-*.wandb"))


def test_a_resumed_run_is_the_same_wandb_run_and_nothing_is_sent_twice(offline: clframe.Run) -> None:
    first, second = files(offline)
    kept = json.loads((offline.path / "tracking" / "wandb.json").read_text())
    assert {f.stem for f in (first, second)} == {f"run-{kept['kept']['id']}"}
    steps = [[r["train/step"] for r in rows_of(f) if "train/step" in r] for f in (first, second)]
    assert steps[0]
    assert steps[0][-1] < steps[1][0]
    assert [*steps[0], *steps[1]] == list(range(1, offline.result["counters"]["steps"] + 1))


def test_the_curves_are_those_of_the_run(offline: clframe.Run) -> None:
    rows = [row for file in files(offline) for row in rows_of(file)]
    by_step = {r["train/step"]: r for r in rows if "train/step" in r}
    done = 0
    for epoch in offline.events("epoch"):
        steps = range(done + 1, done + epoch["steps"] + 1)  # fewer than ten: every step is a value
        done += epoch["steps"]
        losses = [by_step[s]["train/loss"] for s in steps]
        assert math.isclose(sum(losses) / len(losses), epoch["loss"], rel_tol=1e-5)
        terms = [by_step[s]["train/terms/classification"] for s in steps]
        assert math.isclose(sum(terms) / len(terms), epoch["terms"]["classification"], rel_tol=1e-5)
        assert by_step[done]["train/lr"] == epoch["lr"]
    for head in ("classifier", "nme"):
        for restriction in ("global", "local"):
            key = f"eval/{head}/{restriction}/seen_accuracy"
            curve = [(r["experience"], r[key]) for r in rows if key in r]
            assert curve == list(enumerate(offline.result["values"][head][restriction]["seen_accuracy"], 1))
    matrix = offline.matrix()
    tasks = {(r["experience"], key): r[key] for r in rows for key in r if key.startswith("task/")}
    expected = {(i, f"task/{j:03d}"): matrix[i, j - 1] for i in (1, 2, 3) for j in (1, 2, 3) if j <= i}
    assert tasks == expected


def test_matrix_configuration_and_result(offline: clframe.Run) -> None:
    found = [r for file in files(offline) for r in records(file)]
    begun = [r.run for r in found if r.WhichOneof("record_type") == "run"]
    record = offline.config
    for run in begun:
        assert (run.project, run.run_group) == ("mine", group_name(record))
        assert set(run.tags) == {"split_digits", "replay", "mlp"}
        config = {key_of(c): json.loads(c.value_json) for c in run.config.update}
        assert {k: config[k] for k in record} == record
    rows = [row for file in files(offline) for row in rows_of(file)]
    folder = files(offline)[1].parent / "files"
    last = [r["matrix/nme.path"] for r in rows if "matrix/nme.path" in r][-1]
    assert (folder / last).read_bytes().startswith(b"\x89PNG")
    table = [r["matrix_table/nme.path"] for r in rows if "matrix_table/nme.path" in r][-1]
    content = json.loads((folder / table).read_text())
    assert content["columns"] == ["restriction", "experience", "task", "accuracy"]
    shown = {(i, j): v for restriction, i, j, v in content["data"] if restriction == "local"}
    matrix = offline.matrix("nme", "local")
    assert shown == {(i, j): matrix[i, j - 1] for i, j in shown}
    assert len(shown) == 6
    summary = {
        key_of(i): i.value_json for r in found if r.WhichOneof("record_type") == "summary" for i in r.summary.update
    }
    for name in ("final_accuracy", "forgetting_max", "average_incremental_accuracy"):
        assert json.loads(summary[f"result/{name}"]) == offline.metric(name)
        assert json.loads(summary[f"result/nme/local/{name}"]) == offline.metric(name, "nme", "local")
    assert [r.exit.exit_code for r in found if r.WhichOneof("record_type") == "exit"] == [1, 0]


def test_seeds_are_one_group_and_other_options_another(offline: clframe.Run) -> None:
    record = offline.config
    assert group_name({**record, "seed": 5, "init_seed": 1, "data_seed": 2}) == group_name(record)
    assert group_name({**record, "batch_size": 65}) != group_name(record)
    assert group_name(record).startswith("split_digits/replay/")


def test_wandb_sync_takes_both_parts_as_one_run(offline: clframe.Run) -> None:
    server = Server()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", *[str(f.parent) for f in files(offline)]],
            env={**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, "HOME": str(offline.path)},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        ((name, run),) = server.runs.items()
        steps = [r["train/step"] for r in server.rows(name) if "train/step" in r]
        assert steps == list(range(1, offline.result["counters"]["steps"] + 1))
        assert server.summary[name]["result/final_accuracy"] == offline.metric("final_accuracy")
        assert run["groupName"] == group_name(offline.config)
    finally:
        server.close()


def log(directory: Path, *more: str, code: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """`clframe log` in a process of its own, with no login unless one is given."""
    text = f"import sys\nfrom clframe.cli import main\n{code}\nsys.exit(main(sys.argv[1:]))"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-c", text, "log", str(directory), "--to", "wandb", *more],
        env={**clean, "NETRC": os.devnull, "HOME": str(directory.parent), **environment},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.fixture
def unwatched(tmp_path: Path) -> clframe.Run:
    return clframe.run(run_dir=tmp_path / "run", progress=False, **CONFIG)


def test_online_it_arrives_and_what_is_there_is_not_sent_again(unwatched: clframe.Run) -> None:
    server = Server()
    there = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}
    try:
        done = log(unwatched.path, "--track.wandb.tags", "paper", **there)
        assert done.returncode == 0, done.stderr
        assert f"clframe: wandb: {server.url}/me/clframe/runs/" in done.stderr
        ((name, run),) = server.runs.items()
        assert "paper" in run["tags"]
        rows = server.rows(name)
        assert [r["train/step"] for r in rows if "train/step" in r][-1] == unwatched.result["counters"]["steps"]
        assert "has everything of" in log(unwatched.path, **there).stdout
        assert server.rows(name) == rows
        assert log(unwatched.path, "--again", **there).returncode == 0
        assert len(server.runs) == 2
    finally:
        server.close()


def test_without_a_login_it_is_kept_offline_and_says_so(unwatched: clframe.Run) -> None:
    done = log(unwatched.path)
    assert done.returncode == 0, done.stderr
    assert "wandb: there is no login, so the run is kept offline: `wandb login`, then `wandb sync " in done.stderr
    (file,) = files(unwatched)
    assert f"`wandb sync {file.parent}` sends it" in done.stderr
    assert rows_of(file)


def test_a_server_that_does_not_answer_is_waited_for_a_moment_alone(unwatched: clframe.Run) -> None:
    short = "import clframe.tracking.wandb as w; w._ATTEMPT = 2.0"
    done = log(unwatched.path, code=short, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="0" * 40)
    assert done.returncode == 0, done.stderr
    assert "wandb: the server gave no run (" in done.stderr
    assert len(files(unwatched)) == 1


def test_where_wandb_is_not_installed_a_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigurationError) as caught:
        clframe.run(run_dir=tmp_path / "run", track="wandb", progress=False, **CONFIG)
    assert str(caught.value) == (
        "The tracker wandb needs wandb, which is not installed: `pip install wandb`, or leave wandb out of `track`."
    )
    assert not (tmp_path / "run").exists()
