"""What an installation holds, and that importing works from the checkout's root and from elsewhere, editable or not."""

from __future__ import annotations

import configparser
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = ("clframe", "clframe.scenarios.split", "clframe.strategies.replay", "clframe.data", "clframe.metrics")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command without the surrounding environment's Python settings; fail with its own words."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_"))}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


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


@dataclass
class Environment:
    """A virtual environment that holds clframe alone and borrows everything else from the running interpreter."""

    python: Path
    home: Path
    kind: str


def make_environment(home: Path, kind: str) -> Environment:
    venv.EnvBuilder(with_pip=False, symlinks=True).create(home)
    return Environment(home / "bin" / "python", home, kind)


def borrow(environment: Environment, *names: str, folder: Path) -> None:
    """Let the environment see some packages of the running interpreter, or all of them when none is named.

    A path file adds the folder at the end and runs none of the path files in it, so the clframe that the running
    interpreter may have installed in editable mode stays out of sight.
    """
    installed = Path(sysconfig.get_path("purelib"))
    seen = installed
    if names:
        folder.mkdir()
        seen = folder
        for name in names:
            for found in [*installed.glob(name), *installed.glob(f"{name}-*.dist-info")]:
                (folder / found.name).symlink_to(found)
    target = next(environment.home.glob("lib/python*/site-packages"))
    (target / "zz-borrowed.pth").write_text(f"{seen}\n")


def install(environment: Environment, checkout: Path, *options: str, scratch: Path) -> None:
    """Install by the running interpreter's pip; setuptools is the only thing that the build may see."""
    borrow(environment, "setuptools", "_distutils_hack", folder=scratch)
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", *options)
    run(sys.executable, "-m", "pip", "--python", environment.python, "install", *options, cwd=checkout)
    borrow(environment, folder=scratch)


@pytest.fixture(scope="module", params=["plain", "editable"])
def environment(
    request: pytest.FixtureRequest, checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    if importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("needs pip and setuptools in the environment of the tests: install the extra `dev`")
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
