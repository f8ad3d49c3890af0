"""Fine-tuning: the data, and the two softmaxes."""

from __future__ import annotations

import pytest
import torch

from clframe.strategies.finetune import Finetune
from clframe.testing.streams import synthetic_stream


def test_every_epoch_presents_the_experience_once_and_nothing_else(make):
    trial = make(Finetune(), epochs=3).watch().run()
    for experience in trial.stream.experiences:
        orders = [trial.presented(experience.index, epoch) for epoch in range(3)]
        assert all(sorted(order) == sorted(experience.train.tolist()) for order in orders)
        assert orders[0] != orders[1]


@pytest.mark.parametrize(("loss_over", "moves"), [("seen", True), ("auto", True), ("experience", False)])
def test_the_local_softmax_leaves_old_rows_alone_and_the_global_one_does_not(make, loss_over, moves):
    trial = make(Finetune(loss_over=loss_over), optimizer={"lr": 0.05, "weight_decay": 0.0, "momentum": 0.0})
    rows = {}

    def keep(experience):
        if experience.index == 2:
            rows["before"] = trial.strategy.network.classifier.weight[:4].detach().clone()

    trial.before("before_experience", keep).run()
    changed = not torch.equal(rows["before"], trial.strategy.network.classifier.weight[:4])
    assert changed == moves


def test_with_task_ids_auto_means_the_samples_own_task(make):
    auto, local = (make(Finetune(loss_over=v), synthetic_stream(setting="task")).run() for v in ("auto", "experience"))
    assert torch.equal(auto.strategy.network.classifier.weight, local.strategy.network.classifier.weight)


def test_first_epochs_change_the_first_experience_only(make):
    trial = make(Finetune(first_epochs=5), epochs=2).watch().run()
    assert [max(b.epoch for b in trial.batches if b.experience.index == i) + 1 for i in range(3)] == [5, 2, 2]
