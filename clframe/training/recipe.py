"""Optimiser recipes: what steps, how fast, and how the rate changes over a phase.

The learning rate is a pure function of the position in the phase, so resuming needs no scheduler state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from clframe.errors import ConfigurationError
from clframe.spec import Configurable, field
from clframe.strategy import ParameterGroup

__all__ = ["Recipe"]


class Recipe(Configurable):
    """An optimiser, its learning rate and its schedule."""

    name: Literal["sgd", "adam", "adamw"] = field(default="sgd", help="The optimiser.")
    lr: float = field(default=0.1, gt=0, help="Learning rate after warm-up.")
    momentum: float = field(default=0.9, ge=0, lt=1, help="Momentum of SGD.")
    nesterov: bool = field(default=False, help="Nesterov's form of SGD's momentum.")
    beta2: float = field(default=0.999, ge=0, lt=1, help="Second-moment decay of Adam and AdamW (the first is 0.9).")
    weight_decay: float = field(default=5e-4, ge=0, help="L2 decay; decoupled for AdamW.")
    schedule: Literal["constant", "multistep", "cosine", "cosine_restarts"] = field(
        default="constant", help="How the rate changes."
    )
    milestones: list[float] = field(
        default_factory=list,
        help="Multistep: drop after these epochs; cosine_restarts: go back to the full rate at these; values below 1 "
        "are fractions of the phase.",
    )
    gamma: float = field(
        default=0.1,
        gt=0,
        le=1,
        help="Multistep: factor of every drop; cosine_restarts: factor that every cycle falls to.",
    )
    per: Literal["epoch", "step"] = field(
        default="epoch", help="Whether the rate changes between epochs or between steps."
    )
    warmup: float = field(
        default=0.0, ge=0, unit="epochs", help="Linear warm-up; later milestones count from the phase's start."
    )
    clip_norm: float | None = field(default=None, gt=0, help="Largest gradient norm; none means no clipping.")
    clip_value: float | None = field(
        default=None, gt=0, help="Largest absolute gradient entry; none means no clipping."
    )

    def changed(self, changes: dict[str, object] | None) -> Recipe:
        """Return this recipe with some fields changed by name."""
        if not changes:
            return self
        unknown = set(changes) - set(vars(self))
        if unknown:
            raise ConfigurationError(
                f"An optimiser recipe has no field {sorted(unknown)[0]!r}: see `clframe describe optimizer`."
            )
        return self.replace(**changes)

    def factor(self, epoch: float, epochs: int) -> float:
        """Return the learning rate's factor at a moment of a phase.

        Args:
            epoch: Epochs since the phase began; with `per="epoch"` a whole number.
            epochs: Length of the phase.
        """
        if epoch < self.warmup:
            begun = epoch + 1 if self.per == "epoch" else epoch  # a whole epoch at rate zero would be lost
            return min(1.0, begun / self.warmup)
        if self.schedule == "multistep":
            return self.gamma ** sum(epoch >= m for m in self._milestones(epochs))
        if self.schedule == "cosine":
            span = max(epochs - self.warmup, 1e-12)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - self.warmup) / span)))
        if self.schedule == "cosine_restarts":
            marks = self._milestones(epochs)
            start = max([self.warmup, *(m for m in marks if m <= epoch)])
            end = min([m for m in marks if m > epoch], default=float(max(epochs, start + 1)))
            share = (epoch - start) / max(end - start, 1e-12)
            return self.gamma + (1 - self.gamma) * 0.5 * (1 + math.cos(math.pi * share))
        return 1.0

    def _milestones(self, epochs: int) -> list[float]:
        """Return the milestones in epochs."""
        return [m * epochs if m < 1 else m for m in self.milestones]

    def build(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        """Make the optimiser of some parameters; each group remembers its own base rate.

        Raises:
            ConfigurationError: Nothing trains.
        """
        made: list[dict[str, Any]] = []
        for group in groups:
            decay = self.weight_decay if group.weight_decay is None else group.weight_decay
            parameters = list(group.parameters)
            if parameters:
                lr = self.lr * group.lr_scale
                made.append({"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay})
        if not made:
            raise ConfigurationError("A phase needs parameters to train, received none: leave the phase out instead.")
        if self.name == "sgd":
            return torch.optim.SGD(
                made, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov and self.momentum > 0
            )
        kind = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return kind(made, lr=self.lr, betas=(0.9, self.beta2))

    def set_rate(self, optimizer: torch.optim.Optimizer, epoch: float, epochs: int) -> None:
        """Set every group's learning rate for a moment of the phase."""
        factor = self.factor(epoch, epochs)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

    def clip(self, parameters: Sequence[nn.Parameter]) -> None:
        """Limit the gradients, when the recipe says so."""
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(parameters, self.clip_value)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)

    @property
    def clips(self) -> bool:
        """Whether gradients are limited at all."""
        return self.clip_value is not None or self.clip_norm is not None
