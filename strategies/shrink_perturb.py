"""Shrink and perturb: before every task the weights move towards zero, and a little towards a fresh network's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import ClassVar, cast

import torch
from torch import nn

from clframe.models import Head
from clframe.spec import field
from clframe.strategies._checks import refuse_growing_features
from clframe.strategy import ANY_SCORE, RunContext, Strategy, Tags
from clframe.stream import Experience

__all__ = ["ShrinkPerturb"]


class ShrinkPerturb(Strategy):
    """Shrink and perturb, which keeps a warm-started network able to learn.

    Ash & Adams 2020, "On Warm-Starting Neural Network Training". At the start of every task but the first:

        θ ← α θ + β θ_new     θ_new a fresh initialisation of the same structure, drawn anew each time

    All parameters that can train take part, those of BatchNorm and of heads too, as the rows of earlier classes do; rows
    that the task adds come afterwards and keep their own initial values. The running statistics of BatchNorm, which were
    those of other weights, are reset to a fresh network's, and training estimates them again. α = 1 and β = 0 change
    nothing, and leave the statistics too. An experience without samples to train on is left alone.

    Differs from the paper:
        There all data so far are trained on after every move (`cumulative` does that); here whatever the composition
        presents. The paper adds Gaussian noise, or a fresh network's values scaled down as here; α = 0.4 to 0.8 with small
        noise is its good range, the defaults are a choice within it. The form that moves a little at every step is left
        out. With pretrained weights "fresh" means these, except for heads. In a composition, rows that an earlier
        part adds are moved like old ones: name this method first.
    """

    tags: ClassVar[Tags] = Tags(scores=ANY_SCORE, needs_boundaries=True)

    shrink: float = field(default=0.6, ge=0, help="α, the factor of the weights (0.4 to 0.8 in the paper).")
    perturb: float = field(default=0.1, ge=0, help="β, the factor of the fresh weights.")

    def check(self, run: RunContext) -> None:
        """Refuse a network that grows, of whose structure no fresh one can be made."""
        refuse_growing_features(self, run)

    def before_experience(self, experience: Experience) -> None:
        """Shrink and perturb what is there, then grow the classifier."""
        trains = len(experience.train) + len(experience.unlabelled) + experience.query_budget
        if experience.index > 0 and trains and (self.shrink, self.perturb) != (1, 0):
            self.move()
        super().before_experience(experience)

    @torch.no_grad()
    def move(self) -> None:
        """Set θ ← α θ + β θ_new, and BatchNorm's statistics to their start."""
        for module, fresh in self._pairs():
            new = dict(fresh.named_parameters())
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    parameter.mul_(self.shrink).add_(new[name], alpha=self.perturb)
            for layer in module.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm) and _trains(layer):
                    layer.reset_running_stats()

    def _pairs(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Yield the backbone and every head with fresh ones of the same size."""
        yield self.network.branches[0], self.run.fresh_network().branches[0]
        for head in self.network.heads.values():
            fresh = copy.deepcopy(head)
            cast(Head, fresh).reset_parameters()
            yield head, fresh


def _trains(layer: nn.Module) -> bool:
    return all(p.requires_grad for p in layer.parameters())
