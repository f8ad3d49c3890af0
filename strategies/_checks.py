"""Refusals that several methods share."""

from __future__ import annotations

from typing import cast

from clframe.composite import tags_of
from clframe.errors import ConfigurationError
from clframe.models import Backbone, MultiHead
from clframe.strategy import RunContext, Strategy

__all__ = ["refuse_growing_features", "refuse_local_softmax", "refuse_multi_head", "refuse_without_channels"]


def refuse_growing_features(strategy: Strategy, run: RunContext) -> None:
    """Refuse a network that grows, of whose structure no fresh one can be made.

    Raises:
        ConfigurationError: A part of the composition adds branches.
    """
    if tags_of(run.strategy).grows_features:
        raise ConfigurationError(
            f"{type(strategy).__name__} expects a network of the structure that it starts with, received a composition that "
            "adds branches: leave one of them out."
        )


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


def refuse_multi_head(strategy: Strategy, run: RunContext) -> None:
    """Refuse a classifier of one layer per task where the method needs one over all classes.

    Raises:
        ConfigurationError: `head.name` is `multi`.
    """
    if isinstance(run.network.classifier, MultiHead):
        raise ConfigurationError(
            f"head.name: {type(strategy).__name__} needs one classifier over all classes, received multi: set it to linear."
        )


def refuse_without_channels(strategy: Strategy, run: RunContext) -> None:
    """Refuse a backbone whose channels can't be gated and pruned.

    Raises:
        ConfigurationError: The backbone describes no channels.
    """
    backbone = cast(Backbone, run.network.branches[0])
    if not backbone.channel_layers():
        raise ConfigurationError(
            f"backbone.name: {type(strategy).__name__} prunes channels, expected a backbone that supports it (resnet8 to "
            f"resnet56, resnet18, resnet34, mlp without layer_norm), received {type(backbone).__name__}: choose one of these."
        )
