"""Elastic weight consolidation: the penalty as a quadratic, the Fisher information as plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import clframe
from clframe.models.resnet import ResNet8
from clframe.strategies.ewc import EWC
from clframe.strategies.finetune import Finetune
from clframe.testing.streams import synthetic_stream


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stream(setting: str = "class", **options):
    groups = [[0, 1]] * 3 if setting == "domain" else [[0, 1], [2, 3], [4, 5]]
    return synthetic_stream(setting=setting, experiences=groups, **options)


# ---- laws of whole runs


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_without_strength_it_is_fine_tuning_bit_for_bit(make, same, setting):
    ewc = make(EWC(strength=0.0, fisher_samples=5), stream(setting)).run()
    same(ewc.bits(), make(Finetune(), stream(setting)).run().bits())


def test_the_stronger_the_penalty_the_less_the_weights_move(make):
    def moved(strength: float) -> float:
        trial, kept = make(EWC(strength=strength), optimizer={"lr": 0.01, "momentum": 0.0}), {}
        trial.before("before_experience", lambda e: kept.update({e.index: flat(trial.strategy.network.branches)}))
        trial.run()
        return float((flat(trial.strategy.network.branches) - kept[1]).norm())

    distances = [moved(strength) for strength in (0.001, 10.0, 100.0, 300.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.9 * distances[0]


def flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("mode", ["separate", "online"])
def test_it_resumes_with_its_penalty(resumes, mode):
    resumes(EWC(mode=mode), stop_after=8)
    resumes(EWC(mode=mode), stop_after=15)


# ---- the penalty


class Sum:
    """λ/2 Σ_t Σ_i F_ti (θ_i − θ*_ti)², experience by experience, over the prefix that each knew."""

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.parts: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def __call__(self, network) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for fisher, anchor in self.parts:
            for name, parameter in network.named_parameters():
                shape = fisher[name].shape
                old = parameter[tuple(slice(0, n) for n in shape)]
                total = total + (fisher[name] * (old - anchor[name]) ** 2).sum()
        return 0.5 * self.strength * total


def walk(make, strategy: EWC, experiences: int, seed: int, merge=None):
    """Let a strategy consolidate random weights with random Fisher information, in double precision, and sum by hand."""
    trial = make(strategy)
    strategy, network = trial.strategy, trial.strategy.network.double()
    strategy.setup()
    expected, generator = Sum(strategy.strength), gen(seed)
    for experience in trial.stream.experiences[:experiences]:
        strategy.before_experience(experience)
        shuffle(network, generator)
        fisher = {}
        for name, parameter in network.named_parameters():
            values = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) * 10
            fisher[name] = values * (torch.rand(parameter.shape, generator=generator) < 0.7)  # zeros too
        strategy.measure_fisher = lambda _, found=fisher: {n: f.clone() for n, f in found.items()}
        anchor = {n: p.detach().clone() for n, p in network.named_parameters()}
        strategy.after_experience(experience)
        expected.parts.append((fisher, anchor))
        if merge is not None:
            expected.parts = merge(expected.parts)
    return trial, network, expected


def shuffle(network, generator) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def value_and_gradient(loss, network):
    network.zero_grad()
    value = loss(network)
    value.backward()
    return value.detach(), torch.cat([p.grad.flatten() for p in network.parameters()])


@pytest.mark.parametrize("mode", ["separate", "online"])
def test_penalty_and_gradient_are_zero_at_a_single_anchor(make, mode):
    trial, network, _ = walk(make, EWC(mode=mode, strength=7.0), 1, seed=0)
    value, gradient = value_and_gradient(lambda _: trial.strategy.penalty(), network)
    assert value == 0.0
    assert not gradient.any()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), experiences=st.integers(1, 3), strength=st.floats(0.1, 500.0))
def test_the_merged_quadratic_is_the_sum_of_the_penalties(make, seed, experiences, strength):
    trial, network, expected = walk(make, EWC(strength=strength), experiences, seed)
    for point in range(2):  # on the grown head too
        shuffle(network, gen(seed + 1 + point))
        value, gradient = value_and_gradient(lambda _: trial.strategy.penalty(), network)
        reference, slope = value_and_gradient(expected, network)
        torch.testing.assert_close(value, reference, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("decay", [1.0, 0.3])
def test_the_online_penalty_follows_the_hand_recursion(make, decay):
    def merge(parts):
        """F ← γ F + F_new at the latest weights; rows that are new have no old information."""
        if len(parts) == 1:
            return parts
        (old, _), (new, anchor) = parts
        merged = {}
        for name, fisher in new.items():
            padded = torch.zeros_like(fisher)
            padded[tuple(slice(0, n) for n in old[name].shape)] = old[name]
            merged[name] = fisher + decay * padded
        return [(merged, anchor)]

    trial, network, expected = walk(make, EWC(mode="online", decay=decay, strength=3.0), 3, seed=4, merge=merge)
    shuffle(network, gen(9))
    value, gradient = value_and_gradient(lambda _: trial.strategy.penalty(), network)
    reference, slope = value_and_gradient(expected, network)
    torch.testing.assert_close(value, reference)
    torch.testing.assert_close(gradient, slope)


def test_the_gradient_equals_finite_differences(make):
    trial, network, _ = walk(make, EWC(strength=2.0), 2, seed=5)
    shuffle(network, gen(6))
    _, gradient = value_and_gradient(lambda _: trial.strategy.penalty(), network)
    vector = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    for index in torch.randperm(len(vector), generator=gen(7))[:40].tolist():
        values = []
        for step in (1e-5, -1e-5):
            moved = vector.clone()
            moved[index] += step
            torch.nn.utils.vector_to_parameters(moved, network.parameters())
            values.append(trial.strategy.penalty().item())
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(gradient[index].item(), rel=1e-5, abs=1e-5)


def test_rows_of_later_classes_are_free(make):
    trial, network, _ = walk(make, EWC(strength=5.0), 1, seed=8)
    trial.strategy.before_experience(trial.stream.experiences[1])
    shuffle(network, gen(1))
    value_and_gradient(lambda _: trial.strategy.penalty(), network)
    assert network.classifier.weight.grad[:2].any()
    assert not network.classifier.weight.grad[2:].any()
    assert not network.classifier.bias.grad[2:].any()


# ---- the Fisher information


def plain_fisher(trial, experience, allowed) -> dict[str, torch.Tensor]:
    """One backward pass per sample."""
    network = trial.strategy.network.eval()
    total = {n: torch.zeros_like(p) for n, p in network.named_parameters()}
    for sample in experience.train:
        table = trial.stream.train
        x = trial.trainer.context.train_maker.test_input(table.gather(sample[None]))
        logits = network(x).logits[0]
        kept = list(range(len(logits))) if allowed is None else allowed
        log_p = torch.log_softmax(logits[kept], dim=0)[kept.index(int(table.targets[sample]))]
        gradients = torch.autograd.grad(log_p, list(network.parameters()), allow_unused=True)
        for name, gradient in zip(total, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient**2
    return {n: t / len(experience.train) for n, t in total.items()}


CASES = [("class", "auto", "linear", None), ("class", "experience", "linear", [4, 5]), ("task", "auto", "linear", [4, 5]),
         ("task", "auto", "multi", [4, 5]), ("domain", "auto", "linear", None), ("class", "seen", "cosine", None)]  # fmt: skip


@pytest.mark.parametrize(("setting", "loss_over", "head", "allowed"), CASES)
def test_per_sample_fisher_equals_a_loop_over_samples(make, setting, loss_over, head, allowed):
    trial = make(EWC(loss_over=loss_over), stream(setting), head={"name": head}).run()
    last = trial.stream.experiences[2]
    found = trial.strategy.measure_fisher(last)
    torch.testing.assert_close(found, plain_fisher(trial, last, allowed), rtol=1e-3, atol=1e-7)
    assert sum(float(f.sum()) for f in found.values()) > 1e-4


def test_per_sample_fisher_of_a_residual_network_with_batchnorm(make):
    trial = make(EWC(), stream(channels=3), backbone=ResNet8(), epochs=1).run()
    state = {k: v.clone() for k, v in trial.strategy.network.state_dict().items()}
    last = trial.stream.experiences[2]
    found = trial.strategy.measure_fisher(last)
    torch.testing.assert_close(found, plain_fisher(trial, last, None), rtol=1e-3, atol=1e-6)
    after = trial.strategy.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in state.items())  # running statistics too


def both_forms(trial, batch_size: int):
    trial.trainer.context.batch_size = batch_size
    found = []
    for form in ("per_sample", "batch"):
        trial.strategy.fisher = form
        found.append(trial.strategy.measure_fisher(trial.stream.experiences[2]))
    return found


def test_both_forms_agree_on_batches_of_one(make):
    per_sample, batch = both_forms(make(EWC()).run(), batch_size=1)
    torch.testing.assert_close(per_sample, batch, rtol=1e-3, atol=1e-8)


def test_the_batch_form_is_never_larger_and_is_the_squared_mean_gradient(make):
    trial = make(EWC()).run()
    per_sample, batch = both_forms(trial, batch_size=4)  # twelve samples: three whole batches
    assert all((batch[n] <= per_sample[n] * (1 + 1e-4) + 1e-9).all() for n in batch)
    assert sum(float(f.sum()) for f in batch.values()) < 0.9 * sum(float(f.sum()) for f in per_sample.values())
    network, ids = trial.strategy.network.eval(), trial.stream.experiences[2].train
    expected = {n: torch.zeros_like(p) for n, p in network.named_parameters()}
    for part in ids.split(4):
        x = trial.trainer.context.train_maker.test_input(trial.stream.train.gather(part))
        loss = torch.nn.functional.cross_entropy(network(x).logits, trial.stream.train.targets[part])
        for (name, _), g in zip(
            network.named_parameters(), torch.autograd.grad(loss, list(network.parameters())), strict=True
        ):
            expected[name] += g**2 / 3
    torch.testing.assert_close(batch, expected, rtol=1e-3, atol=1e-8)


def test_fisher_samples_takes_a_part_of_the_experience(make):
    trial = make(EWC(fisher_samples=5)).run()
    context, asked = trial.trainer.context, []
    batches = context.batches
    context.batches = lambda ids: asked.append(ids) or batches(ids)
    trial.strategy.measure_fisher(trial.stream.experiences[1])
    context.streams.enter("elsewhere")
    trial.strategy.measure_fisher(trial.stream.experiences[1])
    assert [len(set(ids.tolist())) for ids in asked] == [5, 5]
    assert set(asked[0].tolist()) <= set(trial.stream.experiences[1].train.tolist())
    assert asked[0].tolist() != asked[1].tolist()


def test_frozen_parameters_are_not_measured(make):
    trial = make(EWC()).run()
    trial.strategy.network.branches.requires_grad_(False)
    found = trial.strategy.measure_fisher(trial.stream.experiences[2])
    assert set(found) == {"heads.classifier.weight", "heads.classifier.bias"}


def test_a_bound_caps_the_information_and_leaves_the_rest(make):
    trial = make(EWC()).run()
    free = trial.strategy.measure_fisher(trial.stream.experiences[2])
    bound = float(torch.cat([f.flatten() for f in free.values()]).quantile(0.9))
    trial.strategy.fisher_max = bound
    capped = trial.strategy.measure_fisher(trial.stream.experiences[2])
    torch.testing.assert_close(capped, {n: f.clamp(max=bound) for n, f in free.items()})
    assert any((f > bound).any() for f in free.values())


def test_a_bound_keeps_steps_that_would_diverge(make):
    def last(bound: float | None) -> float:
        trial = make(EWC(strength=1e4, fisher_max=bound), optimizer={"lr": 0.1, "momentum": 0.0})
        trial.run()
        return float(flat(trial.strategy.network).abs().max())

    assert last(1e-4) < 10, "lr · λ · F is at most 0.1 per experience"
    with pytest.raises(clframe.errors.TrainingError, match=r"became (nan|inf)"):
        last(None)
