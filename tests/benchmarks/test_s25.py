"""The S25 protocol: what it runs, what it records, and the table of what was recorded."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import clframe
from clframe.composite import tags_of
from clframe.config import merged, resolve

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
ORDER = [13, 22, 8, 6, 10, 15, 23, 12, 14, 19, 21, 11, 5, 0, 18, 2, 4, 20, 9, 7, 16, 3, 24, 17, 1]
T_975 = {1: 12.706204736, 2: 4.302652730, 3: 3.182446305}
"""Student's t, by degrees of freedom."""


@pytest.fixture(scope="module")
def s25(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("s25")


@pytest.fixture(scope="module")
def s25_table(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("s25_table")


def test_every_method_would_run_on_the_protocol(s25: ModuleType, shared_data: Path) -> None:
    for method in s25.METHODS:
        config = s25.config(method, 32, 0)
        assert resolve(config).record["batch_size"] == 32, method
        plan = clframe.plan(data_root=shared_data, **config)
        assert len(plan.stream) == 5, method
        if method == "gdumb":  # trains on its memory alone, as its paper says
            continue
        first = plan.phases[0]
        assert first["epochs"] == s25.EPOCHS, method
        every = {"joint": 5_000, "bic": 975}.get(method, 1_000)  # BiC holds a part out of training
        assert first["samples"] == every, method
        assert first["steps"] == s25.EPOCHS * math.ceil(every / 32), method


def test_the_stream_is_the_protocols(s25: ModuleType, shared_data: Path) -> None:
    scenario = resolve(s25.config("replay", 128, 1)).scenario
    stream = scenario.build(clframe.data.DataRoot.resolve(shared_data))
    assert list(stream.class_order) == ORDER
    assert [len(e.train) for e in stream.experiences] == [1_000] * 5
    assert [len(t.test) for t in stream.tasks] == [500] * 5


def test_methods_differ_in_nothing_but_what_they_state(s25: ModuleType) -> None:
    records = {m: resolve(s25.config(m, 32, 0)).record for m in s25.METHODS}
    base = records["finetune"]
    for method, record in records.items():
        wanted = {"head"} if tags_of(resolve(s25.config(method, 32, 0)).strategy).head else set()
        stated = {"strategy", *s25.METHODS[method], *wanted}
        assert {k for k in record if record[k] != base.get(k)} <= stated, method


@pytest.fixture
def small(s25: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A protocol of two methods on digits, and where its runs and results are."""
    base = {"scenario": {"name": "split_digits", "train_per_class": 6, "test_per_class": 4}, "epochs": 1}
    methods = {
        "finetune": {"strategy": {"name": "finetune"}},
        "replay": {"strategy": {"name": "replay", "memory_size": 10}},
    }
    monkeypatch.setattr(s25, "BASE", base)
    monkeypatch.setattr(s25, "METHODS", methods)
    monkeypatch.syspath_prepend(str(FOLDER))
    return [
        *("--methods", "finetune,replay", "--batch", "8", "--seeds", "2", "--runs", str(tmp_path)),
        *("--out", str(tmp_path / "s25.json")),
    ]


def make_runs(s25: ModuleType, folder: Path) -> None:
    for method in s25.METHODS:
        for seed in (0, 1):
            run = s25.run_of(method, 8, seed, folder)
            clframe.run(run_dir=run.directory, progress=False, **s25.config(method, 8, seed))


def test_finished_runs_are_recorded_once(s25: ModuleType, small: list[str], tmp_path: Path) -> None:
    make_runs(s25, tmp_path)
    s25.main([*small, "--record"])
    text = (tmp_path / "s25.json").read_text()
    rows = json.loads(text)["runs"]
    assert [(r["method"], r["seed"]) for r in rows] == [("finetune", 0), ("finetune", 1), ("replay", 0), ("replay", 1)]
    for row in rows:
        run = clframe.load(tmp_path / row["directory"])
        values = run.result["values"]["classifier"]["global"]
        kept = row["heads"]["classifier"]
        assert kept["final_accuracy"] == pytest.approx(values["final_accuracy"], abs=1e-5)
        assert kept["curve"] == pytest.approx(values["seen_accuracy"], abs=1e-5)
        assert row["parameters"] == sum(p.numel() for p in run.model.parameters())
    s25.main([*small, "--record"])
    assert (tmp_path / "s25.json").read_text() == text


def test_a_run_of_a_changed_method_takes_the_place_of_the_old_one(
    s25: ModuleType, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_runs(s25, tmp_path)
    s25.main([*small, "--record"])
    monkeypatch.setattr(s25, "BASE", merged(s25.BASE, {"optimizer": {"lr": 0.01}}))
    run = s25.run_of("replay", 8, 1, tmp_path)
    clframe.run(run_dir=run.directory, progress=False, **s25.config("replay", 8, 1))
    s25.main([*small, "--record"])
    rows = json.loads((tmp_path / "s25.json").read_text())["runs"]
    assert len(rows) == 4
    assert [r["directory"] for r in rows if (r["method"], r["seed"]) == ("replay", 1)] == [run.name]


# -- the table ---------------------------------------------------------------------------------------------------------


def row(method: str, seed: int, last: float, average: float | None = 0.5, **more: Any) -> dict[str, Any]:
    scalars = {"final_accuracy": last, "average_incremental_accuracy": average, "forgetting_max": 0.25}
    kept = {k: v for k, v in scalars.items() if v is not None}
    facts = {"method": method, "strategy": method, "batch_size": 32, "seed": seed, "primary": "classifier"}
    cost = {"parameters": 1000, "counters": {"train_seconds": 60.0}, "directory": f"{method}-{seed}"}
    return {**facts, "heads": {"classifier": kept}, **cost, **more}


def rows_of(**last: list[float]) -> list[dict[str, Any]]:
    return [row(m, s, v, average=v + 0.1) for m, values in last.items() for s, v in enumerate(values)]


def test_the_table_gives_mean_and_sample_deviation_of_every_head(s25_table: ModuleType) -> None:
    rows = rows_of(replay=[0.30, 0.34, 0.41])
    for r in rows:
        r["heads"]["nme"] = {"final_accuracy": 0.5}
    first, second = s25_table.methods_table(rows).cells()
    last = 100 * np.array([0.30, 0.34, 0.41])
    shown, average = (f"{mean:.2f} ± {last.std(ddof=1):.2f}" for mean in (last.mean(), last.mean() + 10))
    assert first == ["replay", "classifier", average, shown, "25.00 ± 0.00", "1,000", "60 ± 0", "3"]
    assert second == ["", "nme", "–", "50.00 ± 0.00", "–", "–", "–", "–"]


def test_the_primary_head_comes_first_and_is_the_one_compared(s25_table: ModuleType) -> None:
    rows = rows_of(replay=[0.2, 0.2, 0.2], icarl=[0.1, 0.1, 0.1])
    for r in rows[3:]:
        r["primary"], r["heads"]["nme"] = "nme", {"final_accuracy": 0.3 + 0.01 * r["seed"]}
    assert [c[1] for c in s25_table.methods_table(rows).cells()][1:] == ["nme", "classifier"]
    (line,) = s25_table.differences_table(rows).cells()  # its nme has no average
    assert line[:4] == ["icarl", "nme", "last", "+11.00"]


def test_differences_are_paired_by_seed_with_students_interval(s25_table: ModuleType) -> None:
    replay, wa = [0.30, 0.36, 0.33], [0.34, 0.39, 0.38]
    lines = s25_table.differences_table(rows_of(replay=replay, wa=wa)).cells()
    gaps = 100 * (np.array(wa) - np.array(replay))
    half = T_975[2] * gaps.std(ddof=1) / math.sqrt(3)
    interval = f"{gaps.mean() - half:+.2f} … {gaps.mean() + half:+.2f}"
    assert lines == [
        ["wa", "classifier", of, f"{gaps.mean():+.2f}", interval, "3", "yes"] for of in ("average", "last")
    ]


def test_only_shared_seeds_count_and_two_are_too_few_for_support(s25_table: ModuleType) -> None:
    rows = [row("replay", s, 0.1) for s in (0, 1, 2)] + [row("wa", s, 0.9) for s in (1, 2, 7)]
    line = s25_table.differences_table(rows).cells()[-1]
    assert line[5:] == ["2", "no"]
    one = [row("replay", 0, 0.1), row("wa", 0, 0.9)]
    assert s25_table.differences_table(one).cells()[-1][4:] == ["too few seeds", "1", "no"]


def test_orderings_say_what_the_data_supports(s25_table: ModuleType) -> None:
    low, high = [0.10, 0.11, 0.12], [0.50, 0.51, 0.52]
    rows = rows_of(replay=[0.30, 0.31, 0.32], der=high, wa=low, bic=[0.20, 0.45, 0.30], joint=[0.6, 0.61, 0.62])
    found = {(o.upper, o.lower, o.of): o.verdict for o in s25_table.orderings(rows)}
    assert found["der", "replay", "last"] == "supported"
    assert found["wa", "replay", "average"] == "the reverse is supported"
    assert found["bic", "replay", "last"] == "not supported"
    assert found["der", "icarl", "last"] == "not measured"
    assert found["foster", "replay", "last"] == "not measured"
    assert [k for k in found if k[0] == "joint" and k[2] == "last"] == [
        ("joint", m, "last") for m in ("replay", "der", "wa", "bic")
    ]


def test_joint_training_without_an_average_is_compared_by_its_last_accuracy(s25_table: ModuleType) -> None:
    rows = rows_of(replay=[0.3, 0.3, 0.3]) + [row("joint", s, 0.6, average=None) for s in range(3)]
    assert [(o.of, o.verdict) for o in s25_table.orderings(rows) if o.upper == "joint"] == [("last", "supported")]
    assert s25_table.methods_table(rows).cells()[1][2] == "–"


def test_every_expected_ordering_is_listed(s25_table: ModuleType) -> None:
    pairs = set(s25_table.ABOVE)
    assert {("der", "icarl"), ("der", "replay"), ("foster", "icarl"), ("foster", "replay")} <= pairs
    assert {("wa", "replay"), ("bic", "replay")} <= pairs


def test_batches_are_kept_apart_and_nothing_measured_is_said(s25_table: ModuleType) -> None:
    rows = rows_of(replay=[0.3, 0.3, 0.3]) + [{**row("wa", s, 0.9), "batch_size": 128} for s in range(3)]
    page = s25_table.text(rows)
    assert page.index("## Batch 32") < page.index("## Batch 128")
    assert "### Against replay" not in page[page.index("## Batch 128") :]
    assert "Nothing has been measured yet" in s25_table.text([])


def test_the_command_writes_the_table_beside_the_record(
    s25: ModuleType, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"no results .* run benchmarks/s25\.py first"):
        s25.main([*small, "--table"])
    (tmp_path / "s25.json").write_text(json.dumps({"runs": rows_of(replay=[0.3, 0.31, 0.32])}))
    s25.main([*small, "--table"])
    assert (tmp_path / "s25.md").read_text(encoding="utf-8") == capsys.readouterr().out


@pytest.mark.skipif(not (FOLDER / "results" / "s25.json").is_file(), reason="nothing has been recorded yet")
def test_the_written_table_is_that_of_the_record(s25_table: ModuleType) -> None:
    rows = json.loads((FOLDER / "results" / "s25.json").read_text(encoding="utf-8"))["runs"]
    written = FOLDER / "results" / "s25.md"
    assert written.is_file(), "write it: python benchmarks/s25.py --table"
    assert written.read_text(encoding="utf-8") == s25_table.text(rows), (
        "write it anew: python benchmarks/s25.py --table"
    )
