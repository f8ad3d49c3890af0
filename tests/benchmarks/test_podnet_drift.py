"""The study of PODNet's distillation terms: what differs between its methods, what it records, what it concludes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import clframe
from clframe.config import merged, resolve

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def study(benchmark_module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return benchmark_module("podnet_drift")


def test_methods_differ_in_the_weights_of_the_two_terms_alone(study: ModuleType) -> None:
    records = {m: resolve(study.config(m, 0)).record for m in study.METHODS}
    weights = {m: (r["strategy"].pop("spatial_weight"), r["strategy"].pop("flat_weight")) for m, r in records.items()}
    assert weights == {"podnet": (3.0, 1.0), "without": (0.0, 0.0), "spatial": (3.0, 0.0), "flat": (0.0, 1.0)}
    assert all(r == records["podnet"] for r in records.values())
    assert records["podnet"]["keep_models"] is True


def test_the_stream_is_five_classes_and_ten_times_two(study: ModuleType, shared_data: Path) -> None:
    plan = clframe.plan(data_root=shared_data, **study.config("podnet", 0))
    assert [row["new"] for row in plan.stream] == [5] + [2] * 10
    assert [row["train"] for row in plan.stream] == [1000] + [400] * 10


@pytest.fixture
def small(study: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The study on a few digits, with runs that have finished."""
    base = {
        "scenario": {"name": "split_digits", "classes": 6, "increment": 2, "train_per_class": 12, "test_per_class": 8},
        "strategy": {"name": "podnet", "memory_size": 12, "balanced_epochs": 1},
        "backbone": {"name": "resnet8", "last_relu": False},
        "epochs": 1,
        "keep_models": True,
    }
    monkeypatch.setattr(study, "BASE", base)
    for method in ("podnet", "without"):
        run = study.run_of(method, 0, tmp_path)
        clframe.run(run_dir=run.directory, progress=False, **study.config(method, 0))
    return ["--seeds", "1", "--runs", str(tmp_path), "--out", str(tmp_path / "drift.json")]


def test_finished_runs_are_recorded_once_with_their_reports_numbers(
    study: ModuleType,
    small: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study.main([*small, "--record"])
    text = (tmp_path / "drift.json").read_text()
    rows = json.loads(text)["runs"]
    assert [(r["method"], r["seed"]) for r in rows] == [("podnet", 0), ("without", 0)]
    for row in rows:
        run = clframe.load(tmp_path / row["directory"])
        found = run.representation()
        assert row["numbers"]["drift"] == pytest.approx((found.drift[1] + found.drift[2]) / 2, abs=1e-5)
        assert row["numbers"]["last_drift"] == pytest.approx(found.drift[2], abs=1e-5)
        assert row["numbers"]["probe_accuracy"] == pytest.approx(found.probe_accuracy[2], abs=1e-5)
        assert row["numbers"]["final_accuracy"] == pytest.approx(run.metric("final_accuracy"), abs=1e-5)
        assert row["curves"]["drift"][0] is None
    said = capsys.readouterr().out
    study.main([*small, "--record"])
    assert (tmp_path / "drift.json").read_text() == text
    study.main([*small, "--table"])
    assert capsys.readouterr().out == said * 2
    monkeypatch.setattr(study, "BASE", merged(study.BASE, {"epochs": 2}))
    run = study.run_of("without", 0, tmp_path)
    clframe.run(run_dir=run.directory, progress=False, **study.config("without", 0))
    study.main([*small, "--record"])
    rows = json.loads((tmp_path / "drift.json").read_text())["runs"]
    assert [r["directory"] for r in rows if r["method"] == "without"] == [run.name]


def rows_of(study: ModuleType, **drift: list[float]) -> list[dict[str, Any]]:
    rest = dict.fromkeys(study.NUMBERS, 0.5)
    return [
        {"method": m, "seed": s, "numbers": {**rest, "drift": v}}
        for m, values in drift.items()
        for s, v in enumerate(values)
    ]


def test_the_conclusion_is_that_of_paired_seeds(study: ModuleType) -> None:
    rows = rows_of(study, podnet=[0.4, 0.6, 0.8], without=[0.9, 1.1, 1.32])
    found = study.table(rows)
    assert found.cells()[0][:2] == ["podnet", "0.600 ± 0.200"]
    assert any(n.startswith("drift, podnet less without: -0.507, supported") for n in found.notes)
    unclear = study.table(rows_of(study, podnet=[0.4, 1.6, 0.8], without=[0.9, 1.1, 1.3]))
    assert any("drift, podnet less without: -0.167, not supported" in n for n in unclear.notes)
    alone = study.table(rows_of(study, podnet=[0.4]))
    assert len(alone.notes) == 1


def test_without_results_the_table_says_what_to_do(study: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"run benchmarks/podnet_drift\.py first"):
        study.main(["--table", "--out", str(tmp_path / "none.json")])
