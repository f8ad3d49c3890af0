"""Fresh: every experience begins with a new network."""

from __future__ import annotations

import pytest
import torch

from clframe.models.mlp import MLP
from clframe.strategies.finetune import Finetune
from clframe.strategies.fresh import Fresh
from clframe.testing.bench import first_difference
from clframe.testing.streams import synthetic_stream
from clframe.training.checkpoint import pack

NET = MLP(hidden=[6])
GROUPS = {"class": [[0, 1], [2, 3], [4, 5]], "task": [[0, 1], [2, 3], [4, 5]], "domain": [[0, 1]] * 3}


def values(trial) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trial.strategy.network.branches.parameters()])


def test_on_one_experience_it_is_fine_tuning_bit_for_bit(make, same):
    stream = synthetic_stream(experiences=[[0, 1, 2]])
    same(make(Fresh(), stream, backbone=NET).run().bits(), make(Finetune(), stream, backbone=NET).run().bits())


@pytest.mark.parametrize("setting", GROUPS)
def test_every_experience_starts_from_another_fresh_network(make, setting):
    trial = make(Fresh(), synthetic_stream(experiences=GROUPS[setting], setting=setting), backbone=NET)
    starts, ends = [], []
    trial.before("phases", lambda _: starts.append(values(trial)))
    trial.before("after_experience", lambda _: ends.append(values(trial)))
    trial.run()
    assert len(starts) == len(ends) == 3
    for i in (1, 2):
        assert starts[i].abs().max() <= 1 / 8  # as drawn: uniform in ±1/√64, where training has left it
        assert not torch.equal(starts[i], ends[i - 1])
        assert not torch.equal(starts[i], starts[0])


def test_what_was_learned_before_leaves_no_trace(make):
    """The last experience ends the same, whatever the first one showed."""

    def end(seed: int):
        stream = synthetic_stream(experiences=[[0, 1], [0, 1]], setting="domain")
        trial = make(Fresh(), stream, backbone=NET)
        if seed:
            trial.before("phases", lambda e: e.index == 0 and trial.strategy.network.branches[0].requires_grad_(False))
        return pack(trial.run().strategy.network)

    assert first_difference(end(0)["state"], end(1)["state"]) is None


def test_an_experience_without_samples_changes_nothing(make):
    stream = synthetic_stream(experiences=[[0, 1], [0, 1]], setting="domain", train_per_class=[6, 0])
    trial, kept = make(Fresh(), stream, backbone=NET), []
    trial.before("after_experience", lambda _: kept.append(values(trial)))
    trial.run()
    assert torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("stop_after", [3, 8])
def test_it_resumes(resumes, stop_after):
    resumes(Fresh(), stop_after, backbone=NET)
