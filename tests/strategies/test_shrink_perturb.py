"""Shrink and perturb."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from clframe.errors import ConfigurationError
from clframe.strategies.der import DER
from clframe.strategies.finetune import Finetune
from clframe.strategies.shrink_perturb import ShrinkPerturb
from clframe.testing.streams import synthetic_stream


def stream(setting: str = "class", **options):
    groups = [[0, 1]] * 3 if setting == "domain" else [[0, 1], [2, 3], [4, 5]]
    return synthetic_stream(setting=setting, experiences=groups, **options)


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_shrinking_by_nothing_is_fine_tuning_bit_for_bit(make, same, setting):
    moved = make(ShrinkPerturb(shrink=1.0, perturb=0.0), stream(setting)).run()
    same(moved.bits(), make(Finetune(), stream(setting)).run().bits())


def test_a_single_task_is_fine_tuning_bit_for_bit(make, same):
    one = synthetic_stream(experiences=[[0, 1]])
    same(make(ShrinkPerturb(), one).run().bits(), make(Finetune(), one).run().bits())


def around(trial) -> list[tuple[dict, dict]]:
    """Run; return the network's state before and after every `before_experience`."""
    pairs = []
    inner = trial.strategy.before_experience

    def both(experience):
        before = copied(trial)
        inner(experience)
        pairs.append((before, copied(trial)))

    trial.strategy.before_experience = both
    trial.run()
    return pairs


def copied(trial) -> dict[str, torch.Tensor]:
    return {n: v.clone() for n, v in trial.strategy.network.state_dict().items()}


def values(state: dict, network) -> dict[str, torch.Tensor]:
    return {n: v for n, v in state.items() if n in dict(network.named_parameters())}


def old_part(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    return new[tuple(slice(0, n) for n in old.shape)]


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_without_noise_every_old_value_is_multiplied_once_per_task(make, setting):
    trial = make(ShrinkPerturb(shrink=0.5, perturb=0.0), stream(setting))
    first, *later = around(trial)
    assert all(torch.equal(old_part(first[1][n], v), v) for n, v in first[0].items())
    for before, after in later:
        for name, old in values(before, trial.strategy.network).items():
            assert torch.equal(old_part(after[name], old), 0.5 * old), name


@pytest.mark.parametrize("setting", ["class", "task"])
def test_new_rows_keep_their_initial_values(make, setting):
    trials = [make(ShrinkPerturb(shrink=0.5, perturb=0.0), stream(setting)), make(Finetune(), stream(setting))]
    for trial in trials:
        trial.rows = []
        inner = trial.strategy.before_experience

        def both(experience, trial=trial, inner=inner):
            inner(experience)
            trial.rows.append(trial.strategy.network.classifier.weight.detach()[-2:].clone())

        trial.strategy.before_experience = both
        trial.run()
    bound = 1 / trials[0].strategy.network.feature_dim ** 0.5
    for rows in trials[0].rows:  # not shrunk: as wide as the initial distribution is
        assert 0.5 * bound < float(rows.abs().max()) <= bound
    assert torch.equal(trials[0].rows[0], trials[1].rows[0])


def test_the_old_weights_are_mixed_with_fresh_ones_of_the_right_size(make):
    """α θ + β θ_new: what is added is β times values of the initial distribution, other ones for every task."""
    trial = make(ShrinkPerturb(shrink=0.5, perturb=0.25))
    added = []
    for before, after in around(trial)[1:]:
        network = trial.strategy.network
        added.append({n: (old_part(after[n], v) - 0.5 * v) / 0.25 for n, v in values(before, network).items()})
    for noise in added:
        for name, value in noise.items():
            if name.endswith(("bn.weight", "norm.weight")):
                torch.testing.assert_close(value, torch.ones_like(value), atol=1e-5, rtol=0)
            elif name.endswith(("bn.bias", "norm.bias")):
                torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-5, rtol=0)
            elif name.endswith("weight"):
                bound = value[0].numel() ** -0.5
                assert 0.3 * bound < float(value.abs().max()) <= bound * (1 + 1e-4)
    assert not torch.allclose(added[0]["branches.0.conv.weight"], added[1]["branches.0.conv.weight"])


def test_with_the_fresh_network_alone_every_task_starts_afresh(make):
    trial = make(ShrinkPerturb(shrink=0.0, perturb=1.0))
    drawn = []
    inner = trial.trainer.context.fresh_network

    def watched():
        network = inner()
        drawn.append({n: v.clone() for n, v in network.branches.state_dict().items()})
        return network

    trial.trainer.context.fresh_network = watched
    pairs = around(trial)
    assert len(drawn) == 2
    for (_, after), fresh in zip(pairs[1:], drawn, strict=True):
        assert all(torch.equal(after[f"branches.{n}"], v) for n, v in fresh.items())


def test_batchnorm_starts_its_statistics_again(make):
    for before, after in around(make(ShrinkPerturb()))[1:]:
        assert before["branches.0.bn.running_mean"].any()
        assert not after["branches.0.bn.running_mean"].any()
        assert after["branches.0.bn.running_var"].eq(1).all()
        assert after["branches.0.bn.num_batches_tracked"] == 0


def test_frozen_parts_stay_bit_for_bit(make):
    trial = make(ShrinkPerturb())
    trial.strategy.network.freeze_branch(0)
    for before, after in around(trial)[1:]:
        assert all(torch.equal(after[n], v) for n, v in before.items() if n.startswith("branches"))
        assert not torch.equal(after["heads.classifier.weight"][:2], before["heads.classifier.weight"][:2])


def test_an_experience_without_samples_is_left_alone(make):
    trial = make(ShrinkPerturb())
    experience = trial.stream.experiences[1]
    trial.strategy.setup()
    trial.strategy.before_experience(trial.stream.experiences[0])
    before = copied(trial)
    trial.strategy.before_experience(dataclasses.replace(experience, train=experience.train[:0]))
    assert all(torch.equal(old_part(v, before[n]), before[n]) for n, v in copied(trial).items())


def test_a_network_that_grows_is_refused(make):
    with pytest.raises(ConfigurationError, match="adds branches"):
        make(ShrinkPerturb() + DER(memory_size=6))


@pytest.mark.parametrize("stop_after", [3, 8])
def test_it_resumes(resumes, stop_after):
    resumes(ShrinkPerturb(), stop_after)
