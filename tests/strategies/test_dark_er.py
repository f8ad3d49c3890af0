"""Dark experience replay: its limits, its terms, and the logits that the memory holds."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from clframe.errors import ConfigurationError
from clframe.strategies.dark_er import DarkER
from clframe.strategies.finetune import Finetune
from clframe.strategies.lwf import LwF
from clframe.strategies.replay import Replay
from clframe.testing import check_strategy
from clframe.testing.streams import synthetic_stream
from tests.strategies.laws import assert_gradients, ce

SETTINGS = ["class", "task", "domain"]


def stream(setting: str = "class", **options):
    groups = {"experiences": [[0, 1], [0, 1], [0, 1]]} if setting == "domain" else {}
    return synthetic_stream(setting=setting, **groups, **options)


class WholeFinetune(Finetune):
    """Fine-tuning of a classifier that has all classes from the start."""

    def before_experience(self, experience):
        self.network.grow(self.run.num_classes)


class WholeReplay(Replay):
    """Replay with a classifier that has all classes from the start."""

    def before_experience(self, experience):
        self.network.grow(self.run.num_classes)
        super().before_experience(experience)


def bits(trial) -> tuple:
    """The network and what it predicted within each sample's task; the plain methods may predict a class to come."""
    found = trial.bits()
    return found["network"], [c["predicted_local"] for c in found["predictions"].values()]


# ---- limits


@pytest.mark.parametrize(("head_classes", "plain"), [("seen", Finetune), ("all", WholeFinetune)])
@pytest.mark.parametrize("setting", SETTINGS)
def test_without_weights_it_is_fine_tuning_bit_for_bit(make, same, setting, head_classes, plain):
    strategy = DarkER(alpha=0.0, beta=0.0, memory_size=8, head_classes=head_classes)
    dark = make(strategy, stream(setting), augmentation="crop_flip").run()
    same(bits(dark), bits(make(plain(), stream(setting), augmentation="crop_flip").run()))
    assert len(dark.strategy.memory_) == 8


def test_without_memory_it_is_fine_tuning_bit_for_bit(make, same):
    same(make(DarkER(memory_size=0, head_classes="seen")).run().bits(), make(Finetune()).run().bits())


@pytest.mark.parametrize(("head_classes", "plain"), [("seen", Replay), ("all", WholeReplay)])
@pytest.mark.parametrize("setting", SETTINGS)
def test_with_labels_alone_it_is_replay_in_its_step_form_bit_for_bit(make, same, setting, head_classes, plain):
    options = {"augmentation": "crop_flip"}
    strategy = DarkER(alpha=0.0, beta=1.0, memory_size=8, memory_batch=3, head_classes=head_classes)
    dark = make(strategy, stream(setting), **options).run()
    replay = make(plain(form="step", nme=False, memory_size=8, memory_batch=3), stream(setting), **options).run()
    same(bits(dark), bits(replay))
    assert dark.strategy.memory_.ids.tolist() == replay.strategy.memory_.ids.tolist()
    assert dark.strategy.memory_.bytes == replay.strategy.memory_.bytes


def test_the_logits_draw_shifts_no_other(make):
    def watched(alpha: float):
        trial = make(DarkER(alpha=alpha, beta=1.0, memory_size=8), augmentation="crop_flip").watch().run()
        return trial.strategy.memory_.ids.tolist(), [(b.ids.tolist(), b.x.sum().item()) for b in trial.batches]

    assert watched(0.0) == watched(0.5)


def test_the_classifier_has_all_classes_and_predicts_those_seen(make):
    trial, widths = make(DarkER(), evaluate_future=True), []
    trial.before("phases", lambda e: widths.append(trial.strategy.network.num_classes))

    def raise_the_last(experience) -> None:
        with torch.no_grad():
            trial.strategy.network.classifier.bias[5] += 100.0 if experience.index == 0 else 0.0

    trial.before("after_experience", raise_the_last)
    trial.run()
    assert widths == [6, 6, 6]
    for (_, after, _), columns in trial.recorder.kept.items():
        assert columns["predicted"].max() < 2 * after
        assert (columns["predicted"][columns["task"] >= after] == -1).all()  # no head would predict classes to come
    found = [v["head_norms"] for kind, v in trial.recorder.events if kind == "evaluation"]
    assert [len(n.get("classifier", [])) for n in found] == [0, 2, 4, 6]
    growing = make(DarkER(head_classes="seen")).run()
    assert growing.strategy.memory_.extras["logits"].isnan().any()
    assert not trial.strategy.memory_.extras["logits"].isnan().any()


def test_in_a_composition_the_classifier_stays_whole(make):
    trial = make(LwF(loss_over="seen") + DarkER(memory_size=8), evaluate_future=True).run()
    assert trial.strategy.network.num_classes == 6
    answered = {a: set(c["task"][c["predicted"] >= 0]) for (_, a, _), c in trial.recorder.kept.items()}
    assert answered == {1: {0}, 2: {0, 1}, 3: {0, 1, 2}}


