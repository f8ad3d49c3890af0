"""L2 towards the initial weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clframe.strategies.finetune import Finetune
from clframe.strategies.l2_anchor import L2Anchor
from clframe.strategies.l2_init import L2Init
from clframe.strategies.replay import Replay
from clframe.testing.streams import synthetic_stream
from tests.strategies.laws import assert_gradients


def stream(setting: str = "class", **options):
    groups = [[0, 1]] * 3 if setting == "domain" else [[0, 1], [2, 3], [4, 5]]
    return synthetic_stream(setting=setting, experiences=groups, **options)


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_without_strength_it_is_fine_tuning_bit_for_bit(make, same, setting):
    same(make(L2Init(strength=0.0), stream(setting)).run().bits(), make(Finetune(), stream(setting)).run().bits())


def test_in_the_first_experience_it_is_the_anchor_at_the_start_bit_for_bit(make, same):
    one = synthetic_stream(experiences=[[0, 1]])
    anchored = make(L2Anchor(strength=0.3, from_start=True), one).run()
    # that anchor doesn't hold the classifier's rows back, which come after it was taken
    trial = make(L2Init(strength=0.3), one)
    inner = trial.strategy.before_epoch
    trial.strategy.before_epoch = lambda phase, epoch: inner(phase, epoch) if epoch < 0 else None
    same(trial.run().bits(), anchored.bits())


def weights(trial) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trial.strategy.network.named_parameters()}


@pytest.mark.parametrize("setting", ["class", "task"])
@pytest.mark.parametrize("before", [False, True])
def test_every_part_is_held_at_the_value_it_started_from(make, setting, before):
    """Whatever its place in a composition."""
    own = L2Init(strength=0.3)
    trial = make(own + Replay(memory_size=6) if before else Replay(memory_size=6) + own, stream(setting))
    part = trial.strategy.parts[0 if before else 1]
    start: dict[str, torch.Tensor] = {}
    penalties = []
    inner, inner_loss = trial.strategy.before_epoch, trial.strategy.loss_terms

    def note(phase, epoch):
        for name, now in weights(trial).items():
            if name in start:
                now[tuple(slice(0, n) for n in start[name].shape)] = start[name]
            start[name] = now
        inner(phase, epoch)

    def watched(batch):
        terms = inner_loss(batch)
        first = not penalties
        penalties.append(terms["l2_init"].item())
        if first:
            assert penalties[0] == 0.0
        return terms

    trial.strategy.before_epoch, trial.strategy.loss_terms = note, watched
    trial.run()
    assert part.anchor_.keys() == start.keys()
    assert all(torch.equal(part.anchor_[n], start[n]) for n in start)
    assert all(p > 0 for p in penalties[1:])
    held = {a.data_ptr() for a in part.anchor_.values()}
    assert not held & {p.data_ptr() for p in trial.strategy.network.parameters()}


def test_the_stronger_the_penalty_the_nearer_the_weights_stay_to_the_start(make):
    def distance(strength: float) -> float:
        trial = make(L2Init(strength=strength), optimizer={"lr": 0.02, "momentum": 0.0}).run()
        moved = [
            (p.detach() - trial.strategy.anchor_[n]).square().sum()
            for n, p in trial.strategy.network.named_parameters()
        ]
        return float(torch.stack(moved).sum().sqrt())

    distances = [distance(s) for s in (0.0, 1.0, 10.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.5 * distances[0]


def test_the_penalty_is_the_squared_distance(make):
    trial = make(L2Init(strength=0.7)).run()
    strategy, network = trial.strategy, trial.strategy.network.double()
    expected = 0.0
    for name, parameter in network.named_parameters():
        assert parameter.shape == strategy.anchor_[name].shape
        expected += 0.7 * np.sum((parameter.detach().numpy() - strategy.anchor_[name].double().numpy()) ** 2)
    assert strategy.penalty().item() == pytest.approx(expected, rel=1e-9)
    strategy.penalty().backward()
    assert network.classifier.weight.grad.all()
    assert_gradients(strategy.penalty, list(network.parameters()))


@pytest.mark.parametrize("stop_after", [3, 8])
def test_it_resumes_with_its_anchor(resumes, stop_after):
    resumes(L2Init(strength=0.1), stop_after)


def test_it_holds_a_regression_too(make):
    trial = make(L2Init(), stream("domain", score="squared_error"), optimizer={"lr": 0.01}).run()
    terms = [v["terms"] for kind, v in trial.recorder.events if kind == "epoch"]
    assert terms[-1]["l2_init"] > 0
