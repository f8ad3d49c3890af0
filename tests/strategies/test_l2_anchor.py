"""L2 towards the previous checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clframe.strategies.finetune import Finetune
from clframe.strategies.l2_anchor import L2Anchor
from clframe.testing.streams import synthetic_stream
from tests.strategies.laws import assert_gradients


def stream(setting: str = "class", **options):
    groups = [[0, 1]] * 3 if setting == "domain" else [[0, 1], [2, 3], [4, 5]]
    return synthetic_stream(setting=setting, experiences=groups, **options)


@pytest.mark.parametrize("from_start", [False, True])
@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_without_strength_it_is_fine_tuning_bit_for_bit(make, same, setting, from_start):
    anchored = make(L2Anchor(strength=0.0, from_start=from_start), stream(setting)).run()
    same(anchored.bits(), make(Finetune(), stream(setting)).run().bits())


def moved_in(make, experience: int, strategy: L2Anchor) -> float:
    trial, kept = make(strategy, optimizer={"lr": 0.02, "momentum": 0.0}), []
    trial.before("before_experience", lambda e: kept.append(flat(trial.strategy.network.branches)))
    trial.run()
    kept.append(flat(trial.strategy.network.branches))
    return float((kept[experience + 1] - kept[experience]).norm())


def flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_the_stronger_the_penalty_the_less_the_weights_move(make):
    distances = [moved_in(make, 1, L2Anchor(strength=s)) for s in (0.0, 1.0, 10.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.7 * distances[0]


def test_from_start_holds_the_first_experience_too(make):
    free, held = (moved_in(make, 0, L2Anchor(strength=10.0, from_start=start)) for start in (False, True))
    assert held < 0.8 * free


def test_anchors_are_copies_of_the_weights_at_the_start_and_after_every_experience(make):
    trial, kept = make(L2Anchor(from_start=True)), []

    def compare(experience):
        anchor, weights = trial.strategy.anchor_, kept[-1]
        assert all(torch.equal(anchor[n], weights[n]) for n in weights)
        assert not {a.data_ptr() for a in anchor.values()} & {p.data_ptr() for p in trial.strategy.network.parameters()}

    inner = trial.strategy.setup
    trial.strategy.setup = lambda: (kept.append(weights(trial)), inner())[1]
    trial.before("after_experience", lambda e: (compare(e), kept.append(weights(trial))))
    trial.run()
    assert len(kept) == 4
    terms = [set(v["terms"]) for kind, v in trial.recorder.events if kind == "epoch"]
    assert terms == [{"classification", "l2_anchor"}] * 6


def weights(trial) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trial.strategy.network.named_parameters()}


def grown(make):
    """A strategy in double precision after one experience, whose classifier has grown and whose weights moved."""
    trial = make(L2Anchor(strength=0.7))
    strategy, network = trial.strategy, trial.strategy.network.double()
    strategy.setup()
    strategy.before_experience(trial.stream.experiences[0])
    strategy.after_experience(trial.stream.experiences[0])
    at_anchor = strategy.penalty().item()
    strategy.before_experience(trial.stream.experiences[1])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return strategy, network, at_anchor


def test_the_penalty_is_the_squared_distance_of_the_old_part(make):
    strategy, network, at_anchor = grown(make)
    assert at_anchor == 0.0
    expected = 0.0
    for name, parameter in network.named_parameters():
        anchor = strategy.anchor_[name].numpy()
        old = parameter.detach().numpy()[tuple(slice(0, n) for n in anchor.shape)]
        expected += 0.7 * np.sum((old - anchor) ** 2)
    assert strategy.penalty().item() == pytest.approx(expected, rel=1e-9)
    strategy.penalty().backward()
    assert network.classifier.weight.grad[:2].all()
    assert not network.classifier.weight.grad[2:].any()
    assert_gradients(strategy.penalty, list(network.parameters()))


def test_equal_importances_make_it_elastic_weight_consolidation(make):
    from clframe.strategies.ewc import EWC

    strategy, network, _ = grown(make)
    ewc = EWC(strength=1.4)
    ewc.bind(strategy.run)
    ewc.setup()
    ewc.anchor_ = strategy.anchor_
    ewc.fisher_ = {n: torch.ones_like(a) for n, a in strategy.anchor_.items()}
    strategy.run.network = network
    assert ewc.penalty().item() == pytest.approx(strategy.penalty().item(), rel=1e-12)


@pytest.mark.parametrize("stop_after", [3, 8])
def test_it_resumes_with_its_anchor(resumes, stop_after):
    resumes(L2Anchor(strength=0.1, from_start=True), stop_after)


def test_it_holds_a_regression_too(make):
    trial = make(L2Anchor(), stream("domain", score="squared_error"), optimizer={"lr": 0.01}).run()
    terms = [v["terms"] for kind, v in trial.recorder.events if kind == "epoch"]
    assert terms[-1]["l2_anchor"] > 0
