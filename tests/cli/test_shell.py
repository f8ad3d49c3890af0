"""What the shell is offered, the files to start from, the exit codes, and that a pipe gets no escape codes."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from clframe import errors, registry
from clframe.cli.complete import SCRIPTS, candidates
from clframe.cli.entry import EXIT_CODES, make_commands
from clframe.cli.overrides import parse_overrides
from clframe.cli.source_fields import fields_in_source
from clframe.config import RunOptions, resolve
from clframe.report.starter import starter_yaml
from clframe.spec import fields_of

Cli = Callable[..., Any]


def offered(line: str) -> list[str]:
    return candidates(line.split(" "), make_commands().by_name)


# -- completion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("re", ["resume", "representation"]),
        ("run --strategy replay+ew", ["replay+ewc"]),
        ("run --strategy = replay+ew", ["replay+ewc"]),
        ("run --strategy=replay+ew", ["--strategy=replay+ewc"]),
        ("run --strategy replay --strategy.me", ["--strategy.memory-size", "--strategy.memory-batch"]),
        ("run --optimizer ", ["sgd", "adam", "adamw"]),
        ("run --optimizer.schedule c", ["constant", "cosine", "cosine_restarts"]),
        ("run --keep-models t", ["true"]),
        ("run --track wandb,t", ["wandb,tensorboard"]),
        ("log x --to w", ["wandb"]),
        ("compare --format l", ["latex"]),
        ("describe strategy wa", ["wa"]),
        ("completion z", ["zsh"]),
        ("audit ", ["open-set", "compatibility", "unlearning"]),
        ("audit open-set ", []),
        ("run --config ", []),
        ("nonsense x", []),
    ],
)
def test_what_is_offered(line: str, expected: list[str]) -> None:
    assert offered(line) == expected


def _classes() -> list[tuple[registry.Kind, str]]:
    kinds: tuple[registry.Kind, ...] = ("strategy", "scenario", "tracker")
    return [(kind, name) for kind in kinds for name in registry.available(kind)]


@pytest.mark.parametrize(("kind", "name"), _classes())
def test_options_read_from_the_source_are_those_of_the_class(kind: registry.Kind, name: str) -> None:
    read = fields_in_source(registry.address(kind, name))
    infos = fields_of(registry.load(kind, name))
    assert list(read) == [info.name for info in infos]
    for info in infos:
        if typing.get_origin(info.type) is Literal and read[info.name]:
            assert read[info.name] == [str(choice) for choice in typing.get_args(info.type)]


def test_completing_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from clframe.cli import main; main(['_complete', 'run', '--strategy', 'der', '--strategy.']); "
        "print([m for m in ('torch', 'pydantic', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert "--strategy.memory-size" in lines
    assert lines[-1] == "[]"


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_script_is_one_for_its_shell(cli: Cli, tmp_path: Path, shell: str) -> None:
    said = cli("completion", shell)
    assert said.code == 0
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}, which is not installed")
    (tmp_path / "script").write_text(said.out)
    subprocess.run([shell, "-n", "script"], cwd=tmp_path, check=True)


def test_bash_completes(tmp_path: Path) -> None:
    program = tmp_path / "clframe"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m clframe "$@"\n')
    program.chmod(0o755)
    code = """
eval "$(clframe completion bash)"
complete -p clframe
COMP_WORDS=(clframe run --strategy replay --strategy.me)
COMP_CWORD=4
_clframe
compgen -W "${COMPREPLY[*]}" -- --strategy.memory-s
"""
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", code], env=environment, capture_output=True, text=True, check=True)
    registered, completed = done.stdout.splitlines()
    assert "-F _clframe" in registered
    assert completed == "--strategy.memory-size"


# -- files to start from -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--strategy replay+ewc --strategy.ewc.strength 5 --first-optimizer.lr 0.2",
        "--strategy der --scenario split_cifar100 --backbone resnet32 --optimizer.milestones 3,6 --seed 4",
        "--scenario sandbox --backbone.hidden [] --augmentation none",
    ],
)
def test_a_starter_file_is_the_configuration_it_was_made_from(options: str) -> None:
    given = parse_overrides(options.split())
    text = starter_yaml(given)
    assert resolve(yaml.safe_load(text)).record == resolve(given).record
    for info in fields_of(RunOptions):
        assert f"{info.name}: " in text


def test_init_writes_what_runs_and_overwrites_nothing(cli: Cli, tmp_path: Path) -> None:
    assert cli("init", "--epochs", "3").code == 0
    plan = json.loads(cli("run", "--config", "run.yaml", "--dry-run", "--json").out)
    assert plan["config"]["strategy"]["name"] == "replay"
    assert plan["config"]["strategy"]["epochs"] == 3
    before = (tmp_path / "run.yaml").read_text()
    said = cli("init")
    assert said.code == 2
    assert said.problems == ["The file run.yaml exists already: choose another name."]
    assert (tmp_path / "run.yaml").read_text() == before


def test_the_strategy_to_fill_in_keeps_the_contract(cli: Cli) -> None:
    assert cli("init", "own.yaml", "--strategy", "my_method.py").code == 0
    found = json.loads(cli("check", "my_method.py:MyMethod", "--json").out)
    assert found
    assert [one for one in found if one["problem"] is not None] == []
    assert cli("run", "--config", "own.yaml", "--dry-run").code == 0


# -- for scripts -----------------------------------------------------------------------------------------------------------


def test_every_error_has_an_exit_code_that_is_explained(cli: Cli) -> None:
    kinds = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.ClframeError)]
    assert {kind.exit_code for kind in kinds} <= set(EXIT_CODES)
    said = cli("--help").out
    assert all(text in said for text in EXIT_CODES.values())


@pytest.mark.parametrize("what", ["strategy replay", "scenario split_digits", "tracker wandb", "metric rsd", "run"])
def test_describe_as_json(cli: Cli, what: str) -> None:
    found = json.loads(cli("describe", *what.split(), "--json").out)
    assert found["name"] == what.split()[-1]
    assert found["kind"] == what.split()[0]


def test_a_pipe_gets_no_escape_codes(cli: Cli) -> None:
    for said in (cli("run", "--stratgy", "x"), cli("list", "trackers"), cli("--help")):
        assert "\x1b" not in said.out + said.err


@pytest.mark.parametrize("quiet", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_gets_colours_unless_it_asks_for_none(tmp_path: Path, quiet: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"} | quiet
    command = [sys.executable, "-m", "clframe", "nonsense"]
    subprocess.run(command, cwd=tmp_path, env=environment, stderr=theirs, check=False)
    os.close(theirs)
    said = os.read(ours, 4096)
    os.close(ours)
    assert b"There is no command" in said
    assert (b"\x1b[31mclframe:\x1b[0m" in said) is (not quiet)
