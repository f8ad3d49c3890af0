"""A run's network as Avalanche's plugins expect a model: logits come out of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clframe.interop.avalanche.library import require
from clframe.models import Network

__all__ = ["ClassModel", "task_model"]

MASKED = -1000.0
"""Logit of a class that isn't of the sample's task, as in Avalanche's own heads; finite, so that plugins can distil it."""


class ClassModel(nn.Module):
    """Logits of all classes seen.

    Args:
        network: The run's.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits: (B, C, H, W) or (B, F) to (B, K)."""
        logits: Tensor = self.network(x).logits
        return logits


def task_model(network: Network, mask_of: Callable[[Tensor], Tensor]) -> Any:
    """Return a model that takes task labels, for the task-incremental setting.

    Args:
        network: The run's.
        mask_of: Gives the (B, K) bool mask of the classes of every sample's task. No bound method: plugins copy the model.
    """
    return _task_model_class()(network, mask_of)


@functools.cache
def _task_model_class() -> Any:
    base = require("avalanche.models").MultiTaskModule

    class TaskModel(base):  # type: ignore[misc, valid-type]
        """Logits of all classes seen, in which only those of the sample's own task can win."""

        def __init__(self, network: Network, mask_of: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.network = network
            self.mask_of = mask_of

        def forward(self, x: Tensor, task_labels: Tensor | int | None) -> Tensor | dict[int, Tensor]:
            """Compute logits (B, K), in one pass whatever the tasks; without task labels those of every task, by its label."""
            if task_labels is None:
                every: dict[int, Tensor] = self.forward_all_tasks(x)
                return every
            ids = torch.as_tensor(task_labels, device=x.device).expand(len(x))
            logits = self.network(x, ids).logits
            mask = self.mask_of(ids)[:, : logits.shape[1]]  # of an earlier copy, narrower than the run's network
            masked: Tensor = logits.masked_fill(~mask, MASKED)
            return masked

        def forward_single_task(self, x: Tensor, task_label: int) -> Any:
            """Compute the logits (B, K) of one task."""
            return self(x, task_label)

    return TaskModel
