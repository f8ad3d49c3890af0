"""WA: the share of distillation, one alignment before anything is copied, and weights cut at zero."""

from __future__ import annotations

import pytest
import torch

from clframe.errors import ConfigurationError
from clframe.models import LinearHead
from clframe.strategies._alignment import align_weights
from clframe.strategies.finetune import Finetune
from clframe.strategies.wa import WA
from clframe.testing import check_strategy
from clframe.testing.bench import first_difference
from clframe.testing.streams import synthetic_stream
from tests.strategies.laws import assert_gradients, ce, copied, kd, ready_to_train

PYCIL = {"clamp": False, "memory_size": 12}


@pytest.mark.parametrize("strategy", [WA(), WA(clamp=False)], ids=["paper", "pycil"])
def test_it_keeps_the_contract(strategy):
    check_strategy(strategy)


def reference(trial, batch, share: float, known: int) -> dict[str, float]:
    with torch.no_grad():
        z = trial.strategy.network(batch.x).logits.numpy()
        old = trial.strategy.teacher_(batch.x).logits.numpy()
    assert old.shape[1] == known
    return {
        "classification": (1 - share) * ce(z, batch.y.numpy()),
        "distillation": share * kd(z[:, :known], old, 2.0),
    }


@pytest.mark.parametrize(("index", "share"), [(1, 2 / 4), (2, 4 / 6)])
def test_the_loss_and_its_gradient(make, index, share):
    trial = make(WA(memory_size=12))
    batch = ready_to_train(trial, index)
    terms = trial.strategy.loss_terms(batch)
    expected = reference(trial, batch, share, 2 * index)
    assert {n: v.item() for n, v in terms.items()} == pytest.approx(expected, rel=1e-5)
    parameters = list(trial.strategy.network.parameters())
    assert_gradients(lambda: sum(trial.strategy.loss_terms(batch).values()), parameters)


@pytest.mark.parametrize(("group", "share"), [([1, 3], 2 / 4), ([0], 2 / 3), ([0, 1, 2], 0.0)])
def test_classes_that_come_back_do_not_count_as_old(make, group, share):
    trial = make(WA(memory_size=12), synthetic_stream(experiences=[[0, 1, 2], group], train_per_class=9))
    batch = ready_to_train(trial)
    terms = {n: v.item() for n, v in trial.strategy.loss_terms(batch).items()}
    assert terms == pytest.approx(reference(trial, batch, share, 3), rel=1e-5, abs=1e-9)


def test_the_first_experience_is_plain_training(make, same):
    stream = synthetic_stream(experiences=[[0, 1, 2]])
    for options in ({"head": {"bias": True}}, {"head": {"bias": False}}):
        wa = make(WA(clamp=False), stream, **options).run()
        same(wa.bits(), make(Finetune(), stream, **options).run().bits())


def test_the_head_has_no_bias_unless_one_is_asked_for(make):
    assert make(WA()).strategy.network.classifier.bias is None
    assert make(WA(), head={"init": "kaiming_uniform"}).strategy.network.classifier.bias is None
    assert make(WA(), head={"bias": True}).strategy.network.classifier.bias is not None
    assert make(Finetune()).strategy.network.classifier.bias is not None


@pytest.mark.parametrize("bias", [True, False])
def test_alignment_is_once_at_the_end_and_before_the_teacher_is_copied(make, bias):
    trial, before, after = make(WA(**PYCIL), epochs=3, head={"bias": bias}), [], []
    trial.before("after_experience", lambda e: before.append(copied(trial.strategy.network)))
    trial.before("choose_exemplars", lambda e: after.append(copied(trial.strategy.network)))
    trial.run()
    name = "heads.classifier.weight"
    assert first_difference(before[0], after[0]) is None  # the first experience has nothing to align
    for i in (1, 2):
        old, new = before[i], after[i]
        assert {n for n in old if not torch.equal(old[n], new[n])} == {name}  # the bias too stays
        k = 2 * i
        assert torch.equal(old[name][:k], new[name][:k])
        gamma = old[name][:k].norm(dim=1).mean() / old[name][k:].norm(dim=1).mean()
        assert abs(gamma.item() - 1) > 1e-3
        torch.testing.assert_close(new[name][k:], gamma * old[name][k:])
        norms = new[name].norm(dim=1)
        assert norms[:k].mean().item() == pytest.approx(norms[k:].mean().item(), rel=1e-5)
    assert first_difference(after[2], copied(trial.strategy.teacher_)) is None
    assert first_difference(after[2], copied(trial.strategy.network)) is None


