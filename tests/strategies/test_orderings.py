"""What the methods are for, on real images: who ends above whom, over three seeds."""

from __future__ import annotations

import numpy as np
import pytest

from clframe.strategies.bce import BCE
from clframe.strategies.ewc import EWC
from clframe.strategies.featkd import FeatKD
from clframe.strategies.finetune import Finetune
from clframe.strategies.joint import Joint
from clframe.strategies.l2_anchor import L2Anchor
from clframe.strategies.lwf import LwF
from clframe.strategies.mas import MAS
from clframe.strategies.predkd import PredKD
from clframe.strategies.replay import Replay
from clframe.strategies.si import SI

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


def test_task_incremental_regularisers_keep_more_than_fine_tuning(final):
    methods = (
        Finetune(),
        SI(strength=3.0),
        MAS(strength=0.03, samples=60),
        L2Anchor(),
        FeatKD(strength=10.0),
        PredKD(),
    )
    finetune, *others = (final(s, "task", "predicted_local", TASK) for s in methods)
    for kept in others:
        assert (kept > finetune).all()
        assert kept.mean() > 0.95


def test_class_incremental_sigmoids_with_a_teacher_keep_what_a_softmax_with_anchors_loses(final):
    for strategy in (BCE() + PredKD(), BCE() + PredKD() + L2Anchor()):
        assert (final(strategy, "class", "predicted", CLASS) > 0.35).all()
    for strategy in (SI(), MAS(strength=0.03, samples=60), L2Anchor()):
        assert (final(strategy, "class", "predicted", CLASS) < 0.25).all()
