"""Runs to compare that nobody ran."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from clframe.report import RunSummary


def run(strategy: str, seed: int, value: float, **changes: Any) -> RunSummary:
    """A finished run whose accuracies are all `value`."""
    given = {"final_accuracy": value, "average_incremental_accuracy": value, "forgetting_max": 1 - value}
    base = RunSummary(directory=f"runs/{strategy}-{seed}", scenario="split_digits", scenario_hash="abc", strategy=strategy,
                      backbone="mlp", seed=seed, metrics={"classifier": {"global": given}},
                      settings={"strategy": {}, "epochs": 1})  # fmt: skip
    return dataclasses.replace(base, **changes)


def runs(strategy: str, values: Sequence[float], **changes: Any) -> list[RunSummary]:
    """One run per value, of the seeds 0, 1, …"""
    return [run(strategy, seed, value, **changes) for seed, value in enumerate(values)]


def full(strategy: str, values: Sequence[float], cost: float = 1.0, **changes: Any) -> list[RunSummary]:
    """Runs that have something for every figure: of two experiences, two tasks and three layers."""
    return [_full(run(strategy, seed, value), value, cost, changes) for seed, value in enumerate(values)]


def _full(made: RunSummary, value: float, cost: float, changes: Any) -> RunSummary:
    matrix = np.array([[np.nan, np.nan], [1.0, np.nan], [value, 0.5]])
    more = {"seen_accuracy": [1.0, value], "learning_accuracy": 0.9, "task_confusion": [[8, 2], [5, 5]]}
    values = {"classifier": {"global": {**made.metrics["classifier"]["global"], **more}}}
    measured = {
        "train_flops": [cost * 1e9, cost * 2e9],
        "effective_rank": [4.0, 3.0],
        "weight_magnitude": [0.1, 0.2],
        "dormant_units": {"fc1": [0.0, 0.2], "fc2": [0.1, 0.4]},
    }
    aligned = {"stage1": [1.0, 0.9], "features": [1.0, 0.5]}
    representation = {
        "schema": 1,
        "probe": {"accuracy": [0.6, 0.7], "matrix": [[0.8, 0.4], [0.7, 0.7]]},
        "cka": {"to_first": {"first": aligned}},
        "drift": {"distance": [[None, None, None], [0.2, 0.4, None]]},
    }
    given = {
        "metrics": values,
        "measured": measured,
        "counters": {"train_seconds": 10.0 * cost},
        "environment": {"python": "3.11.7", "packages": {"torch": "2.14.1"}, "device": "cpu", "data": "feed"},
        "representation": representation,
        "read_matrix": lambda head, restriction: matrix,
        **changes,
    }
    return dataclasses.replace(made, **given)
