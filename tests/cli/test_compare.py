"""The command `compare`: every output of real runs, and one clear sentence for what can't be compared."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import clframe
from clframe.cli import main
from clframe.errors import ConfigurationError
from tests.cli.conftest import Cli

MINI = ("--scenario.classes", "4", "--scenario.experiences", "2", "--epochs", "4", "--backbone.hidden", "64")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods on the seeds 0, 1 and 2; not to be changed."""
    folder = tmp_path_factory.mktemp("study")
    for name, options in (("finetune", ()), ("replay", ("--strategy.memory-size", "40"))):
        for seed in ("0", "1", "2"):
            where = ("--run-dir", str(folder / f"{name}-{seed}"), "--seed", seed, "--quiet")
            assert main(["run", *where, "--strategy", name, *options, *MINI]) == 0
    return folder


@pytest.fixture
def runs(study: Path, tmp_path: Path) -> Path:
    """A copy of the study in the current folder."""
    return Path(shutil.copytree(study, tmp_path / "runs"))


def names(folder: Path, *patterns: str) -> list[str]:
    return [str(p.relative_to(folder.parent)) for pattern in patterns or ("*",) for p in sorted(folder.glob(pattern))]


def test_the_text_ranks_and_says_what_the_seeds_support(cli: Cli, runs: Path) -> None:
    said = cli("compare", *names(runs))
    assert said.code == 0
    lines = said.out.splitlines()
    assert [line.split()[1] for line in lines[2:4]] == ["replay", "finetune"]
    assert "Differences in final_accuracy" in said.out
    values = {
        name: [clframe.load(runs / f"{name}-{s}").metric("final_accuracy") for s in range(3)]
        for name in ("replay", "finetune")
    }
    gap = 100 * sum(a - b for a, b in zip(values["replay"], values["finetune"], strict=True)) / 3
    assert f"{gap:+.2f}" in said.out


def test_out_writes_what_its_ending_says(cli: Cli, runs: Path, tmp_path: Path) -> None:
    said = cli("compare", *names(runs), "--out", "new/report.html")
    assert (said.code, said.out, said.err) == (0, "new/report.html\n", "")
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "Accuracy matrices" in page
    cli("compare", *names(runs), "--out", "pairs.csv", "--table", "pairwise")
    (row,) = csv.DictReader(io.StringIO((tmp_path / "pairs.csv").read_text(encoding="utf-8")))
    assert (row["strategy"], row["versus"], row["seeds"]) == ("replay", "finetune", "3")


def test_one_table_alone(cli: Cli, runs: Path) -> None:
    said = cli("compare", *names(runs), "--table", "runs", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert [row["run"] for row in rows] == names(runs, "replay-*", "finetune-*")
    assert all(row["state"] == "finished" for row in rows)


def test_json_holds_leaderboard_pairs_and_curves(cli: Cli, runs: Path) -> None:
    data = json.loads(cli("compare", *names(runs), "--json").out)
    assert len(data["rows"]) == 2
    assert data["pairwise"]["rows"][0][:2] == ["replay", "finetune"]
    assert len(data["curves"]["split_digits"]["replay"]) == 3


# -- what can't be compared ------------------------------------------------------------------------------------------------


def said_of(cli: Cli, *directories: str) -> list[str]:
    """The notes under the leaderboard, of a comparison that is made nonetheless."""
    said = cli("compare", *directories, "--table", "leaderboard")
    assert said.code == 0, said.err
    return said.out.split("\n\n")[-1].strip().splitlines()


def test_unlike_scenarios(cli: Cli, runs: Path) -> None:
    other = ["6" if (k, v) == (1, "4") else v for k, v in enumerate(MINI)]
    assert cli("run", "--run-dir", "other", "--quiet", *other).code == 0
    (note,) = [n for n in said_of(cli, *names(runs), "other") if "unlike scenarios" in n]
    assert note == (
        "These are 2 unlike scenarios, which aren't ranked against each other; they differ in scenario.classes: 4, 6."
    )


def test_an_unfinished_run(cli: Cli, runs: Path) -> None:
    (runs / "replay-1" / "result.json").unlink()
    said = cli("compare", *names(runs), "--table", "leaderboard")
    assert "unfinished (seed 1: 2 of 2 experiences)" in said.out
    assert "replay has 2 finished seed(s), and 3 are the least: no difference to it is supported." in said.out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", "[1\n"),
        ("result.json", "[1]\n"),
        ("events.jsonl", "{\n"),
        ("stream.json", ""),
        ("config.yaml", "[1\n"),
        ("environment.json", "[1\n"),
    ],
)
def test_a_damaged_file(cli: Cli, runs: Path, name: str, content: str) -> None:
    (runs / "finetune-2" / name).write_text(content)
    (note,) = [n for n in said_of(cli, *names(runs)) if "counts nowhere" in n]
    assert note.startswith("runs/finetune-2 counts nowhere: ")
    assert f"runs/finetune-2/{name}" in note
    assert "damaged" in note


