"""ReDo: every so many steps, units that hardly fire are given new weights."""

from __future__ import annotations

import torch
from torch import Tensor

from clframe.plasticity import dormancy, mean_absolute
from clframe.spec import field
from clframe.strategies._units import RecyclingStrategy
from clframe.strategy import Batch

__all__ = ["ReDo"]


class ReDo(RecyclingStrategy):
    """Recycling of dormant units, which keeps a network able to learn.

    Sokar, Agarwal, Castro & Evci 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", eq. 1 and
    algorithm 1. Every F steps, for each unit i of a layer of H units, with h its activation,

        s_i = E_x |h_i(x)| / ((1/H) Σ_k E_x |h_k(x)|)     x the samples of the step's batch, and all places of a map

    and where s_i ≤ τ the incoming weights and the bias are replaced by fresh ones, the outgoing weights are set to zero, and so
    are the optimiser's running averages of both. Where nothing fires at all, every unit is dormant. So the outputs
    change by no more than what the dormant units contributed, and nothing happens at a τ below the smallest s_i.

    Units are those whose incoming and outgoing weights are a layer's own: the hidden units of an `mlp`, the last ones with
    the columns of linear heads as outgoing weights, and the inner channels of residual blocks, with scale, shift and
    statistics of their BatchNorm. Channels that a shortcut joins, features read by a head of directions, and layers of
    which a part is frozen stay as they are.

    Differs from the paper:
        h is measured after the step, in eval mode (running statistics, no dropout), on the batch that was just trained
        on. A unit's fresh values are those of the same unit of a freshly made network, its bias too; with pretrained weights that
        network has these. Adam's count of steps stays. F
        and τ were tuned there for reinforcement learning; the defaults here are a choice.
    """

    every: int = field(
        default=100, ge=1, unit="steps", help="F, the steps from one search for dormant units to the next."
    )
    threshold: float = field(default=0.025, ge=0, help="τ, the largest s of a unit that is recycled.")

    def setup(self) -> None:
        """Start counting."""
        self.steps_ = 0
        self.recycled_ = 0

    def after_step(self, batch: Batch) -> None:
        """Recycle every F steps; steps on what is no image of the stream don't count."""
        if len(batch.ids):
            self.steps_ += 1
            if self.steps_ % self.every == 0:
                self.recycle(self.run.gathered(batch.x))

    @torch.no_grad()
    def recycle(self, x: Tensor) -> dict[str, Tensor]:
        """Recycle the units that are dormant on a batch; returns their numbers by the name of their set."""
        found = {n: (s <= self.threshold).nonzero().flatten() for n, s in self.dormancy(x).items()}
        dormant = {n: index for n, index in found.items() if len(index)}
        self.replace_units(dormant)
        self.recycled_ += sum(map(len, dormant.values()))
        return dormant

    def dormancy(self, x: Tensor) -> dict[str, Tensor]:
        """Compute s (H,) of every set of units on a batch, in eval mode."""
        return {name: dormancy(mean_absolute(h)) for name, h in self.activations(x).items()}
