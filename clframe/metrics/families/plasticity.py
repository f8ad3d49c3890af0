"""Metrics of how well the network can still learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clframe.metrics import plasticity
from clframe.metrics.metric import RUN, Family

__all__ = ["METRICS"]

METRICS = Family()


def _add_plasticity(
    name: str, function: Callable[..., Any], better: bool | None, unit: str, definition: str, reference: str = ""
) -> None:
    """A metric of how well the network can still learn, with a value after every experience."""
    upper = 1.0 if unit == "fraction" else None
    lower = None if name == "curvature" else 0.0
    METRICS.add(name, function, better, (lower, upper), definition, reference, unit=unit, restrictions=RUN, curve=True)


_REDO = "Sokar et al. 2023, The Dormant Neuron Phenomenon in Deep Reinforcement Learning"
_CBP = "Dohare et al. 2024, Loss of plasticity in deep continual learning"

_add_plasticity(
    "dormant_units",
    plasticity.layers("dormant_units"),
    False,
    "fraction",
    "share of a layer's units with E|h_i| / ((1/H) Σ_k E|h_k|) ≤ 0.025, by layer",
    _REDO,
)
_add_plasticity(
    "dormant_units_mean",
    plasticity.layers_mean("dormant_units"),
    False,
    "fraction",
    "mean over layers of dormant_units",
    _REDO,
)
_add_plasticity(
    "dead_units",
    plasticity.layers("dead_units"),
    False,
    "fraction",
    "share of a layer's units with E|h_i| = 0, by layer",
)
_add_plasticity(
    "effective_rank",
    plasticity.curve("effective_rank"),
    True,
    "dimensions",
    "exp(-Σ p_i ln p_i), p_i = σ_i / Σ σ, σ the singular values of the features of the probe set",
    "Roy and Vetterli 2007, The Effective Rank - A Measure of Effective Dimensionality",
)
_add_plasticity(
    "srank",
    plasticity.curve("srank"),
    True,
    "dimensions",
    "smallest k with Σ_{i≤k} σ_i ≥ 0.99 Σ σ_i",
    "Kumar et al. 2021, Implicit Under-Parameterization Inhibits Data-Efficient Deep Reinforcement Learning",
)
_add_plasticity(
    "stable_rank", plasticity.curve("stable_rank"), True, "dimensions", "‖Φ‖_F² / ‖Φ‖₂² = Σ σ_i² / max σ_i²"
)
_add_plasticity(
    "weight_magnitude",
    plasticity.curve("weight_magnitude"),
    None,
    "magnitude",
    "mean |w| over all weight matrices and kernels of the network",
    _CBP,
)
_add_plasticity(
    "weight_magnitude_layers",
    plasticity.layers("weight_magnitude_layers"),
    None,
    "magnitude",
    "mean |w| of a layer's weights, by layer",
    _CBP,
)
_add_plasticity(
    "weight_distance",
    plasticity.curve("weight_distance"),
    None,
    "magnitude",
    "‖θ - θ_0‖₂, θ_0 the values with which each parameter first began to train",
)
_add_plasticity(
    "gradient_norm",
    plasticity.curve("gradient_norm", "No step of the run had a gradient."),
    None,
    "magnitude",
    "mean over the optimiser steps of experience i of ‖∇L‖₂, as given to the optimiser",
)
_add_plasticity(
    "gradient_norm_first",
    plasticity.curve("gradient_norm_first", "No step of the run had a gradient."),
    None,
    "magnitude",
    "‖∇L‖₂ of the first optimiser step of experience i",
)
_add_plasticity(
    "online_accuracy",
    plasticity.curve("online_accuracy"),
    True,
    "fraction",
    "mean over the optimiser steps of experience i of the accuracy on the step's new samples before learning from them",
    _CBP,
)
_add_plasticity(
    "steps_to_threshold",
    plasticity.curve("steps_to_threshold", "The running accuracy reached the threshold in no experience."),
    False,
    "steps",
    "first step at which the mean of online accuracy over 20 steps is 0.9 of the level at the end of the first experience",
)
_add_plasticity(
    "curvature",
    plasticity.curve("curvature", "No experience had training samples and weights that can train."),
    None,
    "curvature",
    "largest eigenvalue of the Hessian of the plain loss on 128 training samples of experience i, by power iteration",
    "Lyle et al. 2023, Understanding plasticity in neural networks",
)
