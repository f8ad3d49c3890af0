"""Contestants in turn within one process: CPU time and wall time, and medians of the ratios within a round."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


def machine() -> dict[str, Any]:
    """Describe the machine in general words."""
    import torch

    from clframe.tracking.environment import environment

    found = environment("cpu", "")
    return {
        **{k: found[k] for k in ("python", "packages", "processor", "cores", "threads")},
        "system": platform.system(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
    }


def timed(call: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Return the seconds that a call took, of the CPU (all threads) and by the clock, and what it returned."""
    cpu, wall = time.process_time(), time.monotonic()
    value = call()
    return {"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}, value


def in_turn(contestants: Mapping[str, Callable[[int], Any]], rounds: int, label: str) -> dict[str, Any]:
    """Time every contestant in every round, in turning order.

    Args:
        contestants: By name; called with the round's number, the seed.
        rounds: How often (the caller has warmed up).
        label: For the progress on stderr.

    Returns:
        `cpu` and `wall`, medians of seconds by name; `all_cpu` and `all_wall`; `values`, what each last returned.
    """
    names = list(contestants)
    seconds: dict[str, dict[str, list[float]]] = {clock: {n: [] for n in names} for clock in ("cpu", "wall")}
    values: dict[str, Any] = {}
    for number in range(rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            spent, values[name] = timed(lambda name=name, number=number: contestants[name](number))  # type: ignore[misc]
            for clock, value in spent.items():
                seconds[clock][name].append(round(value, 4))
        print(
            f"{label}: round {number + 1} of {rounds}", {n: s[-1] for n, s in seconds["cpu"].items()}, file=sys.stderr
        )
    medians = {c: {n: round(statistics.median(s), 4) for n, s in of.items()} for c, of in seconds.items()}
    return {**medians, "all_cpu": seconds["cpu"], "all_wall": seconds["wall"], "values": values}


def ratio(found: Mapping[str, Any], above: str, below: str, clock: str = "cpu") -> float:
    """Return the median over rounds of one contestant's time over another's."""
    pairs = zip(found[f"all_{clock}"][above], found[f"all_{clock}"][below], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 4)


def check(value: float, limit: float, at_most: bool = True) -> dict[str, Any]:
    """Record a number beside its target."""
    met = value <= limit if at_most else value >= limit
    return {"value": round(value, 4), "limit": limit, "at_most": at_most, "met": met}
