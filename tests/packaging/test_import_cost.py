"""What importing costs and what it leaves alone. Times are CPU times of a child process, medians of a few."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

HELP_SECONDS = 0.4
API_SECONDS = 0.3
REPEATS = 5


def cpu_seconds(*command: str) -> float:
    """Return user and system time of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def modules_after(code: str) -> set[str]:
    """Return the modules that a fresh interpreter holds after running some code."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    return set(json.loads(out.strip().split("\n")[-1]))


def test_help_is_quick() -> None:
    cpu_seconds("-m", "clframe", "--help")  # compiles, and warms the disk
    taken = statistics.median(cpu_seconds("-m", "clframe", "--help") for _ in range(REPEATS))
    assert taken < HELP_SECONDS, f"clframe --help took {taken:.2f} s of CPU"


def test_help_imports_nothing_heavy() -> None:
    loaded = modules_after("from clframe.cli import main\nassert main(['--help']) == 0\nmain(['run', '--help'])")
    assert not loaded & {"torch", "numpy", "pydantic", "yaml", "torchvision", "timm", "wandb", "avalanche", "sklearn"}


@pytest.mark.parametrize(
    "code",
    [
        "import clframe",
        "import clframe.interop",
        "import clframe.interop.avalanche",
        "import clframe; clframe.run, clframe.compare, clframe.sweep, clframe.Strategy, clframe.plot_stream",
        "import runpy, sys; sys.argv = ['clframe', '--help']\ntry: runpy.run_module('clframe', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code",
    ],
    ids=["clframe", "interop", "avalanche bridge", "names", "help"],
)
def test_importing_loads_no_library_that_only_some_runs_need(code: str) -> None:
    loaded = {name.partition(".")[0] for name in modules_after(code)}
    assert "clframe" in loaded
    assert not loaded & {"avalanche", "matplotlib", "sklearn", "pandas", "wandb", "tensorboard", "timm", "optuna"}


def test_api_costs_little_beside_torch() -> None:
    """Measured inside one process after `import torch`: the difference of two whole processes is mostly torch's noise."""
    code = "import time, torch; t = time.process_time(); import clframe; clframe.run; print(time.process_time() - t)"
    command = [sys.executable, "-c", code]
    taken = [
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(REPEATS + 1)
    ]
    assert statistics.median(taken[1:]) <= API_SECONDS, f"clframe.run costs {taken[1:]} s of CPU over torch"


def test_a_run_imports_only_what_it_uses(tmp_path: Path) -> None:
    loaded = modules_after(
        f"import clframe\nclframe.run(strategy='replay', epochs=1, progress=False, run_dir={str(tmp_path / 'run')!r})"
    )
    assert "torch" in loaded
    assert not loaded & {"wandb", "avalanche", "torchvision", "timm", "tensorboard", "matplotlib.pyplot"}


def test_importing_changes_nothing(tmp_path: Path) -> None:
    """Working directory, search path, environment, generators, threads and warning filters stay as they were."""
    code = """
import os, random, sys, warnings
import numpy, torch

def state():
    return {
        "cwd": os.getcwd(), "path": list(sys.path), "environment": dict(os.environ), "filters": list(warnings.filters),
        "python": random.getstate(), "torch": torch.get_rng_state().tolist(), "numpy": str(numpy.random.get_state()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()), "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(), "grad": torch.is_grad_enabled(),
        "files": sorted(os.listdir(".")), "hook": sys.excepthook,
    }

before = state()
import clframe, clframe.api, clframe.cli, clframe.testing, clframe.strategies, clframe.scenarios
from clframe import registry
for kind in ("strategy", "scenario", "backbone"):
    registry.load_all(kind)
after = state()
changed = [name for name in before if before[name] != after[name]]
assert not changed, changed
"""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
