"""Third parties' packages: the template works once installed, and a broken one is named and stops nobody else."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import clframe
from clframe import registry
from clframe.errors import ConfigurationError
from clframe.metrics import CATALOGUE
from clframe.report.describe import describe, listing
from tests.packaging.environments import ROOT, Environment, make_environment, need_pip, run, see
from tests.packaging.environments import install as install_package

TEMPLATE = ROOT / "examples" / "plugin_template"


# -- the template --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A virtual environment with the template in it, beside a copy of its source; clframe is the one that is here."""
    need_pip()
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(TEMPLATE, folder / "source")
    made = make_environment(folder / "venv", "plain")
    install_package(made, folder / "source", ".", scratch=folder / "borrowed")
    see(made, ROOT)
    return made


def test_the_templates_own_tests_pass(installed: Environment) -> None:
    said = run(
        installed.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=installed.home.parent / "source"
    )
    assert " passed" in said
    assert "skipped" not in said


def test_the_commands_know_what_the_template_brings(installed: Environment) -> None:
    code = """
from clframe.cli import main
assert main(["list", "--json"]) == 0
for kind, name in (("strategy", "confidence_penalty"), ("scenario", "stripes"), ("metric", "worst_task_accuracy"), ("tracker", "csv")):
    assert main(["describe", kind, name]) == 0
"""
    out = run(installed.python, "-W", "error::UserWarning", "-c", code, cwd=installed.home)
    first, _, rest = out.partition("\n")
    named = {(r["kind"], r["name"]) for r in json.loads(first)}
    assert {("strategy", "confidence_penalty"), ("scenario", "stripes"), ("tracker", "csv")} <= named
    assert ("metric", "worst_task_accuracy") in named
    for shown in ("--strategy.strength", "--scenario.noise", "min_j a[T,j]", "--track.csv.file"):
        assert shown in rest


# -- broken ones -----------------------------------------------------------------------------------------------------------

