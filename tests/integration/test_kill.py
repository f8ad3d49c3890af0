"""A run that is killed at any moment and resumed ends bit-identical to one that never was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

DRIVER = Path(__file__).with_name("kill_driver.py")
KILLS = 20


def test_twenty_kills_change_no_bit(tmp_path: Path) -> None:
    command = [sys.executable, str(DRIVER), str(tmp_path), str(KILLS), "7"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["whole_status"] == 0
    assert report["unfinished"] >= KILLS // 2, "most kills must hit a run that was under way"
    assert report["kills"] == KILLS, f"the run ended after {report['kills']} kills: make it longer"
    assert report["killed"] == report["whole"]
