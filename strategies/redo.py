"""ReDo: every so many steps, units that hardly fire are given new weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from clframe.composite import tags_of
from clframe.errors import ConfigurationError
from clframe.models import Backbone, LinearHead, MultiHead
from clframe.spec import field
from clframe.strategy import ANY_SCORE, Batch, RunContext, Strategy, Tags

__all__ = ["ReDo"]


@dataclass(frozen=True, slots=True)
class _Units:
    """The units of one set of channels: where they get their values, and who reads them (none: the features)."""

    writers: tuple[str, ...]
    readers: tuple[nn.Module, ...]
    outgoing: tuple[nn.Parameter, ...]


class ReDo(Strategy):
    """Recycling of dormant units, which keeps a network able to learn.

    Sokar, Agarwal, Castro & Evci 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", eq. 1 and
    algorithm 1. Every F steps, for each unit i of a layer of H units, with h its activation,

        s_i = E_x |h_i(x)| / ((1/H) Σ_k E_x |h_k(x)|)     x the samples of the step's batch, and all places of a map

    and where s_i ≤ τ the incoming weights and the bias are replaced by fresh ones, the outgoing weights are set to zero, and so
    are the optimiser's running averages of both. Where nothing fires at all, every unit is dormant. So the outputs
    change by no more than what the dormant units contributed, and nothing happens at a τ below the smallest s_i.

    Units are those whose incoming and outgoing weights are a layer's own: the hidden units of an `mlp`, the last ones with
    the columns of linear heads as outgoing weights, and the inner channels of residual blocks, with scale, shift and
    statistics of their BatchNorm. Channels that a shortcut joins, features read by a head of directions, and layers of
    which a part is frozen stay as they are.

    Differs from the paper:
        h is measured after the step, in eval mode (running statistics, no dropout), on the batch that was just trained
        on. A unit's fresh values are those of the same unit of a freshly made network, its bias too; with pretrained weights that
        network has these. Adam's count of steps stays. F
        and τ were tuned there for reinforcement learning; the defaults here are a choice.
    """

    tags: ClassVar[Tags] = Tags(scores=ANY_SCORE, needs_own_channels=True)

    every: int = field(
        default=100, ge=1, unit="steps", help="F, the steps from one search for dormant units to the next."
    )
    threshold: float = field(default=0.025, ge=0, help="τ, the largest s of a unit that is recycled.")

    def check(self, run: RunContext) -> None:
        """Refuse a network that grows, of whose structure no fresh one can be made."""
        if tags_of(run.strategy).grows_features:
            raise ConfigurationError(
                f"{type(self).__name__} expects a network of the structure that it starts with, received a composition that "
                "adds branches: leave one of them out."
            )

    def setup(self) -> None:
        """Start counting."""
        self.steps_ = 0
        self.recycled_ = 0

    def after_step(self, batch: Batch) -> None:
        """Recycle every F steps; steps on what is no image of the stream don't count."""
        if len(batch.ids):
            self.steps_ += 1
            if self.steps_ % self.every == 0:
                self.recycle(batch.x)

    @torch.no_grad()
    def recycle(self, x: Tensor) -> dict[str, Tensor]:
        """Recycle the units that are dormant on a batch; returns their numbers by the name of their set."""
        units = dict(self._units())
        found = {n: (s <= self.threshold).nonzero().flatten() for n, s in self.dormancy(x).items()}
        dormant = {n: index for n, index in found.items() if len(index)}
        if dormant:
            fresh = self.run.fresh_network().branches[0]
            for name, index in dormant.items():
                for writer in units[name].writers:
                    self._renew(self._backbone.get_submodule(writer), fresh.get_submodule(writer), index)
        for name, index in dormant.items():  # after all incoming weights, so that no fresh one hears a fresh unit
            for weight in units[name].outgoing:
                weight.index_fill_(1, index, 0)
                self.run.forget_moments(weight, 1, index)
            self.recycled_ += len(index)
        return dormant

    @torch.no_grad()
    def dormancy(self, x: Tensor) -> dict[str, Tensor]:
        """Compute s (H,) of every set of units on a batch, in eval mode."""
        network, levels, hooks = self.network, dict[str, Tensor](), []
        units = dict(self._units())
        for name, set_ in units.items():
            if set_.readers:

                def keep(_: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
                    levels[name] = _level(inputs[0])

                hooks.append(set_.readers[0].register_forward_pre_hook(keep))
        modes = [(module, module.training) for module in network.modules()]
        network.eval()
        try:
            features = network.features(x)
        finally:
            for module, mode in modes:  # one by one: a phase may keep some modules in eval mode
                module.training = mode
            for hook in hooks:
                hook.remove()
        levels.update({name: _level(features) for name, set_ in units.items() if not set_.readers})
        return {name: torch.where(level.mean() > 0, level / level.mean(), 0.0) for name, level in levels.items()}

    @property
    def _backbone(self) -> Backbone:
        return cast(Backbone, self.network.branches[0])

    def _units(self) -> Iterator[tuple[str, _Units]]:
        """Yield the sets of units that can be recycled now, by name."""
        backbone, heads = self._backbone, list(self.network.heads.values())
        layers = backbone.channel_layers()
        for layer in layers:
            if not layer.own:
                continue
            readers = tuple(backbone.get_submodule(r.module) for r in layers if r.reads == layer.writes)
            if readers:
                outgoing = [cast(nn.Parameter, r.weight) for r in readers]
            elif all(isinstance(head, LinearHead | MultiHead) for head in heads):
                outgoing = [m.weight for head in heads for m in head.modules() if isinstance(m, LinearHead)]
            else:
                continue
            writers = tuple(filter(None, (layer.module, layer.norm)))
            incoming = [p for name in writers for p in backbone.get_submodule(name).parameters()]
            if all(p.requires_grad for p in (*incoming, *outgoing)):
                yield layer.writes, _Units(writers, readers, tuple(outgoing))

    def _renew(self, module: nn.Module, fresh: nn.Module, index: Tensor) -> None:
        """Give some units of a layer, or of its norm, fresh values and statistics."""
        new = {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            if value.dim():
                value.index_copy_(0, index, new[name].index_select(0, index))
                if isinstance(value, nn.Parameter):
                    self.run.forget_moments(value, 0, index)


def _level(h: Tensor) -> Tensor:
    """Average |h| (B, H, …) over samples and places."""
    return h.float().abs().transpose(0, 1).flatten(1).mean(1)