@pytest.mark.parametrize("loss_over", ["auto", "seen"])
def test_classes_to_come_are_pushed_down_unless_the_softmax_leaves_them_out(make, loss_over):
    trial = make(DarkER(loss_over=loss_over, alpha=0.0, beta=0.0), stream(experiences=[[0, 1], [2, 3]])).watch()
    starts = []
    trial.before("phases", lambda e: starts.append(trial.strategy.network.classifier.bias.detach().clone()))
    trial.before("after_experience", lambda e: starts.append(trial.strategy.network.classifier.bias.detach().clone()))
    trial.trainer.setup.recipe = trial.trainer.setup.recipe.changed({"weight_decay": 0.0})
    trial.run()
    later = starts[1][2:] - starts[0][2:]
    assert (later < 0).all() if loss_over == "auto" else (later == 0).all()


# ---- terms


@pytest.fixture(params=["class", "seen", "multi"])
def fixed(request, make):
    """A run that has ended, its last whole batch, and a fixed draw for the logits; float64."""
    source, head = (stream("task"), "multi") if request.param == "multi" else (stream(), "linear")
    strategy = DarkER(memory_size=10, memory_batch=3, alpha=0.7, beta=0.4)
    if request.param == "seen":
        strategy = strategy.replace(head_classes="seen")
    trial = make(strategy, source, head={"name": head})
    trial.watch().run()
    strategy, context = trial.strategy, trial.trainer.context
    batch = next(b for b in reversed(trial.batches) if b.num_new == 4 and len(b.ids) == 7)
    batch.x = batch.x.double()
    strategy.network.double().eval()
    rows = torch.tensor([0, 4, 9])
    drawn = context.training_batch(strategy.memory_.ids[rows], "fixed")
    drawn.x = drawn.x.double()
    strategy.memory_.sample = lambda count, generator: rows
    context.training_batch = lambda ids, purpose: drawn if torch.equal(ids, strategy.memory_.ids[rows]) else None
    return trial, batch, drawn, rows


