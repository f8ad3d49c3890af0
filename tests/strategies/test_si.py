"""Synaptic intelligence: the path integral step by step, the importances, the penalty."""

from __future__ import annotations

import pytest
import torch

from clframe.models import Output
from clframe.strategies.der import DER
from clframe.strategies.finetune import Finetune
from clframe.strategies.l2_anchor import L2Anchor
from clframe.strategies.si import SI
from clframe.strategy import Batch, ParameterGroup, Phase, Strategy
from clframe.testing.streams import synthetic_stream
from tests.strategies.laws import assert_gradients

PLAIN = {"lr": 0.05, "momentum": 0.0, "weight_decay": 0.0}


def stream(setting: str = "class", **options):
    groups = [[0, 1]] * 3 if setting == "domain" else [[0, 1], [2, 3], [4, 5]]
    return synthetic_stream(setting=setting, experiences=groups, **options)


def si_of(trial) -> SI:
    return next(p for p in getattr(trial.strategy, "parts", [trial.strategy]) if isinstance(p, SI))


# ---- laws of whole runs


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_without_strength_it_is_fine_tuning_bit_for_bit(make, same, setting):
    same(make(SI(strength=0.0), stream(setting)).run().bits(), make(Finetune(), stream(setting)).run().bits())


def test_the_stronger_the_penalty_the_less_the_weights_move(make):
    def moved(strength: float) -> float:
        trial, kept = make(SI(strength=strength), optimizer={**PLAIN, "lr": 0.02}), {}
        trial.before("before_experience", lambda e: kept.update({e.index: flat(trial.strategy.network.branches)}))
        trial.run()
        return float((flat(trial.strategy.network.branches) - kept[1]).norm())

    distances = [moved(strength) for strength in (0.0, 10.0, 100.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.9 * distances[0]


def flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("stop_after", [2, 8, 9, 15])
def test_it_resumes_inside_its_path(resumes, stop_after):
    resumes(SI(), stop_after)


# ---- the path integral


class Book:
    """Follows a run from outside: autograd's gradient of the terms that count, and the weights around every step."""

    def __init__(self, trial, counted) -> None:
        self.trial, self.counted = trial, counted
        self.path: dict[str, torch.Tensor] = {}
        self.own = si_of(trial)
        strategy, losses = trial.strategy, trial.strategy.loss_terms
        after_backward, after_step = self.own.after_backward, self.own.after_step

        def loss_terms(batch):
            terms = losses(batch)
            network = self.trial.strategy.network
            parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
            total = sum(v for n, v in terms.items() if self.counted(n))
            found = torch.autograd.grad(total, list(parameters.values()), retain_graph=True, allow_unused=True)
            self.gradients = {n: g.clone() for n, g in zip(parameters, found, strict=True) if g is not None}
            return terms

        def stepping(batch):
            self.weights = {n: p.detach().clone() for n, p in self.trial.strategy.network.named_parameters()}
            after_backward(batch)

        def stepped(batch):
            after_step(batch)
            for n, p in self.trial.strategy.network.named_parameters():
                if n in self.gradients:
                    gained = -self.gradients[n] * (p.detach() - self.weights[n])
                    self.path[n] = self.path[n] + gained if n in self.path else gained

        strategy.loss_terms = loss_terms
        self.own.after_backward, self.own.after_step = stepping, stepped
        trial.before("before_experience", lambda e: self.path.clear())


CASES = [
    (SI(strength=5.0), {}),
    (SI(strength=5.0), {"setting": "task", "head": {"name": "multi"}}),
    (SI(strength=5.0), {"setting": "domain"}),
    (SI(strength=5.0), {"optimizer": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "clip_norm": 0.1}}),
    (SI(strength=5.0), {"optimizer": {"name": "adam", "lr": 0.01}}),
    (SI(strength=5.0), {"precision": "bf16"}),
    (L2Anchor(strength=0.3) + SI(strength=5.0), {}),
    (SI(strength=5.0) + L2Anchor(strength=0.3), {"optimizer": {"lr": 0.05, "clip_value": 0.01}}),
]


@pytest.mark.parametrize(("strategy", "options"), CASES)
def test_the_path_is_the_loss_without_its_own_penalty_times_the_step_that_was_taken(make, strategy, options):
    options = dict(options)
    trial = make(strategy, stream(options.pop("setting", "class")), **options)
    book = Book(trial, counted=lambda name: name != "si")
    checked = []

    def compare(experience):
        torch.testing.assert_close(si_of(trial).path_, dict(book.path), rtol=1e-4, atol=1e-6)
        checked.append(max(float(p.abs().max()) for p in book.path.values()))

    inner = book.own.after_experience
    book.own.after_experience = lambda e: (compare(e), inner(e))[1]
    trial.run()
    assert len(checked) == 3
    assert min(checked) > 1e-4  # there is something to compare
    terms = [v["terms"] for kind, v in trial.recorder.events if kind == "epoch"]
    assert terms[-1]["si"] > 0  # and something that must not be in it


def test_the_path_of_small_plain_steps_is_the_decrease_of_the_loss(make):
    """Full batches and no noise: Σ ω is the loss at the start minus that at the end, to first order in the rate."""
    trial = make(SI(), stream(), batch_size=64, epochs=60, optimizer={**PLAIN, "lr": 0.002})
    total = []
    trial.before("after_experience", lambda e: total.append(float(sum(p.sum() for p in trial.strategy.path_.values()))))
    trial.run()
    first = [v for k, v in trial.recorder.events if k == "epoch" and v["experience"] == 1]
    decrease = first[0]["loss"] - first[-1]["loss"]  # of all steps but the last
    assert decrease > 0.1
    assert total[0] == pytest.approx(decrease * 60 / 59, rel=0.02)


class Stages(Strategy):
    """A phase for everything, then one for the classifier whose loss holds no extra terms."""

    def extra_phases(self, experience):
        head = list(self.network.classifier.parameters())

        def loss(batch: Batch):
            return {"stage": super(Stages, self).main_loss(batch, self.network(batch.x, batch.task_ids))}

        data = self.training_data(experience)
        return [Phase(name="stage", data=data, epochs=2, loss=loss, parameters=[ParameterGroup(head)])]


def test_a_phase_without_the_penalty_has_nothing_subtracted_and_frozen_parameters_gain_nothing(make):
    trial = make(SI(strength=50.0) + Stages(), optimizer={**PLAIN, "lr": 0.01})
    si, seen = si_of(trial), []
    inner = si.after_step

    def after_step(batch):
        if batch.phase == "stage" and batch.experience.index == 1:
            network = trial.strategy.network
            assert set(si.gradient_) == {"heads.classifier.weight", "heads.classifier.bias"}
            for name, parameter in network.named_parameters():
                if name in si.gradient_:
                    assert torch.equal(si.gradient_[name], parameter.grad)  # bit for bit: as backward left it
            moved = (network.classifier.weight.detach()[:2] - si.anchor_["heads.classifier.weight"]).abs().max()
            seen.append(float(moved))
        inner(batch)

    si.after_step = after_step
    trial.run()
    assert len(seen) == 6
    assert min(seen) > 1e-4  # the penalty's gradient would not have been zero


def test_a_step_that_mixed_precision_skips_adds_nothing(make):
    trial = make(SI()).run()
    si, network = trial.strategy, trial.strategy.network
    before = {n: p.clone() for n, p in si.path_.items()}
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    si.after_backward(None)
    si.after_step(None)
    assert all(torch.equal(p, before[n]) for n, p in si.path_.items())


def test_copies_are_kept_not_views_of_the_live_weights(make):
    """A snapshot that aliases the weights makes every step look like standing still."""
    trial = make(SI(), optimizer=PLAIN).run()
    live = {p.data_ptr() for p in trial.strategy.network.parameters()}
    kept = [*trial.strategy.anchor_.values(), *trial.strategy.start_.values(), *trial.strategy.path_.values()]
    assert not live & {t.data_ptr() for t in kept}
    assert sum(float(o.sum()) for o in trial.strategy.importance_.values()) > 0
    assert trial.strategy.before_ == {} == trial.strategy.gradient_


def test_added_branches_and_longer_rows_are_followed(make):
    trial = make(DER(memory_size=12, stage="align") + SI(strength=1.0)).run()
    si, network = si_of(trial), trial.strategy.network
    assert {n for n in si.importance_ if n.startswith("branches.2.")}
    assert all(si.importance_[n].shape == p.shape for n, p in network.named_parameters())
    assert all(torch.equal(si.anchor_[n], p) for n, p in network.named_parameters())


# ---- importances and penalty


def test_importances_add_up_over_the_displacement(make):
    trial, expected = make(SI(strength=3.0, damping=0.07)), {}

    def add(experience):
        si = trial.strategy
        for name, parameter in si.network.named_parameters():
            path, start = si.path_[name].double().numpy(), si.start_[name].double().numpy()
            now = parameter.detach().double().numpy()
            gained = path.clip(min=0) / ((now - start) ** 2 + 0.07)
            old = expected.get(name)
            if old is not None:
                gained[tuple(slice(0, n) for n in old.shape)] += old
            expected[name] = gained

    trial.before("after_experience", add).run()
    assert set(trial.strategy.importance_) == set(expected)
    for name, importance in trial.strategy.importance_.items():
        assert importance.numpy() == pytest.approx(expected[name], rel=1e-4, abs=1e-7)


def test_the_path_starts_where_the_experience_starts(make):
    trial, starts = make(SI()), {}

    def keep(experience):
        starts.update({n: p.detach().clone() for n, p in trial.strategy.network.named_parameters()})

    trial.before("phases", keep)
    trial.before(
        "after_experience", lambda e: torch.testing.assert_close(trial.strategy.start_, starts, rtol=0, atol=0)
    )
    trial.run()
    assert len(starts) == len(list(trial.strategy.network.parameters()))


def drawn(make, seed: int = 0):
    """A strategy in double precision with random importances after one experience, whose classifier has grown since."""
    trial = make(SI(strength=2.0))
    strategy, network = trial.strategy, trial.strategy.network.double()
    strategy.setup()
    generator = torch.Generator().manual_seed(seed)
    strategy.before_experience(trial.stream.experiences[0])
    strategy.consolidate({n: torch.rand(p.shape, generator=generator).double() for n, p in network.named_parameters()})
    at_anchor = strategy.penalty()
    strategy.before_experience(trial.stream.experiences[1])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return strategy, network, at_anchor


def test_the_penalty_is_zero_at_the_anchor_and_weighs_only_the_old_rows(make):
    strategy, network, at_anchor = drawn(make)
    assert at_anchor.item() == 0.0
    expected = 0.0
    for name, parameter in network.named_parameters():
        importance, anchor = strategy.importance_[name].numpy(), strategy.anchor_[name].numpy()
        old = parameter.detach().numpy()[tuple(slice(0, n) for n in anchor.shape)]
        expected += 2.0 * (importance * (old - anchor) ** 2).sum()
    assert strategy.penalty().item() == pytest.approx(expected, rel=1e-9)
    strategy.penalty().backward()
    assert network.classifier.weight.grad[:2].all()
    assert not network.classifier.weight.grad[2:].any()


def test_the_gradient_equals_finite_differences(make):
    strategy, network, _ = drawn(make, seed=1)
    assert_gradients(strategy.penalty, list(network.parameters()))


def test_the_penalty_is_asked_for_without_a_trace_in_the_first_experience(make):
    trial = make(SI())
    strategy = trial.strategy
    strategy.setup()
    assert strategy.extra_losses(None, Output(None, (), None)) == {}


def test_it_holds_a_regression_too(make):
    trial = make(SI(strength=0.1), stream("domain", score="squared_error"), optimizer={"lr": 0.01}).run()
    terms = [v["terms"] for kind, v in trial.recorder.events if kind == "epoch"]
    assert terms[-1]["si"] > 0
