"""How well a network can still learn, in numbers: pure functions of activations, features, weights and accuracies.

Nothing here knows of a run; `clframe.training.plasticity` says what a run gives them, `strategies/redo.py` acts on
`dormancy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = [
    "DORMANT",
    "THRESHOLD",
    "WINDOW",
    "dormancy",
    "dormant_units",
    "effective_rank",
    "largest_eigenvalue",
    "mean_absolute",
    "running_level",
    "srank",
    "stable_rank",
    "steps_to_threshold",
    "weight_distance",
    "weight_magnitude",
]

DORMANT = 0.025
"""τ, the largest relative activation of a unit that counts as dormant (Sokar et al. 2023)."""
THRESHOLD = 0.9
"""The share of the first task's level that `steps_to_threshold` waits for."""
WINDOW = 20
"""Steps over which the running accuracy is the mean."""


# -- units -------------------------------------------------------------------------------------------------------------


def mean_absolute(activations: Tensor, dim: int = 1) -> Tensor:
    """Average |h| over samples and places.

    Args:
        activations: (B, H, …), or with the units H in another dimension.
        dim: The dimension of the units.

    Returns:
        (H,) float32.
    """
    return activations.float().abs().transpose(0, dim).flatten(1).mean(1)


def dormancy(mean_absolute_activations: Tensor) -> Tensor:
    """Compute s_i = E|h_i| / ((1/H) Σ_k E|h_k|) of the units of a layer.

    Sokar, Agarwal, Castro & Evci 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", eq. 1.

    Args:
        mean_absolute_activations: (H,) as `mean_absolute` gives them.

    Returns:
        (H,), mean 1; all 0 where nothing fires at all.
    """
    level = mean_absolute_activations
    return torch.where(level.mean() > 0, level / level.mean(), 0.0)


def dormant_units(mean_absolute_activations: Mapping[str, Tensor], tau: float = DORMANT) -> dict[str, float]:
    """Compute the share of units with s_i ≤ τ in every layer; τ = 0 counts those that are exactly dead.

    >>> dormant_units({"fc": torch.tensor([0.0, 1.0, 2.0, 1.0])})
    {'fc': 0.25}
    """
    return {n: float((dormancy(h) <= tau).double().mean()) for n, h in mean_absolute_activations.items()}


# -- ranks of a feature matrix -------------------------------------------------------------------------------------------


def effective_rank(singular_values: Tensor) -> float:
    """Compute exp(−Σ p_i ln p_i), p_i = σ_i / Σ σ; 0 for a matrix of zeros.

    Roy & Vetterli 2007, "The Effective Rank: A Measure of Effective Dimensionality".

    Args:
        singular_values: (k,) of the features, in any order.
    """
    total = singular_values.double().sum()
    if not total > 0:
        return 0.0
    p = singular_values.double() / total
    return float(torch.special.entr(p).sum().exp())


def srank(singular_values: Tensor, delta: float = 0.01) -> int:
    """Compute the smallest k with Σ_{i≤k} σ_i ≥ (1 − δ) Σ σ_i; 0 for a matrix of zeros.

    Kumar, Agarwal, Ghosh & Levine 2021, "Implicit Under-Parameterization Inhibits Data-Efficient Deep Reinforcement
    Learning".

    Args:
        singular_values: (k,) of the features, in any order.
        delta: δ.
    """
    sums = singular_values.double().sort(descending=True).values.cumsum(0)
    if not len(sums) or not sums[-1] > 0:
        return 0
    reached = sums >= (1 - delta) * sums[-1]
    return 1 + int(reached.int().argmax())


def stable_rank(singular_values: Tensor) -> float:
    """Compute ‖Φ‖_F² / ‖Φ‖₂² = Σ σ_i² / max σ_i²; 0 for a matrix of zeros.

    Args:
        singular_values: (k,) of the features, in any order.
    """
    squares = singular_values.double().square()
    return float(squares.sum() / squares.max()) if len(squares) and squares.max() > 0 else 0.0


# -- weights -----------------------------------------------------------------------------------------------------------


def weight_magnitude(weights: Mapping[str, Tensor]) -> tuple[float, dict[str, float]]:
    """Compute the mean |w| of all weights together, and of each tensor.

    Dohare, Sutton & Mahmood 2021, "Continual Backprop: Stochastic Gradient Descent with Persistent Randomness".

    Args:
        weights: By name; those without entries are left out.
    """
    sums = {name: float(w.detach().double().abs().sum()) for name, w in weights.items() if w.numel()}
    count = sum(weights[name].numel() for name in sums)
    return sum(sums.values()) / max(count, 1), {name: s / weights[name].numel() for name, s in sums.items()}


def weight_distance(weights: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> float:
    """Compute ‖θ − θ₀‖₂ over the tensors that both have in the same shape."""
    squares = [
        float((w.detach() - initial[name]).double().square().sum())
        for name, w in weights.items()
        if name in initial and initial[name].shape == w.shape
    ]
    return math.sqrt(sum(squares))


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor], start: Tensor, *, iterations: int = 100, tolerance: float = 1e-4
) -> float:
    """Compute the largest eigenvalue of a symmetric matrix by power iteration.

    That finds the eigenvalue of largest size. Where it is negative, a second iteration on H − λI, all of whose
    eigenvalues are then positive, finds the other end of the spectrum.

    Args:
        product: Multiplies a vector (n,) by the matrix.
        start: (n,), not 0.
        iterations: Of each of the two, at most.
        tolerance: Relative change of the eigenvalue at which an iteration ends.
    """
    found = _dominant(product, start, iterations, tolerance)
    if found >= 0:
        return found
    return found + _dominant(lambda v: product(v) - found * v, start, iterations, tolerance)


def _dominant(product: Callable[[Tensor], Tensor], start: Tensor, iterations: int, tolerance: float) -> float:
    """The eigenvalue of largest size, as a Rayleigh quotient."""
    vector, value = start / start.norm(), 0.0
    for _ in range(iterations):
        image = product(vector)
        before, value = value, float(vector @ image)
        norm = image.norm()
        if not norm > 0 or abs(value - before) <= tolerance * abs(value):
            break
        vector = image / norm
    return value


# -- the pace of learning ------------------------------------------------------------------------------------------------


def running_level(accuracies: Sequence[float]) -> float:
    """Return the mean of the last 20 accuracies (of all, where there are fewer), one per step."""
    last = accuracies[-WINDOW:]
    return sum(last) / len(last)


def steps_to_threshold(accuracies: Sequence[float], threshold: float) -> int | None:
    """Return the first step (from 1) at which the mean accuracy of the last 20 steps reaches a threshold, None if it never does.

    Args:
        accuracies: Of every step's batch before learning from it.
        threshold: q, a fraction.
    """
    for end in range(WINDOW, len(accuracies) + 1):
        if running_level(accuracies[:end]) >= threshold:
            return end
    return None
