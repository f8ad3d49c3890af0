"""GDumb: a balanced memory, a fresh network trained on nothing else, and its recipe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from clframe.data.augment import CutMix
from clframe.errors import ConfigurationError
from clframe.strategies.finetune import Finetune
from clframe.strategies.gdumb import GDumb
from clframe.testing import check_strategy
from clframe.testing.streams import synthetic_stream
from tests.strategies.laws import assert_gradients, log_softmax

SETTINGS = ["class", "task", "domain"]


def stream(setting: str = "class", **options):
    groups = {"experiences": [[0, 1], [0, 1], [0, 1]]} if setting == "domain" else {}
    return synthetic_stream(setting=setting, **groups, **options)


# ---- the sampler


@pytest.mark.parametrize(
    ("size", "counts"), [(12, [[6, 6], [3] * 4, [2] * 6]), (9, [[4, 5], [2, 2, 2, 3], [1, 1, 1, 2, 2, 2]])]
)
def test_the_memory_is_balanced_after_every_experience(make, size, counts):
    trial, held = make(GDumb(memory_size=size), epochs=2), []
    trial.before(
        "after_experience", lambda e: held.append(sorted(torch.bincount(trial.strategy.memory_.targets).tolist()))
    )
    trial.run()
    assert held == counts
    assert trial.strategy.memory_.num_observed == 36


# ---- the learner


def test_it_trains_on_the_memory_alone_every_sample_once_an_epoch(make):
    trial, memories = make(GDumb(memory_size=9), epochs=3).watch(), []
    trial.before("after_experience", lambda e: memories.append(sorted(trial.strategy.memory_.ids.tolist())))
    trial.run()
    for index, memory in enumerate(memories):
        for phase, epoch in (("warm_up", 0), ("fit", 0), ("fit", 1)):
            batches = [b for b in trial.batches if (b.experience.index, b.phase, b.epoch) == (index, phase, epoch)]
            assert sorted(i for b in batches for i in b.ids.tolist()) == memory
    assert len({tuple(b.ids.tolist()) for b in trial.batches}) > 3


@pytest.mark.parametrize("head", ["linear", "multi"])
def test_what_was_learnt_before_leaves_no_trace(make, same, head):
    source = stream("task" if head == "multi" else "class")
    whole = make(GDumb(memory_size=12), source, head={"name": head}, epochs=3).run()

    def spoil(experience) -> None:
        with torch.no_grad():
            for p in spoilt.strategy.network.parameters():
                p.normal_()

    spoilt = make(GDumb(memory_size=12), source, head={"name": head}, epochs=3)
    spoilt.before("phases", spoil)
    same(spoilt.run().bits(), whole.bits())


def test_the_order_of_arrival_tells_nothing_once_the_memory_is_the_same(make, same):
    runs, order = [], []
    for shuffled in (False, True):
        trial = make(GDumb(memory_size=1000), epochs=3, augmentation="crop_flip")
        if shuffled:  # every experience arrives in another order, and everything fits

            def begin(experience, trial=trial, inner=trial.strategy.begin):
                memory = trial.strategy.memory_
                inner(experience)
                flipped = torch.arange(len(memory)).flip(0)
                memory.ids, memory.targets = memory.ids[flipped], memory.targets[flipped]

            trial.strategy.begin = begin
        runs.append(trial.run())
        order.append(trial.strategy.memory_.ids.tolist())
    assert order[0] != order[1]
    assert sorted(order[0]) == sorted(order[1]) == list(range(36))
    same(runs[0].bits(), runs[1].bits())


# ---- the recipe


def official_rates(epochs: int) -> list[float]:
    """The authors' loop around PyTorch's schedule."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.05)
    schedule = CosineAnnealingWarmRestarts(optimizer, T_0=1, T_mult=2, eta_min=0.0005)
    rates = []
    for epoch in range(epochs):
        if epoch > 1:
            optimizer.step()
            schedule.step()
        rates.append({0: 0.005, 1: 0.05}.get(epoch, optimizer.param_groups[0]["lr"]))
    return rates


@pytest.mark.parametrize("epochs", [1, 2, 3, 11, 64])
def test_the_rates_are_the_authors(make, epochs):
    trial = make(GDumb(memory_size=6), stream(experiences=[[0, 1]]), epochs=epochs, optimizer={"lr": 7.0}).run()
    rates = [v["lr"] for kind, v in trial.recorder.events if kind == "epoch"]
    assert rates == pytest.approx(official_rates(epochs), rel=1e-6)


