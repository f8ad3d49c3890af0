"""The study's table says what its record holds, and its sentences what the seeds support."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats


@pytest.fixture(scope="module")
def module(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("study")


FINAL = {
    "joint": [0.40, 0.41, 0.42],
    "der": [0.30, 0.31, 0.29],
    "foster": [0.29, 0.32, 0.28],
    "replay": [0.22, 0.21, 0.20],
    "ewc": [0.14, 0.15, 0.13],
    "finetune": [0.13, 0.14, 0.135],
}


def fake_run(method: str, seed: int) -> Any:
    joint = method == "joint"
    values = {
        "final_accuracy": FINAL[method][seed],
        "average_incremental_accuracy": None if joint else 0.3 + 0.01 * seed,
        "forgetting_max": None if joint else 0.5,
        "learning_accuracy": 0.6,
    }
    measured = {
        "total_train_flops": 2e13 if joint else 1e13,
        "effective_rank": [1.0, 9.0 + seed],
        "dormant_units_mean": [0.0, 0.1],
        "deployed_bytes": [1, 2_000_000],
        "exemplar_bytes": [0, 768_000],
    }
    head = "student" if method == "foster" else "classifier"
    result = {"values": {head: {"global": values}}, "run": measured}
    return SimpleNamespace(primary=(head, "global"), result=result)


@pytest.fixture(scope="module")
def record(module: ModuleType) -> dict[str, Any]:
    found: dict[str, Any] = module.study({(m, s): fake_run(m, s) for m in module.METHODS for s in module.SEEDS})
    return found


def test_differences_are_students_and_corrected_for_all_pairs(module: ModuleType, record: dict[str, Any]) -> None:
    found = record["differences"]["final_accuracy"]
    assert len(found) == 15
    by_pair = {(d["first"], d["second"]): d for d in found}
    gaps = np.array(FINAL["der"]) - np.array(FINAL["replay"])
    low, high = stats.t.interval(0.95, 2, gaps.mean(), stats.sem(gaps))
    pair = by_pair["der", "replay"]
    assert [pair["mean"], pair["low"], pair["high"]] == pytest.approx([gaps.mean(), low, high])
    assert pair["p"] == pytest.approx(stats.ttest_rel(FINAL["der"], FINAL["replay"]).pvalue)
    ordered = sorted(d["p"] for d in found)
    assert min(d["adjusted"] for d in found) == pytest.approx(15 * ordered[0])
    assert all(d["supported"] == (d["adjusted"] < 0.05) for d in found)
    assert len(record["differences"]["forgetting_max"]) == 10, "joint training has no forgetting"


def test_the_table_has_every_method_once_with_its_numbers(module: ModuleType, record: dict[str, Any]) -> None:
    rows = [line for line in module.table(record).split("\n") if line.startswith("| ")][1:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [
        "joint", "der", "foster (student)", "replay", "ewc", "finetune",
    ]  # fmt: skip
    assert rows[0].strip("| ").split(" | ")[1:] == [
        "41.0 ± 1.0", "–", "–", "60.0 ± 0.0", "1.00", "2.00 + 0.77", "10.0 ± 1.0",
    ]  # fmt: skip
    assert rows[1].strip("| ").split(" | ")[1:3] == ["30.0 ± 1.0", "31.0 ± 1.0"]
    assert rows[1].strip("| ").split(" | ")[5] == "0.50"


def test_sentences_name_the_larger_first_and_part_what_is_supported(module: ModuleType, record: dict[str, Any]) -> None:
    supported, _, alone, _, rest = module.sentences(record)
    pairs = {(d["first"], d["second"]): d for d in record["differences"]["final_accuracy"]}
    assert not pairs["der", "foster"]["supported"]
    assert "der above foster" in rest
    weak = next(d for d in pairs.values() if d["low"] > 0 and not d["supported"])
    assert f"{weak['first']} above {weak['second']}" in alone
    assert pairs["joint", "finetune"]["supported"]
    assert "joint above finetune by 27.5 (" in supported
    flipped = {
        **record,
        "differences": {"final_accuracy": [{**pairs["der", "foster"], "mean": -0.02, "low": -0.05, "high": 0.01}]},
    }
    assert "foster above der by 2.0 (-1.0 to +5.0)" in module.sentences(flipped)[4]
