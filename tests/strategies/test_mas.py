"""Memory-aware synapses: the importance as a loop over samples, the penalty."""

from __future__ import annotations

import pytest
import torch

import clframe
from clframe.models.resnet import ResNet8
from clframe.strategies.finetune import Finetune
from clframe.strategies.mas import MAS
from clframe.testing.streams import synthetic_stream


def stream(setting: str = "class", **options):
    groups = [[0, 1]] * 3 if setting == "domain" else [[0, 1], [2, 3], [4, 5]]
    return synthetic_stream(setting=setting, experiences=groups, **options)


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_without_strength_it_is_fine_tuning_bit_for_bit(make, same, setting):
    mas = make(MAS(strength=0.0, samples=5), stream(setting)).run()
    same(mas.bits(), make(Finetune(), stream(setting)).run().bits())


def test_the_stronger_the_penalty_the_less_the_weights_move(make):
    def moved(strength: float) -> float:
        trial, kept = make(MAS(strength=strength), optimizer={"lr": 0.01, "momentum": 0.0}), {}
        trial.before("before_experience", lambda e: kept.update({e.index: flat(trial.strategy.network.branches)}))
        trial.run()
        return float((flat(trial.strategy.network.branches) - kept[1]).norm())

    distances = [moved(strength) for strength in (0.0, 3.0, 20.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.9 * distances[0]


def flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("stop_after", [8, 15])
def test_it_resumes_with_its_penalty(resumes, stop_after):
    resumes(MAS(strength=0.1, samples=7), stop_after)


def test_a_bound_caps_what_each_experience_adds(make):
    free, bounded = (make(MAS(strength=0.0, importance_max=bound)).run().strategy for bound in (None, 1e-3))
    for strategy in (free, bounded):
        strategy.importance_ = {}
    for values in (5e-4, 2e-3):  # as if two experiences had measured them
        gained = {n: torch.full_like(p, values) for n, p in free.network.named_parameters()}
        free.consolidate(gained)
        bounded.consolidate(gained)
    for name, importance in bounded.importance_.items():
        torch.testing.assert_close(importance, torch.full_like(importance, 1.5e-3))
        torch.testing.assert_close(free.importance_[name], torch.full_like(importance, 2.5e-3))


def test_a_bound_keeps_steps_that_would_diverge(make):
    def last(bound: float | None) -> float:
        trial = make(MAS(strength=100.0, importance_max=bound), optimizer={"lr": 0.1, "momentum": 0.0})
        return float(flat(trial.run().strategy.network).abs().max())

    assert last(1e-2) < 10, "lr · λ · Ω is at most 0.1 per experience"
    with pytest.raises(clframe.errors.TrainingError, match=r"became (nan|inf)"):
        last(None)


# ---- the importance


def plain_importance(trial, experience, counted) -> dict[str, torch.Tensor]:
    """One backward pass per sample."""
    network = trial.strategy.network.eval()
    total = {n: torch.zeros_like(p) for n, p in network.named_parameters()}
    for sample in experience.train:
        x = trial.trainer.context.train_maker.test_input(trial.stream.train.gather(sample[None]))
        logits = network(x).logits[0]
        chosen = logits if counted is None else logits[counted]
        gradients = torch.autograd.grad((chosen**2).sum(), list(network.parameters()), allow_unused=True)
        for name, gradient in zip(total, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.abs()
    return {n: t / len(experience.train) for n, t in total.items()}


CASES = [("class", "linear", None), ("class", "cosine", None), ("task", "linear", [4, 5]), ("task", "multi", [4, 5]),
         ("domain", "linear", None)]  # fmt: skip


@pytest.mark.parametrize(("setting", "head", "counted"), CASES)
def test_the_importance_equals_a_loop_over_samples(make, setting, head, counted):
    trial = make(MAS(strength=0.01), stream(setting), head={"name": head}).run()
    last = trial.stream.experiences[2]
    found = trial.strategy.measure_importance(last)
    torch.testing.assert_close(found, plain_importance(trial, last, counted), rtol=1e-3, atol=1e-6)
    assert all(torch.isfinite(f).all() for f in found.values())
    assert sum(float(f.sum()) for f in found.values()) > 0.1


def test_the_importance_of_a_residual_network_leaves_its_statistics_alone(make):
    trial = make(MAS(strength=0.01), stream(channels=3), backbone=ResNet8(), epochs=1).run()
    state = {k: v.clone() for k, v in trial.strategy.network.state_dict().items()}
    last = trial.stream.experiences[2]
    found = trial.strategy.measure_importance(last)
    torch.testing.assert_close(found, plain_importance(trial, last, None), rtol=1e-3, atol=1e-4)
    after = trial.strategy.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in state.items())


def test_it_looks_at_no_label(make):
    trial = make(MAS(strength=0.01)).run()
    last = trial.stream.experiences[2]
    before = trial.strategy.measure_importance(last)
    trial.stream.train.targets[last.train] = 0
    torch.testing.assert_close(trial.strategy.measure_importance(last), before, rtol=0, atol=0)


def test_importances_add_up_and_the_anchor_follows(make):
    trial, found = make(MAS(strength=0.01)), []
    strategy = trial.strategy
    measure = strategy.measure_importance
    strategy.measure_importance = lambda e: found.append(measure(e)) or {n: f.clone() for n, f in found[-1].items()}
    trial.run()
    for name, parameter in strategy.network.named_parameters():
        expected = torch.zeros_like(parameter)
        for importances in found:
            expected[tuple(slice(0, n) for n in importances[name].shape)] += importances[name]
        torch.testing.assert_close(strategy.importance_[name], expected)
        assert torch.equal(strategy.anchor_[name], parameter)


def test_samples_takes_a_part_of_the_experience(make):
    trial = make(MAS(samples=5, strength=0.01)).run()
    context, asked = trial.trainer.context, []
    batches = context.batches
    context.batches = lambda ids: asked.append(ids) or batches(ids)
    trial.strategy.measure_importance(trial.stream.experiences[1])
    assert len(set(asked[0].tolist())) == 5
    assert set(asked[0].tolist()) <= set(trial.stream.experiences[1].train.tolist())


def test_frozen_parameters_are_not_measured(make):
    trial = make(MAS(strength=0.01)).run()
    trial.strategy.network.branches.requires_grad_(False)
    found = trial.strategy.measure_importance(trial.stream.experiences[2])
    assert set(found) == {"heads.classifier.weight", "heads.classifier.bias"}


# ---- the penalty


def test_the_penalty_is_zero_at_the_anchor_and_weighs_only_the_old_rows(make):
    trial, values = make(MAS(strength=0.3)), []

    def at_start(experience):
        strategy = trial.strategy
        if experience.index:
            values.append(strategy.penalty().item())
            network, old = strategy.network, 2 * experience.index
            strategy.penalty().backward()
            network.zero_grad()
            with torch.no_grad():
                network.classifier.weight += 0.5
            expected = 0.3 * 0.25 * strategy.importance_["heads.classifier.weight"].double().sum().item()
            assert strategy.penalty().item() == pytest.approx(expected, rel=1e-4)
            strategy.penalty().backward()
            assert network.classifier.weight.grad[:old].any()
            assert not network.classifier.weight.grad[old:].any()
            network.zero_grad()

    trial.before("phases", at_start).run()
    assert values == [0.0, 0.0]


def test_it_holds_a_regression_too(make):
    trial = make(MAS(strength=0.01), stream("domain", score="squared_error"), optimizer={"lr": 0.01}).run()
    terms = [v["terms"] for kind, v in trial.recorder.events if kind == "epoch"]
    assert terms[-1]["mas"] > 0
