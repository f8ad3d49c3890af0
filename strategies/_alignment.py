"""Weight alignment (Zhao et al. 2020), which several methods use to undo a classifier's bias towards new classes."""

from __future__ import annotations

import torch

from clframe.errors import ConfigurationError
from clframe.models import CosineHead, Head
from clframe.strategy import RunContext, Strategy

__all__ = ["align_weights", "refuse_directions"]


def align_weights(head: Head, num_new: int) -> None:
    """Scale a head's newest rows by γ = mean‖w_old‖ / mean‖w_new‖ (Zhao et al. 2020, eq. 8); the bias stays.

    Args:
        head: The classifier; nothing happens where all of its classes are new, or none.
        num_new: How many of its last rows are new.
    """
    num_old = head.num_classes - num_new
    if not num_new or not num_old:
        return
    weight = head.weight.detach().clone()
    norms = weight.norm(dim=1)
    smallest = torch.finfo(norms.dtype).tiny  # rows that are all zero stay so
    weight[num_old:] *= norms[:num_old].mean() / norms[num_old:].mean().clamp(min=smallest)
    head.write(weight)


def refuse_directions(strategy: Strategy, run: RunContext, what: str, instead: str) -> None:
    """Refuse a head whose scores depend on the directions of its rows alone, so that scaling them does nothing.

    Args:
        strategy: Named in the error.
        run: Its network has the head.
        what: What can't be done, for instance `stage 'align'`.
        instead: What to do, beside choosing a linear head; empty or ending the sentence.

    Raises:
        ConfigurationError: The head is a cosine head or one of its kind.
    """
    if isinstance(run.network.classifier, CosineHead):
        raise ConfigurationError(
            f"head.name: {type(strategy).__name__}{what} scales the classifier's rows, which a cosine head's scores don't "
            f"depend on: set head.name to linear{instead}."
        )