@pytest.mark.parametrize(
    ("name", "content"), [("result.json", '{"values": [1]}'), ("config.yaml", "{}"), ("stream.json", "{}")]
)
def test_a_file_of_another_form(cli: Cli, runs: Path, name: str, content: str) -> None:
    (runs / "finetune-2" / name).write_text(content)
    (note,) = [n for n in said_of(cli, *names(runs)) if "counts nowhere" in n]
    assert note.startswith(
        "runs/finetune-2 counts nowhere: runs/finetune-2 is damaged (its files don't hold what a run's do"
    )


def test_damage_everywhere_is_an_error(cli: Cli, runs: Path) -> None:
    for run in runs.glob("*-0"):
        (run / "result.json").write_text("[1")
    said = cli("compare", *names(runs, "*-0"))
    assert said.code == 4
    assert len(said.problems) == 2


def test_a_damaged_prediction_leaves_one_figure_out(cli: Cli, runs: Path, tmp_path: Path) -> None:
    file = runs / "finetune-2" / "predictions" / "test" / "0002-classifier.npz"
    file.write_bytes(file.read_bytes()[:100])
    assert cli("compare", *names(runs), "--out", "report.html").code == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Left out: finetune: " in text
    assert "0002-classifier.npz" in text


def test_no_seed_in_common(cli: Cli, runs: Path) -> None:
    kept = names(runs, "finetune-0", "finetune-1", "replay-2")
    (note,) = [n for n in said_of(cli, *kept) if "seed in common" in n]
    assert note == (
        "replay and finetune have no seed in common, so their difference can't be taken seed by seed and is harder to support: "
        "run them on equal seeds."
    )


def test_a_metric_that_is_none(cli: Cli, runs: Path) -> None:
    said = cli("compare", *names(runs), "--metrics", "final_acuracy")
    assert said.code == 2
    assert said.problems == [
        "Expected a metric by its full name, received 'final_acuracy': `clframe list metrics` names them. "
        "Did you mean 'final_accuracy'?"
    ]


def test_a_file_that_can_not_be_written(cli: Cli, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = cli("compare", *names(runs), "--out", "file/report.md")
    assert said.code == 4
    assert len(said.problems) == 1


def test_runs_that_were_only_watched_otherwise_are_one_method(cli: Cli, runs: Path) -> None:
    more = ("--measure", "none", "--checkpoint-minutes", "1", "--keep-models")
    assert cli("run", "--run-dir", "runs/finetune-3", "--seed", "3", "--quiet", *more, *MINI).code == 0
    said = cli("compare", *names(runs, "finetune-*"), "--table", "leaderboard", "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(said.out))
    assert row["n"] == "4"


# -- figures of one run ------------------------------------------------------------------------------------------------------


def test_a_run_draws_its_own_confusion_and_plasticity(runs: Path) -> None:
    run = clframe.load(runs / "replay-0")
    shown = run.plot_confusion().axes[0].collections[0].get_array()
    counts = np.array(run.metric("task_confusion"))
    np.testing.assert_allclose(np.asarray(shown).reshape(2, 2), counts / counts.sum(axis=1, keepdims=True))
    result = run.result | {
        "run": {"effective_rank": [4.0, 3.0], "dormant_units": {"fc1": [0.0, 0.5], "fc2": [0.1, 0.2]}}
    }
    (runs / "replay-0" / "result.json").write_text(json.dumps(result))
    (line,) = run.plot_plasticity().axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), [4, 3])
    figure = run.plot_plasticity("dormant_units")
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["fc1", "fc2"]
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), [0.1, 0.2])
    with pytest.raises(ConfigurationError, match="has no weight_magnitude over the experiences"):
        run.plot_plasticity("weight_magnitude")
