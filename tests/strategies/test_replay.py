"""Experience replay: what is trained on, what is kept, and the nearest mean of exemplars."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

from clframe.errors import ConfigurationError
from clframe.strategies._exemplars import exemplar_means
from clframe.strategies.cumulative import Cumulative
from clframe.strategies.finetune import Finetune
from clframe.strategies.lwf import LwF
from clframe.strategies.replay import Replay
from clframe.strategy import Phase
from clframe.testing.streams import synthetic_stream

POLICIES = ["herding", "random", "reservoir", "ring", "class_balanced", "greedy_balanced"]


def held(trial) -> dict[int, list[int]]:
    """What the memory holds when an experience begins."""
    found: dict[int, list[int]] = {}
    trial.before("phases", lambda e: found.update({e.index: trial.strategy.memory_.ids.tolist()}))
    return found


@pytest.mark.parametrize("policy", POLICIES)
def test_the_union_form_trains_on_new_data_and_memory(make, policy):
    trial = make(Replay(memory_size=12, policy=policy), epochs=2).watch()
    memory = held(trial)
    trial.run()
    for experience in trial.stream.experiences:
        i = experience.index
        expected = sorted(experience.train.tolist() + memory[i])
        assert sorted(trial.presented(i, 0)) == sorted(trial.presented(i, 1)) == expected
        past = {s for e in trial.stream.experiences[:i] for s in e.train.tolist()}
        assert set(memory[i]) <= past
        assert len(memory[i]) == (12 if i else 0)
    assert all(b.memory_rows is None for b in trial.batches)


@pytest.mark.parametrize("form", ["union", "step"])
@pytest.mark.parametrize("policy", ["auto", *POLICIES])
def test_without_memory_it_is_fine_tuning_bit_for_bit(make, same, form, policy):
    replay = make(Replay(memory_size=0, form=form, policy=policy)).run()
    same(replay.bits(), make(Finetune()).run().bits())
    assert {head for _, _, head in replay.recorder.kept} == {"classifier"}


@pytest.mark.parametrize("form", ["union", "step"])
def test_the_first_experience_is_fine_tuning_bit_for_bit(make, same, form):
    stream = synthetic_stream(experiences=[[0, 1]])
    policy = "auto" if form == "union" else "herding"  # a memory filled on the way replays within the experience
    replay = make(Replay(memory_size=8, form=form, policy=policy), stream).run()
    same(replay.bits()["network"], make(Finetune(), stream).run().bits()["network"])


def test_a_memory_for_everything_shows_what_cumulative_training_shows(make):
    replay = make(Replay(memory_size=1000)).watch().run()
    cumulative = make(Cumulative()).watch().run()
    for i in range(3):
        assert sorted(replay.presented(i)) == sorted(cumulative.presented(i))


def test_the_step_form_draws_beside_every_batch(make):
    trial = make(Replay(memory_size=10, form="step", memory_batch=3)).watch().run()
    for batch in trial.batches:
        replayed = batch.ids[batch.num_new :]
        assert batch.num_new <= 4
        if batch.experience.index > 0:
            assert len(replayed) == 3
            assert torch.equal(batch.y[batch.num_new :], trial.stream.train.targets[replayed])
    whole = make(Replay(memory_size=10, form="step")).watch().run()
    assert {len(b.ids) - b.num_new for b in whole.batches if b.experience.index > 0} == {4}  # the run's batch size


@pytest.mark.parametrize("setting", ["class", "task"])
def test_the_loss_of_the_step_form_is_the_sum_of_two_means(make, setting):
    trial = make(Replay(memory_size=10, form="step", memory_batch=3), synthetic_stream(setting=setting)).watch().run()
    batch = next(b for b in reversed(trial.batches) if b.num_new == 4 and len(b.ids) == 7)
    output = trial.strategy.network(batch.x, batch.task_ids)
    logits, y = output.logits.detach().double().numpy(), batch.y.numpy()

    def loss(row: int) -> float:
        own = [2 * (y[row] // 2), 2 * (y[row] // 2) + 1] if setting == "task" else list(range(6))
        return float(np.log(np.exp(logits[row, own]).sum()) - logits[row, y[row]])

    expected = np.mean([loss(r) for r in range(4)]) + np.mean([loss(r) for r in range(4, 7)])
    assert trial.strategy.main_loss(batch, output).item() == pytest.approx(expected, rel=1e-5)


def offers(trial) -> list[int]:
    found: list[int] = []

    def start(experience) -> None:
        if experience.index == 0:
            observe = trial.strategy.memory_.observe
            trial.strategy.memory_.observe = lambda ids, *a, **k: (found.extend(ids.tolist()), observe(ids, *a, **k))

    trial.before("before_experience", start)
    return found


@pytest.mark.parametrize("form", ["union", "step"])
@pytest.mark.parametrize("policy", ["reservoir", "ring", "class_balanced", "greedy_balanced"])
def test_every_sample_is_offered_once(make, form, policy):
    trial = make(Replay(memory_size=12, form=form, policy=policy), epochs=3)
    found = offers(trial)
    trial.run()
    assert sorted(found) == sorted(i for e in trial.stream.experiences for i in e.train.tolist())
    assert trial.strategy.memory_.num_observed == len(found)


class TwoPhases(Replay):
    """Trains the same data in two phases."""

    def phases(self, experience) -> list[Phase]:
        return [dataclasses.replace(self.main_phase(experience), name=name) for name in ("first", "second")]


def test_a_sample_is_offered_once_however_many_phases_show_it(make):
    trial = make(TwoPhases(memory_size=12, form="step", policy="reservoir")).watch().run()
    assert {b.phase for b in trial.batches} == {"first", "second"}
    assert trial.strategy.memory_.num_observed == sum(len(e.train) for e in trial.stream.experiences)


class WithUnlabelled(Replay):
    """Presents samples whose label is withheld too."""

    tags = dataclasses.replace(Replay.tags, uses_unlabelled=True)

    def training_data(self, experience):
        return dataclasses.replace(super().training_data(experience), unlabelled=experience.unlabelled)


@pytest.mark.parametrize("form", ["union", "step"])
def test_a_withheld_label_never_reaches_the_memory(make, form):
    stream = synthetic_stream(unlabelled_per_class=6)
    trial = make(WithUnlabelled(memory_size=1000, form=form, policy="reservoir"), stream).watch().run()
    assert any((b.y == -1).any() for b in trial.batches)
    assert sorted(trial.strategy.memory_.ids.tolist()) == sorted(
        i for e in stream.experiences for i in e.train.tolist()
    )


# ---- report heads


@pytest.mark.parametrize("policy", ["herding", "reservoir"])
def test_nearest_mean_of_exemplars_equals_scikit_learns(make, digits, policy):
    stream = digits()
    trial = make(Replay(memory_size=60, policy=policy), stream, epochs=1, batch_size=32, backbone="mlp").run()
    context, memory = trial.trainer.context, trial.strategy.memory_

    def normalised(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    exemplars = normalised(context.features(memory.ids).double().numpy())
    labels = np.unique(memory.targets.numpy())
    means = normalised(np.stack([exemplars[memory.targets.numpy() == c].mean(axis=0) for c in labels]))
    with warnings.catch_warnings():  # of classes without spread
        warnings.simplefilter("ignore")
        reference = NearestCentroid().fit(means.repeat(2, axis=0), labels.repeat(2))
    columns = trial.recorder.kept["test", 5, "nme"]
    images = stream.test.gather(torch.from_numpy(columns["sample"]))
    with torch.no_grad():
        features = trial.strategy.network.eval().features(context.test_maker.test_input(images)).double().numpy()
    assert (reference.predict(normalised(features)) == columns["predicted"]).mean() > 0.999
    assert (columns["predicted"] == columns["target"]).mean() > 0.5


def test_a_class_without_exemplars_is_never_the_nearest(make):
    trial = make(Replay(memory_size=12)).run()
    strategy = trial.strategy
    strategy.memory_.remove(strategy.memory_.ids[strategy.memory_.targets == 3])
    strategy.means_ = exemplar_means(strategy.memory_, strategy.run)
    x = trial.trainer.context.test_maker.test_input(trial.stream.test.gather(torch.arange(18)))
    scores = strategy.predict(x)["nme"]
    assert (scores[:, 3] == -torch.inf).all()
    assert scores[:, [0, 1, 2, 4, 5]].isfinite().all()


def test_nearest_means_can_be_left_out(make):
    assert {head for _, _, head in make(Replay(nme=False)).run().recorder.kept} == {"classifier"}


# ---- refusals and resuming


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (Replay(memory_size=5), "at least one exemplar for each of 6 classes, received memory_size=5"),
        (Replay(budget="per_class", form="step"), "total budget for the memory policy 'reservoir'"),
        (Replay(loss_over="experience"), "trains on older classes too, so expected auto or seen"),
        (LwF() + Replay(), "trains on older classes too, so expected auto or seen"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(make, strategy, said):
    with pytest.raises(ConfigurationError, match=said):
        make(strategy)


def test_unlearnt_samples_leave_the_memory(make):
    stream = synthetic_stream(forget_per_experience=6)
    trial = make(Replay(memory_size=1000), stream).run()
    gone = [i for e in stream.experiences for i in e.forget.tolist()]
    assert len(gone) == 12
    assert not set(gone) & set(trial.strategy.memory_.ids.tolist())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("form", ["union", "step"])
def test_it_resumes_in_the_middle_of_an_epoch(resumes, form, policy):
    for stop_after in (2, 8, 17):
        resumes(Replay(memory_size=12, form=form, policy=policy), stop_after)
