"""What the methods are for, on real images: who ends above whom, over three seeds."""

from __future__ import annotations

import numpy as np
import pytest

from clframe.strategies.ewc import EWC
from clframe.strategies.finetune import Finetune
from clframe.strategies.joint import Joint
from clframe.strategies.lwf import LwF
from clframe.strategies.replay import Replay

CLASS = {"epochs": 4, "batch_size": 32, "backbone": "mlp", "optimizer": {"lr": 0.02}}
TASK = {"epochs": 5, "batch_size": 16, "backbone": "mlp", "optimizer": {"lr": 0.05}}


@pytest.fixture
def final(make, digits):
    def accuracies(strategy, setting: str, column: str, recipe) -> np.ndarray:
        stream = digits(setting=setting)
        runs = [make(strategy, stream, seed=seed, **recipe).run() for seed in range(3)]
        return np.array([r.final_accuracy(column=column) for r in runs])

    return accuracies


def test_class_incremental_digits_order_as_they_should(final):
    strategies = (Finetune(), EWC(fisher_samples=60), Replay(memory_size=100), Joint())
    finetune, ewc, replay, joint = (final(s, "class", "predicted", CLASS) for s in strategies)
    assert (abs(finetune - 0.2) < 0.05).all()  # one task's share
    assert (abs(ewc - 0.2) < 0.05).all()
    assert (replay > finetune + 0.5).all()
    assert (joint > replay).all()


def test_task_incremental_distillation_keeps_more_than_fine_tuning(final):
    finetune, lwf = (final(s, "task", "predicted_local", TASK) for s in (Finetune(), LwF()))
    assert (lwf > finetune).all()
    assert (lwf > 0.97).all()