def test_alignment_keeps_the_order_within_old_and_within_new():
    torch.manual_seed(0)
    head = LinearHead(5, bias=False)
    head.grow(7)
    x, old = torch.randn(50, 5), head.weight.detach().clone()
    align_weights(head, 3)
    for part in (slice(0, 4), slice(4, 7)):
        assert torch.equal((x @ old.T)[:, part].argmax(1), head(x)[:, part].argmax(1))


@pytest.mark.parametrize("num_new", [0, 4])
def test_alignment_without_old_or_new_rows_changes_nothing(num_new):
    head = LinearHead(5)
    head.grow(4)
    before = copied(head)
    align_weights(head, num_new)
    assert first_difference(before, copied(head)) is None


def test_alignment_of_rows_that_are_all_zero_leaves_them_so():
    head = LinearHead(5)
    head.grow(4)
    weight = head.weight.detach().clone()
    weight[2:] = 0
    head.write(weight)
    align_weights(head, 2)
    assert torch.equal(head.weight, weight)


def test_without_alignment_the_rows_stay_as_trained(make):
    trial, before = make(WA(align=False, **PYCIL)), []
    trial.before("after_experience", lambda e: before.append(copied(trial.strategy.network)))
    trial.run()
    assert first_difference(before[-1], copied(trial.strategy.network)) is None


@pytest.mark.parametrize("clamp", [True, False])
def test_weights_are_cut_at_zero_after_every_step(make, clamp):
    trial, smallest, others = make(WA(clamp=clamp, memory_size=12)), [], []
    inner = trial.strategy.after_step

    def watched(batch):
        before = copied(trial.strategy.network)
        inner(batch)
        weight = before["heads.classifier.weight"]
        found = trial.strategy.network.classifier.weight
        assert torch.equal(found, weight.clamp(min=0) if clamp else weight)
        smallest.append(found.min().item())
        others.append({n for n, v in copied(trial.strategy.network).items() if not torch.equal(v, before[n])})

    trial.strategy.after_step = watched
    trial.run()
    assert len(smallest) > 20
    assert all(v == 0 for v in smallest) if clamp else all(v < 0 for v in smallest)
    assert set().union(*others) == ({"heads.classifier.weight"} if clamp else set())


@pytest.mark.parametrize("stop_after", [5, 9, 14, 22])
def test_it_resumes_inside_every_experience(resumes, stop_after):
    resumes(WA(memory_size=12), stop_after)


@pytest.mark.parametrize(
    ("strategy", "options", "said"),
    [
        (WA(memory_size=5), {}, "at least one exemplar for each of 6 classes"),
        (WA(loss_over="experience"), {}, "trains on older classes too"),
        (WA(), {"head": {"name": "multi"}}, "one classifier over all classes, received multi"),
        (WA(), {"head": {"name": "cosine"}}, "a cosine head's scores don't depend on: set head.name to linear"),
        (WA(), {"head": {"name": "local_similarity"}}, "a cosine head's scores don't depend on"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(make, strategy, options, said):
    with pytest.raises(ConfigurationError, match=said):
        make(strategy, **options)


def test_it_beats_fine_tuning_on_digits(make, digits):
    options = {"epochs": 5, "batch_size": 32, "backbone": "mlp"}
    plain = make(Finetune(), digits(), **options).run().final_accuracy()
    assert make(WA(), digits(), **options).run().final_accuracy() > plain + 0.5