GOOD = """
from clframe import Scenario, Strategy, Tracker
from clframe.metrics import Absent, Metric

class Fine(Strategy):
    '''Fine-tuning by another name.'''

class Watch(Tracker):
    '''Watches.'''

def metric(name, function):
    return Metric(name, function, True, 0.0, 1.0, "fraction", "one", "")

def numpy_value(inputs):
    import numpy as np
    return np.float32(0.5)

ONE = metric("one", lambda inputs: 1.0)
HALF = metric("half", numpy_value)
FAILS = metric("fails", lambda inputs: 1 / 0)
MISNAMED = metric("other", lambda inputs: 1.0)
FINAL = metric("final_accuracy", lambda inputs: 7.0)
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Makes packages of one module each, as an installer leaves them, and forgets them afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(CATALOGUE, "_joined", {})

    def make(package: str, text: str, **groups: dict[str, str]) -> None:
        (tmp_path / f"{package}.py").write_text(text)
        about = tmp_path / f"{package}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [
            f"[clframe.{group}]\n" + "".join(f"{n} = {v}\n" for n, v in points.items())
            for group, points in groups.items()
        ]
        (about / "entry_points.txt").write_text("\n".join(lines))
        registry._entry_points.cache_clear()

    yield make
    registry._entry_points.cache_clear()
    for name in [n for n, m in sys.modules.items() if str(tmp_path) in str(getattr(m, "__file__", ""))]:
        del sys.modules[name]


def said(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = call()
    return found, [str(w.message) for w in caught]


def test_a_package_that_cannot_be_imported_is_named_and_the_others_are_there(install: Install) -> None:
    install("good_one", GOOD, strategies={"fine": "good_one:Fine"})
    install("bad_raises", "1 / 0", strategies={"bad": "bad_raises:X"}, scenarios={"bad": "bad_raises:X"})
    install("bad_exits", "raise SystemExit(3)", strategies={"leaves": "bad_exits:X"})
    rows, warned = said(listing)
    names = {r["name"] for r in rows}
    assert {"fine", "replay", "split_digits", "wandb"} <= names
    assert not {"bad", "leaves"} & names
    assert len(warned) == 3
    why = "could not be imported (ZeroDivisionError: division by zero); repair or uninstall that package."
    assert f"The strategy 'bad' of bad_raises {why}" in warned
    assert f"The scenario 'bad' of bad_raises {why}" in warned
    assert any(w.startswith("The strategy 'leaves' of bad_exits could not be imported (SystemExit: 3)") for w in warned)
    with pytest.raises(ConfigurationError, match="of bad_raises could not be imported"):
        clframe.plan(strategy="bad")
    assert clframe.plan(strategy="fine").phases


@pytest.mark.parametrize("group", ["strategies", "scenarios", "trackers"])
def test_what_is_of_another_kind_is_named(install: Install, group: str) -> None:
    install("odd_one", GOOD, **{group: {"a": "odd_one:ONE", "b": "pathlib:Path", "c": "odd_one:nothing"}})
    kind = {"strategies": "strategy", "scenarios": "scenario", "trackers": "tracker"}[group]
    found, warned = said(lambda: registry.load_all(kind))  # type: ignore[arg-type]
    assert not {"a", "b", "c"} & set(found)
    assert [w.split(",")[0].split(" (")[0] for w in warned] == [
        f"The {kind} 'a' is registered as odd_one:ONE",
        f"The {kind} 'b' of odd_one must derive from {kind.title()}",
        f"The {kind} 'c' of odd_one could not be imported",
    ]


def test_of_two_packages_with_one_name_the_first_has_it_and_clframe_always(install: Install) -> None:
    points = {"replay": "MODULE:Fine", "mine": "MODULE:Fine"}
    for package in ("b_package", "a_package"):
        install(package, GOOD, strategies={n: v.replace("MODULE", package) for n, v in points.items()})
    found, warned = said(lambda: registry.load_all("strategy"))
    assert found["replay"].__module__ == "clframe.strategies.replay"
    assert found["mine"].__module__ == "a_package"
    assert sorted(warned) == [
        "The strategy 'mine' of the package b_package is left out, because a_package has one of that name: use "
        "b_package:Fine, or rename it there.",
        "The strategy 'replay' of the package a_package is left out, because clframe has one of that name: use "
        "a_package:Fine, or rename it there.",
        "The strategy 'replay' of the package b_package is left out, because clframe has one of that name: use "
        "b_package:Fine, or rename it there.",
    ]
    assert said(lambda: registry.load_all("strategy"))[1] == [], "it is said once"


def test_metrics_join_the_catalogue_and_broken_ones_are_left_out(install: Install, tmp_path: Path) -> None:
    names = {
        "one": "ONE",
        "half": "HALF",
        "fails": "FAILS",
        "misnamed": "MISNAMED",
        "final_accuracy": "FINAL",
        "kind": "Fine",
    }
    install("some_metrics", GOOD, metrics={n: f"some_metrics:{v}" for n, v in names.items()})
    found, warned = said(lambda: dict(CATALOGUE))
    assert next(iter(found)) == "final_accuracy"
    assert found["final_accuracy"].definition == "A_T"
    assert [n for n in found if n in names] == ["final_accuracy", "fails", "half", "one"]
    assert sorted(warned) == [
        "Expected the metric 'kind' of a package to be a clframe.metrics.Metric, received type: register the object itself.",
        "The metric 'final_accuracy' of a package is left out, because clframe has a metric of that name: rename it there.",
        "The metric 'misnamed' of a package is left out, because it calls itself 'other': rename it there.",
    ]
    assert len(CATALOGUE) == len(found)
    run = clframe.run(epochs=1, progress=False, run_dir=tmp_path / "run")
    assert run.metric("one") == 1.0
    assert (tmp_path / "run" / "result.json").read_text().count('"half": 0.5') == 3, "one head, three restrictions"
    with pytest.raises(ConfigurationError, match=r"The metric 'fails' of a package failed \(ZeroDivisionError"):
        run.metric("fails")
    assert "range      0 to 1" in describe("metric", "half")


def test_a_metric_of_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from clframe.metrics import Metric

    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(CATALOGUE, "_joined", {})
    mine = Metric("mine", lambda inputs: 0.25, True, 0.0, 1.0, "fraction", "a quarter", "")
    clframe.register("metric", "mine", mine)
    assert clframe.run(epochs=1, progress=False, run_dir=tmp_path / "run").metric("mine") == 0.25
