"""Continual backprop: at every step, a few of the units that help least are given new weights."""

from __future__ import annotations

import torch
from torch import Tensor

from clframe.plasticity import mean_absolute
from clframe.spec import field
from clframe.strategies._units import RecyclingStrategy, Units
from clframe.strategy import Batch

__all__ = ["ContinualBackprop"]


class ContinualBackprop(RecyclingStrategy):
    """Continual backprop, which keeps a network able to learn.

    Dohare, Sutton & Mahmood 2021, "Continual Backprop: Stochastic Gradient Descent with Persistent Randomness"; Dohare et
    al. 2024, "Loss of plasticity in deep continual learning", Nature 632, algorithm 1. After every step, for each unit i of a
    layer, with h its activation on the step's batch and w_ik its outgoing weights,

        u_i ← η u_i + (1 − η) mean|h_i| Σ_k |w_ik|       û_i = u_i / (1 − η^{a_i})       a_i the steps since it was new
        f_i ← η f_i + (1 − η) mean h_i                   f̂_i likewise

    and of each layer's units with a_i > m, a share ρ is replaced: those of the smallest û. Shares of a unit add up over steps
    until they make a whole one. A replaced unit gets fresh incoming weights and outgoing weights of zero, the mean f̂_i w_ik that it
    contributed goes into the next layer's bias, and its age, its averages, and the optimiser's of its weights start at zero.

    Units are those whose incoming and outgoing weights are a layer's own: the hidden units of an `mlp`, the last ones with
    the columns of linear heads as outgoing weights, and the inner channels of residual blocks, with scale, shift and
    statistics of their BatchNorm. Channels that a shortcut joins, features read by a head of directions, and layers of
    which a part is frozen stay as they are.

    Differs from the paper:
        h is measured after the step, in eval mode (running statistics, no dropout), by a pass of its own. Of a convolution
        the means run over all places as well, and Σ_k |w_ik| over the kernel. Where the next layer has no bias, as before a BatchNorm,
        the contribution goes nowhere. A unit's fresh values are those of the same unit of a freshly made network, its bias
        too; with pretrained weights that network has these. Adam's count of steps stays.
    """

    rate: float = field(default=1e-4, ge=0, le=1, help="ρ, the share of a layer's mature units replaced per step.")
    maturity: int = field(default=100, ge=0, unit="steps", help="m, the age up to which a unit is left alone.")
    decay: float = field(default=0.99, ge=0, lt=1, help="η, of the running averages.")

    def setup(self) -> None:
        """Start with new units."""
        self.utility_: dict[str, Tensor] = {}
        self.mean_: dict[str, Tensor] = {}
        self.age_: dict[str, Tensor] = {}
        self.due_: dict[str, float] = {}
        self.replaced_ = 0

    def after_step(self, batch: Batch) -> None:
        """Update the utilities and replace what is due; steps on what is no image of the stream don't count."""
        if len(batch.ids):
            self.update(self.activations(self.run.gathered(batch.x)))
            self.replace_least(self.choose())

    @torch.no_grad()
    def update(self, activations: dict[str, Tensor]) -> None:
        """Let every unit grow older, and its averages see one more batch.

        Args:
            activations: (B, H, …) by the name of the set of units.
        """
        units = self.units()
        for name, h in activations.items():
            if name not in self.age_:
                for state in (self.utility_, self.mean_, self.age_):
                    state[name] = torch.zeros(h.shape[1], device=h.device)
                self.due_[name] = 0.0
            use = mean_absolute(h) * sum(_per_unit(w.abs()) for w in units[name].outgoing)
            mean = h.float().transpose(0, 1).flatten(1).mean(1)
            self.age_[name] += 1
            self.utility_[name].lerp_(use, 1 - self.decay)
            self.mean_[name].lerp_(mean, 1 - self.decay)

    def choose(self) -> dict[str, Tensor]:
        """Return the numbers of the units that are due, by the name of their set, and take them off what is due."""
        chosen: dict[str, Tensor] = {}
        for name in self.units().keys() & self.age_.keys():
            mature = (self.age_[name] > self.maturity).nonzero().flatten()
            self.due_[name] += self.rate * len(mature)
            count = min(int(self.due_[name]), len(mature))
            if count:
                self.due_[name] -= count
                utility = self.corrected(self.utility_, name)[mature]
                chosen[name] = mature[utility.argsort(stable=True)[:count]]
        return dict(sorted(chosen.items()))

    def corrected(self, averages: dict[str, Tensor], name: str) -> Tensor:
        """Return the running averages (H,) of a set of units, without the bias towards their start at zero."""
        return averages[name] / (1 - self.decay ** self.age_[name])

    @torch.no_grad()
    def replace_least(self, chosen: dict[str, Tensor]) -> None:
        """Hand on what units contribute, replace them, and forget their past."""
        units = self.units()
        for name, index in chosen.items():
            self._hand_on(units[name], index, self.corrected(self.mean_, name)[index])
            for state in (self.utility_, self.mean_, self.age_):
                state[name][index] = 0
            self.replaced_ += len(index)
        self.replace_units(chosen)

    def _hand_on(self, units: Units, index: Tensor, mean: Tensor) -> None:
        """Add the mean contribution of some units to the biases of those who read them."""
        for weight, bias in zip(units.outgoing, units.biases, strict=True):
            if bias is not None:
                read = weight[:, index]
                bias.add_((read.flatten(2).sum(2) if read.dim() > 2 else read) @ mean)


def _per_unit(weight: Tensor) -> Tensor:
    """Sum outgoing weights (O, H, …) unit by unit."""
    return weight.transpose(0, 1).flatten(1).sum(1)
