"""What a run ran on: versions, machine, git state, data."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["environment"]

_PACKAGES = ("clframe", "torch", "torchvision", "numpy", "scikit-learn", "timm")


def environment(device: str, data_fingerprint: str) -> dict[str, Any]:
    """Describe the machine and the code.

    Args:
        device: Where training happens.
        data_fingerprint: Of the source's decoded content.
    """
    import torch

    found = {name: _version(name) for name in _PACKAGES}
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "python": sys.version.split()[0],
        "packages": found,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "gpu": gpu,
        "git": _git(),
        "data": data_fingerprint,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _git() -> dict[str, Any] | None:
    """Revision and cleanliness of the working directory, where it is a git checkout."""

    def ask(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()

    try:
        return {"revision": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
