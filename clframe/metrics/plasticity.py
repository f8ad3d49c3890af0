"""Metrics of plasticity, read from what a run measured after every experience.

How each value is computed is in `clframe.plasticity`; on what, in `clframe.training.plasticity`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from clframe.metrics.scores import Absent

if TYPE_CHECKING:
    from clframe.metrics.measured import Measured

__all__ = ["curve", "layers", "layers_mean"]

_NO_UNITS = "The network has no hidden units: no activation function is called in its branches."


def curve(name: str, why_never: str = "") -> Callable[[Measured], list[float | None]]:
    """Return what reads a value per experience.

    Args:
        name: Of what was measured.
        why_never: The reason where it has no value after any experience.
    """

    def read(measured: Measured) -> list[float | None]:
        found = measured.curve(name)
        if all(value is None for value in found):
            raise Absent(why_never or f"{name} had no value after any experience.")
        return found

    return read


def layers(name: str) -> Callable[[Measured], dict[str, list[float | None]]]:
    """Return what reads a value per layer and experience; None where a layer isn't there."""

    def read(measured: Measured) -> dict[str, list[float | None]]:
        found = measured.layers(name)
        if not found:
            raise Absent(_NO_UNITS)
        return found

    return read


def layers_mean(name: str) -> Callable[[Measured], list[float | None]]:
    """Return what reads the mean over the layers that are there after an experience."""

    def read(measured: Measured) -> list[float | None]:
        layers(name)(measured)
        return [_mean(value) for value in measured.curve(name)]

    return read


def _mean(value: dict[str, Any] | None) -> float | None:
    return sum(value.values()) / len(value) if value else None
