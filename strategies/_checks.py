"""Refusals that several methods share."""

from __future__ import annotations

from clframe.errors import ConfigurationError
from clframe.strategy import RunContext, Strategy

__all__ = ["refuse_local_softmax"]


def refuse_local_softmax(strategy: Strategy, run: RunContext) -> None:
    """Refuse a softmax over the experience's classes where samples of older classes are trained on as well.

    Their own class would have no probability and their loss would be infinite.

    Raises:
        ConfigurationError: `loss_over` is `experience` in a class-incremental run.
    """
    if run.setting == "class" and strategy.loss_over == "experience":
        raise ConfigurationError(
            f"strategy.loss_over: {type(strategy).__name__} trains on older classes too, so expected auto or seen in the "
            "class-incremental setting, received 'experience'."
        )
