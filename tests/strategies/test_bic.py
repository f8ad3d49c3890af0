"""BiC: what is held out, the layers that logits pass, and a second stage that moves two numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clframe.errors import ConfigurationError
from clframe.strategies.bic import BiC
from clframe.strategies.finetune import Finetune
from clframe.testing import check_strategy
from clframe.testing.bench import first_difference
from clframe.testing.streams import synthetic_stream
from tests.strategies.laws import assert_gradients, at_begin_of, ce, copied, kd, ready_to_train

SHORT = {"memory_size": 12, "bias_epochs": 3}


@pytest.mark.parametrize("strategy", [BiC(), BiC(budget="per_class", memory_size=3)], ids=["total", "per_class"])
def test_it_keeps_the_contract(strategy):
    check_strategy(strategy)


# ---- stage 1


@pytest.mark.parametrize(("index", "share"), [(1, 2 / 4), (2, 4 / 6)])
def test_the_first_stages_loss_and_its_gradient(make, index, share):
    trial = make(BiC(**SHORT))
    batch = ready_to_train(trial, index)
    strategy, known = trial.strategy, 2 * index
    strategy.scale_ = torch.tensor([1.0, 1.0, 0.6, 0.6, 1.0, 1.0])[: known + 2].double()
    strategy.shift_ = torch.tensor([0.0, 0.0, -0.4, -0.4, 0.0, 0.0])[: known + 2].double()
    a, b = strategy.scale_.numpy(), strategy.shift_.numpy()
    if index == 1:  # no layer has been learnt yet
        a, b = a * 0 + 1, b * 0
        strategy.scale_, strategy.shift_ = torch.ones(4).double(), torch.zeros(4).double()
    with torch.no_grad():
        q = strategy.network(batch.x).logits.numpy() * a + b
        q_old = strategy.teacher_(batch.x).logits.numpy() * a[:known] + b[:known]
    expected = {
        "classification": (1 - share) * ce(q, batch.y.numpy()),
        "distillation": share * kd(q[:, :known], q_old, 2.0),
    }
    assert {n: v.item() for n, v in strategy.loss_terms(batch).items()} == pytest.approx(expected, rel=1e-5)
    parameters = list(strategy.network.parameters())
    assert_gradients(lambda: sum(strategy.loss_terms(batch).values()), parameters)


def test_the_first_experience_is_plain_training_on_what_is_not_held_out(make):
    trial = make(BiC(**SHORT), synthetic_stream(experiences=[[0, 1, 2]])).watch().run()
    held = trial.strategy.held_out_.tolist()
    assert len(held) == 3
    assert sorted(trial.presented(0)) == sorted(set(range(18)) - set(held))
    assert [v["phase"] for kind, v in trial.recorder.events if kind == "epoch"] == ["train"] * 2
    assert torch.equal(trial.strategy.scale_, torch.ones(3))
    assert not trial.strategy.shift_.any()


# ---- stage 2


@pytest.fixture
def third(make):
    """A run in front of the bias stage of its third experience, with its network in float64."""
    trial = make(BiC(**SHORT))

    def stop(experience) -> None:
        if experience.index == 2:
            raise KeyboardInterrupt

    at_begin_of(trial, "bias", stop)
    with pytest.raises(KeyboardInterrupt):
        trial.run()
    strategy, experience = trial.strategy, trial.stream.experiences[2]
    trial.trainer.context.experience = experience
    view = strategy.extra_phases(experience)[0].begun().data
    strategy.network.double()
    batch = next(iter(trial.trainer.context.batches(torch.arange(len(view)))))
    batch.x, batch.y, batch.ids = view.x.double(), view.y, torch.empty(0)
    return trial, batch


def test_the_second_stages_loss_is_one_softmax_and_its_gradient(third):
    trial, batch = third
    strategy = trial.strategy
    strategy.layer_ = torch.nn.Parameter(torch.tensor([0.8, -0.3], dtype=torch.float64))
    a, b = strategy.scale_.double().numpy(), strategy.shift_.double().numpy()
    assert a[2] == a[3] != 1  # the second experience's layer is passed
    assert b[2] == b[3] != 0
    assert (a[[0, 1, 4, 5]] == 1).all()
    with torch.no_grad():
        q = strategy.network.classifier(batch.x).numpy() * a + b
    q[:, 4:] = 0.8 * q[:, 4:] - 0.3
    loss = strategy.bias_loss(batch)["classification"]
    assert loss.item() == pytest.approx(ce(q, batch.y.numpy()), rel=1e-6)
    loss.backward()
    for k in range(2):
        values = []
        for shift in (1e-5, -1e-5):
            moved = torch.tensor([0.8, -0.3], dtype=torch.float64)
            moved[k] += shift
            strategy.layer_, kept = torch.nn.Parameter(moved), strategy.layer_
            values.append(strategy.bias_loss(batch)["classification"].item())
            strategy.layer_ = kept
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(strategy.layer_.grad[k].item(), rel=1e-5)


def test_the_second_stage_moves_the_newest_layer_alone(make):
    trial, begins, ends, modes = make(BiC(**SHORT)), [], [], []
    strategy = trial.strategy

    def everything():
        return copied(strategy.network), copied(strategy.teacher_), strategy.scale_.clone(), strategy.shift_.clone()

    at_begin_of(trial, "bias", lambda e: begins.append((*everything(), strategy.layer_.detach().clone())))
    trial.before("after_experience", lambda e: ends.append((*everything(), strategy.layer_)) if e.index else None)
    inner = strategy.bias_loss
    strategy.bias_loss = lambda batch: (
        modes.append(any(m.training for m in strategy.network.modules())),
        inner(batch),
    )[1]
    trial.run()
    assert len(modes) == 6
    assert not any(modes)
    for i, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        assert first_difference(begin[0], end[0]) is None  # parameters and BatchNorm's buffers
        assert first_difference(begin[1], end[1]) is None
        k = 2 * (i + 1)
        assert torch.equal(begin[2][:k], end[2][:k])
        assert torch.equal(begin[3][:k], end[3][:k])
        assert begin[4].tolist() == [1.0, 0.0]
        alpha, beta = end[4].tolist()
        assert end[2][k:].tolist() == [alpha] * 2
        assert end[3][k:].tolist() == [beta] * 2
        assert alpha != 1
        assert beta != 0
    assert torch.equal(begins[1][2][:4], ends[0][2])  # the layer learnt before stays as it was


def test_the_second_stage_has_no_weight_decay_and_takes_the_whole_part_in_every_step(make):
    trial, sizes, decays = make(BiC(**SHORT), optimizer={"lr": 0.05, "weight_decay": 0.3}), [], []
    inner = trial.strategy.bias_loss
    trial.strategy.bias_loss = lambda batch: (sizes.append((len(batch.x), batch.num_steps)), inner(batch))[1]

    recipe = trial.trainer.context.recipe

    def watched(experience, changes):
        made = recipe(experience, changes)
        build = made.build

        def spy(groups):
            optimizer = build(groups)
            decays.append((made.name, [g["weight_decay"] for g in optimizer.param_groups]))
            return optimizer

        made.build = spy
        return made

    trial.trainer.context.recipe = watched
    trial.run()
    assert sizes == [(4, 1)] * 3 + [(6, 1)] * 3
    assert [d for d in decays if d[0] == "adam"] == [("adam", [0.0])] * 2


def test_the_second_stage_lowers_the_loss_on_its_part_and_new_classes_scores(make, digits):
    trial = make(BiC(memory_size=100), digits(), epochs=3, batch_size=32, backbone="mlp").run()
    losses = [
        (v["experience"], v["terms"]["classification"]) for kind, v in trial.recorder.events
        if kind == "epoch" and v["phase"] == "bias"
    ]  # fmt: skip
    for experience in (2, 3, 4, 5):
        own = [loss for i, loss in losses if i == experience]
        assert len(own) == 200
        assert own[-1] < own[0] - 1e-3
        assert abs(own[-1] - own[-20]) < 5e-3  # it has settled


def test_a_stage_without_new_classes_has_no_layer(make):
    trial = make(BiC(**SHORT), synthetic_stream(experiences=[[0, 1], [1, 2], [0, 1]])).run()
    epochs = [(v["experience"], v["phase"]) for kind, v in trial.recorder.events if kind == "epoch"]
    assert epochs == [(1, "train")] * 2 + [(2, "train")] * 2 + [(2, "bias")] * 3 + [(3, "train")] * 2
    assert trial.strategy.layer_ is None
    assert (trial.strategy.scale_ != 1).tolist() == [False, False, True]


# ---- what is held out


def test_what_is_held_out_is_never_trained_on_and_the_second_stage_is_balanced(make):
    stream = synthetic_stream(train_per_class=[20, 30, 24])
    trial, valid, memories = make(BiC(memory_size=60, bias_epochs=1), stream).watch(), {}, {}
    extra = trial.strategy.extra_phases

    def watched(experience):
        memories[experience.index] = trial.strategy.memory_.ids.tolist()
        made = extra(experience)
        if made:
            view = made[0].begun().data
            valid[experience.index] = view.y
        return made

    trial.strategy.extra_phases = watched
    held: list[int] = []
    trial.before("after_experience", lambda e: held.extend(trial.strategy.held_out_.tolist()))
    trial.run()
    trained = {i for k in range(3) for i in trial.presented(k)}
    assert not trained & set(held)
    assert len(set(held)) == len(held)
    # 60 / 2 = 30 → 3 of 20 would be 15 %: two; 60 / 2 = 30 → 3 of 30; 60 / 4 = 15 → 1 of 24
    assert torch.bincount(stream.train.targets[torch.tensor(held)]).tolist() == [2, 2, 3, 3, 1, 1]
    assert torch.bincount(valid[1]).tolist() == [2] * 4
    assert torch.bincount(valid[2]).tolist() == [1] * 6
    for i in (1, 2):
        own = set(stream.experiences[i].train.tolist()) - set(held)
        assert sorted(trial.presented(i)) == sorted([*own, *memories[i]])


def test_the_memory_is_split_and_stays_within_its_budget(make):
    trial, sizes = make(BiC(memory_size=60, bias_epochs=1), synthetic_stream(train_per_class=20)), []

    def note(experience) -> None:
        s = trial.strategy
        held = s.valid_memory_.ids
        sizes.append([torch.bincount(m.targets).tolist() for m in (s.memory_, s.valid_memory_)])
        assert not set(held.tolist()) & set(s.memory_.ids.tolist())
        assert len(s.memory_) + len(held) <= 60

    trial.before("before_experience", lambda e: note(e) if e.index else None)
    trial.run()
    note(None)
    # ⌊60 / K⌋ each, of which a tenth, and one at least, is for validation; two of 20 were held out
    assert sizes == [[[18] * 2, [2] * 2], [[14] * 4, [1] * 4], [[9] * 6, [1] * 6]]


def test_a_class_of_one_sample_trains_on_it(make):
    stream = synthetic_stream(experiences=[[0, 1], [2]], train_per_class=[6, 1])
    trial = make(BiC(**SHORT), stream).watch().run()
    assert set(stream.experiences[1].train.tolist()) <= set(trial.presented(1))
    assert len(trial.strategy.held_out_) == 0
    assert "bias" not in {v["phase"] for kind, v in trial.recorder.events if kind == "epoch"}


# ---- predicting and resuming


def test_predictions_are_the_corrected_logits(make):
    trial = make(BiC(**SHORT)).run()
    strategy = trial.strategy
    x = trial.trainer.context.test_maker.test_input(trial.stream.test.gather(torch.arange(6)))
    strategy.network.eval()
    with torch.no_grad():
        scores, z = strategy.predict(x), strategy.network(x).logits
    assert list(scores) == ["classifier", "nme"]
    a, b = strategy.scale_.numpy(), strategy.shift_.numpy()
    assert len(set(a.round(6).tolist())) == 3
    np.testing.assert_allclose(scores["classifier"].numpy(), z.numpy() * a + b, rtol=1e-6)


@pytest.mark.parametrize("stop_after", [4, 9, 12, 15, 17, 30])
def test_it_resumes_inside_every_stage(make, stop_after):
    from clframe.testing.bench import Stopped

    whole = make(BiC(**SHORT)).run()
    first = make(BiC(**SHORT))
    first.recorder.saves, first.trainer.stop_after = True, stop_after
    with pytest.raises(Stopped):
        first.run()
    second = make(BiC(**SHORT))
    second.trainer.load_state(first.recorder.latest())
    second.run()
    assert first_difference(whole.bits()["network"], second.bits()["network"]) is None
    assert torch.equal(whole.strategy.scale_, second.strategy.scale_)
    assert torch.equal(whole.strategy.shift_, second.strategy.shift_)


@pytest.mark.parametrize(
    ("strategy", "options", "said"),
    [
        (BiC(memory_size=5), {}, "at least one exemplar for each of 6 classes"),
        (BiC(memory_size=11), {}, "expected two exemplars or more for each of 6 classes"),
        (BiC(memory_size=1, budget="per_class"), {}, r"received 1 \(per_class\)"),
        (BiC(loss_over="experience"), {}, "trains on older classes too"),
        (BiC(), {"head": {"name": "multi"}}, "one classifier over all classes, received multi"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(make, strategy, options, said):
    with pytest.raises(ConfigurationError, match=said):
        make(strategy, **options)


def test_it_beats_fine_tuning_on_digits(make, digits):
    options = {"epochs": 5, "batch_size": 32, "backbone": "mlp"}
    plain = make(Finetune(), digits(), **options).run().final_accuracy()
    assert make(BiC(), digits(), **options).run().final_accuracy() > plain + 0.5
