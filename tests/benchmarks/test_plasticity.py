"""The plasticity study: its runs differ in the method alone, are recorded as they end, and its page compares seed by seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

import clframe
from clframe.config import resolve


@pytest.fixture(scope="module")
def study(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("plasticity")


def test_runs_of_a_seed_see_the_same_stream_and_take_the_same_steps(study: ModuleType) -> None:
    changed = {"finetune": set(), "layer_norm": {"backbone"}}
    for seed in (0, 1):
        reference = resolve(study.config("fresh", seed)).record
        assert reference["seed"] == reference["scenario"]["domain_seed"] == seed
        for method in study.METHODS:
            record = resolve(study.config(method, seed)).record
            differing = {key for key in record if record[key] != reference[key]}
            assert differing - {"strategy"} == changed.get(method, set())
            assert record["strategy"]["epochs"] == reference["strategy"]["epochs"]


def test_runs_are_recorded_as_they_end_and_not_made_again(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {**study.BASE, "scenario": {**study.BASE["scenario"], "experiences": 20, "train_per_class": 8}, "epochs": 1}
    monkeypatch.setattr(study, "BASE", short)
    out, written = tmp_path / "out.json", []
    inner = study.record

    def watched(*arguments: Any) -> None:
        inner(*arguments)
        written.append([(r["method"], r["seed"]) for r in study.read(out)["runs"]])

    monkeypatch.setattr(study, "record", watched)
    common = ["--seeds", "1", "--runs", str(tmp_path / "runs"), "--out", str(out)]
    study.main(["--methods", "finetune", *common])
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("*/result.json")}
    study.main(["--methods", "fresh,finetune", *common])
    assert written == [[("finetune", 0)], [("fresh", 0), ("finetune", 0)], [("fresh", 0), ("finetune", 0)]]
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())

    row = json.loads(out.read_text())["runs"][0]
    run = clframe.load(tmp_path / "runs" / row["directory"])
    own = [run.matrix()[j, j - 1] for j in range(1, 21)]
    assert row["curves"]["learning_accuracy"] == pytest.approx([np.mean(own[:10]), np.mean(own[10:])], abs=1e-5)
    assert row["total_train_flops"] == sum(run.metric("train_flops"))


def row(method: str, seed: int, first: float, last: float, dormant: float = 0.1) -> dict[str, Any]:
    curves = {name: [1.0, 2.0] for name in ("online_accuracy", "effective_rank", "weight_magnitude")}
    curves |= {"learning_accuracy": [first, last], "dormant_units_mean": [0.0, dormant]}
    return {
        "method": method,
        "seed": seed,
        "curves": curves,
        "learning_accuracy_slope": 0.001,
        "total_train_flops": 2e9,
    }


FIRST, LAST, FRESH = [0.9, 0.88, 0.92], [0.5, 0.42, 0.55], [0.91, 0.9, 0.93]


def test_the_page_has_paired_differences_with_their_intervals(study: ModuleType) -> None:
    rows = [row("fresh", s, f, f) for s, f in enumerate(FRESH)]
    rows += [row("finetune", s, a, b, 0.75) for s, (a, b) in enumerate(zip(FIRST, LAST, strict=True))]
    page = study.page(rows)
    cells = {
        tuple(c.strip() for c in line.split("|")[1:-1]) for line in page.splitlines() if line.startswith("| finetune")
    }
    learning, differences, inside = (next(c for c in cells if len(c) == n) for n in (8, 7, 10))

    def shown(a: list[float], b: list[float]) -> tuple[str, str, str]:
        test = stats.ttest_rel(a, b)
        low, high = test.confidence_interval(0.95)
        mean = np.mean(a) - np.mean(b)
        return f"{100 * mean:+.2f}", f"{100 * low:+.2f} to {100 * high:+.2f}", "yes" if test.pvalue < 0.05 else "no"

    assert learning[1:4] == ("3", "90.00 ± 2.00", "49.00 ± 6.56")
    assert learning[4:7] == shown(LAST, FIRST)
    assert learning[7] == "+10.00 ± 0.00"
    assert differences[1:4] == shown(LAST, FRESH)
    assert differences[4:] == ("–", "–", "–")
    assert inside[1:5] == ("0.00 ± 0.00", "75.00 ± 0.00", "1.00 ± 0.00", "2.00 ± 0.00")


def test_the_page_says_that_nothing_was_measured_and_shows_one_seed_without_an_interval(
    study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.page([]).endswith("Nothing has been measured yet.\n")
    out, target = tmp_path / "out.json", tmp_path / "page.md"
    out.write_text(json.dumps({"schema": 1, "runs": [row("finetune", 0, 0.9, 0.5)]}))
    study.main(["--page", "--out", str(out), "--page-file", str(target)])
    text = target.read_text(encoding="utf-8")
    assert "| finetune | 1 | 90.00 | 50.00 | -40.00 | – | no | +10.00 |" in text
    assert "| finetune | – | – | – | – | – | – |" in text
    assert capsys.readouterr().out == text
    assert target.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
