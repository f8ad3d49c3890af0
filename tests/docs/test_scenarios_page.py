"""The page of scenarios names all of them, each with options and a stream that is really there."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from clframe import registry
from clframe.report.describe import scenario_example
from clframe.spec import fields_of

FOLDER = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def page() -> ModuleType:
    before = list(sys.path)
    sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "benchmarks")]
    try:
        return importlib.import_module("scenarios_page")
    finally:
        sys.path[:] = before


def test_every_scenario_has_a_section_a_row_and_every_option(page: ModuleType) -> None:
    text = (FOLDER / "scenarios-list.md").read_text(encoding="utf-8")
    common = text.split("\n## Options of every scenario")[1].split("\n## ")[0]
    for name in registry.available("scenario"):
        assert f"| [`{name}`](#{name}) | " in text
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert scenario_example(name) in section
        typed = {f"--scenario.{f.name.replace('_', '-')}" for f in fields_of(registry.load("scenario", name))}
        shown = set(re.findall(r"^\| `(--scenario\.[\w-]+)`", section, re.MULTILINE))
        assert shown <= typed
        assert typed - shown <= set(re.findall(r"^\| `(--scenario\.[\w-]+)`", common, re.MULTILINE))


def test_families_hold_registered_scenarios_once(page: ModuleType) -> None:
    scenarios = registry.load_all("scenario")
    grouped = [n for names in page.grouped(scenarios).values() for n in names]
    assert sorted(grouped) == sorted(scenarios)
    assert {n for names in page.FAMILIES.values() for n in names} <= set(scenarios)


def test_a_stream_is_put_in_words(page: ModuleType) -> None:
    said = page.stream_of("clframe run --scenario data_incremental --scenario.experiences 1")
    assert said == "Its stream: 1 experience of 1,438 labelled training samples, 1 test task, 10 classes."
    said = page.stream_of("clframe run --scenario online --epochs 1")
    assert said.endswith("boundaries are not told, every sample is presented once.")
