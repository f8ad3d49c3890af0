"""Units that can be replaced on their own: where they get their values, who reads them, and what they say on a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from clframe.models import Backbone, LinearHead, MultiHead, eval_mode
from clframe.strategies._checks import refuse_growing_features
from clframe.strategy import ANY_SCORE, RunContext, Strategy, Tags

__all__ = ["RecyclingStrategy", "Units"]


@dataclass(frozen=True, slots=True)
class Units:
    """The units of one set of channels: where they get their values, and who reads them.

    Attributes:
        writers: Names in the backbone of the layer that writes them, and of its norm.
        readers: Layers of the backbone that read them; none where the heads do.
        outgoing: Weights (O, H, …) of all that read them.
        biases: The bias of each of these, or None.
    """

    writers: tuple[str, ...]
    readers: tuple[nn.Module, ...]
    outgoing: tuple[nn.Parameter, ...]
    biases: tuple[nn.Parameter | None, ...]


class RecyclingStrategy(Strategy):
    """The frame of methods that give single units new weights.

    Units are those whose incoming and outgoing weights are a layer's own: the hidden units of an `mlp`, the last ones with
    the columns of linear heads as outgoing weights, and the inner channels of residual blocks, with scale, shift and
    statistics of their BatchNorm. Channels that a shortcut joins, features read by a head of directions, and layers of
    which a part is frozen stay as they are.
    """

    tags: ClassVar[Tags] = Tags(scores=ANY_SCORE, needs_own_channels=True)

    def check(self, run: RunContext) -> None:
        """Refuse a network that grows, of whose structure no fresh one can be made."""
        refuse_growing_features(self, run)

    @property
    def backbone(self) -> Backbone:
        """The one branch."""
        return cast(Backbone, self.network.branches[0])

    def units(self) -> dict[str, Units]:
        """Return the sets of units that can be replaced now, by name."""
        return dict(self._units())

    def _units(self) -> Iterator[tuple[str, Units]]:
        backbone, heads = self.backbone, list(self.network.heads.values())
        layers = backbone.channel_layers()
        for layer in layers:
            if not layer.own:
                continue
            readers = tuple(backbone.get_submodule(r.module) for r in layers if r.reads == layer.writes)
            if not readers and not all(isinstance(head, LinearHead | MultiHead) for head in heads):
                continue
            read_by = readers or tuple(m for head in heads for m in head.modules() if isinstance(m, LinearHead))
            outgoing = tuple(cast(nn.Parameter, m.weight) for m in read_by)
            biases = tuple(cast("nn.Parameter | None", m.bias) for m in read_by)
            writers = tuple(filter(None, (layer.module, layer.norm)))
            incoming = [p for name in writers for p in backbone.get_submodule(name).parameters()]
            if all(p.requires_grad for p in (*incoming, *outgoing)):
                yield layer.writes, Units(writers, readers, outgoing, biases)

    @torch.no_grad()
    def activations(self, x: Tensor) -> dict[str, Tensor]:
        """Compute what the units of every set say on a batch, in eval mode: (B, H) or (B, H, …) as their readers get it."""
        network, found, hooks = self.network, dict[str, Tensor](), []
        units = self.units()
        for name, set_ in units.items():
            if set_.readers:

                def keep(_: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
                    found[name] = inputs[0]

                hooks.append(set_.readers[0].register_forward_pre_hook(keep))
        try:
            with eval_mode(network):
                features = network.features(x)
        finally:
            for hook in hooks:
                hook.remove()
        return {name: found[name] if set_.readers else features for name, set_ in units.items()}

    @torch.no_grad()
    def replace_units(self, chosen: Mapping[str, Tensor]) -> None:
        """Give units fresh incoming weights, outgoing weights of zero, and set the optimiser's averages of both to zero.

        A unit's fresh values are those of the same unit of a freshly made network, its bias too.

        Args:
            chosen: (n,) int64 numbers of units by the name of their set.
        """
        units, chosen = self.units(), {name: index for name, index in chosen.items() if len(index)}
        if not chosen:
            return
        fresh = self.run.fresh_network().branches[0]
        for name, index in chosen.items():
            for writer in units[name].writers:
                self._renew(self.backbone.get_submodule(writer), fresh.get_submodule(writer), index)
        for name, index in chosen.items():  # after all incoming weights, so that no fresh one hears a fresh unit
            for weight in units[name].outgoing:
                weight.index_fill_(1, index, 0)
                self.run.forget_moments(weight, 1, index)

    def _renew(self, module: nn.Module, fresh: nn.Module, index: Tensor) -> None:
        """Give some units of a layer, or of its norm, fresh values and statistics."""
        new = {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            if value.dim():
                value.index_copy_(0, index, new[name].index_select(0, index))
                if isinstance(value, nn.Parameter):
                    self.run.forget_moments(value, 0, index)
