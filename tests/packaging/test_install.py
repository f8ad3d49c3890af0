"""What an installation holds, and that importing works from the checkout's root and from elsewhere, editable or not."""

from __future__ import annotations

import configparser
import importlib
import importlib.util
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging.environments import ROOT, Environment, install, make_environment, need_pip, run

IMPORTED = ("clframe", "clframe.scenarios.split", "clframe.strategies.replay", "clframe.data", "clframe.metrics")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, so that building leaves nothing in the real one."""
    copy = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for folder in ("clframe", "scenarios", "strategies"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy / file)
    return copy


@pytest.fixture(scope="module", params=["plain", "editable"])
def environment(
    request: pytest.FixtureRequest, checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    need_pip()
    folder = tmp_path_factory.mktemp(request.param)
    made = make_environment(folder / "venv", request.param)
    source = (".",) if request.param == "plain" else ("--editable", ".")
    install(made, checkout, *source, scratch=folder / "borrowed")
    return made


@pytest.mark.parametrize("place", ["root", "elsewhere"])
def test_imports(environment: Environment, checkout: Path, place: str, tmp_path: Path) -> None:
    code = f"""
import importlib, sys
for name in {IMPORTED!r}:
    importlib.import_module(name)
from clframe import registry
assert registry.load("strategy", "replay").__module__ == "clframe.strategies.replay"
assert registry.load("scenario", "split_digits").__module__ == "clframe.scenarios.split"
import clframe.strategies
print(clframe.__file__)
print(clframe.strategies.__file__)
for name in ("scenarios", "strategies"):
    if {place == "elsewhere"!r}:
        assert importlib.util.find_spec(name) is None, name
"""
    package, strategies = run(environment.python, "-c", code, cwd=checkout if place == "root" else tmp_path).split()
    in_checkout = environment.kind == "editable" or place == "root"
    assert Path(package).is_relative_to(checkout if in_checkout else environment.home)
    assert Path(strategies).is_relative_to(checkout if in_checkout else environment.home)


@pytest.mark.parametrize("place", ["root", "elsewhere"])
def test_command(environment: Environment, checkout: Path, place: str, tmp_path: Path) -> None:
    command = environment.home / "bin" / "clframe"
    out = run(command, "describe", "strategy", "ewc", cwd=checkout if place == "root" else tmp_path)
    assert "Elastic weight consolidation" in out


def test_wheel_claims_one_name(checkout: Path, tmp_path: Path) -> None:
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(tmp_path))
    run(sys.executable, "-m", "pip", "wheel", *options, ".", cwd=checkout)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {n.split("/")[0] for n in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"clframe"}
    held = {n for n in names if n.startswith("clframe/")}
    assert held == source_files(checkout)
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)


def source_files(root: Path) -> set[str]:
    """Names in the wheel of every file in the checkout that belongs to the package."""
    found = {f"clframe/{p.relative_to(root / 'clframe')}" for p in (root / "clframe").rglob("*.py")}
    for folder in ("scenarios", "strategies"):
        found |= {f"clframe/{folder}/{p.relative_to(root / folder)}" for p in (root / folder).rglob("*.py")}
    page = {f"clframe/report/page.{ending}" for ending in ("html", "css", "js")}
    return found | {"clframe/py.typed", "clframe/scenarios/imagenet100.txt"} | page


def test_package_list_is_complete() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = config["options"]["packages"].split()
    inside = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "clframe").rglob("__init__.py")}
    mapped = {"clframe.scenarios", "clframe.strategies"}
    assert sorted(listed) == sorted(inside | mapped)


def test_entry_points_exist() -> None:
    """Every registered name leads to a class, so that no name in `setup.cfg` is stale."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    section = config["options.entry_points"]
    for group in ("clframe.scenarios", "clframe.strategies", "clframe.backbones"):
        for line in section[group].split("\n"):
            if line.strip():
                module, _, name = line.partition("=")[2].strip().partition(":")
                assert isinstance(getattr(importlib.import_module(module), name), type), line
