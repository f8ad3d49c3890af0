"""Checkpoints: one file, written to a temporary name and renamed, read back without executing code.

State is packed into plain values and tensors. Networks and other modules are saved as their structure (how to build
them) and their tensors; a module that can't say its structure is refused with its name, before a long run relies on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from clframe.class_statistics import ClassStatistics
from clframe.errors import ContractError, RunDirectoryError
from clframe.memory import ExemplarMemory
from clframe.models import Backbone, Network
from clframe.strategy import Strategy

__all__ = [
    "export_weights",
    "pack",
    "read_checkpoint",
    "restore_strategy",
    "strategy_state",
    "unpack",
    "write_checkpoint",
]

_KIND = "__clframe__"


def pack(value: Any, name: str = "value") -> Any:
    """Turn a state value into plain values and tensors.

    Args:
        value: None, numbers, text, tensors, networks, memories, class statistics, and lists, tuples, sets and dictionaries of them.
        name: How errors call it.

    Raises:
        ContractError: The value is of a kind that can't be restored without executing code.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return _pack_tensor(value)
    if isinstance(value, (nn.Module, ExemplarMemory, ClassStatistics, torch.Generator)):
        return _pack_object(value, name)
    if isinstance(value, (tuple, set, frozenset)):
        return {_KIND: type(value).__name__, "items": [pack(v, f"{name}[{i}]") for i, v in enumerate(_ordered(value))]}
    if isinstance(value, list):
        return [pack(v, f"{name}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        return {_KIND: "dict", "items": [[pack(k), pack(v, f"{name}[{k!r}]")] for k, v in value.items()]}
    raise _refusal(value, name)


def _refusal(value: Any, name: str) -> ContractError:
    return ContractError(
        f"{name} is a {type(value).__name__}, which a checkpoint can't hold: keep tensors, numbers, text, networks, "
        "memories, class statistics, nn.Linear, or lists and dictionaries of them."
    )


def _pack_tensor(value: Tensor) -> Any:
    if isinstance(value, nn.Parameter):
        return {_KIND: "parameter", "data": value.detach(), "requires_grad": value.requires_grad}
    return value.detach()


def _pack_object(value: nn.Module | ExemplarMemory | ClassStatistics | torch.Generator, name: str) -> dict[str, Any]:
    if isinstance(value, Network):
        flags = [p.requires_grad for p in value.parameters()]
        state = {"state": value.state_dict(), "training": value.training, "requires_grad": flags}
        return {_KIND: "network", "structure": value.structure(), **state}
    if isinstance(value, ExemplarMemory):
        return {_KIND: "memory", "state": value.state_dict()}
    if isinstance(value, ClassStatistics):
        return {_KIND: "statistics", "state": value.state_dict()}
    if isinstance(value, nn.Linear):
        shape = [value.in_features, value.out_features, value.bias is not None]
        return {_KIND: "linear", "shape": shape, "state": value.state_dict()}
    if isinstance(value, torch.Generator):
        return {_KIND: "generator", "state": value.get_state()}
    raise _refusal(value, name)


def _ordered(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple) else sorted(value)


def unpack(value: Any, factory: Callable[[], Backbone]) -> Any:
    """Rebuild what `pack` made; `factory` makes the run's backbone."""
    if isinstance(value, list):
        return [unpack(v, factory) for v in value]
    if not isinstance(value, dict):
        return value
    kind = value[_KIND]
    if kind == "network":
        network = Network.from_structure(value["structure"], factory)
        network.load_state_dict(value["state"])
        network.train(value["training"])
        for parameter, flag in zip(network.parameters(), value["requires_grad"], strict=True):
            parameter.requires_grad_(flag)
        return network
    if kind == "memory":
        return ExemplarMemory.from_state(value["state"])
    if kind == "statistics":
        return ClassStatistics.from_state(value["state"])
    if kind == "dict":
        return {unpack(k, factory): unpack(v, factory) for k, v in value["items"]}
    return _unpack_small(kind, value, factory)


def _unpack_small(kind: str, value: dict[str, Any], factory: Callable[[], Backbone]) -> Any:
    if kind == "parameter":
        return nn.Parameter(value["data"], requires_grad=value["requires_grad"])
    if kind == "linear":
        inputs, outputs, bias = value["shape"]
        layer = nn.Linear(inputs, outputs, bias=bias)
        layer.load_state_dict(value["state"])
        return layer
    if kind == "generator":
        generator = torch.Generator()
        generator.set_state(value["state"])
        return generator
    collection = {"tuple": tuple, "set": set, "frozenset": frozenset}[kind]
    return collection(unpack(v, factory) for v in value["items"])


def strategy_state(strategy: Strategy) -> dict[str, Any]:
    """Pack every attribute of a strategy whose name ends in an underscore."""
    found = {n: v for n, v in vars(strategy).items() if n.endswith("_") and not n.startswith("_")}
    return {name: pack(value, f"{type(strategy).__name__}.{name}") for name, value in found.items()}


def restore_strategy(
    strategy: Strategy,
    state: Mapping[str, Any],
    factory: Callable[[], Backbone],
    place: Callable[[Network], Network] = lambda network: network,
) -> None:
    """Give a strategy the state that `strategy_state` packed; `place` moves networks to the run's device."""
    for name in [n for n in vars(strategy) if n.endswith("_") and not n.startswith("_")]:
        delattr(strategy, name)
    for name, value in state.items():
        restored = unpack(value, factory)
        setattr(strategy, name, place(restored) if isinstance(restored, Network) else restored)


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint so that the file is either the old one or the whole new one.

    Raises:
        RunDirectoryError: It can't be written, for instance because the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(dict(state), temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise RunDirectoryError(
            f"The checkpoint {path} can't be written ({error}): free some space and continue with `clframe resume`."
        ) from error


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint without executing code.

    Args:
        path: The file.
        device: Where tensors go that lay on an accelerator; those that lay on the CPU stay there.

    Raises:
        RunDirectoryError: It is missing or damaged.
    """
    if not path.is_file():
        raise RunDirectoryError(
            f"Expected a checkpoint at {path}, found none: the run was stopped before its first one."
        )
    try:
        loaded = torch.load(path, map_location=_Onto(torch.device(device)), weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise RunDirectoryError(f"The checkpoint {path} is damaged ({error}); start the run again.") from error
    return dict(loaded)


class _Onto:
    """Where the tensors of a checkpoint go: ids and labels on the CPU stay there, the others go to the run's device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, storage: Any, location: str) -> Any:
        if location == "cpu" or self.device.type == "cpu":
            return storage
        return storage.to(device=self.device)


def export_weights(network: Network, path: Path) -> None:
    """Write a network's tensors as safetensors, for use outside and as `--backbone.weights` elsewhere.

    The file holds the first branch under the names that its weights files use, and the classifier under `linear.`.

    Raises:
        RunDirectoryError: It can't be written.
    """
    from safetensors.torch import save_file

    branch = cast(Backbone, network.branches[0]).weights_target()
    tensors = {n: t.detach().cpu().contiguous() for n, t in branch.state_dict().items()}
    head = network.classifier.state_dict()
    tensors.update({f"linear.{n}": t.detach().cpu().contiguous() for n, t in head.items() if t.numel()})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({n: t.clone() for n, t in tensors.items()}, temporary)
        temporary.replace(path)
    except Exception as error:  # safetensors raises its own kind for a full disk
        temporary.unlink(missing_ok=True)
        raise RunDirectoryError(
            f"The weights {path} can't be written ({error}): free some space and resume."
        ) from error
