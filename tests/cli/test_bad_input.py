"""Every bad input gets one clear sentence, its exit code, and leaves nothing behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Cli = Callable[..., Any]
Tree = Callable[[Path], dict[str, bytes | None]]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--strategy replai", "There is no strategy named 'replai'. Did you mean 'replay'?"),
        ("--scenario split_digit", "There is no scenario named 'split_digit'. Did you mean 'split_digits'?"),
        ("--backbone resnet33", "There is no backbone named 'resnet33'. Did you mean 'resnet"),
        ("--stratgy replay", "There is no option --stratgy. Did you mean '--strategy'?"),
        ("--run-dri x", "There is no option --run-dri. Did you mean '--run-dir'?"),
        ("--zzz", "There is no option --zzz. `clframe describe run` shows what there is."),
        (
            "--strategy replay --strategy.memory-sise 3",
            "strategy.memory_sise is not an option of Replay. Did you mean 'memory_size'?",
        ),
        ("--optimizer.learning-rate 3", "optimizer.learning_rate is not an option of Recipe. It has: beta2,"),
        ("--optimizer.momentun 0.5", "optimizer.momentun is not an option of Recipe. Did you mean 'momentum'?"),
        ("--optimizer sdg", "optimizer.name: expected 'sgd' | 'adam' | 'adamw', received 'sdg'. Did you mean 'sgd'?"),
        ("--strategy.epochs many", "strategy.epochs: expected int ≥ 1 epochs, received 'many'."),
        ("--seed -5", "seed: expected int ≥ 0, received '-5'."),
        ("--seed=-5", "seed: expected int ≥ 0, received '-5'."),
        (
            "--strategy replay --strategy.memory-size -5",
            "strategy.memory_size: expected int ≥ 0 samples, received '-5'.",
        ),
        (
            "--strategy replay --strategy.memory-size",
            "strategy.memory_size: expected int ≥ 0 samples, received 'true'.",
        ),
        (
            "--scenario.experiences 3",
            "scenario.experiences: 10 classes don't divide into 3 experiences; give a list of sizes",
        ),
        (
            "--strategy replay --strategy.memory-size 5",
            "at least one exemplar for each of 10 classes, received memory_size=5",
        ),
        ("--device gpu", "Expected a device such as cpu or cuda, received 'gpu'."),
        ("--precision fp16 --device cpu", "Expected fp32 or bf16 on cpu, received precision fp16: it needs a GPU."),
        ("--precision int8", "precision: expected 'auto' | 'fp32' | 'bf16' | 'fp16', received 'int8'."),
        ("--strategy ewc@2", "The configuration asks for strategy ewc@2, but this clframe has ewc@1"),
        ("--seed 3 --seed.x 4", "--seed.x: 'seed' is a value already and can't have options of its own."),
        ("stray", "Unrecognized arguments: stray. See `clframe run --help`."),
        ("--config", "Argument --config: expected one argument. See `clframe run --help`."),
        ("--config nowhere.yaml", "Expected a YAML file at nowhere.yaml, found none"),
        ("--strategy nowhere.py:Mine", "There is no file"),
        ("--augmentation flipp", "There is no augmentation named 'flipp'."),
        ("--backbone resnet8 --backbone.weights nowhere.pth", "nowhere.pth"),
    ],
)
def test_run_refuses_in_one_sentence(cli: Cli, tmp_path: Path, options: str, sentence: str, tree: Tree) -> None:
    said = cli("run", *options.split(" "))
    assert said.code == 2, said.err
    assert sentence in said.err
    assert len(said.problems) == 1
    assert said.out == ""
    assert tree(tmp_path) == {}


def test_several_problems_are_all_named(cli: Cli, tmp_path: Path, tree: Tree) -> None:
    options = "--stratgy x --strategy replay --strategy.memory-size x --strategy.nme 3 --optimizer.lr 0 --seed 1.5"
    options += " --scenario.experiences 0"
    said = cli("run", *options.split())
    assert said.code == 2
    assert said.problems == [
        "There is no option --stratgy. Did you mean '--strategy'?",
        "scenario.experiences: expected int ≥ 1 or None, received '0'.",
        "strategy.memory_size: expected int ≥ 0 samples, received 'x'.",
        "strategy.nme: expected bool, received '3'.",
        "optimizer.lr: expected float > 0, received '0'.",
        "seed: expected int ≥ 0, received '1.5'.",
    ]
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a\n- b\n", "to hold a mapping of options (name: value), received list"),
        ("a: [1\n", "is no valid YAML"),
        ("just text", "received str"),
        (
            "strategy: {name: replay, memory_sze: 3}",
            "strategy.memory_sze is not an option of Replay. Did you mean 'memory_size'?",
        ),
        ("sed: 3", "sed is not an option of a run. Did you mean 'seed'?"),
        ("strategy: {name: ewc, version: 9}", "asks for strategy ewc@9, but this clframe has ewc@1"),
        ("scenario: [split_digits]", "scenario: expected a name, a mapping with a name and options"),
        (
            "strategy: {name: replay, memory_size: yes}",
            "strategy.memory_size: expected int ≥ 0 samples, received True.",
        ),
        ("schema: 9", "Expected a configuration of schema 1, received 9"),
    ],
)
def test_bad_yaml(cli: Cli, tmp_path: Path, text: str, sentence: str, tree: Tree) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    said = cli("run", "--config", str(file))
    assert said.code == 2, said.err
    assert sentence in said.err
    assert len(said.problems) == 1
    assert list(tree(tmp_path)) == ["run.yaml"]


# -- data ----------------------------------------------------------------------------------------------------------------


def test_a_missing_data_set_says_how_to_get_it(cli: Cli, tmp_path: Path, tree: Tree) -> None:
    said = cli("run", "--scenario", "split_svhn")
    assert said.code == 3
    assert len(said.problems) == 1
    assert "--download" in said.err
    assert "data root" in said.err
    assert tree(tmp_path) == {}


def test_a_missing_data_root_is_named(cli: Cli, tmp_path: Path, tree: Tree) -> None:
    said = cli("run", "--data-root", "nowhere")
    assert said.code == 3
    assert "Expected the data root to be an existing folder, received nowhere" in said.err
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("kind", ["no zip", "cut short", "escaping"])
def test_a_bad_archive_is_named(cli: Cli, tmp_path: Path, kind: str, tree: Tree) -> None:
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        name = "../../escaped.png" if kind == "escaping" else "train/a/1.png"
        file.writestr(name, b"x" * 2000)
        file.writestr("test/a/1.png", b"x" * 2000)
    if kind != "escaping":
        archive.write_bytes(b"no zip at all" if kind == "no zip" else archive.read_bytes()[:900])
    before = tree(tmp_path.parent)
    said = cli("run", "--scenario", "split_folder", "--scenario.source", str(archive), "--scenario.experiences", "1")
    assert said.code == 3, said.err
    assert len(said.problems) == 1
    assert "images.zip" in said.err
    assert tree(tmp_path.parent) == before


# -- run directories -------------------------------------------------------------------------------------------------------


def test_a_run_directory_that_exists(
    cli: Cli, tmp_path: Path, finished: Path, tree: Tree, mini: tuple[str, ...]
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    before = tree(tmp_path)
    said = cli("run", "--run-dir", "run", *mini)
    assert said.code == 4
    assert said.problems == [
        "The run directory run exists already: continue it with `clframe resume run`, or choose another --run-dir."
    ]
    assert tree(tmp_path) == before


def test_a_file_in_the_place_of_a_run_directory(cli: Cli, tmp_path: Path, tree: Tree, mini: tuple[str, ...]) -> None:
    (tmp_path / "run").write_text("mine")
    said = cli("run", "--run-dir", "run", *mini)
    assert said.code == 4
    assert tree(tmp_path) == {"run": b"mine"}


def test_a_run_directory_below_a_file(cli: Cli, tmp_path: Path, tree: Tree, mini: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("mine")
    said = cli("run", "--run-dir", "file/below/run", *mini)
    assert said.code == 4, said.err
    assert len(said.problems) == 1
    assert tree(tmp_path) == {"file": b"mine"}


_HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"


def test_a_run_directory_in_use_by_another_process(cli: Cli, tmp_path: Path, finished: Path, tree: Tree) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "result.json").unlink()
    (run / "lock").write_text("process 12 on elsewhere")
    command = [sys.executable, "-c", _HOLD, str(run / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        before = tree(tmp_path)
        said = cli("resume", "run")
        assert said.code == 4
        assert said.problems == [
            "The run directory run is in use by process 12 on elsewhere: wait for it, or choose another --run-dir."
        ]
        assert tree(tmp_path) == before
        other.communicate()
    assert cli("resume", "run").code == 0, "the lock goes with its process"


@pytest.mark.parametrize("command", ["resume", "metrics", "compare"])
def test_what_is_no_run_directory(cli: Cli, tmp_path: Path, command: str, tree: Tree) -> None:
    (tmp_path / "folder").mkdir()
    for place in ("folder", "nowhere"):
        said = cli(command, place)
        assert said.code == 4
        assert said.problems == [f"Expected a run directory at {place}, found no config.yaml there."]
    assert list(tree(tmp_path)) == ["folder"]


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("checkpoints/latest.pt", "resume"),
        ("config.yaml", "resume"),
        ("stream.json", "resume"),
        ("events.jsonl", "resume"),
        ("events.jsonl", "metrics"),
        ("stream.json", "metrics"),
        ("predictions/test/0002-classifier.npz", "metrics"),
        ("result.json", "compare"),
    ],
)
def test_a_damaged_file_is_named(cli: Cli, tmp_path: Path, finished: Path, name: str, command: str, tree: Tree) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    if command == "resume":
        (run / "result.json").unlink()
    if name == "events.jsonl" and command == "metrics":
        (run / name).write_bytes(
            (run / name).read_bytes().replace(b'"event": "evaluation"', b'"event" "evaluation"', 1)
        )
    elif name == "config.yaml":
        (run / name).write_text("a: [1\n")
    else:
        _cut(run / name)
    before = tree(run)
    said = cli(command, "run")
    assert said.code == 4, said.err
    assert len(said.problems) == 1, said.err
    assert name in said.err
    before["lock"] = tree(run)["lock"]
    assert tree(run) == before


@pytest.mark.parametrize("name", ["result.json", "predictions/test/0002-classifier.npz"])
def test_what_is_damaged_but_not_needed_does_not_stop_a_resume_of_a_finished_run(
    cli: Cli, tmp_path: Path, finished: Path, name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    _cut(run / name)
    said = cli("resume", "run")
    assert said.code == (4 if name == "result.json" else 0), said.err


# -- while a run goes ----------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    cli: Cli, tmp_path: Path, mini: tuple[str, ...]
) -> None:
    said = cli(
        "run", "--run-dir", "run", "--optimizer.lr", "1e30", "--quiet", *mini, "--scenario.train-per-class", "64"
    )
    assert said.code == 5
    assert len(said.problems) == 1
    assert "The loss term 'classification' became" in said.err
    assert "in experience 1, phase 'train', epoch 1, step 2" in said.err
    assert (tmp_path / "run" / "config.yaml").is_file()
    assert not (tmp_path / "run" / "result.json").exists()

    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["optimizer"]["lr"] == 1e30
    assert cli("resume", "run", "--quiet").code == 5, "the same run again meets the same loss"
    config["optimizer"]["lr"] = 0.01  # what a user would try
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    assert cli("resume", "run", "--quiet").code == 0


def test_a_later_loss_that_is_no_number_keeps_the_checkpoint_from_before(
    cli: Cli, tmp_path: Path, mini: tuple[str, ...]
) -> None:
    options = ("--run-dir", "run", "--first-optimizer.lr", "0.01", "--optimizer.lr", "1e30", "--quiet")
    said = cli("run", *options, *mini)
    assert said.code == 5
    assert "in experience 2, phase 'train', epoch 1, step" in said.err
    assert (tmp_path / "run" / "checkpoints" / "latest.pt").is_file()
    before = (tmp_path / "run" / "checkpoints" / "latest.pt").read_bytes()
    assert cli("resume", "run", "--quiet").code == 5
    assert (tmp_path / "run" / "checkpoints" / "latest.pt").read_bytes() == before


_FULL = """
import resource, sys
from clframe.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
code = main(sys.argv[2:])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sys.exit(code)
"""


@pytest.mark.parametrize("limit", [300, 1200, 4000])
def test_a_full_disk(cli: Cli, tmp_path: Path, limit: int, tree: Tree, mini: tuple[str, ...]) -> None:
    options = ["run", "--run-dir", "deep/er/run", "--quiet", *mini]
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(limit), *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("clframe: ")
    assert "free some space" in done.stderr or "choose another --run-dir" in done.stderr
    left = tree(tmp_path)
    if "deep/er/run/config.yaml" not in left:
        assert left == {}, "made whole or not at all"
    else:
        assert not [name for name in left if name.endswith(".tmp")]
        said = cli("resume", "deep/er/run", "--quiet")
        assert said.code == 0, said.err
