"""Virtual environments that hold one package, and borrow everything else from the interpreter that runs the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def need_pip() -> None:
    """Skip where packages can't be built. Nothing is imported: setuptools refuses to come after distutils."""
    try:
        distribution("pip")
        distribution("setuptools")
    except PackageNotFoundError:
        pytest.skip("needs pip and setuptools in the environment of the tests: install the extra `dev`")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command without the surrounding environment's Python settings; fail with its own words."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_"))}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


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
    see(environment, seen, file="zz-borrowed.pth")


def see(environment: Environment, folder: Path, file: str = "seen.pth") -> None:
    """Let the environment see the packages of one folder more; `zz-borrowed.pth` comes after all others."""
    target = next(environment.home.glob("lib/python*/site-packages"))
    (target / file).write_text(f"{folder}\n")


def install(environment: Environment, checkout: Path, *options: str, scratch: Path) -> None:
    """Install by the running interpreter's pip; setuptools is the only thing that the build may see."""
    borrow(environment, "setuptools", "_distutils_hack", folder=scratch)
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", *options)
    run(sys.executable, "-m", "pip", "--python", environment.python, "install", *options, cwd=checkout)
    borrow(environment, folder=scratch)
