"""What plugins keep, as plain values and tensors: checkpoints of a hosted run hold no pickled objects."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from clframe.interop.avalanche.datasets import ids_of, make_dataset, origin_of
from clframe.interop.avalanche.library import require
from clframe.interop.avalanche.loaders import Opened, Reopenable

if TYPE_CHECKING:
    from clframe.interop.avalanche.host import Host

__all__ = ["Keeper", "NotKeptError", "kept_ids"]

_FACTORIES: dict[str, Any] = {"int": int, "float": float, "set": set, "list": list, "dict": dict}
"""Of default dictionaries."""

_OBJECTS = {
    "ReservoirSamplingBuffer": "avalanche.training.storage_policy",
    "ExperienceBalancedBuffer": "avalanche.training.storage_policy",
    "ClassBalancedBuffer": "avalanche.training.storage_policy",
    "LearningWithoutForgetting": "avalanche.training.regularization",
}
"""Classes whose objects are kept as their attributes, with where they are found."""

_MODEL_OWN = ("network", "mask_of", "training")
"""Attributes of the model that aren't a plugin's."""


class NotKeptError(Exception):
    """A value can't be kept without pickling it; says what it is."""


class Keeper:
    """Packs and restores what belongs to a host's plugins.

    Args:
        host: What the plugins are hosted by.
        model: The model that is trained.
    """

    def __init__(self, host: Host, model: Any) -> None:
        self.host = host
        self.model = model

    # -- packing -----------------------------------------------------------------------------------------------------

    def pack_attributes(self, owner: Any) -> dict[str, Any]:
        """Pack the attributes of a plugin, a buffer or the model."""
        names = [n for n in vars(owner) if n not in _MODEL_OWN and not _of_module(owner, n)]
        return {n: self.pack(vars(owner)[n], f"{type(owner).__name__}.{n}") for n in names}

    def pack(self, value: Any, name: str) -> Any:
        """Turn a value into plain values, tensors and networks.

        Args:
            value: What a plugin may hold.
            name: How errors call it.

        Raises:
            NotKeptError: It is of a kind that can't be kept.
        """
        if value is None or isinstance(value, (bool, int, float, str, Tensor)):
            return value
        if isinstance(value, (list, tuple, set)):
            items = sorted(value) if isinstance(value, set) else value
            return {"kind": type(value).__name__, "items": [self.pack(v, f"{name}[{i}]") for i, v in enumerate(items)]}
        if isinstance(value, Mapping):
            return self._pack_mapping(value, name)
        if isinstance(value, (np.ndarray, np.generic)):
            return {"kind": "array", "data": torch.from_numpy(np.array(value))}
        return self._pack_object(value, name)

    def _pack_mapping(self, value: Mapping[Any, Any], name: str) -> dict[str, Any]:
        factory = getattr(value.default_factory, "__name__", "") if isinstance(value, defaultdict) else None
        if factory is not None and factory not in _FACTORIES:
            raise NotKeptError(f"{name}, a default dictionary of {factory}")
        items = [[int(k) if isinstance(k, np.integer) else k, self.pack(v, f"{name}[{k!r}]")] for k, v in value.items()]
        return {"kind": "dict", "items": items, "default": factory}

    def _pack_object(self, value: Any, name: str) -> dict[str, Any]:
        kind = type(value).__name__
        if value is self.model:
            return {"kind": "model"}
        if isinstance(value, type(self.model)):
            return {"kind": "copy", "network": value.network, "attributes": self.pack_attributes(value)}
        if kind == "ParamData":
            return {"kind": "ParamData", "name": value.name, "data": value.data}
        if isinstance(value, (logging.Logger, type(iter([])))):  # the latter stands where a loader is still to come
            return {"kind": "given"}
        if isinstance(value, (Opened, Reopenable)):
            seeds = {"seeds": list(value.seeds), "endless": value.endless} if isinstance(value, Opened) else {}
            return {"kind": type(value).__name__, "loader": self._pack_loader(value.loader, name), **seeds}
        if kind == "GroupBalancedInfiniteDataLoader":
            return {"kind": "loader", "loader": self._pack_loader(value, name)}
        if isinstance(value, require("avalanche.benchmarks.utils").AvalancheDataset):
            if len(value) and origin_of(value) is not self.host.origin:
                raise NotKeptError(f"{name}, samples that aren't the run's own")
            return {"kind": "dataset", "ids": ids_of(value)}
        if _OBJECTS.get(kind) == type(value).__module__:
            return {"kind": "object", "class": kind, "attributes": self.pack_attributes(value)}
        raise NotKeptError(f"{name}, a {kind}")

    def _pack_loader(self, loader: Any, name: str) -> dict[str, Any]:
        if isinstance(loader, DataLoader):
            shuffle = isinstance(loader.sampler, RandomSampler)
            datasets, sizes = [loader.dataset], [loader.batch_size]
        elif type(loader).__name__ == "GroupBalancedInfiniteDataLoader":
            shuffle, datasets, sizes = True, loader.datasets, loader.batch_sizes
        else:
            raise NotKeptError(f"{name}, a {type(loader).__name__}")
        packed = [self.pack(d, name) for d in datasets]
        return {"class": type(loader).__name__, "datasets": packed, "batch_size": sizes[0], "shuffle": shuffle}

    # -- restoring ---------------------------------------------------------------------------------------------------

    def restore_attributes(self, owner: Any, packed: Mapping[str, Any]) -> None:
        """Give a plugin, a buffer or the model its attributes back."""
        for name, value in packed.items():
            if not (isinstance(value, dict) and value["kind"] == "given"):
                setattr(owner, name, self.unpack(value))

    def unpack(self, value: Any) -> Any:
        """Rebuild what `pack` made."""
        if not isinstance(value, dict):
            return value
        kind = value["kind"]
        if kind in ("list", "tuple", "set"):
            return {"list": list, "tuple": tuple, "set": set}[kind](self.unpack(v) for v in value["items"])
        if kind == "dict":
            items = [(k, self.unpack(v)) for k, v in value["items"]]
            return dict(items) if value["default"] is None else defaultdict(_FACTORIES[value["default"]], items)
        if kind == "array":
            return value["data"].numpy() if value["data"].ndim else value["data"].numpy()[()]
        if kind == "model":
            return self.model
        return self._unpack_object(kind, value)

    def _unpack_object(self, kind: str, value: Mapping[str, Any]) -> Any:
        if kind == "dataset":
            return make_dataset(self.host.origin, value["ids"])
        if kind == "ParamData":
            made = require("avalanche.training.utils").ParamData
            return made(value["name"], init_tensor=value["data"], device=value["data"].device)
        if kind == "loader":
            return self._unpack_loader(value["loader"])
        if kind == "Reopenable":
            return Reopenable(self._unpack_loader(value["loader"]), self.host)
        if kind == "Opened":
            return Opened(self._unpack_loader(value["loader"]), value["endless"], self.host, value["seeds"])
        if kind == "copy":
            same: Any = type(self.model)
            copy = same.__new__(same)
            torch.nn.Module.__init__(copy)
            copy.network = self.host.run.place(value["network"])
            if hasattr(self.model, "mask_of"):
                copy.mask_of = self.model.mask_of
            self.restore_attributes(copy, value["attributes"])
            return copy
        cls = getattr(require(_OBJECTS[value["class"]]), value["class"])
        made = cls.__new__(cls)
        self.restore_attributes(made, value["attributes"])
        return made

    def _unpack_loader(self, value: Mapping[str, Any]) -> Any:
        datasets = [self.unpack(d) for d in value["datasets"]]
        if value["class"] == "GroupBalancedInfiniteDataLoader":
            made = require("avalanche.benchmarks.utils.data_loader").GroupBalancedInfiniteDataLoader
            return made(datasets, batch_size=value["batch_size"])
        return DataLoader(datasets[0], batch_size=value["batch_size"], shuffle=value["shuffle"])


def kept_ids(packed: Any) -> Tensor:
    """Return the ids, ascending and each once, of all samples that are held in a packed state."""
    found: list[Tensor] = [torch.empty(0, dtype=torch.int64)]

    def visit(value: Any) -> None:
        if isinstance(value, dict):
            if value.get("kind") == "dataset":
                found.append(value["ids"])
            for inner in value.values():
                visit(inner)
        elif isinstance(value, list):
            for inner in value:
                visit(inner)

    visit(packed)
    kept: Tensor = torch.unique(torch.cat(found))
    return kept


def _of_module(owner: Any, name: str) -> bool:
    """Whether an attribute is PyTorch's own bookkeeping of a module."""
    return isinstance(owner, torch.nn.Module) and name in vars(torch.nn.Module())
