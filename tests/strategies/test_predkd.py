"""Prediction distillation: its two forms, and its relation to learning without forgetting."""

from __future__ import annotations

import numpy as np
import pytest

from clframe.strategies.bce import BCE
from clframe.strategies.finetune import Finetune
from clframe.strategies.lwf import LwF
from clframe.strategies.predkd import PredKD
from clframe.testing.streams import synthetic_stream
from tests.strategies.laws import assert_gradients, copied

SETTINGS = ["class", "task", "domain"]


def stream(setting: str = "class"):
    groups = [[0, 1]] * 3 if setting == "domain" else [[0, 1], [2, 3], [4, 5]]
    return synthetic_stream(setting=setting, experiences=groups)


def some_batch(trial, experience: int = 1):
    ids = trial.stream.experiences[experience].train
    return next(iter(trial.trainer.context.batches(ids, batch_size=8)))


def extra(trial, batch):
    strategy = trial.strategy
    return strategy.extra_losses(batch, strategy.network(batch.x, batch.task_ids))["distillation"]


def predkd_of(trial) -> PredKD:
    return next(p for p in getattr(trial.strategy, "parts", [trial.strategy]) if isinstance(p, PredKD))


@pytest.mark.parametrize("setting", SETTINGS)
def test_without_strength_it_is_fine_tuning_bit_for_bit(make, same, setting):
    same(make(PredKD(strength=0.0), stream(setting)).run().bits(), make(Finetune(), stream(setting)).run().bits())


@pytest.mark.parametrize("setting", SETTINGS)
def test_with_lwfs_softmax_and_temperature_it_is_lwf_bit_for_bit(make, same, setting):
    predkd = PredKD(temperature=2.0, strength=0.5, loss_over="experience")
    same(make(predkd, stream(setting)).run().bits(), make(LwF(strength=0.5), stream(setting)).run().bits())


def sigmoid_form(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    p, q = (1 / (1 + np.exp(-z / temperature)) for z in (student, teacher))
    return float(-(q * np.log(p) + (1 - q) * np.log(1 - p)).sum(1).mean())


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("head", ["linear", "multi"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_sigmoid_form_teaches_every_old_class_by_itself(make, setting, head, temperature):
    strategy = PredKD(form="sigmoid", strength=0.3, temperature=temperature)
    trial = make(strategy, stream(setting), head={"name": head}).run()
    batch = some_batch(trial)
    found = extra(trial, batch)  # in eval mode as the run left it
    student = trial.strategy.network(batch.x).logits.detach().double().numpy()
    teacher = trial.strategy.teacher_(batch.x).logits.double().numpy()
    assert found.item() == pytest.approx(0.3 * sigmoid_form(student, teacher, temperature), rel=1e-5)


def test_only_the_old_classes_are_taught(make):
    trial = make(PredKD(form="sigmoid"))
    grads = []

    def at_start(experience):
        network = trial.strategy.network
        if experience.index:
            network.zero_grad()
            extra(trial, some_batch(trial, experience.index)).backward()
            grads.append(network.classifier.weight.grad.clone())
            network.zero_grad()

    def move(experience):  # away from the teacher, where the gradient is zero
        if experience.index:
            trial.strategy.network.classifier.weight.data += 0.5
            at_start(experience)

    trial.before("phases", move).run()
    for old, grad in zip((2, 4), grads, strict=True):
        assert grad[:old].any(dim=1).all()
        assert not grad[old:].any()


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_the_gradient_vanishes_right_after_the_copy_and_equals_finite_differences(make, form):
    trial = make(PredKD(form=form)).run()
    network, batch = trial.strategy.network.eval().double(), some_batch(trial)
    trial.strategy.teacher_.double()
    batch.x = batch.x.double()
    network.zero_grad()
    extra(trial, batch).backward()
    assert max(float(p.grad.abs().max()) for p in network.parameters()) < 1e-6
    for parameter in network.parameters():
        parameter.data += 0.05
    assert_gradients(lambda: extra(trial, batch), list(network.parameters()))


def test_auto_is_the_form_that_goes_with_the_main_loss(make):
    assert predkd_of(make(PredKD())).resolved_form() == "softmax"
    assert predkd_of(make(BCE() + PredKD())).resolved_form() == "sigmoid"
    assert predkd_of(make(BCE() + PredKD(form="softmax"))).resolved_form() == "softmax"


def test_beside_bce_the_teachers_sigmoids_are_the_old_classes_targets(make):
    """LwF.MC: one binary cross-entropy over all classes, with one-hot targets for new ones, the teacher's for old ones."""
    trial = make(BCE() + PredKD()).run()
    trial.trainer.context.experience = trial.stream.experiences[2]
    strategy, predkd, batch = trial.strategy, predkd_of(trial), some_batch(trial, 2)
    for parameter in strategy.network.parameters():
        parameter.data += 0.1
    taught = predkd.taught
    predkd.taught = lambda batch, stages=False: old_part(taught(batch, stages))
    total = sum(v.item() for v in strategy.loss_terms(batch).values())
    z = strategy.network(batch.x).logits.detach().double().numpy()
    targets = np.arange(6)[None] == batch.y.numpy()[:, None]
    targets = targets.astype(float)
    targets[:, :4] = 1 / (1 + np.exp(-predkd.teacher_(batch.x).logits[:, :4].double().numpy()))
    p = 1 / (1 + np.exp(-z))
    expected = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum(1).mean()
    assert total == pytest.approx(expected, rel=1e-5)


def old_part(output):
    output.logits = output.logits[:, :4]  # as a teacher of two experiences gives
    return output


def test_training_leaves_the_teacher_alone(make, same):
    trial, copies = make(BCE() + PredKD()), []

    def compare(experience):
        if copies:
            same(copies[-1], copied(predkd_of(trial).teacher_))
        copies.append(copied(trial.strategy.network))

    trial.before("after_experience", compare).run()
    assert len(copies) == 3
    assert not any(p.requires_grad for p in predkd_of(trial).teacher_.parameters())


@pytest.mark.parametrize("stop_after", [5, 8])
def test_it_resumes_with_its_teacher(resumes, stop_after):
    resumes(PredKD(form="sigmoid"), stop_after)
