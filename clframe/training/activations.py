"""What the hidden units of a network say on some inputs: every activation of a forward pass, by the name of its layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clframe.models import Network, eval_mode
from clframe.plasticity import mean_absolute

__all__ = ["watch_network"]

_ACTIVATIONS = frozenset({
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus", "tanh",
    "hardtanh", "hardswish",
})  # fmt: skip
"""Elementwise nonlinearities of PyTorch by the name of the function; a sigmoid is a gate, a softmax attention."""


@torch.no_grad()
def watch_network(network: Network, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute features and the mean absolute activation of every hidden unit, in one pass in eval mode.

    A layer is an activation function where it is called, as a module or as a function, and its units are the channels of
    what comes out: of an `mlp` the hidden units; of a residual network the stem's channels, each block's inner ones and those
    of its output, after the sum; of a ViT the hidden units of the blocks' perceptrons, over all tokens. The first branch's layers have
    the names of the modules that call them, those of further branches `branches.1.` and so on before it; from the
    second call within a module on, its number follows.

    Args:
        network: In any mode, which stays.
        x: (B, …) inputs.

    Returns:
        (B, D) features, and (H,) mean |h| by the name of the layer, in the order of the computation.
    """
    watcher, hooks = _Watcher(), list[Any]()
    for name, module in network.branches.named_modules(prefix="branches"):
        shown = name.removeprefix("branches.0.").removeprefix("branches.0") or "network"
        hooks.append(module.register_forward_pre_hook(lambda m, _, shown=shown: watcher.enter(shown)))
        hooks.append(module.register_forward_hook(lambda m, _, __: watcher.leave(m), always_call=True))
    try:
        with eval_mode(network), watcher:
            return network.features(x), watcher.levels
    finally:
        for hook in hooks:
            hook.remove()


class _Watcher(TorchFunctionMode):
    """Sees every call of PyTorch, and knows within which module it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: dict[str, Tensor] = {}
        self._within: list[str] = []
        self._calls: Counter[str] = Counter()
        self._last_dim = False

    def enter(self, name: str) -> None:
        self._within.append(name)

    def leave(self, module: nn.Module) -> None:
        self._within.pop()
        if any(True for _ in module.parameters(recurse=False)):  # what comes next is of this layer's layout
            self._last_dim = isinstance(module, nn.Linear)

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Make the call, and take the level of what an activation gives before anything can overwrite it."""
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "").removesuffix("_") in _ACTIVATIONS and out.dim() > 1:
            where = self._within[-1] if self._within else "network"
            self._calls[where] += 1
            number = self._calls[where]
            name = where if number == 1 else f"{where}.{number}"
            self.levels[name] = mean_absolute(out, out.dim() - 1 if self._last_dim else 1)
        return out
