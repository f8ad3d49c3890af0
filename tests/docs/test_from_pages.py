"""The pages for users of other frameworks: every word of clframe's in their tables is one that clframe has."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import clframe
from clframe import registry
from clframe.config import RunOptions
from clframe.metrics import CATALOGUE
from clframe.models import HeadConfig
from clframe.results import Run
from clframe.scenario import Scenario
from clframe.spec import fields_of
from clframe.strategy import Strategy
from clframe.stream import Stream
from clframe.training.recipe import Recipe

FOLDER = Path(__file__).resolve().parents[2] / "docs"
PAGES = ("from-avalanche", "from-mammoth", "from-pycil")


def options() -> dict[str, set[str]]:
    """Every option by its section; those of a run itself by an empty one."""

    def names(classes: Any) -> set[str]:
        return {f.name for cls in classes for f in fields_of(cls)}

    found = {kind: names(registry.load_all(kind).values()) for kind in ("strategy", "scenario", "backbone")}  # type: ignore[call-overload]
    recipe, head = names([Recipe]), names([HeadConfig])
    return {**found, "optimizer": recipe, "first_optimizer": recipe, "head": head, "": names([RunOptions]) | {"epochs"}}


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Every word that may stand alone."""
    named = {n for kind in ("strategy", "scenario", "backbone") for n in registry.available(kind)}  # type: ignore[arg-type]
    members = {n for cls in (Strategy, Scenario, Stream, Run) for n in dir(cls)}
    heads = {"classifier", "nme", "teacher", "student", "linear", "multi", "global", "local", "class", "task", "domain"}
    return named | members | heads | set(CATALOGUE) | set(clframe.__all__) | set().union(*options().values())


def cells(page: str) -> list[str]:
    """What stands in the columns headed clframe, and clframe's strategy and hook."""
    found, column = [], -1
    for line in (FOLDER / f"{page}.md").read_text(encoding="utf-8").split("\n"):
        row = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not row:
            column = -1
        elif column == -1:
            column = next((i for i, cell in enumerate(row) if "clframe" in cell), -2)
        elif column >= 0 and not set(row[0]) <= {"-"}:
            found.append(row[column])
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_word_of_clframes_is_one(page: str, known: set[str]) -> None:
    sections, tried = options(), 0
    for cell in cells(page):
        for code in re.findall(r"`([^`]+)`", cell):
            if code.startswith("--"):
                for option in re.findall(r"--([\w.-]+)", code):
                    section, _, name = option.replace("-", "_").rpartition(".")
                    assert name in sections[section] or (not section and name in sections), f"{code}: {cell}"
            elif re.fullmatch(r"[a-z_]+(\+[a-z_]+)?(=[\w]+)?", code):
                for word in code.partition("=")[0].split("+"):
                    assert word in known, f"{code}: {cell}"
            else:
                continue
            tried += 1
    assert tried >= 20


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_words_a_script_the_differences_and_what_is_missing(page: str) -> None:
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    for title in ("The words", "Side by side", "Results that differ, and why", "What clframe doesn't have"):
        assert f"\n## {title}\n" in text


@pytest.mark.parametrize("page", PAGES)
def test_what_is_said_to_be_missing_is_missing(page: str) -> None:
    missing = (FOLDER / f"{page}.md").read_text(encoding="utf-8").split("\n## What clframe doesn't have\n")[1]
    listed = re.split(r"[,;:().]\s|\sand\s", " ".join(missing.split("- **Data**")[0].split()))
    words = {phrase.strip(" *-").lower().replace("-", "_").replace(" ", "_") for phrase in listed}
    assert len(words) >= 10
    assert not words & set(registry.available("strategy"))


def test_hooks_named_for_plugins_are_hooks() -> None:
    hooks = {n for n, v in vars(Strategy).items() if inspect.isfunction(v)}
    table = (
        (FOLDER / "from-avalanche.md").read_text(encoding="utf-8").split("| Avalanche's callback |")[1].split("\n\n")[0]
    )
    named = {w for line in table.split("\n")[2:] for w in re.findall(r"`(\w+)`", line.split("|")[2])}
    assert len(named) >= 9
    assert named <= hooks
