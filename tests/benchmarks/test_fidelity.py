"""Our numbers beside PyCIL's: the arithmetic of the comparison."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def fidelity(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("fidelity")


def rows_of(method: str, batch: int, head: str, curves: list[list[float]]) -> list[dict[str, Any]]:
    return [
        {"method": method, "batch_size": batch, "seed": s, "heads": {head: {"curve": [a / 100 for a in curve]}}}
        for s, curve in enumerate(curves)
    ]


def test_pycils_curves_are_complete(fidelity: ModuleType) -> None:
    for (_, batch, head), curve in fidelity.PYCIL.items():
        assert batch in (32, 128)
        assert len(curve) == 5
        assert [math.isnan(a) for a in curve] == [head == "student", *[False] * 4]


@pytest.mark.parametrize(
    ("key", "average", "last"),
    [
        (("replay", 128, "classifier"), 19.45, 11.72),
        (("foster", 128, "teacher"), 29.24, 19.36),
        (("wa", 32, "nme"), 33.83, 31.76),
        (("foster", 32, "nme"), 29.71, 24.68),
    ],
)
def test_its_averages_are_those_that_its_log_gives(
    fidelity: ModuleType, key: tuple[str, int, str], average: float, last: float
) -> None:
    curve = fidelity.PYCIL[key]
    assert sum(curve) / 5 == pytest.approx(average, abs=0.06)
    assert curve[-1] == pytest.approx(last, abs=0.06)


@pytest.mark.parametrize(("theirs", "agrees"), [(56.61, True), (56.63, False), (47.39, True), (47.37, False)])
def test_two_standard_errors_of_the_difference_are_allowed(fidelity: ModuleType, theirs: float, agrees: bool) -> None:
    found = fidelity.compare("m", 32, "h", "last", {0: 50.0, 1: 54.0, 2: 52.0}, theirs)
    assert found.ours == pytest.approx(52.0)
    assert found.std == pytest.approx(2.0)
    assert found.allowed == pytest.approx(4 * math.sqrt(4 / 3))
    assert found.agrees is agrees


@pytest.mark.parametrize(("theirs", "agrees"), [(52.0, True), (52.01, False)])
def test_two_points_are_always_allowed(fidelity: ModuleType, theirs: float, agrees: bool) -> None:
    found = fidelity.compare("m", 32, "h", "last", {0: 50.0, 1: 50.0}, theirs)
    assert found.allowed == 2.0
    assert found.agrees is agrees


def test_first_average_and_last_are_compared(fidelity: ModuleType) -> None:
    curves = [[37.0, 28.0, 28.0, 20.0, 20.0], [38.0, 29.0, 29.0, 21.0, 21.0]]
    found = {c.what: c for c in fidelity.comparisons(rows_of("replay", 32, "classifier", curves))}
    assert found["first"].ours == pytest.approx(37.5)
    assert found["first"].pycil == 37.4
    assert found["average"].ours == pytest.approx((26.6 + 27.6) / 2)
    assert found["average"].pycil == pytest.approx(sum((37.4, 28.5, 28.7, 20.9, 20.5)) / 5)
    assert (found["last"].ours, found["last"].pycil) == (pytest.approx(20.5), 20.5)
    assert all(c.agrees for c in found.values())
    assert all(c.seeds == 2 for c in found.values())


def test_the_student_starts_with_the_second_experience(fidelity: ModuleType) -> None:
    curves = [[90.0, 25.0, 20.0, 18.0, 17.0], [10.0, 26.0, 21.0, 18.0, 16.0]]
    found = {c.what: c for c in fidelity.comparisons(rows_of("foster", 32, "student", curves))}
    assert set(found) == {"average", "last"}
    assert found["average"].ours == pytest.approx((20.0 + 20.25) / 2)
    assert found["average"].pycil == pytest.approx((25.5 + 20.5 + 18.0 + 16.7) / 4)


def test_one_seed_other_batches_and_other_heads_are_left_out(fidelity: ModuleType) -> None:
    curve = [37.0, 28.0, 28.0, 20.0, 20.0]
    assert fidelity.comparisons(rows_of("replay", 32, "classifier", [curve])) == []
    assert fidelity.comparisons(rows_of("replay", 64, "classifier", [curve] * 2)) == []
    assert fidelity.comparisons(rows_of("replay", 32, "other", [curve] * 2)) == []
    assert fidelity.comparisons([]) == []


def test_the_table_lists_larger_batches_and_first_experiences_first(fidelity: ModuleType) -> None:
    curve = [37.0, 28.0, 28.0, 20.0, 60.0]
    rows = rows_of("replay", 32, "classifier", [curve] * 2) + rows_of("replay", 128, "nme", [curve] * 2)
    found = fidelity.comparisons(rows)
    assert [(c.batch, c.what) for c in found] == [(b, w) for b in (128, 32) for w in ("first", "average", "last")]
    lines = fidelity.table(found).split("\n")
    assert len(lines) == 2 + 6
    assert lines[-1] == "| 32 | last | replay | classifier | 60.00 ± 0.00 (2 seeds) | 20.50 | +39.50 | 2.00 | **no** |"


def test_the_command_writes_what_it_prints(
    fidelity: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fidelity, "FOLDER", tmp_path)
    with pytest.raises(SystemExit, match="no results yet"):
        fidelity.main()
    curve = [37.0, 28.0, 28.0, 20.0, 20.0]
    (tmp_path / "s25.json").write_text(json.dumps({"runs": rows_of("wa", 32, "nme", [curve, curve])}))
    fidelity.main()
    kept = json.loads((tmp_path / "fidelity.json").read_text())["comparisons"]
    assert [c["what"] for c in kept] == ["first", "average", "last"]
    assert capsys.readouterr().out.count("| wa | nme |") == 3


def test_the_first_experience_is_compared_over_the_seeds_that_trained_it_alone(fidelity: ModuleType) -> None:
    heads = {h: {"curve": [0.4, 0.3, 0.3, 0.2, 0.2]} for h in ("classifier", "nme")}
    rows = [{"method": "replay", "batch_size": 128, "seed": s, "heads": heads} for s in (0, 1)]
    found = fidelity.comparisons(rows, {"replay 128": {"0": 40.0, "1": 40.0, "2": 25.0, "3": 31.0}})
    first = {c.head: c for c in found if c.what == "first"}
    assert (first["classifier"].seeds, first["classifier"].ours) == (4, pytest.approx(34.0))
    assert (first["nme"].seeds, first["nme"].ours) == (2, pytest.approx(40.0))
