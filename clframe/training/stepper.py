"""One optimiser step: forward, loss terms, backward, clipping, hooks."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from clframe.composite import leaves
from clframe.strategy import Batch, BegunPhase, Strategy
from clframe.training.context import Setup
from clframe.training.recipe import Recipe

__all__ = ["Stepper", "autocast"]


class Stepper:
    """One optimiser step after the other; hooks that a strategy leaves alone cost nothing."""

    def __init__(
        self, setup: Setup, strategy: Strategy, begun: BegunPhase, recipe: Recipe, optimizer: torch.optim.Optimizer
    ) -> None:
        self.setup = setup
        self.begun = begun
        self.epochs = begun.phase.epochs
        self.recipe = recipe
        self.optimizer = optimizer
        self.strategy = strategy
        self.scaler = torch.amp.GradScaler(setup.device.type, enabled=setup.precision == "fp16")
        self._loss = begun.phase.loss or strategy.loss_terms
        parts = leaves(strategy)
        self._after_backward = any(type(p).after_backward is not Strategy.after_backward for p in parts)
        self._after_step = any(type(p).after_step is not Strategy.after_step for p in parts)
        self.parameters = [p for g in optimizer.param_groups for p in g["params"]]
        self._mixed = setup.precision != "fp32"
        self._ranks = setup.ranks

    def begin_epoch(self, epoch: int) -> None:
        """Set the modes and the learning rate."""
        self.strategy.network.train()
        for module in self.begun.train_modules:
            module.train()
        for module in self.begun.eval_modules:
            module.eval()
        self.recipe.set_rate(self.optimizer, epoch, self.epochs)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one step; returns every loss term and their total, detached and still on the device.

        Of several ranks each takes its share of the batch; terms are then this rank's part of the sum over ranks.
        """
        if self.recipe.per == "step":
            self.recipe.set_rate(self.optimizer, batch.epoch + batch.step / batch.num_steps, self.epochs)
        weight = 1.0
        if self._ranks.several:
            batch, weight = self._ranks.of_batch(batch)
        if self._mixed:
            with autocast(self.setup):
                terms = self._loss(batch)
        else:
            terms = self._loss(batch)
        if self._ranks.several:
            terms = {name: weight * value for name, value in terms.items()}
        values = list(terms.values())
        total = sum(values[1:], start=values[0])
        self.optimizer.zero_grad(set_to_none=True)
        total = self._backward(total, batch)
        if self._after_step:
            self.strategy.after_step(batch)
        record = {name: value.detach() for name, value in terms.items()}
        record["total"] = total.detach()
        return record

    def _backward(self, total: Tensor, batch: Batch) -> Tensor:
        """Compute gradients and step; returns the total, of all ranks where there are several."""
        scaled = self.scaler.is_enabled()
        (self.scaler.scale(total) if scaled else total).backward()  # type: ignore[no-untyped-call]
        total = self._ranks.reduce_gradients(self.parameters, total)
        if self._after_backward or self.recipe.clips:
            if scaled:
                self.scaler.unscale_(self.optimizer)
            if self._after_backward:
                self.strategy.after_backward(batch)
            if self.recipe.clips:
                self.recipe.clip(self.parameters)
        if scaled:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        return total


def autocast(setup: Setup) -> contextlib.AbstractContextManager[Any]:
    """Return the context of automatic mixed precision, which does nothing at full precision."""
    if setup.precision == "fp32":
        return contextlib.nullcontext()
    dtype = torch.float16 if setup.precision == "fp16" else torch.bfloat16
    return torch.autocast(setup.device.type, dtype=dtype)
