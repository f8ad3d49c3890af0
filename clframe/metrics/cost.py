"""What a run cost, put together from what its instrument `cost` has measured, and compared with joint training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from clframe.metrics.scores import Absent

if TYPE_CHECKING:
    from clframe.metrics.measured import Measured

__all__ = [
    "compute_ratio",
    "cost_curve",
    "cumulative_retrain_ratio",
    "energy",
    "phase_flops",
    "storage_ratio",
    "total_train_flops",
    "train_flops",
    "train_seconds",
]

Curve = list[float | None]

_WHY = "The run didn't measure its cost: run it with `measure` at `default`, or naming `cost`."
_KEPT = ("deployed_bytes", "training_only_bytes", "exemplar_bytes", "statistics_bytes")


def cost_curve(name: str, why: str = _WHY) -> Callable[[Measured], list[Any]]:
    """Return what reads one measured number per experience.

    Args:
        name: Of the number.
        why: The reason where there is none.
    """

    def read(measured: Measured) -> list[Any]:
        return _curve(measured, name, why)

    return read


def _curve(measured: Measured, name: str, why: str = _WHY) -> list[Any]:
    if name not in measured.values:
        raise Absent(why)
    return measured.curve(name)


def train_flops(measured: Measured) -> Curve:
    """Floating-point operations of training every experience: optimiser steps and the strategy's other hooks.

    Raises:
        Absent: They were not counted.
    """
    parts = zip(_curve(measured, "step_flops"), _curve(measured, "hook_flops"), strict=True)
    return [None if steps is None else sum(steps.values()) + sum(hooks.values()) for steps, hooks in parts]


def phase_flops(measured: Measured) -> dict[str, list[Any]]:
    """Floating-point operations of the optimiser steps of every phase.

    Raises:
        Absent: They were not counted.
    """
    _curve(measured, "step_flops")
    return measured.layers("step_flops")


def total_train_flops(measured: Measured) -> float:
    """Floating-point operations of training on all experiences.

    Raises:
        Absent: Those of an experience are unknown.
    """
    return sum(_known(train_flops(measured)))


def train_seconds(kind: str) -> Callable[[Measured], Curve]:
    """Return what adds up the seconds of steps and hooks.

    Args:
        kind: `wall_seconds` or `cpu_seconds`.
    """

    def read(measured: Measured) -> Curve:
        return [None if s is None else s.get("steps", 0.0) + s.get("hooks", 0.0) for s in _curve(measured, kind)]

    return read


def energy(measured: Measured) -> Curve:
    """Joules of the counters that could be read, over every experience with its scoring.

    Raises:
        Absent: None could be read.
    """
    found = _curve(measured, "energy_joules", "No energy counter of the machine could be read (RAPL or NVML).")
    return [None if joules is None else sum(joules.values()) for joules in found]


def storage_ratio(measured: Measured) -> float:
    """Bytes kept after the last experience over those of all training data as the stream stores it.

    Raises:
        Absent: They are unknown, or there is no training data.
    """
    kept = sum(_known([_curve(measured, name)[-1] for name in _KEPT]))
    data = _known(_curve(measured, "data_bytes")[-1:])[0]
    if not data:
        raise Absent("The stream has no training data to compare with.")
    return kept / data


def compute_ratio(train: Sequence[float | None], joint: Sequence[float | None]) -> Curve:
    """κ_t = FLOPs_train(1..t) / FLOPs_joint(t), the operations so far over those of training once on all data so far.

    Args:
        train: Operations of training every experience.
        joint: Operations of joint training from scratch on the data of experiences 1..t; None or 0 where it wasn't trained.

    Returns:
        One value per experience, None where one of the two is unknown.

    >>> compute_ratio([2.0, 4.0, 6.0], [2.0, 0.0, 6.0])
    [1.0, None, 2.0]
    """
    so_far = itertools.accumulate(train, lambda total, more: None if total is None or more is None else total + more)
    return [None if own is None or not once else own / once for own, once in zip(so_far, joint, strict=True)]


def cumulative_retrain_ratio(train: Sequence[float | None], joint: Sequence[float | None]) -> float | None:
    """κ^cum = FLOPs_train(1..T) / Σ_t FLOPs_joint(t), over training from scratch again after every experience.

    Args:
        train: Operations of training every experience.
        joint: Operations of joint training on the data of experiences 1..t.

    Returns:
        None where some are unknown, or joint training was not done after every experience.

    >>> cumulative_retrain_ratio([2.0, 4.0], [2.0, 6.0])
    0.75
    """
    own, once = [v for v in train if v is not None], [v for v in joint if v]
    return sum(own) / sum(once) if once and len(own) == len(train) and len(once) == len(joint) else None


def _known(values: Sequence[float | None]) -> list[float]:
    """The values, all of which must be known."""
    found = [v for v in values if v is not None]
    if len(found) < len(values) or not found:
        raise Absent("The cost of an experience wasn't measured.")
    return found
