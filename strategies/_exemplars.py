"""What methods that keep exemplars share: taking them, and the nearest mean of exemplars."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from clframe.memory import ExemplarMemory
from clframe.strategy import RunContext
from clframe.stream import Experience

__all__ = ["exemplar_means", "nearest_mean_scores", "take_exemplars"]


def take_exemplars(memory: ExemplarMemory, experience: Experience, run: RunContext) -> None:
    """Choose exemplars of an experience by herding on the run's network, or by random draws, as the memory's policy says."""
    memory.add_classes(
        experience.train,
        run.targets(experience.train),
        experience.num_seen_classes,
        generator=run.rng("memory"),
        features=run.features,
    )


def exemplar_means(memory: ExemplarMemory, run: RunContext) -> Tensor:
    """Return the re-normalised means of normalised exemplar features (Rebuffi et al. 2017, eq. 2).

    Returns:
        (K, D) on the run's device; NaN for a class without exemplars.
    """
    features = functional.normalize(run.features(memory.ids), dim=1)
    means = torch.full((run.network.num_classes, features.shape[1]), torch.nan)
    for label in torch.unique(memory.targets).tolist():
        means[label] = functional.normalize(features[memory.targets == label].mean(dim=0), dim=0)
    return means.to(run.device)


def nearest_mean_scores(features: Tensor, means: Tensor) -> Tensor:
    """Score by the negative squared distance of unit features (B, D) to means (K, D); −∞ where there is no mean.

    Returns:
        (B, K).
    """
    unit = functional.normalize(features.float(), dim=1)
    # without matrix products, which mixed precision would round and whose bits depend on the batch's size
    distances = torch.cdist(unit, means, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.nan_to_num(-distances.square(), nan=-torch.inf)
