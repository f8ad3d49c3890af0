"""ER-ACE: which classes either softmax runs over, and what that leaves alone."""

from __future__ import annotations

import numpy as np
import pytest

from clframe.errors import ConfigurationError
from clframe.strategies.er_ace import ERACE
from clframe.strategies.finetune import Finetune
from clframe.strategies.replay import Replay
from clframe.testing import check_strategy
from clframe.testing.streams import synthetic_stream
from tests.strategies.laws import assert_gradients


def stream(setting: str = "class", **options):
    groups = {"experiences": [[0, 1], [0, 1], [0, 1]]} if setting == "domain" else {}
    return synthetic_stream(setting=setting, **groups, **options)


def some_batch(trial):
    """The last batch with four new samples, one class of the experience left out, and three replayed ones."""
    batch = next(b for b in reversed(trial.batches) if b.num_new == 4 and len(b.ids) == 7)
    batch.y = batch.y.clone()
    batch.y[:4] = 5
    batch.x = batch.x.double()
    trial.strategy.network.double().eval()
    return batch


@pytest.mark.parametrize("incoming", ["batch", "experience"])
@pytest.mark.parametrize(("setting", "head"), [("class", "linear"), ("task", "linear"), ("task", "multi")])
def test_the_loss_equals_numpy_and_its_gradient_finite_differences(make, setting, head, incoming):
    strategy = ERACE(memory_size=10, memory_batch=3, incoming=incoming)
    trial = make(strategy, stream(setting), head={"name": head}).watch().run()
    batch = some_batch(trial)
    strategy, network = trial.strategy, trial.strategy.network
    logits, y = network(batch.x, batch.task_ids).logits.detach().numpy(), batch.y.numpy()
    current = [5] if incoming == "batch" else [4, 5]

    def loss(row: int) -> float:
        own = list(range(6)) if setting == "class" else [2 * (y[row] // 2), 2 * (y[row] // 2) + 1]
        classes = current if row < 4 else own
        return float(np.log(np.exp(logits[row, classes]).sum()) - logits[row, y[row]])

    terms = strategy.loss_terms(batch)
    expected = {"classification": np.mean([loss(r) for r in range(4)]), "replay": np.mean([loss(r) for r in (4, 5, 6)])}
    assert {n: v.item() for n, v in terms.items()} == pytest.approx(expected, rel=1e-5, abs=1e-12)
    assert_gradients(lambda: sum(strategy.loss_terms(batch).values()), list(network.parameters()))


def test_new_samples_push_no_absent_class(make):
    trial = make(ERACE(memory_size=10, memory_batch=3)).watch().run()
    batch = some_batch(trial)
    batch.y[0] = 4
    strategy, network = trial.strategy, trial.strategy.network
    network.zero_grad()
    strategy.main_loss(batch, network(batch.x)).backward()
    gradient = network.classifier.weight.grad
    assert (gradient[:4] == 0).all()
    assert (gradient[4:].abs().sum(dim=1) > 0).all()
    network.zero_grad()
    strategy.extra_losses(batch, network(batch.x))["replay"].backward()
    assert (network.classifier.weight.grad.abs().sum(dim=1) > 0).all()


def test_without_memory_over_the_experience_it_is_local_fine_tuning_bit_for_bit(make, same):
    ace = make(ERACE(memory_size=0, incoming="experience")).run()
    same(ace.bits(), make(Finetune(loss_over="experience")).run().bits())
    batchwise = make(ERACE(memory_size=0)).run()
    with pytest.raises(AssertionError):
        same(ace.bits(), batchwise.bits())


def test_where_classes_are_shared_it_is_replay_bit_for_bit(make, same):
    ace = make(ERACE(memory_size=10, incoming="experience"), stream("domain")).run()
    replay = make(Replay(form="step", nme=False, memory_size=10), stream("domain")).run()
    same(ace.bits(), replay.bits())


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
@pytest.mark.parametrize("shape", [{"online": True}, {"boundaries": False}])
def test_it_learns_from_a_single_pass_and_without_boundaries(make, setting, shape):
    trial = make(ERACE(memory_size=12), stream(setting, **shape), epochs=1).run()
    assert len(trial.strategy.memory_) == 12


def test_it_keeps_the_contract():
    check_strategy(ERACE())


def test_it_resumes_in_the_middle_of_an_epoch(resumes):
    for stop_after in (2, 8, 17):
        resumes(ERACE(memory_size=12), stop_after)


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (ERACE(loss_over="experience"), "trains on older classes too, so expected auto or seen"),
        (ERACE() + Replay(form="step"), "each bring their own"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(make, strategy, said):
    with pytest.raises(ConfigurationError, match=said):
        make(strategy)


def test_it_beats_fine_tuning_on_digits_seen_once(make, digits):
    options = {"epochs": 1, "batch_size": 10, "backbone": "mlp", "optimizer": {"lr": 0.02}}
    plain = make(Finetune(), digits(), **options).run().final_accuracy()
    assert make(ERACE(memory_size=100), digits(), **options).run().final_accuracy() > plain + 0.4
