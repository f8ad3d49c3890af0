"""The bytes that a run keeps, by purpose: for the account of its costs and for its plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from clframe.class_statistics import ClassStatistics
from clframe.composite import leaves
from clframe.memory import ExemplarMemory
from clframe.strategy import Strategy

__all__ = ["kept_bytes", "optimizer_bytes"]

T = TypeVar("T")

_LABEL_BYTES = 8


def kept_bytes(strategy: Strategy, sample_bytes: int) -> dict[str, int]:
    """Return the bytes that a strategy keeps from one experience to the next.

    Read from its network and from every attribute whose name ends in an underscore; a tensor that lies in two places
    counts once, where it comes first below.

    Args:
        strategy: Of a run.
        sample_bytes: Of one stored sample.

    Returns:
        Bytes of `deployed`: the network's parameters and buffers; `training_only`: other networks and modules, such as
        teachers; `exemplars`: stored samples as raw bytes, their labels (8 bytes) and what is stored beside them;
        `statistics`: class statistics and all other tensors.
    """
    counted: set[tuple[int, int]] = set()
    states = [(p, _state(p)) for p in leaves(strategy)]
    kept = [state for _, state in states]
    found = {"deployed": _new_bytes(_of_module(strategy.network), counted)}
    found["training_only"] = _new_bytes((t for m in _within(kept, nn.Module) for t in _of_module(m)), counted)
    found["exemplars"] = sum(_exemplar_bytes(p, state, sample_bytes, counted) for p, state in states)
    found["statistics"] = sum(s.bytes for s in _within(kept, ClassStatistics))
    found["statistics"] += _new_bytes(_within(kept, Tensor), counted)
    return found


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of an optimiser's state as it is now."""
    return _new_bytes(_within(dict(optimizer.state), Tensor), set())


def _state(strategy: Strategy) -> list[Any]:
    return [v for n, v in vars(strategy).items() if n.endswith("_") and not n.startswith("_")]


def _exemplar_bytes(strategy: Strategy, state: Any, sample_bytes: int, counted: set[tuple[int, int]]) -> int:
    """Bytes of memories, or of samples kept without one by their ids, which only name them and cost nothing."""
    memories = list(_within(state, ExemplarMemory))
    if memories:
        return sum(memory.bytes for memory in memories)
    ids = strategy.exemplars()
    counted.add(_place(ids))
    return len(ids) * (sample_bytes + _LABEL_BYTES)


def _within(value: Any, kind: type[T]) -> Iterator[T]:
    """Every object of a kind in nested lists and dictionaries; modules, memories and statistics are not opened."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Mapping):
        yield from (found for v in value.values() for found in _within(v, kind))
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from (found for v in value for found in _within(v, kind))


def _of_module(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _new_bytes(tensors: Iterable[Tensor], counted: set[tuple[int, int]]) -> int:
    """Bytes of the tensors that were not counted before."""
    total = 0
    for tensor in tensors:
        if _place(tensor) not in counted:
            counted.add(_place(tensor))
            total += tensor.numel() * tensor.element_size()
    return total


def _place(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor's values begin, also on a device that holds none."""
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset())
