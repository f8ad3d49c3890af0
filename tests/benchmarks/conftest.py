"""The benchmarks' modules, which belong to no package."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def benchmark_module() -> Callable[[str], ModuleType]:
    """Load a file of benchmarks/ once, under a name that hides nothing."""
    if not (ROOT / "benchmarks").is_dir():
        pytest.skip("needs the repository's benchmarks")

    def load(name: str) -> ModuleType:
        full = f"clframe_benchmarks_{name}"
        if full not in sys.modules:
            spec = importlib.util.spec_from_file_location(full, ROOT / "benchmarks" / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            sys.modules[full] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[full])
        return sys.modules[full]

    return load
