"""The commands: what they answer, to people and to programs, and what they cost."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import clframe
from clframe.cli import main, parse_overrides
from clframe.errors import ConfigurationError
from tests.fakes import hear_interrupts

Cli = Callable[..., Any]


def run_process(*arguments: str, cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clframe", *arguments], cwd=cwd, capture_output=True, text=True, check=False, **more
    )


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["sweep", "--help"], ["--version"], ["lst"]])
def test_help_needs_no_torch_and_answers_at_once(tmp_path: Path, arguments: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = (
        "import sys; from clframe.cli import main; code = main(sys.argv[1:]); "
        "print([m for m in ('torch', 'numpy', 'pydantic', 'wandb', 'avalanche') if m in sys.modules], code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == ("[] 2" if arguments == ["lst"] else "[] 0")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.4


def test_run_help_shows_the_form_of_options(cli: Cli) -> None:
    said = cli("run", "--help")
    assert said.code == 0
    for part in (
        "--section.option",
        "--strategy.memory-size",
        "--optimizer.lr",
        "--run-dir",
        "--dry-run",
        "clframe describe",
    ):
        assert part in said.out
    assert max(map(len, said.out.splitlines())) <= 120


def test_no_argument_shows_the_help(cli: Cli) -> None:
    said = cli()
    assert said.code == 0
    assert "run an experiment" in said.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rnu"], "There is no command 'rnu'. Did you mean 'run'?"),
        (["zzz"], "There is no command 'zzz'. There are: run, resume,"),
        (["list", "--jsn"], "There is no option --jsn. Did you mean '--json'? See `clframe list --help`."),
        (["resume"], "The following arguments are required: DIR. See `clframe resume --help`."),
        (
            ["list", "strategi"],
            "Expected one of strategies, scenarios, backbones, trackers, metrics, received 'strategi'.",
        ),
        (["compare", "x", "--format", "pdf"], "Argument --format: invalid choice: 'pdf'"),
        (["sweep", "x.yaml", "--processes", "two"], "Argument --processes: invalid int value: 'two'."),
        (["--verison"], "There is no option --verison. Did you mean '--version'?"),
    ],
)
def test_a_command_that_is_wrong(cli: Cli, arguments: list[str], sentence: str) -> None:
    said = cli(*arguments)
    assert said.code == 2
    assert said.problems[0].startswith(sentence), said.err
    assert len(said.problems) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--strategy replay", {"strategy": {"name": "replay"}}),
        ("--strategy=replay --strategy.memory-size=50", {"strategy": {"name": "replay", "memory_size": "50"}}),
        ("--strategy.ewc.strength -5.5", {"strategy": {"ewc": {"strength": "-5.5"}}}),
        ("--x -1,-2 --y -z", {"x": "-1,-2", "y": "-z"}),
        ("--nme --seed 3", {"nme": "true", "seed": "3"}),
        ("--a=--b", {"a": "--b"}),
        ("--a=b=c", {"a": "b=c"}),
        ("--a=", {"a": ""}),
        ("--seed 1 --seed 2", {"seed": "2"}),
        ("--first-optimizer.lr 1", {"first_optimizer": {"lr": "1"}}),
    ],
)
def test_options_become_a_configuration(text: str, expected: dict[str, Any]) -> None:
    assert parse_overrides(text.split(" ")) == expected


@pytest.mark.parametrize("token", ["seed", "-s", "--", "--=3", "--.x", "--a..b"])
def test_what_is_no_option(token: str) -> None:
    with pytest.raises(ConfigurationError, match="Expected an option such as"):
        parse_overrides([token])


def test_a_commands_own_options_may_stand_anywhere(cli: Cli, mini: tuple[str, ...]) -> None:
    first = cli("run", "--dry-run", "--strategy", "replay", "--strategy.nme", "--json", *mini)
    last = cli("run", "--strategy", "replay", *mini, "--strategy.nme", "--json", "--dry-run")
    assert first.code == last.code == 0
    assert json.loads(first.out) == json.loads(last.out)


# -- run -----------------------------------------------------------------------------------------------------------------


def test_run_tells_its_numbers_and_writes_them(cli: Cli, tmp_path: Path, mini: tuple[str, ...]) -> None:
    said = cli("run", "--run-dir", "run", *mini)
    assert said.code == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    value = result["values"]["classifier"]["global"]["final_accuracy"]
    assert f"{100 * value:.2f} %" in said.out
    assert "run/result.json" in said.out
    assert "\x1b" not in said.out + said.err
    assert "\r" not in said.err, "no bar outside of a terminal"
    assert [line.split(":")[0] for line in said.err.splitlines()] == ["experience 1/2", "experience 2/2"]
    quiet = cli("resume", "run", "--quiet", "--json")
    assert quiet.err == ""
    assert json.loads(quiet.out) == {"directory": "run", **result}


def test_the_record_given_back_repeats_the_run(cli: Cli, tmp_path: Path, finished: Path) -> None:
    said = cli("run", "--config", str(finished / "config.yaml"), "--run-dir", "again", "--quiet", "--json")
    assert said.code == 0
    mine, old = json.loads(said.out), json.loads((finished / "result.json").read_text())
    assert mine["values"] == old["values"]
    assert (tmp_path / "again" / "config.yaml").read_text() == (finished / "config.yaml").read_text()


def test_options_beside_a_file_win(cli: Cli, tmp_path: Path, mini: tuple[str, ...]) -> None:
    (tmp_path / "run.yaml").write_text("strategy: {name: replay, memory-size: 30}\nepochs: 9\nseed: 5\n")
    options = ("--strategy.memory-size", "8", "--strategy.epochs", "2", "--device", "cpu")
    said = cli(
        "run", "--config", "run.yaml", *(m for m in mini if m not in ("--epochs", "1")), *options, "--dry-run", "--json"
    )
    config = json.loads(said.out)["config"]
    assert (config["strategy"]["memory_size"], config["strategy"]["epochs"], config["seed"]) == (8, 2, 5)


def test_a_dry_run_shows_stream_phases_steps_and_memory_and_writes_nothing(
    cli: Cli, tmp_path: Path, tree: Any, mini: tuple[str, ...]
) -> None:
    said = cli("run", "--dry-run", "--strategy", "replay", *mini)
    assert said.code == 0
    for part in ("experience", "phase", "optimiser steps in all", "memory: deployed", "exemplars", "memory_size: 200"):
        assert part in said.out
    assert tree(tmp_path) == {}


def test_without_a_run_dir_the_same_run_has_the_same_place(cli: Cli, tmp_path: Path, mini: tuple[str, ...]) -> None:
    from clframe.config import resolve
    from clframe.tracking.rundir import run_name

    first = json.loads(cli("run", *mini, "--quiet", "--json").out)
    again = json.loads(cli("run", *mini, "--quiet", "--json").out)
    assert again == first
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == run_name(resolve(yaml.safe_load((folder / "config.yaml").read_text())).record)


def test_a_users_strategy_runs_from_its_file(cli: Cli, tmp_path: Path, mini: tuple[str, ...]) -> None:
    text = "from clframe import Strategy, field\n\nclass Mine(Strategy):\n    pull: float = field(default=0.1, help='How much.')\n"
    (tmp_path / "my-own.py").write_text(text)
    said = cli("run", "--strategy", "my-own.py:Mine", "--strategy.pull", "-0.5", "--run-dir", "run", *mini, "--quiet")
    assert said.code == 0, said.err
    assert (tmp_path / "run" / "source" / "my-own.py").read_text() == text
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["strategy"]["name"] == f"{tmp_path / 'my-own.py'}:Mine"
    assert config["strategy"]["pull"] == -0.5
    assert cli("describe", "my-own.py:Mine").out.count("--strategy.pull  ") == 1


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, mini: tuple[str, ...]) -> None:
    options = ["run", *mini, "--epochs", "100000"]
    with subprocess.Popen(
        [sys.executable, "-m", "clframe", *options],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    ) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("runs/*/checkpoints/latest.pt")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    (directory,) = tmp_path.glob("runs/*")
    assert process.returncode == 130
    assert (
        err
        == f"clframe: interrupted; `clframe resume {directory.relative_to(tmp_path)}` continues from the last checkpoint.\n"
    )
    assert not (directory / "result.json").exists()


def test_ctrl_c_before_the_run_began(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clframe.api.run", interrupted)
    said = cli("run")
    assert said.code == 130
    assert said.problems == ["interrupted before the run began; nothing was written."]


def test_a_bug_shows_its_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("clframe.api.run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["run"])


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m clframe list metrics | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 141)


def test_a_terminal_of_another_encoding(tmp_path: Path) -> None:
    done = run_process(
        "describe", "metric", "forgetting_max", cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0, done.stderr
    assert "forgetting_max" in done.stdout


# -- reading -------------------------------------------------------------------------------------------------------------


def test_metrics_are_those_of_the_result(cli: Cli, finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    found = json.loads(cli("metrics", str(finished), "--json").out)
    assert {k: found[k] for k in ("values", "absent", "gaps")} == {k: result[k] for k in ("values", "absent", "gaps")}
    text = cli("metrics", str(finished))
    assert "final_accuracy" in text.out
    assert "not given by this run" in text.out


@pytest.mark.parametrize(
    ("form", "mark"), [("text", "──"), ("markdown", "|---"), ("latex", "\\toprule"), ("csv", ","), ("html", "<table")]
)
def test_compare_in_every_form(cli: Cli, finished: Path, form: str, mark: str) -> None:
    said = cli("compare", str(finished), "--format", form)
    assert said.code == 0
    assert mark in said.out
    assert "replay" in said.out
    assert "\x1b" not in said.out


def test_compare_as_json_has_the_unrounded_numbers(cli: Cli, finished: Path) -> None:
    run = clframe.load(finished)
    found = json.loads(cli("compare", str(finished), "--metrics", "final_accuracy", "--json").out)
    cells = [cell["mean"] if isinstance(cell, dict) else cell for row in found["rows"] for cell in row]
    assert any(
        cell == pytest.approx(run.metric("final_accuracy"), abs=1e-12) for cell in cells if isinstance(cell, float)
    )


def test_list_and_data_as_json(cli: Cli) -> None:
    rows = json.loads(cli("list", "--json").out)
    assert {r["kind"] for r in rows} == {"strategy", "scenario", "backbone", "tracker", "metric"}
    sets = {r["name"]: r for r in json.loads(cli("data", "--json").out)}
    assert "digits" in sets
    assert all(r["how"] for r in sets.values() if r["found"] is None)


def test_data_says_how_much_the_cache_holds(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLFRAME_CACHE", str(tmp_path))
    (tmp_path / "features" / "key").mkdir(parents=True)
    (tmp_path / "features" / "key" / "a.safetensors").write_bytes(bytes(3 * 2**20))
    assert f"cache: decoded images 0.0 MiB, features of frozen networks 3.0 MiB in {tmp_path}" in cli("data").out
