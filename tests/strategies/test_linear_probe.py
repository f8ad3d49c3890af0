"""Linear probing: the classifier trains, nothing else moves."""

from __future__ import annotations

import pytest

from clframe.errors import ConfigurationError
from clframe.strategies.finetune import Finetune
from clframe.strategies.linear_probe import LinearProbe
from clframe.testing.bench import first_difference
from clframe.testing.streams import synthetic_stream
from tests.strategies.laws import copied


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_the_network_stays_bit_identical(make, setting):
    groups = [[0, 1]] * 3 if setting == "domain" else [[0, 1], [2, 3], [4, 5]]
    trial = make(LinearProbe(), synthetic_stream(setting=setting, experiences=groups))
    before, head = copied(trial.strategy.network.branches), copied(trial.strategy.network.classifier)
    trial.run()
    assert any("running" in name for name in before)
    assert first_difference(before, dict(trial.strategy.network.branches.state_dict())) is None
    assert first_difference(head, dict(trial.strategy.network.classifier.state_dict())) is not None
    counted = {v["parameters"] for kind, v in trial.recorder.events if kind == "epoch"}
    assert counted == ({2 * 9} if setting == "domain" else {2 * 9, 4 * 9, 6 * 9})


def test_it_is_fine_tuning_of_a_frozen_network_bit_for_bit(make, same):
    def frozen(strategy, loss_over):
        trial = make(strategy.replace(loss_over=loss_over), augmentation="crop_flip")
        trial.strategy.network.branches.requires_grad_(False)
        inner = trial.strategy.network.branches[0].train
        trial.strategy.network.branches[0].train = lambda mode=True: inner(False)
        return trial.run().bits()

    for loss_over in ("experience", "seen"):
        tuned, probed = (
            frozen(Finetune(), loss_over),
            make(LinearProbe(loss_over=loss_over), augmentation="crop_flip").run().bits(),
        )
        for bits in (tuned, probed):
            del bits["network"]["requires_grad"]
        same(tuned, probed)


def test_it_needs_weights(make):
    with pytest.raises(ConfigurationError, match="needs a backbone with weights"):
        make(LinearProbe(), backbone="resnet8")


@pytest.mark.parametrize("stop_after", [1, 8, 13])
def test_it_resumes(resumes, stop_after):
    resumes(LinearProbe(), stop_after)
