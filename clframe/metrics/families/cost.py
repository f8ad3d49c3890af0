"""Metrics of what a run as a whole has cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clframe.metrics import cost
from clframe.metrics.metric import RUN, Family

__all__ = ["METRICS"]

METRICS = Family()


def _add_cost(
    name: str, function: Callable[..., Any], unit: str, definition: str, reference: str = "", *, curve: bool = True
) -> None:
    """A metric of what a run as a whole has cost."""
    METRICS.add(name, function, False, (0.0, None), definition, reference, unit=unit, restrictions=RUN, curve=curve)


_add_cost(
    "train_flops",
    cost.train_flops,
    "FLOP",
    "operations (a multiplication and an addition are 2) of optimiser steps and of hooks outside of them, for experience i",
)
_add_cost("phase_flops", cost.phase_flops, "FLOP", "operations of the optimiser steps of every phase")
_add_cost("evaluation_flops", cost.cost_curve("evaluation_flops"), "FLOP", "operations of scoring after experience i")
_add_cost("inference_flops", cost.cost_curve("inference_flops"), "FLOP", "operations of predicting one sample")
_add_cost("steps", cost.cost_curve("steps"), "steps", "optimiser steps of all phases of experience i")
_add_cost(
    "presentations",
    cost.cost_curve("presentations"),
    "samples",
    "samples that these steps trained on, each view and each replay counted",
)
_add_cost(
    "train_cpu_seconds", cost.train_seconds("cpu_seconds"), "seconds", "CPU time of phases and hooks, over all threads"
)
_add_cost("train_wall_seconds", cost.train_seconds("wall_seconds"), "seconds", "time of phases and hooks by the clock")
_add_cost("deployed_bytes", cost.cost_curve("deployed_bytes"), "bytes", "parameters and buffers of the network after i")
_add_cost(
    "training_only_bytes",
    cost.cost_curve("training_only_bytes"),
    "bytes",
    "other networks and modules that the strategy keeps after i, such as teachers",
)
_add_cost(
    "exemplar_bytes",
    cost.cost_curve("exemplar_bytes"),
    "bytes",
    "stored samples after i as raw bytes, 8 bytes for each label, and what is stored beside them",
)
_add_cost(
    "statistics_bytes",
    cost.cost_curve("statistics_bytes"),
    "bytes",
    "all other tensors that the strategy keeps after i",
)
_add_cost(
    "optimizer_bytes", cost.cost_curve("optimizer_bytes"), "bytes", "largest state of an optimiser during experience i"
)
_add_cost(
    "peak_memory_bytes", cost.cost_curve("peak_memory_bytes"), "bytes", "largest resident memory of the process until i"
)
_add_cost(
    "peak_device_bytes",
    cost.cost_curve("peak_device_bytes", "The run didn't use a GPU, or didn't measure its cost."),
    "bytes",
    "largest memory that tensors held on the GPU until i",
)
_add_cost(
    "energy_joules", cost.energy, "joules", "energy of processor packages (RAPL) and the GPU (NVML), whoever used it"
)
_add_cost("total_train_flops", cost.total_train_flops, "FLOP", "Σ_i train_flops", curve=False)
_add_cost(
    "storage_ratio",
    cost.storage_ratio,
    "ratio",
    "σ = (deployed + training-only + exemplar + statistics bytes after T) / (bytes of the training samples of 1..T)",
    curve=False,
)