def test_optimiser_and_batches_are_its_own(make):
    own = GDumb(memory_size=36, fit_batch=5, lr=0.2, weight_decay=0.3, clip_norm=2.0)
    trial, recipes = make(own, optimizer={"name": "adam", "clip_value": 1.0, "warmup": 3.0}), []
    recipe = trial.trainer.context.recipe
    trial.trainer.context.recipe = lambda e, c: (recipes.append(recipe(e, c)), recipe(e, c))[1]
    trial.watch().run()
    assert {len(b.ids) for b in trial.batches} == {5, 2, 4, 6}
    for r in recipes:
        assert (r.name, r.momentum, r.weight_decay, r.clip_norm, r.clip_value, r.warmup) == (
            "sgd",
            0.9,
            0.3,
            2.0,
            None,
            0.0,
        )
    assert [r.lr for r in recipes] == pytest.approx([0.02, 0.2] * 3)


@pytest.mark.parametrize(("setting", "head"), [("class", "linear"), ("task", "linear"), ("task", "multi")])
def test_the_loss_of_mixed_images_equals_numpy_and_its_gradient_finite_differences(make, setting, head):
    trial = make(GDumb(memory_size=36, fit_batch=8, cutmix=0.8), stream(setting), head={"name": head}).watch().run()
    strategy, context = trial.strategy, trial.trainer.context
    batch = trial.batches[-2]
    batch.x = batch.x.double()
    network = strategy.network.double().eval()
    y = batch.y.numpy()
    for seed in range(1000):  # a draw that mixes images of two classes
        context.rng = lambda purpose, seed=seed: torch.Generator().manual_seed(seed)
        mixed = CutMix(1.0, 0.8)(batch.x, context.rng("cutmix"), batch.task_ids)
        other, s = batch.y[mixed.partner].numpy(), mixed.share.double().numpy()
        if ((s < 1).sum() > 2) and ((y != other).sum() > 1):
            break
    else:
        pytest.fail("no such draw")
    with torch.no_grad():
        z = network(mixed.x, batch.task_ids).logits.numpy()
    losses = []
    for row in range(len(y)):
        own = list(range(6)) if setting == "class" else [2 * (y[row] // 2), 2 * (y[row] // 2) + 1]
        log_p = dict(zip(own, log_softmax(z[row : row + 1, own])[0], strict=True))
        losses.append(-s[row] * log_p[y[row]] - (1 - s[row]) * log_p[other[row]])
    terms = strategy.loss_terms(batch)
    assert {n: v.item() for n, v in terms.items()} == pytest.approx({"classification": np.mean(losses)}, rel=1e-5)
    assert_gradients(lambda: sum(strategy.loss_terms(batch).values()), list(network.parameters()))


# ---- contract, resuming, refusals


@pytest.mark.parametrize("strategy", [GDumb(), GDumb(cutmix=0.0)], ids=["cutmix", "plain"])
def test_it_keeps_the_contract(strategy):
    check_strategy(strategy)


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5, 7, 8])
def test_it_resumes_in_every_phase(resumes, stop_after):
    resumes(GDumb(memory_size=12, fit_batch=8), stop_after, augmentation="crop_flip", epochs=3)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("shape", [{"online": True}, {"boundaries": False}])
def test_it_takes_a_single_pass_and_no_boundaries(make, setting, shape):
    trial = make(GDumb(memory_size=12), stream(setting, **shape), epochs=2).run()
    assert len(trial.strategy.memory_) == 12


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (GDumb(memory_size=5), "at least one exemplar for each of 6 classes"),
        (GDumb(loss_over="experience"), "trains on older classes too, so expected auto or seen"),
        (GDumb(memory_size=0), "memory_size"),
        (GDumb(cutmix=1.5), "cutmix"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(make, strategy, said):
    with pytest.raises(ConfigurationError, match=said):
        make(strategy)


def test_features_cannot_be_mixed(make):
    import dataclasses

    from clframe.data.reader import MemoryReader

    images = stream()
    table = dataclasses.replace(images.train, images=MemoryReader(torch.randn(len(images.train), 5)))
    features = dataclasses.replace(images, train=table)
    with pytest.raises(
        ConfigurationError, match=r"expected images to mix, received a stream of features \(5,\): set it to 0"
    ):
        make(GDumb(memory_size=12), features, backbone="mlp")
    make(GDumb(memory_size=12, cutmix=0.0), features, backbone="mlp")


def test_it_beats_fine_tuning_on_digits(make, digits):
    options = {"batch_size": 32, "backbone": "mlp", "optimizer": {"lr": 0.02}}
    plain = make(Finetune(), digits(), epochs=2, **options).run().final_accuracy()
    assert make(GDumb(memory_size=100), digits(), epochs=32, **options).run().final_accuracy() > plain + 0.5
