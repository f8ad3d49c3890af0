"""A second device type without a second device: PyTorch's meta device, made strict and given stand-in values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clframe.errors import ContractError

__all__ = ["StrictMeta"]

_aten = torch.ops.aten
_MOVES = {"aten::_to_copy", "aten::copy_", "aten::set_", "aten::_foreach_copy_"}
"""Operations whose purpose is to join two devices."""

_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
"""Operations that take positions on the CPU for values anywhere."""


class StrictMeta(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, an operation on tensors of two device types is an error, as it is on a GPU.

    A value that is fetched from the meta device (`item`, `cpu`) is a stand-in: 1 for numbers, zeros for tensors. So a
    whole experience can be walked through without a GPU.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Refuse a mixture, and hand out stand-ins."""
        kwargs = kwargs or {}
        name = func._schema.name
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if name not in _MOVES:
            _refuse_mixture(name, args, tensors)
        if name == "aten::_local_scalar_dense" and args[0].is_meta:
            return _stand_in(args[0])
        if name == "aten::_to_copy" and args[0].is_meta and _goes_to_cpu(kwargs):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if name == "aten::copy_" and args[1].is_meta and not args[0].is_meta:
            return args[0].zero_()
        if name == "aten::nonzero" and args[0].is_meta:  # how many there are is a value: say all
            rows = torch.zeros(args[0].numel(), max(args[0].ndim, 1), dtype=torch.int64)
            return rows.to("meta")
        return func(*args, **kwargs)


def _refuse_mixture(name: str, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    if name in _INDEXING:
        places = [t for t in tree_leaves(args[1]) if isinstance(t, Tensor)]
        if not args[0].is_meta and any(t.is_meta for t in places):
            raise ContractError(f"{name} takes positions on the device for values on the CPU.")
        tensors = [t for t in tensors if not any(t is p for p in places)]
    kinds = set(_device_types(tensors))
    if len(kinds) > 1:
        raise ContractError(f"{name} mixes tensors on the CPU with tensors on the device.")


def _device_types(tensors: list[Tensor]) -> Iterator[str]:
    """Device types of the tensors; a number on the CPU goes with any device."""
    return (t.device.type for t in tensors if t.ndim or t.is_meta)


def _stand_in(tensor: Tensor) -> float | int | bool:
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.is_floating_point() else 1


def _goes_to_cpu(kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == "cpu"
