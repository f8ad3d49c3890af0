"""Learning again what was forgotten: how an accuracy comes back, step by step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from clframe.audits.models import KeptModel
from clframe.errors import ConfigurationError
from clframe.strategy import ParameterGroup
from clframe.stream import SampleTable
from clframe.training.batches import split_batches
from clframe.training.recipe import Recipe
from clframe.training.seeds import isolated

__all__ = ["Lesson"]


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is to be learnt again, and how: plain training of the whole network by cross-entropy over all classes.

    Attributes:
        table: The training samples.
        ids: (N,) those to forget.
        recipe: The run's optimiser, at its full rate from the first step on.
        batch_size: Samples per step.
        limit: Most optimiser steps.
        measured: At most so many of the samples, drawn once, say how far the learning has come.
        seed: Of the draws.
    """

    table: SampleTable
    ids: Tensor
    recipe: Recipe
    batch_size: int
    limit: int
    measured: int
    seed: int = 0

    def accuracy(self, model: KeptModel, labels: Tensor) -> float:
        """Return the classifier's accuracy on the measured samples.

        Args:
            model: The model.
            labels: (N,) of `ids`, as the model numbers them; one that it doesn't have is never right.
        """
        return self._accuracy(model, labels, self._measured_inputs(model))

    def curve(self, model: KeptModel, labels: Tensor, target: float) -> list[float]:
        """Return the accuracy after 0, 1, 2, … steps until a target is reached, `limit` steps at most.

        The model is changed: its network trains, and grows units for classes that it doesn't have.

        Args:
            model: The model.
            labels: (N,) of `ids`, as the model numbers them; new classes come after those that it has.
            target: Where to stop.

        Raises:
            ConfigurationError: Nothing in the network trains.
        """
        network = model.network
        with isolated(self.seed):
            network.grow(max(network.num_classes, int(labels.max()) + 1))
            network.to(model.maker.device)
            trains = [p for p in network.parameters() if p.requires_grad]
            if not trains:
                raise ConfigurationError(
                    "Nothing can be learnt again: every parameter of the network is frozen for good."
                )
            optimizer = self.recipe.changed({"schedule": "constant", "warmup": 0.0}).build([ParameterGroup(trains)])
            inputs = self._measured_inputs(model)
            found = [self._accuracy(model, labels, inputs)]
            draws = torch.Generator().manual_seed(self.seed)
            waiting: list[Tensor] = []
            while found[-1] < target and len(found) <= self.limit:
                waiting = waiting or split_batches(torch.randperm(len(self.ids), generator=draws), self.batch_size)
                rows = waiting.pop(0)
                x = model.maker.test_input(self.table.gather(self.ids[rows]))
                network.train()
                loss = functional.cross_entropy(network(x).logits, labels[rows].to(x.device))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.recipe.clip(trains)
                optimizer.step()
                network.eval()
                found.append(self._accuracy(model, labels, inputs))
        return found

    def _rows(self) -> Tensor:
        order = torch.randperm(len(self.ids), generator=torch.Generator().manual_seed(self.seed))
        return order[: self.measured].sort().values

    def _measured_inputs(self, model: KeptModel) -> list[Tensor]:
        return list(model.inputs(self.table, self.ids[self._rows()]))

    @torch.no_grad()
    def _accuracy(self, model: KeptModel, labels: Tensor, inputs: list[Tensor]) -> float:
        predicted = torch.cat([model.network(x).logits.argmax(dim=1).cpu() for x in inputs])
        return float((predicted == labels[self._rows()]).double().mean())
