"""Random numbers: every choice draws from its own generator, derived from a seed, a purpose and a place in the run."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["RandomStreams", "derive_seed", "global_state", "isolated", "restore_global_state", "seed_globals"]


def derive_seed(seed: int, *keys: object) -> int:
    """Mix a seed and any keys into a 63-bit seed; the same on every machine.

    >>> derive_seed(0, "order", 1) != derive_seed(0, "order", 2)
    True
    """
    text = "\x1f".join([str(seed), *map(str, keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def seed_globals(seed: int) -> None:
    """Seed the global generators that layers such as dropout, or a user's code, draw from."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also queue work for a GPU not in use
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def global_state() -> dict[str, Any]:
    """Return the state of the global generators, in a form that checkpoints can hold."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
        "python": list(random.getstate()[1]),
        "python_gauss": random.getstate()[2],
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
    }


def restore_global_state(state: Mapping[str, Any]) -> None:
    """Put the global generators back into a state from `global_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate((3, tuple(state["python"]), state["python_gauss"]))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))


@contextlib.contextmanager
def isolated(seed: int | None = None) -> Iterator[None]:
    """Leave the global generators as they were, whatever happens inside; optionally seed them inside."""
    before = global_state()
    try:
        if seed is not None:
            seed_globals(seed)
        yield
    finally:
        restore_global_state(before)


class RandomStreams:
    """The named generators of a run.

    A scope is a place in the run (experience, phase, epoch). Entering one forgets the generators of the last, and
    every purpose starts from a seed derived from (seed, purpose, scope): what is drawn in one scope can't shift
    another.

    Args:
        seed: Of the run.
        init_seed: Of initialisation and growth; None means `seed`.
        data_seed: Of the order of samples and of augmentation; None means `seed`.
    """

    def __init__(self, seed: int, init_seed: int | None = None, data_seed: int | None = None) -> None:
        self._seeds = {
            "init": seed if init_seed is None else init_seed,
            "order": seed if data_seed is None else data_seed,
            "augmentation": seed if data_seed is None else data_seed,
        }
        self._seed = seed
        self._scope: tuple[object, ...] = ("start",)
        self._generators: dict[str, torch.Generator] = {}

    def seed_for(self, purpose: str, *keys: object) -> int:
        """Return the derived seed of a purpose at some place."""
        return derive_seed(self._seeds.get(purpose, self._seed), purpose, *keys)

    def enter(self, *scope: object) -> None:
        """Begin a new scope and seed the global generators for it."""
        self._scope = scope
        self._generators.clear()
        seed_globals(self.seed_for("global", *scope))

    def __call__(self, purpose: str) -> torch.Generator:
        """Return the CPU generator of a purpose in the current scope."""
        found = self._generators.get(purpose)
        if found is None:
            found = self._generators[purpose] = torch.Generator()
            found.manual_seed(self.seed_for(purpose, *self._scope))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all generators alive in this scope, and of the global ones."""
        return {"generators": {k: g.get_state() for k, g in self._generators.items()}, "global": global_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the generators of a scope that was entered again."""
        for purpose, saved in state["generators"].items():
            self(purpose).set_state(saved)
        restore_global_state(state["global"])
