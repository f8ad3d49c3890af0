"""Energy that processors say they have used, where they can be asked; the whole machine's, whoever used it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["EnergyMeter"]

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the counters of Intel's and AMD's processors (RAPL)."""


class EnergyMeter:
    """Joules since the last reading: of the processor packages by RAPL, of a GPU by NVML; of what can't be read, nothing.

    Args:
        folder: Where RAPL's counters are.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        self.folder = folder
        self._joules: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._packages: list[Path] = []
        self._gpu: Callable[[], float] | None = None

    def begin(self, device: torch.device) -> None:
        """Find the counters and start from now."""
        self._packages = [p for p in sorted(self.folder.glob("intel-rapl:?")) if _number(p / "energy_uj") is not None]
        self._gpu = _gpu_counter(device) if device.type == "cuda" else None
        self._last = self._read()

    def spent(self) -> dict[str, dict[str, float]]:
        """Return joules by counter since the last call, under the name `energy_joules`; empty without a counter."""
        self._book()
        found, self._joules = {name: round(j, 3) for name, j in self._joules.items()}, {}
        return {"energy_joules": found} if found else {}

    def state_dict(self) -> dict[str, float]:
        """Return the joules that no call of `spent` has returned yet."""
        self._book()
        return dict(self._joules)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from there."""
        self._joules = dict(state)

    def _book(self) -> None:
        now = self._read()
        for name, value in now.items():
            rise = value - self._last.get(name, value)
            if rise < 0:  # a package's counter starts again from zero
                rise += (_number(self.folder / name / "max_energy_range_uj") or 0) / 1e6
            self._joules[name] = self._joules.get(name, 0.0) + max(0.0, rise)
        self._last = now

    def _read(self) -> dict[str, float]:
        values = {p.name: _number(p / "energy_uj") for p in self._packages}
        found = {name: value / 1e6 for name, value in values.items() if value is not None}
        return found if self._gpu is None else {**found, "gpu": self._gpu()}


def _number(file: Path) -> float | None:
    """The number in a file, None where it can't be read."""
    try:
        return float(file.read_text())
    except (OSError, ValueError):
        return None


def _gpu_counter(device: torch.device) -> Callable[[], float] | None:
    """Return what reads the joules of a GPU since its driver was loaded, None where NVML isn't installed or can't tell."""
    try:
        pynvml = importlib.import_module("pynvml")
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle: Any = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # a missing package or any of NVML's errors: energy is told only where it is known
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
