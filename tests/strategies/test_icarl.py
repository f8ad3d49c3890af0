"""iCaRL: both losses, what the old network teaches, and the nearest exemplar mean as the primary head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clframe.errors import ConfigurationError
from clframe.memory import herding_order
from clframe.strategies.finetune import Finetune
from clframe.strategies.icarl import ICaRL
from clframe.strategies.replay import Replay
from clframe.testing import check_strategy
from clframe.testing.bench import first_difference
from clframe.testing.streams import synthetic_stream
from tests.strategies.laws import assert_gradients, bce, ce, copied, kd, ready_to_train, sigmoid


@pytest.mark.parametrize("strategy", [ICaRL(), ICaRL(loss="kd")], ids=["bce", "kd"])
def test_it_keeps_the_contract(strategy):
    check_strategy(strategy)


def logits_of(trial, batch):
    with torch.no_grad():
        return trial.strategy.network(batch.x).logits.numpy(), trial.strategy.teacher_(batch.x).logits.numpy()


def test_the_papers_loss_and_its_gradient(make):
    trial = make(ICaRL(memory_size=12))
    batch = ready_to_train(trial)
    z, old = logits_of(trial, batch)
    terms = trial.strategy.loss_terms(batch)
    one_hot = np.eye(4)[batch.y.numpy()]
    assert z.shape == (12, 4)
    assert one_hot[:, :2].any()  # exemplars are there, and even their own class is taught softly
    assert {n: v.item() for n, v in terms.items()} == pytest.approx(
        {"classification": bce(z[:, 2:], one_hot[:, 2:]), "distillation": bce(z[:, :2], sigmoid(old))}, rel=1e-5
    )
    parameters = list(trial.strategy.network.parameters())
    assert_gradients(lambda: sum(trial.strategy.loss_terms(batch).values()), parameters)


def test_pycils_loss_and_its_gradient(make):
    trial = make(ICaRL(loss="kd", memory_size=12, distill_weight=0.7))
    batch = ready_to_train(trial)
    z, old = logits_of(trial, batch)
    terms = trial.strategy.loss_terms(batch)
    assert {n: v.item() for n, v in terms.items()} == pytest.approx(
        {"classification": ce(z, batch.y.numpy()), "distillation": 0.7 * kd(z[:, :2], old, 2.0)}, rel=1e-5
    )
    parameters = list(trial.strategy.network.parameters())
    assert_gradients(lambda: sum(trial.strategy.loss_terms(batch).values()), parameters)


def test_pycils_form_by_default_is_weight_one_at_temperature_two():
    assert (ICaRL().distill_weight, ICaRL().temperature) == (1.0, 2.0)


def test_a_class_that_comes_back_is_trained_and_not_taught(make):
    trial = make(ICaRL(memory_size=12), synthetic_stream(experiences=[[0, 1, 2], [1, 3]]))
    batch = ready_to_train(trial)
    z, old = logits_of(trial, batch)
    terms = trial.strategy.loss_terms(batch)
    one_hot = np.eye(4)[batch.y.numpy()]
    assert terms["classification"].item() == pytest.approx(bce(z[:, [1, 3]], one_hot[:, [1, 3]]), rel=1e-5)
    assert terms["distillation"].item() == pytest.approx(bce(z[:, [0, 2]], sigmoid(old[:, [0, 2]])), rel=1e-5)


def test_the_first_experience_of_the_softmax_form_is_plain_training(make, same):
    stream = synthetic_stream(experiences=[[0, 1, 2]])
    same(make(ICaRL(loss="kd"), stream).run().bits(), make(Finetune(), stream).run().bits())


def test_without_distillation_the_softmax_form_is_replay_bit_for_bit(make, same):
    icarl = make(ICaRL(loss="kd", distill_weight=0.0, memory_size=12)).run()
    replay = make(Replay(memory_size=12)).run()
    for head in ("classifier", "nme"):
        same(icarl.bits(head), replay.bits(head))


def test_it_trains_on_new_data_and_memory_and_keeps_its_teacher(make):
    trial, teachers, memory = make(ICaRL(memory_size=12)).watch(), [], {}
    trial.before("phases", lambda e: teachers.append(trial.strategy.teacher_ and copied(trial.strategy.teacher_)))
    trial.before("phases", lambda e: memory.update({e.index: trial.strategy.memory_.ids.tolist()}))
    ends = []
    trial.before("after_experience", lambda e: ends.append(
        (trial.strategy.teacher_ and copied(trial.strategy.teacher_), copied(trial.strategy.network))))  # fmt: skip
    trial.run()
    assert teachers[0] is None
    for i in (1, 2):
        assert first_difference(teachers[i], ends[i][0]) is None  # training leaves it alone
        assert first_difference(teachers[i], ends[i - 1][1]) is None  # and it is the network of the experience before
        expected = trial.stream.experiences[i].train.tolist() + memory[i]
        assert sorted(trial.presented(i)) == sorted(expected)
    assert not any(p.requires_grad for p in trial.strategy.teacher_.parameters())
    assert not any(m.training for m in trial.strategy.teacher_.modules())


def test_exemplars_are_herded_and_inference_is_by_their_means(make):
    trial = make(ICaRL(memory_size=18)).run()
    strategy, context = trial.strategy, trial.trainer.context
    for label in (4, 5):
        ids = trial.stream.experiences[2].train
        ids = ids[trial.stream.train.targets[ids] == label]
        wanted = ids[herding_order(context.features(ids), 3)]
        assert strategy.memory_.ids[strategy.memory_.targets == label].tolist() == wanted.tolist()
    x = context.test_maker.test_input(trial.stream.test.gather(torch.arange(9)))
    with torch.no_grad():
        scores = strategy.predict(x)
        own = torch.nn.functional.normalize(strategy.network(x).features, dim=1).numpy()
    assert list(scores) == ["nme", "classifier"]
    stored = torch.nn.functional.normalize(context.features(strategy.memory_.ids), dim=1).numpy()
    means = np.stack([stored[strategy.memory_.targets.numpy() == c].mean(0) for c in range(6)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(scores["nme"].numpy(), -((own[:, None] - means) ** 2).sum(2), atol=1e-5)


def test_the_primary_head_is_the_nearest_mean_unless_it_is_switched_off(make):
    kept = make(ICaRL(memory_size=12)).run().recorder.kept
    assert list(dict.fromkeys(h for _, _, h in kept)) == ["nme", "classifier"]
    kept = make(ICaRL(memory_size=12, nme=False)).run().recorder.kept
    assert {h for _, _, h in kept} == {"classifier"}


@pytest.mark.parametrize("stop_after", [5, 9, 14, 22])
def test_it_resumes_inside_every_experience(resumes, stop_after):
    resumes(ICaRL(memory_size=12), stop_after)


@pytest.mark.parametrize(
    ("strategy", "options", "said"),
    [
        (ICaRL(memory_size=5), {}, "at least one exemplar for each of 6 classes"),
        (ICaRL(loss_over="experience"), {}, "trains on older classes too"),
        (ICaRL(), {"head": {"name": "multi"}}, "one classifier over all classes, received multi"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(make, strategy, options, said):
    with pytest.raises(ConfigurationError, match=said):
        make(strategy, **options)


@pytest.mark.parametrize("strategy", [ICaRL(), ICaRL(loss="kd")], ids=["bce", "kd"])
def test_it_beats_fine_tuning_on_digits(make, digits, strategy):
    options = {"epochs": 5, "batch_size": 32, "backbone": "mlp"}
    plain = make(Finetune(), digits(), **options).run().final_accuracy()
    assert make(strategy, digits(), **options).run().final_accuracy("nme") > plain + 0.5
