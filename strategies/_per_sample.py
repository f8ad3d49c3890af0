"""One forward pass in which every sample has parameters of its own choice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["cosines", "seen", "under", "under_each"]


def cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """Cosines (B, T) of queries (B, D) and keys (T, D), by sums that don't depend on the batch's size."""
    unit, keys = functional.normalize(queries.float(), dim=1), functional.normalize(keys.float(), dim=1)
    return (unit[:, None] * keys).sum(dim=2)


def under(module: nn.Module, values: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Compute a module under other values of some of its parameters, given by name."""
    return cast(Tensor, torch.func.functional_call(module, dict(values), (x,)))


def under_each(module: nn.Module, sets: Sequence[Mapping[str, Tensor]], x: Tensor, chosen: Tensor) -> Tensor:
    """Compute a module under each sample's own set: the samples of one set together, their results put in place."""
    out: Tensor | None = None
    for i, values in enumerate(sets):
        rows = (chosen == i).nonzero().flatten()
        if len(rows):
            part = under(module, values, x[rows])
            out = part.new_empty(len(x), *part.shape[1:]) if out is None else out
            out[rows] = part
    return under(module, sets[0], x) if out is None else out  # of an empty batch


@contextlib.contextmanager
def seen(backbone: nn.Module, layers: Sequence[str], call: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """Show what enters every one of some layers to a function; what it returns, if anything, is what leaves the layer."""
    inside = False

    def watch(layer: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            nonlocal inside
            if inside:  # the function calls the layer itself
                return None
            inside = True
            try:
                return call(layer, arguments[0])
            finally:
                inside = False

        return hook

    handles = [backbone.get_submodule(layer).register_forward_hook(watch(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
