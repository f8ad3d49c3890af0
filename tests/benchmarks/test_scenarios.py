"""The benchmark of scenarios: what it covers, that every row would run as its command says, and its record and table."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import clframe
from clframe import registry
from clframe.cli import parse_overrides
from clframe.config import resolve

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def sc(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("scenarios")


def test_it_covers_what_it_says(sc: ModuleType) -> None:
    rows = list(sc.rows())
    assert len({r.name for r in rows}) == len(rows)
    families = {r.family for r in rows if r.group == "families"}
    assert len(families) >= 8
    for family in families:
        assert {r.method for r in rows if (r.group, r.family) == ("families", family)} == {"finetune", "replay"}
    six = {"replay", "ewc", "der", "foster", "nmc", "layernorm_tuning", "batchnorm_tuning"}
    for data in ("CIFAR-100", "ImageNet subset"):
        assert {r.method for r in rows if (r.group, r.family) == ("methods", data)} == six
    assert {r.method for r in rows if r.group == "tiny"} == {"replay", "der", "foster"}
    assert {r.family for r in rows if r.group == "smoke"} == set(registry.available("scenario"))


def test_a_command_is_the_rows_configuration(sc: ModuleType) -> None:
    for row in sc.rows():
        if row.missing and "no strategy" in row.missing:
            continue
        typed = parse_overrides(shlex.split(row.command)[2:])
        assert resolve(typed).record == resolve(row.config).record, row.name


@pytest.mark.filterwarnings("ignore:.*fewer samples than their quota:UserWarning")
def test_every_row_of_images_would_run(sc: ModuleType, shared_data: Path) -> None:
    for row in sc.rows(shared_data / "weights"):
        if row.group == "smoke" or row.missing:  # `describe` has tried the examples
            continue
        assert 0 <= row.minutes(shared_data) < 4, row.name


@pytest.mark.filterwarnings("ignore:.*fewer samples than their quota:UserWarning")
def test_sizes_are_the_protocols(sc: ModuleType, shared_data: Path) -> None:
    chosen = {r.name: r for r in sc.rows(shared_data / "weights")}

    def stream(name: str) -> clframe.Stream:
        return clframe.open_scenario(chosen[name].config["scenario"], data_root=shared_data)

    tiny = stream("tiny/Tiny-ImageNet-100, 64 px/der")
    assert (len(tiny.experiences), tiny.shape, tiny.num_classes) == (10, (3, 64, 64), 100)
    blurry = stream("online/Si-Blurry/replay")
    assert blurry.online
    assert len(blurry.experiences) == 10
    subset = stream("methods/ImageNet subset/ewc")
    assert [len(e.classes) for e in subset.experiences] == [4] * 5
    assert len(subset.train) == 20 * 250, "only the classes asked for are read"


def test_what_cannot_run_is_left_out_with_its_reason(
    sc: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sc, "SIX", {"nmc": sc.SIX["nmc"], "none": {"strategy": {"name": "no_such_strategy"}}})
    sc.main(["--groups", "methods", "--rows", "CIFAR", "--list", "--weights", str(tmp_path)])
    said = capsys.readouterr()
    assert "methods/CIFAR-100/nmc: there is no file resnet20_cifar10.safetensors in the folder of --weights" in said.err
    assert "methods/CIFAR-100/none: there is no strategy 'no_such_strategy' here, left out" in said.err
    assert "# 0 rows" in said.out
    with pytest.raises(SystemExit, match="Expected groups among families"):
        sc.main(["--groups", "familys", "--list"])


@pytest.fixture
def small(sc: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Two rows on few digits, and the options that keep them in a folder of their own."""
    digits = {"name": "split_digits", "train_per_class": 6, "test_per_class": 4}
    config = {"scenario": digits, "strategy": {"name": "finetune"}, "epochs": 1}
    sandbox = {"scenario": {"name": "sandbox", "train_samples": 20}, "strategy": {"name": "finetune"}, "epochs": 1}
    found = [sc.Row("smoke", "split_digits", "finetune", config), sc.Row("smoke", "sandbox", "finetune", sandbox)]
    monkeypatch.setattr(sc, "rows", lambda weights=None: iter(found))
    return ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "s.json"), "--page", str(tmp_path / "s.md")]


def test_finished_runs_are_recorded_once_and_become_a_table(
    sc: ModuleType, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for row in sc.rows():
        for seed in (0, 1):
            run = sc.run_of(row, seed, tmp_path / "runs")
            clframe.run(run_dir=run.directory, progress=False, seed=seed, **row.config)
    sc.main([*small, "--seeds", "2", "--record"])
    written = (tmp_path / "s.json").read_text(encoding="utf-8")
    kept = json.loads(written)["runs"]
    assert [(r["family"], r["seed"]) for r in kept] == [
        ("split_digits", 0),
        ("split_digits", 1),
        ("sandbox", 0),
        ("sandbox", 1),
    ]
    last = [clframe.load(tmp_path / "runs" / r["directory"]).metric("final_accuracy") for r in kept[:2]]
    assert [r["heads"]["classifier"]["final_accuracy"] for r in kept[:2]] == pytest.approx(last, abs=1e-5)
    sc.main([*small, "--seeds", "2", "--record"])
    assert (tmp_path / "s.json").read_text(encoding="utf-8") == written
    sc.main([*small, "--table"])
    page = (tmp_path / "s.md").read_text(encoding="utf-8")
    assert page == capsys.readouterr().out
    mean, half = 50 * sum(last), 100 * abs(last[0] - last[1]) / 2**0.5
    assert f"{mean:.2f} ± {half:.2f}" in page
    error = [r["heads"]["classifier"]["final_squared_error"] for r in kept[2:]]
    assert f"{sum(error) / 2:.2f} ± " in page
    assert "clframe run --scenario split_digits --scenario.train-per-class 6" in page


def test_a_run_of_a_changed_row_takes_the_place_of_the_old_one(
    sc: ModuleType, small: list[str], tmp_path: Path
) -> None:
    for rate in (0.1, 0.01):
        row = next(sc.rows())
        row = sc.Row(row.group, row.family, row.method, {**row.config, "optimizer": {"name": "sgd", "lr": rate}})
        run = sc.run_of(row, 0, tmp_path / "runs")
        clframe.run(run_dir=run.directory, progress=False, **row.config)
        results = sc.record([(row, 0)], tmp_path / "runs", tmp_path / "s.json")
        assert [r["directory"] for r in results["runs"]] == [run.name]


def test_nothing_measured_is_said(sc: ModuleType) -> None:
    assert "Nothing has been measured yet" in sc.text([])


def test_the_written_table_is_that_of_the_record(sc: ModuleType) -> None:
    kept: list[dict[str, Any]] = sc.read(sc.RESULTS)["runs"]
    assert sc.PAGE.read_text(encoding="utf-8") == sc.text(kept), "write it anew: python benchmarks/scenarios.py --table"