def test_the_terms_equal_numpy_and_their_gradient_finite_differences(fixed):
    trial, batch, drawn, rows = fixed
    strategy, network = trial.strategy, trial.strategy.network
    terms = strategy.loss_terms(batch)
    logits = network(batch.x, batch.task_ids).logits.detach().numpy()
    now = network(drawn.x, drawn.task_ids).logits.detach().numpy()
    stored, y = strategy.memory_.extras["logits"][rows].double().numpy(), batch.y.numpy()

    def label_loss(chosen: list[int]) -> float:
        own = [list(range(6)) if batch.task_ids is None else [2 * (y[r] // 2), 2 * (y[r] // 2) + 1] for r in chosen]
        return float(
            np.mean([ce(logits[r : r + 1, c], np.array([c.index(y[r])])) for r, c in zip(chosen, own, strict=True)])
        )

    matched = []
    for row in range(3):
        known = [c for c in range(6) if np.isfinite(stored[row, c]) and np.isfinite(now[row, c])]
        assert known
        matched.append(np.mean([(stored[row, c] - now[row, c]) ** 2 for c in known]))
    expected = {
        "classification": label_loss([0, 1, 2, 3]),
        "labels": 0.4 * label_loss([4, 5, 6]),
        "logits": 0.7 * np.mean(matched),
    }
    assert {n: v.item() for n, v in terms.items()} == pytest.approx(expected, rel=1e-5)
    assert_gradients(lambda: sum(strategy.loss_terms(batch).values()), list(network.parameters()))


def test_der_trains_on_new_samples_and_logits_alone(make):
    trial = make(DarkER(beta=0.0, memory_size=10)).watch().run()
    assert all(b.num_new == len(b.ids) for b in trial.batches)
    terms = [v["terms"] for kind, v in trial.recorder.events if kind == "epoch"]
    assert [set(t) for t in terms] == [{"classification", "logits"}] * 6
    assert all(t["logits"] > 0 for t in terms)


def test_the_two_draws_are_two(make):
    trial, dark = make(DarkER(memory_size=20, memory_batch=3)).watch(), []
    original = trial.trainer.context.training_batch
    trial.trainer.context.training_batch = lambda ids, purpose: (dark.append(ids.tolist()), original(ids, purpose))[1]
    trial.run()
    labels = [b.ids[b.num_new :].tolist() for b in trial.batches if len(b.ids) > b.num_new]
    assert len(dark) == len(labels) > 10
    assert sum(a != b for a, b in zip(dark, labels, strict=True)) > len(dark) / 2
    presented = sum(len(b.ids) for b in trial.batches) + sum(map(len, dark))
    assert trial.trainer.counters["presentations"] == presented


# ---- what is stored


def logits_by_epoch(trial) -> dict[int, list[torch.Tensor]]:
    """What the network said of every new sample in every step that trained on it."""
    found: dict[int, list[torch.Tensor]] = {}
    losses = trial.strategy.loss_terms

    def watched(batch):
        with torch.no_grad():
            logits = copy.deepcopy(trial.strategy.network)(batch.x, batch.task_ids).logits
        for row, sample in enumerate(batch.ids[: batch.num_new].tolist()):
            found.setdefault(sample, []).append(logits[row])
        return losses(batch)

    trial.strategy.loss_terms = watched
    return found


@pytest.mark.parametrize(
    ("which", "policy"), [("first", "reservoir"), ("last", "reservoir"), ("last", "ring"), ("any", "reservoir")]
)
def test_a_stored_sample_keeps_the_logits_of_a_step_that_trained_on_it(make, which, policy):
    strategy = DarkER(memory_size=1000, logits_of=which, policy=policy, head_classes="seen")
    trial = make(strategy, stream(train_per_class=24), epochs=4, batch_size=16)
    said = logits_by_epoch(trial)
    trial.run()
    memory, counts = trial.strategy.memory_, [0] * 4
    assert len(memory) == 144
    for sample, label, stored in zip(
        memory.ids.tolist(), memory.targets.tolist(), memory.extras["logits"], strict=True
    ):
        width = 2 * (label // 2) + 2  # classes seen when it was stored
        assert stored[width:].isnan().all()
        matches = [e for e, logits in enumerate(said[sample]) if torch.equal(logits, stored[:width])]
        assert len(matches) == 1
        counts[matches[0]] += 1
    if which == "any":  # as a reservoir that runs over every epoch leaves them: 36 each, standard deviation 5.2
        assert min(counts) > 20
        assert max(counts) < 52
    else:
        assert counts[0 if which == "first" else 3] == 144


def test_the_bytes_of_the_logits_count(make):
    trial = make(DarkER(memory_size=10, policy="reservoir")).run()
    assert trial.strategy.memory_.bytes == 10 * (8 * 8 + 8 + 6 * 4)


class WithUnlabelled(DarkER):
    """Presents samples whose label is withheld too."""

    tags = dataclasses.replace(DarkER.tags, uses_unlabelled=True)

    def training_data(self, experience):
        return dataclasses.replace(super().training_data(experience), unlabelled=experience.unlabelled)


def test_a_withheld_label_never_reaches_the_memory_and_logits_stay_with_their_samples(make):
    source = synthetic_stream(unlabelled_per_class=6)
    trial = make(WithUnlabelled(memory_size=1000, logits_of="last"), source)
    said = logits_by_epoch(trial)
    trial.run()
    memory = trial.strategy.memory_
    assert sorted(memory.ids.tolist()) == sorted(i for e in source.experiences for i in e.train.tolist())
    for sample, stored in zip(memory.ids.tolist(), memory.extras["logits"], strict=True):
        assert torch.equal(said[sample][-1], stored[: len(said[sample][-1])])


# ---- contract, refusals, resuming


@pytest.mark.parametrize("strategy", [DarkER(), DarkER(beta=0.0)], ids=["derpp", "der"])
def test_it_keeps_the_contract(strategy):
    check_strategy(strategy)


@pytest.mark.parametrize("options", [{}, {"beta": 0.0}, {"logits_of": "last", "policy": "class_balanced"}])
def test_it_resumes_in_the_middle_of_an_epoch(resumes, options):
    for stop_after in (2, 5, 8, 17):
        resumes(DarkER(memory_size=12, **options), stop_after, augmentation="crop_flip")


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("shape", [{"online": True}, {"boundaries": False}])
def test_it_learns_from_a_single_pass_and_without_boundaries(make, setting, shape):
    trial = make(DarkER(memory_size=12), stream(setting, **shape), epochs=1).run()
    assert trial.strategy.memory_.num_observed == 36
    assert len(trial.strategy.memory_) == 12


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (DarkER(loss_over="experience"), "trains on older classes too, so expected auto or seen"),
        (DarkER(policy="ring", memory_size=5), "at least one exemplar for each of 6 classes"),
        (DarkER(alpha=-1.0), "alpha"),
        (DarkER() + Replay(), "each bring their own"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(make, strategy, said):
    with pytest.raises(ConfigurationError, match=said):
        make(strategy)


def test_it_beats_fine_tuning_on_digits(make, digits):
    options = {"epochs": 4, "batch_size": 32, "backbone": "mlp", "optimizer": {"lr": 0.02}}
    plain = make(Finetune(), digits(), **options).run().final_accuracy()
    for strategy in (DarkER(memory_size=100, alpha=1.0), DarkER(memory_size=100, alpha=1.0, beta=0.0)):
        assert make(strategy, digits(), **options).run().final_accuracy() > plain + 0.5
