"""The page on reproducing names every recorded file and every benchmark, with commands whose options exist."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = {"s25_table.py", "recipe_index.py", "readme.py"}  # used by the others, or named as what writes pages


@pytest.fixture(scope="module")
def made() -> ModuleType:
    before = list(sys.path)
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        return importlib.import_module("reproduce_page")
    finally:
        sys.path[:] = before


def test_every_recorded_file_and_every_benchmark_is_there(made: ModuleType) -> None:
    listed = {source.file for source in made.SOURCES}
    assert {p.name for p in (ROOT / "benchmarks" / "results").glob("*.json")} <= listed
    text = made.page()
    for script in (ROOT / "benchmarks").glob("*.py"):
        assert script.name in LIBRARIES or f"python benchmarks/{script.name}" in text
    for source in made.SOURCES:
        assert f"\n## {source.file.removesuffix('.json')}\n" in text


def test_commands_name_scripts_and_options_that_exist(made: ModuleType) -> None:
    tried = 0
    for command in {c for s in made.SOURCES for c in s.commands}:
        words = shlex.split(command)
        if words[0] == "python":
            script = (ROOT / words[1]).read_text(encoding="utf-8")
            for option in (w for w in words[2:] if w.startswith("--")):
                assert f'"{option}"' in script, command
                tried += 1
        elif words[0] == "clframe":
            from clframe.cli import parse_overrides
            from clframe.config import resolve

            options = words[2 : words.index("--run-dir")] if "--run-dir" in words else words[2:]
            if options[0] == "--config":
                assert (ROOT / options[1]).is_file()
            else:
                resolve(parse_overrides(options))
    assert tried > 10


def test_what_was_recorded_is_added_up(made: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "RESULTS", tmp_path)

    def said(content: Any) -> str:
        (tmp_path / "x.json").write_text(json.dumps(content))
        return str(made.recorded("x.json"))

    assert made.recorded("none.json") == "not recorded yet"
    run = {"counters": {"train_seconds": 90.0}}
    assert said({"runs": [run, run]}) == "2 runs, 3.0 minutes"
    assert said({"runs": [{"seed": 0}]}) == "1 run, no times"
    assert said({"comparisons": []}) == "no times"
    both = {"cpu_seconds": {"a": 60.0}, "all_cpu_seconds": {"a": [60.0, 540.0], "b": [600.0]}}
    assert said({"jobs": {"x": both}}) == "20 CPU minutes"
    assert said({"backbones": {"x": {"runs": [{"seconds": 9, "cpu_seconds": 30.0}] * 2}}}) == "2 runs, 1.0 CPU minutes"


def test_no_number_of_the_page_is_typed(made: ModuleType) -> None:
    """Runs and minutes stand in nothing but what `recorded` says."""
    typed = " ".join([made.HEAD, *(f"{s.what} {s.shown} {s.data}" for s in made.SOURCES)])
    assert not re.search(r"\d+(\.\d+)? (runs|minutes|CPU minutes|seconds)", typed)
