"""Pseudo-labels: withheld labels are never read, unsure samples count for nothing, and the loss is eq. 4 of FixMatch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from clframe.strategies.finetune import Finetune
from clframe.strategies.pseudo_labels import PseudoLabels
from clframe.strategies.replay import Replay
from clframe.stream import Stream
from clframe.testing.streams import synthetic_stream


def partly(setting: str = "class", **options: Any) -> Stream:
    groups = [[0, 1]] * 3 if setting == "domain" else [[0, 1], [2, 3], [4, 5]]
    return synthetic_stream(setting=setting, experiences=groups, train_per_class=2, unlabelled_per_class=8, **options)


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_where_every_sample_has_a_label_it_is_fine_tuning_bit_for_bit(make, same, setting):
    stream = synthetic_stream(setting=setting, experiences=[[0, 1]] * 2 if setting == "domain" else [[0, 1], [2, 3]])
    same(make(PseudoLabels(), stream).run().bits(), make(Finetune(), stream).run().bits())


def test_without_strength_samples_without_label_change_nothing(make, same):
    stream = partly()
    bare = dataclasses.replace(
        stream, experiences=tuple(dataclasses.replace(e, unlabelled=e.unlabelled[:0]) for e in stream.experiences)
    )
    same(make(PseudoLabels(strength=0.0), stream).run().bits(), make(Finetune(), bare).run().bits())


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_withheld_labels_are_not_read(make, same, setting):
    def run(stream: Stream):
        return make(Replay(memory_size=6) + PseudoLabels(threshold=0.3), stream).run()

    plain, altered = partly(setting), partly(setting)
    for experience in altered.experiences:
        ids = experience.unlabelled
        altered.train.targets[ids] = altered.train.targets[ids].flip(0)
    assert not torch.equal(plain.train.targets, altered.train.targets)
    same(run(plain).bits(), run(altered).bits())


def test_it_resumes_inside_an_epoch(resumes):
    resumes(PseudoLabels(threshold=0.3), stop_after=3, stream=partly())


# ---- the loss


def trained(make, **options: Any):
    """A run that has ended, its third experience, and a batch of samples with label."""
    trial = make(PseudoLabels(**options), partly()).run()
    context = trial.trainer.context
    experience = trial.stream.experiences[2]
    context.experience = experience
    trial.strategy.network.train()
    return trial.strategy, context.training_batch(experience.train, "labelled")


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("candidates", ["experience", "seen"])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.6])
def test_the_loss_is_that_of_the_paper(make, monkeypatch, candidates, threshold):
    strategy, batch = trained(make, candidates=candidates, threshold=threshold, strength=0.7, ratio=3)
    drawn: list[Any] = []
    inner = strategy.run.training_batch
    monkeypatch.setattr(strategy.run, "training_batch", lambda ids, what: drawn.append(inner(ids, what)) or drawn[-1])
    found = strategy.extra_losses(batch, strategy.forward(batch))["pseudo_labels"].item()
    first, second = drawn
    assert first.ids.tolist() == second.ids.tolist()
    assert len(set(first.ids.tolist())) == min(3 * strategy.run.batch_size, len(batch.experience.unlabelled))
    assert set(first.ids.tolist()) <= set(batch.experience.unlabelled.tolist())
    classes = list(batch.experience.classes) if candidates == "experience" else list(range(6))
    z, again = (strategy.network(b.x).logits.detach().double().numpy()[:, classes] for b in (first, second))
    q, p = softmax(z), softmax(again)
    losses = [-np.log(p[b, q[b].argmax()]) if q[b].max() >= threshold else 0.0 for b in range(len(q))]
    assert found == pytest.approx(0.7 * np.mean(losses), rel=1e-5)
    if threshold == 0.6 and candidates == "seen":
        assert 0.0 in losses, "the case of an unsure sample"


def test_unsure_samples_give_no_gradient(make):
    strategy, batch = trained(make, threshold=1.0)
    loss = strategy.extra_losses(batch, strategy.forward(batch))["pseudo_labels"]
    assert loss.item() == 0.0
    gradients = torch.autograd.grad(loss, list(strategy.network.parameters()), allow_unused=True)
    assert all(g is None or not g.any() for g in gradients)


def test_old_classes_are_left_alone_unless_all_seen_are_candidates(make):
    for candidates, moved in (("experience", False), ("seen", True)):
        strategy, batch = trained(make, threshold=0.0, candidates=candidates)
        loss = strategy.extra_losses(batch, strategy.forward(batch))["pseudo_labels"]
        weight = strategy.network.classifier.weight
        (gradient,) = torch.autograd.grad(loss, [weight])
        assert bool(gradient[:4].any()) is moved
        assert gradient[4:].any()


def test_no_gradient_flows_through_the_labels(make):
    strategy, batch = trained(make, threshold=0.0)
    labels = strategy.pseudo_labels(batch)
    assert not labels.requires_grad
    assert set(labels.tolist()) <= set(batch.experience.classes)
