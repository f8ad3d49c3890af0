"""Learning without forgetting: teacher, groups, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clframe.strategies.finetune import Finetune
from clframe.strategies.lwf import LwF
from clframe.testing.bench import first_difference
from clframe.testing.streams import synthetic_stream
from clframe.training.checkpoint import pack

SETTINGS = ["class", "task", "domain"]


def stream(setting: str):
    groups = [[0, 1]] * 3 if setting == "domain" else [[0, 1], [2, 3], [4, 5]]
    return synthetic_stream(setting=setting, experiences=groups)


@pytest.mark.parametrize("setting", SETTINGS)
def test_without_strength_it_is_local_fine_tuning_bit_for_bit(make, same, setting):
    lwf = make(LwF(strength=0.0), stream(setting)).run()
    same(lwf.bits(), make(Finetune(loss_over="experience"), stream(setting)).run().bits())


def some_batch(trial, experience: int = 1):
    ids = trial.stream.experiences[experience].train
    return next(iter(trial.trainer.context.batches(ids, batch_size=8)))


def extra(trial, batch):
    return trial.strategy.extra_losses(batch, trial.strategy.network(batch.x, batch.task_ids))


def cross_entropy_of_softened(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    def log_softmax(z):
        z = z / temperature
        return z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)

    return float(-(np.exp(log_softmax(teacher)) * log_softmax(student)).sum(1).mean())


@pytest.mark.parametrize("head", ["linear", "multi"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_loss_distils_each_groups_old_outputs(make, setting, head):
    trial = make(LwF(strength=0.7, temperature=3.0), stream(setting), head={"name": head}).run()
    trial.strategy.network.train()
    batch = some_batch(trial)
    found = extra(trial, batch)["distillation"]
    student = trial.strategy.network(batch.x).logits.detach().double().numpy()
    teacher = trial.strategy.teacher_(batch.x).logits.double().numpy()
    groups = {"class": [slice(0, 6)], "domain": [slice(0, 2)], "task": [[0, 1], [2, 3], [4, 5]]}[setting]
    losses = [cross_entropy_of_softened(student[:, g], teacher[:, g], 3.0) for g in groups]
    assert found.item() == pytest.approx(0.7 * np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_gradient_vanishes_right_after_the_copy(make, setting):
    trial = make(LwF(strength=1.0), stream(setting)).run()
    network = trial.strategy.network.eval()
    batch = some_batch(trial)
    sizes = []
    for shift in (0.0, 0.5):
        with torch.no_grad():
            network.classifier.weight[0] += shift
        network.zero_grad()
        extra(trial, batch)["distillation"].backward()
        sizes.append(max(float(p.grad.abs().max()) for p in network.parameters()))
    assert sizes[0] < 1e-6
    assert sizes[1] > 1e-3


def test_the_teacher_is_the_model_as_it_was_and_training_leaves_it_alone(make):
    trial, copies = make(LwF()), []

    def compare(experience):
        if copies:
            assert first_difference(copies[-1], pack(trial.strategy.teacher_.state_dict())) is None
        copies.append(pack({k: v.clone() for k, v in trial.strategy.network.state_dict().items()}))

    trial.before("after_experience", compare).run()
    assert len(copies) == 3
    assert first_difference(copies[-1], pack(trial.strategy.teacher_.state_dict())) is None
    assert not trial.strategy.teacher_.training
    assert not any(p.requires_grad for p in trial.strategy.teacher_.parameters())
    assert first_difference(copies[0], copies[1]) is not None


def test_the_teacher_sees_the_same_augmented_images(make):
    trial = make(LwF(), augmentation="crop_flip")
    seen = []

    def watched(teacher, arguments):
        seen.append(arguments[0])

    trial.before(
        "phases", lambda e: trial.strategy.teacher_ and trial.strategy.teacher_.register_forward_pre_hook(watched)
    )
    trial.watch().run()
    batches = [b.x for b in trial.batches if b.experience.index > 0]
    assert len(seen) >= len(batches)
    assert all(any(torch.equal(x, other) for other in seen) for x in batches)


def test_the_first_experience_is_plain_training(make):
    trial = make(LwF(strength=5.0)).run()
    terms = [v["terms"] for kind, v in trial.recorder.events if kind == "epoch"]
    assert [set(t) for t in terms] == [{"classification"}] * 2 + [{"classification", "distillation"}] * 4


@pytest.mark.parametrize("stop_after", [5, 8, 14])
def test_it_resumes_with_its_teacher(resumes, stop_after):
    resumes(LwF(), stop_after)
