"""The README's tables are those of the recorded results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="needs the repository's benchmarks")
def test_the_tables_come_from_the_results() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"], timeout=120)
    assert done.returncode == 0, "write them anew: python benchmarks/readme.py"
