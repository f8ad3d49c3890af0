"""Gates on channels: learned factors between 0 and 1 that become a choice, and the share of the weights they leave.

A gate multiplies every channel of one set (see `ChannelLayer`) by m = sigmoid(s·e), with a learned value e per channel and
a scale s that the training anneals. `clframe.models.prune` cuts out what the gates have closed. Nothing here knows of a
method; who uses gates says when they anneal, adds `channel_sparsity` to a loss, and has the network pruned.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from clframe.errors import ContractError
from clframe.models.backbone import Backbone, ChannelLayer

__all__ = ["ChannelGate", "annealed_scale", "attach_gates", "channel_sparsity", "gates_of", "remove_gates"]

_CERTAIN = 1e9
"""A value e whose sigmoid is exactly 1, and that of its negative exactly 0."""


class ChannelGate(nn.Module):
    """Multiplies every channel by m = sigmoid(s·e); its gradient doesn't vanish as s grows.

    Serrà, Surís, Miron & Karatzoglou 2018, "Overcoming Catastrophic Forgetting with Hard Attention to the Task" (HAT):
    with g the gradient of e, the compensated one is g·sigmoid(e)(1 − sigmoid(e)) / [s·sigmoid(s·e)(1 − sigmoid(s·e))],
    which is that of sigmoid(e). So it is taken from there, without a division by what rounds to zero. HAT multiplies it
    by the largest s as well; a learning rate of their own does the same for gates.

    Args:
        channels: Number of channels.
        start: The e start evenly spread over (0, start), the first channel's lowest. So a sparsity loss, which treats the
            channels of a set alike, closes them one after the other, and those joined by a shortcut together.
    """

    scale: Tensor

    def __init__(self, channels: int, start: float = 2.0) -> None:
        super().__init__()
        self.logits = nn.Parameter(start * (torch.arange(channels) + 0.5) / channels)
        self.register_buffer("scale", torch.ones(()))

    def values(self) -> Tensor:
        """Compute m (C,)."""
        soft = torch.sigmoid(self.logits)
        return torch.sigmoid(self.scale * self.logits.detach()) + (soft - soft.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Multiply (B, C, …) channel by channel."""
        return x * self.values().to(x.dtype).view(-1, *[1] * (x.dim() - 2))

    def anneal(self, scale: float) -> None:
        """Set s."""
        self.scale.fill_(scale)

    def open_channels(self) -> list[int]:
        """Return the channels whose m is above one half (e > 0); where none is, the one with the largest e."""
        values = self.logits.detach().cpu()
        return cast("list[int]", (values > 0).nonzero().flatten().tolist()) or [int(values.argmax())]

    def binarise(self) -> None:
        """Make m exactly 1 for the open channels and exactly 0 for the others, whatever s is set to (above 0)."""
        opened = self.open_channels()
        with torch.no_grad():
            self.logits.fill_(-_CERTAIN)
            self.logits[opened] = _CERTAIN
        self.anneal(1.0)


def annealed_scale(step: int, num_steps: int, largest: float) -> float:
    """Return s of a step of an epoch: from 1/s_max at the first to s_max at the last, in equal steps (as HAT).

    Args:
        step: Of the epoch, from 0.
        num_steps: Steps in the epoch; a single one is the last.
        largest: s_max.
    """
    share = step / (num_steps - 1) if num_steps > 1 else 1.0
    return 1 / largest + (largest - 1 / largest) * share


def described_layers(backbone: Backbone) -> tuple[ChannelLayer, ...]:
    """Return the layers whose channels can be gated and pruned.

    Raises:
        ContractError: The backbone has no support for that.
    """
    layers = backbone.channel_layers()
    if not layers:
        raise ContractError(
            f"{type(backbone).__name__} has no channels that can be gated or pruned: use a residual network (resnet8 to "
            "resnet56, resnet18, resnet34) or an mlp without layer_norm, or define channel_layers()."
        )
    return layers


def attach_gates(backbone: Backbone, start: float = 2.0, only: Iterable[str] | None = None) -> None:
    """Put a fresh gate on sets of channels; one that is there is replaced.

    Args:
        backbone: Changed in place; its values stay.
        start: Largest initial e; see `ChannelGate`.
        only: Names of the sets; by default all.

    Raises:
        ContractError: The backbone has no support for gates.
    """
    layers = {layer.writes: layer for layer in described_layers(backbone)}
    for name in layers if only is None else only:
        weight = backbone.get_submodule(layers[name].module).weight
        place, _, attribute = name.rpartition(".")
        gate = ChannelGate(len(cast(Tensor, weight)), start).to(cast(Tensor, weight).device)
        setattr(backbone.get_submodule(place), attribute, gate.train(backbone.training))


def remove_gates(backbone: Backbone) -> None:
    """Take all gates off, whatever their values."""
    for name in gates_of(backbone):
        place, _, attribute = name.rpartition(".")
        owner = backbone.get_submodule(place)
        if isinstance(owner, nn.ModuleDict):
            del owner[attribute]
        else:
            setattr(owner, attribute, None)


def gates_of(backbone: Backbone) -> dict[str, ChannelGate]:
    """Return the gates by the name of their set of channels, in the order of the computation."""
    modules = dict(backbone.named_modules())
    names = dict.fromkeys(layer.writes for layer in backbone.channel_layers())
    return {name: gate for name in names if isinstance(gate := modules.get(name), ChannelGate)}


def channel_sparsity(backbone: Backbone) -> Tensor:
    """Compute L_S = Σ_l K_l ‖m_{l−1}‖₁ ‖m_l‖₁ / Σ_l K_l c_{l−1} c_l (Yan, Xie & He 2021, section 3.4).

    K_l is the number of entries of a kernel (9 for 3×3, 1 for a linear layer), m_{l−1} and m_l are the gates on what layer
    l reads and writes, c the numbers of channels; a set without a gate counts as open, as the input's channels do. With
    binary gates that is the share of the layers' weights that would be left. Where a shortcut is projected, the
    projection is a layer like the others.

    Returns:
        A scalar.

    Raises:
        ContractError: The backbone has no support for gates.
    """
    sums = {name: gate.values().sum() for name, gate in gates_of(backbone).items()}
    left: Tensor | float = 0.0
    total = 0
    for layer in described_layers(backbone):
        weight = cast(Tensor, backbone.get_submodule(layer.module).weight)
        written, read = weight.shape[:2]
        kernel = weight.shape[2:].numel()
        left = left + kernel * sums.get(layer.reads or "", read) * sums.get(layer.writes, written)
        total += kernel * read * written
    return torch.as_tensor(left / total)
