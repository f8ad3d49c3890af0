"""The upper bounds: joint and cumulative training."""

from __future__ import annotations

import pytest
import torch

from clframe.errors import ConfigurationError
from clframe.strategies.cumulative import Cumulative
from clframe.strategies.finetune import Finetune
from clframe.strategies.joint import Joint
from clframe.testing.streams import synthetic_stream

ONE = {"experiences": [[0, 1, 2]]}


def seen(stream, last: int) -> list[int]:
    return sorted(i for e in stream.experiences[: last + 1] for i in e.train.tolist())


def test_joint_trains_once_on_everything_and_scores_only_then(make):
    trial = make(Joint(), epochs=3).watch().run()
    assert {b.experience.index for b in trial.batches} == {2}
    assert [sorted(trial.presented(2, epoch)) for epoch in range(3)] == [seen(trial.stream, 2)] * 3
    assert [i for _, i, _ in trial.recorder.kept] == [3]


@pytest.mark.parametrize("strategy", [Joint(every="experience"), Cumulative(), Cumulative(start="scratch")])
def test_every_experience_presents_all_data_so_far(make, strategy):
    trial = make(strategy).watch().run()
    assert [sorted(trial.presented(i)) for i in range(3)] == [seen(trial.stream, i) for i in range(3)]
    assert [i for _, i, _ in trial.recorder.kept] == [1, 2, 3]


@pytest.mark.parametrize("strategy", [Joint(), Joint(every="experience"), Cumulative(), Cumulative(start="scratch")])
def test_on_one_experience_an_upper_bound_is_fine_tuning_bit_for_bit(make, same, strategy):
    same(make(strategy, synthetic_stream(**ONE)).run().bits(), make(Finetune(), synthetic_stream(**ONE)).run().bits())


def test_cumulative_from_scratch_is_joint_after_every_experience(make, same):
    scratch, joint = make(Cumulative(start="scratch")).run(), make(Joint(every="experience")).run()
    same(scratch.bits(), joint.bits())


def test_the_last_joint_model_does_not_depend_on_earlier_training(make, same):
    every, once = make(Joint(every="experience")).run(), make(Joint()).run()
    same(every.bits()["network"], once.bits()["network"])
    same(every.bits()["predictions"]["test/3"], once.bits()["predictions"]["test/3"])


def test_joint_starts_every_experience_from_other_weights_and_warm_cumulative_from_the_last_ones(make):
    def starts_and_ends(strategy):
        found = {"start": [], "end": []}
        trial = make(strategy)
        weight = lambda: next(trial.strategy.network.branches.parameters()).detach().clone()  # noqa: E731
        trial.before("phases", lambda e: found["start"].append(weight()))
        trial.before("after_experience", lambda e: found["end"].append(weight()))
        trial.run()
        return found

    joint, warm = starts_and_ends(Joint(every="experience")), starts_and_ends(Cumulative())
    assert len({tuple(w.flatten().tolist()) for w in joint["start"]}) == 3
    assert all(torch.equal(a, b) for a, b in zip(warm["start"][1:], warm["end"][:-1], strict=True))
    assert torch.equal(joint["start"][0], warm["start"][0])


def test_joint_forgets_samples_for_good(make):
    stream = synthetic_stream(forget_per_experience=3)
    trial = make(Joint(every="experience"), stream).watch().run()
    first, second = (e.forget.tolist() for e in stream.experiences[1:])
    assert not set(first) & set(trial.presented(1))
    assert not set(first + second) & set(trial.presented(2))
    assert len(trial.presented(2)) == sum(len(e.train) for e in stream.experiences) - 6


@pytest.mark.parametrize("strategy", [Joint(), Cumulative()])
def test_bought_labels_stay_in_the_history(make, strategy):
    stream = synthetic_stream(pool_per_class=4, query_budget=3)
    trial = make(strategy, stream).watch().run()
    assert len(trial.presented(2)) == sum(len(e.train) for e in stream.experiences) + 9
    assert len(set(trial.presented(2))) == len(trial.presented(2))


@pytest.mark.parametrize("kind", [Joint, Cumulative])
def test_a_softmax_without_the_old_classes_is_refused(make, kind):
    with pytest.raises(ConfigurationError, match=f"strategy.loss_over: {kind.__name__} trains on older classes too"):
        make(kind(loss_over="experience"))
    make(kind(loss_over="experience"), synthetic_stream(setting="task"))


@pytest.mark.parametrize("stop_after", [1, 7, 12, 20])
def test_cumulative_resumes(resumes, stop_after):
    resumes(Cumulative(start="scratch"), stop_after)


@pytest.mark.parametrize("strategy", [Joint(every="experience"), Joint(), Cumulative(start="scratch")])
def test_a_fresh_multi_head_has_a_layer_for_every_task_so_far(make, strategy):
    stream = synthetic_stream(setting="task")
    trial = make(strategy, stream, head={"name": "multi"}).run()
    assert trial.strategy.network.classifier.task_classes == [list(e.classes) for e in stream.experiences]
