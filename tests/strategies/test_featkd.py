"""Feature distillation: features, stages, and what it needs of a backbone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from clframe.errors import ConfigurationError
from clframe.models.vit import ViTTiny
from clframe.strategies.der import DER
from clframe.strategies.featkd import FeatKD
from clframe.strategies.finetune import Finetune
from clframe.strategies.lwf import LwF
from clframe.testing.streams import synthetic_stream
from tests.strategies.laws import assert_gradients, copied

SETTINGS = ["class", "task", "domain"]


def stream(setting: str = "class", **options):
    groups = [[0, 1]] * 3 if setting == "domain" else [[0, 1], [2, 3], [4, 5]]
    return synthetic_stream(setting=setting, experiences=groups, **options)


def some_batch(trial, experience: int = 1):
    ids = trial.stream.experiences[experience].train
    return next(iter(trial.trainer.context.batches(ids, batch_size=8)))


def extra(trial, batch):
    return trial.strategy.extra_losses(batch, trial.strategy.forward(batch))["feature_distillation"]


@pytest.mark.parametrize("stages", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
def test_without_strength_it_is_fine_tuning_bit_for_bit(make, same, setting, stages):
    featkd = make(FeatKD(strength=0.0, stages=stages), stream(setting)).run()
    same(featkd.bits(), make(Finetune(), stream(setting)).run().bits())


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_loss_is_the_mean_squared_distance_of_the_features(make, setting):
    trial = make(FeatKD(strength=0.7), stream(setting)).run()
    moved_by(trial.strategy.network, 0.1)
    batch = some_batch(trial)
    h, old = (n.features(batch.x).detach().double().numpy() for n in (trial.strategy.network, trial.strategy.teacher_))
    expected = 0.7 * np.mean((h - old) ** 2)
    assert expected > 1e-3
    assert extra(trial, batch).item() == pytest.approx(expected, rel=1e-5)


BACKBONES = [{}, {"backbone": "mlp"}, {"backbone": ViTTiny(patch=4, dim=12, depth=2)}]


@pytest.mark.parametrize("options", BACKBONES, ids=["maps", "units", "tokens"])
def test_stages_count_as_much_as_the_features(make, options):
    trial = make(FeatKD(stages=True), **options, epochs=1).run()
    moved_by(trial.strategy.network, 0.05)
    batch = some_batch(trial)
    new, old = (n(batch.x, stages=True) for n in (trial.strategy.network, trial.strategy.teacher_))
    pairs = [(new.features, old.features), *zip(new.stages, old.stages, strict=True)]
    each = [np.mean((a.detach().double().numpy() - b.double().numpy()) ** 2) for a, b in pairs]
    assert len(each) > 1
    assert min(each) > 0
    assert extra(trial, batch).item() == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.parametrize("stages", [False, True])
def test_it_vanishes_right_after_the_copy_and_the_gradient_equals_finite_differences(make, stages):
    trial = make(FeatKD(stages=stages)).run()
    network, batch = trial.strategy.network.eval().double(), some_batch(trial)
    trial.strategy.teacher_.double()
    batch.x = batch.x.double()
    assert extra(trial, batch).item() == 0.0
    moved_by(network, 0.05)
    network.zero_grad()
    assert_gradients(lambda: extra(trial, batch), list(network.branches.parameters()))
    assert network.classifier.weight.grad is None


def moved_by(network: torch.nn.Module, amount: float) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter += amount * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))


def test_it_holds_the_features_and_leaves_the_teacher_alone(make, same):
    def drift(strength: float) -> float:
        trial, copies, found = make(FeatKD(strength=strength)), [], []

        def compare(experience):
            if copies:
                same(copies[-1], copied(trial.strategy.teacher_))
                x = some_batch(trial).x
                new, old = (n.eval().features(x) for n in (trial.strategy.network, trial.strategy.teacher_))
                found.append(float((new - old).detach().square().mean()))
            copies.append(copied(trial.strategy.network))

        trial.before("after_experience", compare).run()
        return sum(found)

    assert drift(5.0) < 0.5 * drift(0.0)


def test_in_a_composition_one_forward_pass_serves_all_parts(make):
    trial, calls = make(LwF() + FeatKD(stages=True)), []

    def watched(network, _, output):
        if network.training:
            calls.append(len(output.stages))

    trial.strategy.network.register_forward_hook(watched)
    trial.run()
    assert calls == [1] * 18  # three experiences, two epochs, three steps
    assert [v["terms"].keys() for k, v in trial.recorder.events if k == "epoch"][-1] == {
        "classification", "distillation", "feature_distillation"}  # fmt: skip


def test_added_branches_are_free_and_the_old_features_held(make):
    trial = make(DER(memory_size=12, stage="align") + FeatKD(stages=True)).run()
    featkd = trial.strategy.parts[1]
    batch = some_batch(trial, 2)
    output = trial.strategy.forward(batch)
    longer = dataclasses.replace(output, features=torch.cat([output.features, torch.ones(len(batch.y), 3)], 1),
                                 branch_features=(*output.branch_features, torch.ones(len(batch.y), 3)))  # fmt: skip
    assert featkd.extra_losses(batch, longer)["feature_distillation"].item() == pytest.approx(0.0, abs=1e-9)


def test_stages_of_a_backbone_that_shows_none_are_refused(make):
    class Flat(torch.nn.Module):
        feature_dim = 64

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(64, 64)

        def forward(self, x):
            return self.layer(x.flatten(1))

    trial = make(FeatKD(stages=True), backbone=Flat)
    with pytest.raises(ConfigurationError, match="shows its stages"):
        trial.run()


@pytest.mark.parametrize("stop_after", [5, 8])
def test_it_resumes_with_its_teacher(resumes, stop_after):
    resumes(FeatKD(stages=True), stop_after)


def test_it_holds_a_regression_too(make):
    trial = make(FeatKD(stages=True), stream("domain", score="squared_error"), optimizer={"lr": 0.01}).run()
    terms = [v["terms"] for kind, v in trial.recorder.events if kind == "epoch"]
    assert terms[-1]["feature_distillation"] > 0
