"""Cutting channels out of a backbone, and growing a pruned one back to its whole width.

Channels are called by the numbers that they have in the whole backbone, also after earlier cuts. What is cut is described
by `Backbone.channel_layers`; a backbone stays what it was otherwise: names of tensors, dtype, memory format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from clframe.errors import ContractError
from clframe.models.backbone import Backbone, ChannelLayer
from clframe.models.gates import described_layers, gates_of, remove_gates

__all__ = ["channels_of", "is_channels_last", "prune", "widen"]

_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")
_SIZES = ({"out_channels", "out_features", "num_features"}, {"in_channels", "in_features"})


def channels_of(backbone: Backbone) -> dict[str, list[int]]:
    """Return the numbers of the channels that every set has.

    Raises:
        ContractError: The backbone has no support for pruning.
    """
    if backbone.kept_channels is not None:
        return backbone.kept_channels
    return {x.writes: list(range(len(_weight(backbone, x)))) for x in described_layers(backbone)}


def prune(backbone: Backbone, kept: Mapping[str, Sequence[int]] | None = None) -> Tensor:
    """Cut channels out, in place; gates are taken off.

    The outputs are, to rounding, those with binary gates that are open for the channels kept. Optimisers that hold the
    old parameters must be made anew. When nothing is to be cut, the backbone only loses its gates.

    Args:
        backbone: What is pruned.
        kept: Ascending numbers of the channels that stay, at least one of a set; a set without an entry stays whole. By
            default the open channels of the gates.

    Returns:
        (D',) int64 on the CPU: positions of the features that stay among those before.

    Raises:
        ContractError: The backbone has no support for pruning, or has no such channels.
    """
    before = channels_of(backbone)
    if kept is None:
        gates = gates_of(backbone)
        kept = {name: [before[name][k] for k in gate.open_channels()] for name, gate in gates.items()}
    _check(before, kept)
    after = {name: list(kept.get(name, numbers)) for name, numbers in before.items()}
    remove_gates(backbone)
    places = {name: torch.tensor([before[name].index(c) for c in after[name]]) for name in before}
    layers = described_layers(backbone)
    if after != before:
        channels_last = any(is_channels_last(p) for p in backbone.parameters())
        for layer in layers:
            _cut_layer(backbone, layer, places)
        if channels_last:  # by `to`, so that strides are those of a network that was read from a checkpoint
            backbone.to(memory_format=torch.channels_last)
        backbone.kept_channels = after
        backbone.feature_dim = len(after[layers[-1].writes])
        backbone.rewire(after)
    return places[layers[-1].writes]


def widen(whole: Backbone, pruned: Backbone) -> None:
    """Give a backbone of the whole width the values of a pruned one, in place; buffers too.

    A channel that was kept takes its values, and 0 as the weights of channels that had been cut: so it computes what it
    computed. The other channels keep the values they have. Only where an identity shortcut brings back a channel that
    had been cut behind another layer do later layers see more than before.

    Args:
        whole: A backbone of the same kind without cuts, freshly made.
        pruned: Where the values come from.
    """
    kept = channels_of(pruned)
    for layer in described_layers(whole):
        written = torch.tensor(kept[layer.writes])
        for name in filter(None, (layer.module, layer.norm)):
            source, target = pruned.get_submodule(name), whole.get_submodule(name)
            for key, new in (*target.named_parameters(), *target.named_buffers()):
                old = cast(Tensor, getattr(source, key)).detach()
                _paste(new.detach(), old, written, kept[layer.reads] if layer.reads else None)


def is_channels_last(p: Tensor) -> bool:
    """Whether a kernel keeps its channels last."""
    return p.dim() == 4 and not p.is_contiguous() and p.is_contiguous(memory_format=torch.channels_last)


def _paste(new: Tensor, old: Tensor, written: Tensor, read: Sequence[int] | None) -> None:
    """Write values over those of some channels."""
    if old.dim() == 0:
        new.copy_(old)
        return
    rows = old
    if old.dim() > 1 and read is not None:
        rows = torch.zeros(len(old), *new.shape[1:], device=old.device, dtype=old.dtype)
        rows.index_copy_(1, torch.tensor(read, device=old.device), old)
    new.index_copy_(0, written.to(new.device), rows)


def _cut_layer(backbone: Backbone, layer: ChannelLayer, places: Mapping[str, Tensor]) -> None:
    module: Any = backbone.get_submodule(layer.module)
    for owner in filter(None, (module, layer.norm and backbone.get_submodule(layer.norm))):
        for key in _PER_CHANNEL:
            _cut(owner, key, 0, places[layer.writes])
        _resize(owner, _SIZES[0], len(places[layer.writes]))
    if layer.reads is not None:
        _cut(module, "weight", 1, places[layer.reads])
        _resize(module, _SIZES[1], len(places[layer.reads]))


def _cut(module: nn.Module, key: str, dim: int, places: Tensor) -> None:
    old: Tensor | None = getattr(module, key, None)
    if old is None:
        return
    new = old.detach().index_select(dim, places.to(old.device))
    setattr(module, key, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _resize(module: nn.Module, keys: set[str], size: int) -> None:
    for key in keys & set(vars(module)):
        setattr(module, key, size)


def _check(before: Mapping[str, Sequence[int]], kept: Mapping[str, Sequence[int]]) -> None:
    for name, numbers in kept.items():
        good = name in before and len(numbers) > 0 and list(numbers) == sorted(set(numbers) & set(before[name]))
        if not good:
            there = f"channels of {name!r}: {list(before[name])}" if name in before else f"sets: {', '.join(before)}"
            raise ContractError(
                f"Channels to keep must be ascending numbers of those that are there, at least one, received "
                f"{list(numbers)} for {name!r}; the backbone has these {there}."
            )


def _weight(backbone: Backbone, layer: ChannelLayer) -> Tensor:
    return cast(Tensor, backbone.get_submodule(layer.module).weight)
