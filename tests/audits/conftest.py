"""Tiny finished runs that kept their models; not to be changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clframe
from clframe.results import Run

SMALL: dict[str, Any] = {"epochs": 5, "progress": False, "backbone": {"name": "mlp", "hidden": [24]}}


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Make a run in a folder of its own."""

    def make(scenario: Any, strategy: Any = "replay", **options: Any) -> Run:
        folder: Path = tmp_path_factory.mktemp("run") / "run"
        given = {"strategy": strategy, "keep_models": True, **SMALL, **options}
        return clframe.run(scenario=scenario, run_dir=folder, **given)

    return make


@pytest.fixture(scope="session")
def digits_run(train: Callable[..., Run]) -> Run:
    """Six digits in three pairs; what comes later was scored too."""
    scenario = {"name": "split_digits", "classes": 6, "experiences": 3}
    return train(scenario, {"name": "replay", "memory_size": 120}, evaluate_future=True)


@pytest.fixture(scope="session")
def compatible(train: Callable[..., Run]) -> Run:
    """Six digits in three pairs, and four to search for."""
    return train({"name": "compatibility", "held_out": 4, "experiences": 3}, {"name": "replay", "memory_size": 120})


@pytest.fixture(scope="session")
def unlearned(train: Callable[..., Run]) -> Callable[..., Run]:
    """Runs that were asked to forget, or never learnt it; each once."""
    made: dict[str, Run] = {}

    def make(seed: int = 0, **options: Any) -> Run:
        key = repr((seed, sorted(options.items())))
        if key not in made:
            scenario = {"name": "unlearning", "classes": 6, "experiences": 3, "share": 0.3, **options}
            made[key] = train(scenario, {"name": "replay", "memory_size": 120}, seed=seed)
        return made[key]

    return make
