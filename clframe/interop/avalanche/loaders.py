"""Loaders that plugins hold open, made so that a resumed run can open them again and read up to the same place."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from types import GeneratorType
from typing import Any, Protocol

from torch.utils.data import DataLoader

from clframe.interop.avalanche.datasets import Origin
from clframe.training.seeds import isolated

__all__ = ["Caller", "Opened", "Reopenable", "reopenable"]


class Caller(Protocol):
    """What calls a plugin's hooks.

    Attributes:
        seed: Of the global generators at the beginning of the present call.
        origin: Of the samples that the plugin's datasets hold.
    """

    seed: int
    origin: Origin


class Opened:
    """An iterator over a loader that notes under which seed of the global generators everything was drawn.

    A plugin's hook is called under a seed of its own, and draws from its loader before anything else; so the seeds say
    all about the iterator's state.

    Args:
        loader: What it goes through.
        endless: Begin again at the end.
        caller: Calls the plugin.
        seeds: Those under which it was drawn from before.
    """

    def __init__(self, loader: Any, endless: bool, caller: Caller, seeds: Sequence[int] = ()) -> None:
        self.loader = loader
        self.endless = endless
        self.caller = caller
        self.seeds = list(seeds)
        self._iterator: Iterator[Any] | None = None
        self._behind = len(self.seeds)

    def __iter__(self) -> Opened:
        return self

    def __next__(self) -> Any:
        if self._behind:
            with self.caller.origin.showing_ids():  # no image needs to be read for what was drawn before
                for seed in self.seeds[: self._behind]:
                    with isolated(seed), contextlib.suppress(StopIteration):
                        self._draw()
            self._behind = 0
        self.seeds.append(self.caller.seed)
        return self._draw()

    def _draw(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self.loader)
        try:
            return next(self._iterator)
        except StopIteration:
            if not self.endless:
                raise
            self._iterator = iter(self.loader)
            return next(self._iterator)


class Reopenable:
    """A loader whose iterators are `Opened`.

    Args:
        loader: The loader.
        caller: Calls the plugin.
    """

    def __init__(self, loader: Any, caller: Caller) -> None:
        self.loader = loader
        self.caller = caller

    def __iter__(self) -> Opened:
        return Opened(self.loader, False, self.caller)

    def __len__(self) -> int:
        return len(self.loader)


def reopenable(value: Any, caller: Caller) -> Any:
    """Return the form of a plugin's attribute that can be opened again; other values as they are.

    A generator over a loader (Avalanche's endless loaders, and its function `cycle`) must not have begun.
    """
    if isinstance(value, DataLoader):
        return Reopenable(value, caller)
    if isinstance(value, GeneratorType) and inspect.getgeneratorstate(value) == inspect.GEN_CREATED:
        held = inspect.getgeneratorlocals(value)
        if value.__name__ == "cycle" and "loader" in held:
            return Opened(held["loader"], True, caller)
        if value.__name__ == "__iter__" and "self" in held:
            return Opened(held["self"], False, caller)
    return value
