"""One sigmoid per class: which classes count, and what composes with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clframe.errors import ConfigurationError
from clframe.strategies.bce import BCE
from clframe.strategies.ewc import EWC
from clframe.strategies.l2_anchor import L2Anchor
from clframe.strategies.predkd import PredKD
from clframe.strategies.replay import Replay
from clframe.testing.streams import synthetic_stream

SETTINGS = ["class", "task", "domain"]


def stream(setting: str = "class", **options):
    groups = [[0, 1]] * 3 if setting == "domain" else [[0, 1], [2, 3], [4, 5]]
    return synthetic_stream(setting=setting, experiences=groups, **options)


def some_batch(trial, experience: int):
    ids = trial.stream.experiences[experience].train
    return next(iter(trial.trainer.context.batches(ids, batch_size=8)))


def by_hand(z: np.ndarray, y: np.ndarray, classes: list[int]) -> float:
    p = 1 / (1 + np.exp(-z))
    own = np.arange(z.shape[1])[None] == y[:, None]
    each = -np.log(np.where(own, p, 1 - p))
    return float(each[:, classes].sum(1).mean())


ALL = [0, 1, 2, 3, 4, 5]
CASES = [
    ("class", "linear", "experience", [2, 3]),
    ("class", "linear", "seen", ALL),
    ("class", "linear", "auto", ALL),
    ("task", "linear", "experience", [2, 3]),
    ("task", "multi", "auto", [2, 3]),
    ("task", "multi", "seen", [2, 3]),
    ("domain", "linear", "experience", [0, 1]),
]


@pytest.mark.parametrize(("setting", "head", "loss_over", "classes"), CASES)
def test_the_loss_sums_the_classes_that_count(make, setting, head, loss_over, classes):
    trial = make(BCE(loss_over=loss_over), stream(setting), head={"name": head}).run()
    network = trial.strategy.network.eval()
    trial.trainer.context.experience = trial.stream.experiences[1]
    batch = some_batch(trial, 1)
    terms = trial.strategy.loss_terms(batch)
    z = network(batch.x).logits.detach().double().numpy()
    assert terms["classification"].item() == pytest.approx(by_hand(z, batch.y.numpy(), classes), rel=1e-5)
    network.zero_grad()
    terms["classification"].backward()
    moved = [c for c in range(z.shape[1]) if head == "linear" and network.classifier.weight.grad[c].any()]
    assert head == "multi" or moved == classes


def test_old_rows_stay_where_they_are_without_a_teacher(make):
    """Only weight decay could move them: their sigmoids are in no loss."""
    trial, kept = make(BCE(), optimizer={"lr": 0.05, "weight_decay": 0.0}), {}
    trial.before("before_experience", lambda e: kept.update({e.index: rows(trial)}))
    trial.run()
    assert torch.equal(rows(trial)[:4], kept[2])
    assert torch.equal(kept[2][:2], kept[1])


def rows(trial) -> torch.Tensor:
    return trial.strategy.network.classifier.weight.detach().clone()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("others", [[PredKD()], [PredKD(), EWC(strength=1.0)], [PredKD(), L2Anchor()]])
def test_the_kit_composes(make, setting, others):
    strategy = BCE()
    for other in others:
        strategy = strategy + other
    trial = make(strategy, stream(setting)).run()
    terms = [set(v["terms"]) for kind, v in trial.recorder.events if kind == "epoch"]
    names = {"PredKD": "distillation", "EWC": "ewc", "L2Anchor": "l2_anchor"}
    assert terms[0] == {"classification"}
    assert terms[-1] == {"classification", *(names[type(o).__name__] for o in others)}
    assert {p.loss_over for p in trial.strategy.parts} == {"experience"}  # the first part's


def test_another_main_loss_beside_it_is_refused(make):
    with pytest.raises(ConfigurationError, match="each bring their own main_loss"):
        make(BCE() + Replay(memory_size=12))


@pytest.mark.parametrize("stop_after", [5, 8])
def test_it_resumes_in_the_kit(resumes, stop_after):
    resumes(BCE() + PredKD(), stop_after)
