"""PODNet: loss terms, imprinted and frozen proxies, and the classifier's fine-tuning."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clframe.errors import ConfigurationError
from clframe.models import Backbone, BackboneConfig, LocalSimilarityHead
from clframe.spec import field
from clframe.strategies.finetune import Finetune
from clframe.strategies.podnet import PODNet, centres_of
from clframe.testing import check_strategy
from clframe.testing.bench import first_difference
from clframe.testing.streams import synthetic_stream
from tests.strategies.laws import assert_gradients, at_begin_of, copied, ready_to_train

SHORT = {"memory_size": 12, "balanced_epochs": 2}
HEAD = {"head": {"proxies": 3}}


@pytest.mark.parametrize("strategy", [PODNet(), PODNet(nca="public", imprint=False, freeze_old=False)], ids=["a", "b"])
def test_it_keeps_the_contract(strategy):
    check_strategy(strategy)


# ---- the loss


def unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def scores_of(head, features: np.ndarray) -> np.ndarray:
    """η ŝ, from squared distances of unit vectors."""
    proxies = unit(head.weight.detach().numpy().reshape(head.num_classes, -1, features.shape[1]))
    s = -((unit(features)[:, None, None] - proxies[None]) ** 2).sum(-1)
    weights = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    return head.scale.item() * (weights * s).sum(-1)


def nca_of(z: np.ndarray, y: np.ndarray, margin: float, public: bool) -> float:
    total = 0.0
    for row, label in zip(z, y, strict=True):
        others = np.exp(np.delete(row, label)).sum()
        if public:
            shifted = row - row.max()
            kept = shifted.copy()
            kept[label] = 0
            total += -shifted[label] + np.log(np.exp(kept).sum())
        else:
            total += max(0.0, -(row[label] - margin) + np.log(others))
    return total / len(z)


def pooled(h: np.ndarray) -> np.ndarray:
    a = h**2
    return unit(np.concatenate([a.sum(3).reshape(len(h), -1), a.sum(2).reshape(len(h), -1)], 1))


@pytest.mark.parametrize("form", ["margin", "public"])
def test_the_loss_and_its_gradient(make, form):
    trial = make(PODNet(nca=form, spatial_weight=2.0, flat_weight=0.7, margin=0.4, **SHORT), **HEAD)
    batch = ready_to_train(trial, 2, stored=8)
    strategy = trial.strategy
    with torch.no_grad():
        strategy.network.classifier.scale.fill_(1.7)
        new, old = (n(batch.x, stages=True) for n in (strategy.network, strategy.teacher_))
    z = scores_of(strategy.network.classifier, new.features.numpy())
    np.testing.assert_allclose(new.logits.numpy(), z, atol=1e-10)
    factor = np.sqrt(6 / 2)
    spatial = np.mean([
        np.linalg.norm(pooled(a.numpy()) - pooled(b.numpy()), axis=1).mean()
        for a, b in zip(new.stages, old.stages, strict=True)
    ])  # fmt: skip
    flat = (1 - (unit(new.features.numpy()) * unit(old.features.numpy())).sum(1)).mean()
    expected = {
        "classification": nca_of(z, batch.y.numpy(), 0.4 * 1.7, form == "public"),
        "pod_spatial": factor * 2.0 * spatial,
        "pod_flat": factor * 0.7 * flat,
    }
    assert min(spatial, flat) > 1e-4
    assert {n: v.item() for n, v in strategy.loss_terms(batch).items()} == pytest.approx(expected, rel=1e-5)
    scale = strategy.network.classifier.scale
    parameters = [p for p in strategy.network.parameters() if p is not scale]
    assert_gradients(lambda: sum(strategy.loss_terms(batch).values()), parameters)


@pytest.mark.parametrize("form", ["margin", "public"])
def test_the_margin_sends_no_gradient_to_the_scale(make, form):
    trial = make(PODNet(nca=form, **SHORT), **HEAD)
    batch = ready_to_train(trial)
    strategy, values = trial.strategy, []
    scale = strategy.network.classifier.scale
    scale.grad = None
    strategy.loss_terms(batch)["classification"].backward()
    margin = 0.6 * scale.item()
    for shift in (1e-5, -2e-5):
        with torch.no_grad():
            scale += shift
            z = strategy.network(batch.x).logits.numpy()
        values.append(nca_of(z, batch.y.numpy(), margin, form == "public"))
    assert scale.grad.item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("group", [[0, 1], [1, 2, 3]])
def test_the_factor_counts_the_experiences_classes(make, group):
    trial = make(PODNet(**SHORT), synthetic_stream(experiences=[[0, 1, 2], group]), **HEAD)
    batch = ready_to_train(trial)
    with torch.no_grad():
        whole = trial.strategy.loss_terms(batch)
        trial.strategy.flat_weight = 2.0
        assert trial.strategy.loss_terms(batch)["pod_flat"].item() == pytest.approx(2 * whole["pod_flat"].item())
        new, old = trial.strategy.network(batch.x).features, trial.strategy.teacher_(batch.x).features
    flat = (1 - torch.nn.functional.cosine_similarity(new, old, dim=1)).mean().item()
    factor = np.sqrt(len({0, 1, 2, *group}) / len(group))
    assert whole["pod_flat"].item() == pytest.approx(factor * flat, rel=1e-6)


def test_distillation_vanishes_while_both_networks_are_equal_and_ignores_the_order(make):
    trial = make(PODNet(**SHORT), **HEAD)
    batch = ready_to_train(trial)
    strategy = trial.strategy
    strategy.network.eval()
    with torch.no_grad():
        same = strategy.loss_terms(batch)
        assert same["pod_spatial"].item() == pytest.approx(0, abs=1e-9)
        assert same["pod_flat"].item() == pytest.approx(0, abs=1e-9)
        for p in strategy.network.branches.parameters():
            p.add_(0.1 * torch.randn_like(p))
        before = {n: v.item() for n, v in strategy.loss_terms(batch).items()}
        order = torch.randperm(len(batch.x))
        batch.x, batch.y = batch.x[order], batch.y[order]
        after = {n: v.item() for n, v in strategy.loss_terms(batch).items()}
    assert before["pod_spatial"] > 1e-3
    assert after == pytest.approx(before, rel=1e-9)


def test_switched_off_terms_are_not_computed(make):
    trial = make(PODNet(spatial_weight=0.0, flat_weight=0.0, **SHORT), **HEAD)
    assert set(trial.strategy.loss_terms(ready_to_train(trial))) == {"classification"}


# ---- the proxies


def test_new_proxies_start_at_the_centres_of_their_class(make):
    trial, before, after = make(PODNet(**SHORT), synthetic_stream(train_per_class=12), **HEAD), [], []
    trial.before("before_experience", lambda e: before.append(copied(trial.strategy.network)))
    trial.before("phases", lambda e: after.append(copied(trial.strategy.network)))
    starts = []
    inner = trial.strategy.imprint_proxies

    def watched(experience):
        inner(experience)
        starts.append(trial.trainer.context.features(experience.train))

    trial.strategy.imprint_proxies = watched
    trial.run()
    assert len(starts) == 2
    name = "heads.classifier.weight"
    for i in (1, 2):
        k, old = 2 * i, before[i][name].reshape(-1, 8)
        assert torch.equal(after[i][name][:k], before[i][name])
        features = unit(starts[i - 1].numpy().astype(float))
        labels = trial.stream.train.targets[trial.stream.experiences[i].train].numpy()
        for c in (k, k + 1):
            proxies = after[i][name][c].reshape(3, 8).numpy() / old.norm(dim=1).mean().item()
            own = features[labels == c]
            nearest = ((own[:, None] - proxies[None]) ** 2).sum(-1).argmin(1)
            assert set(nearest.tolist()) == {0, 1, 2}
            means = np.stack([own[nearest == j].mean(0) for j in range(3)])
            np.testing.assert_allclose(proxies, means, atol=1e-5)  # k-means has come to rest
            assert (np.linalg.norm(proxies, axis=1) <= 1 + 1e-6).all()


def test_without_imprinting_proxies_are_drawn_as_the_head_draws_them(make):
    weights = []
    for imprint in (True, False):
        trial = make(PODNet(imprint=imprint, **SHORT), **HEAD)
        ready_to_train(trial)
        weights.append(trial.strategy.network.classifier.weight.detach())
    assert torch.equal(weights[0][:2], weights[1][:2])
    assert not torch.isclose(weights[0][2:], weights[1][2:]).any()


def test_centres_repeat_where_there_are_too_few_samples_and_are_reproducible():
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(40, 5), dim=1)
    draws = [centres_of(features, 6, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)
    assert draws[0].shape == (6, 5)
    two = torch.eye(5)[[0, 0, 1]]
    centres = centres_of(two, 3, torch.Generator()).float()
    assert sorted(centres[:2].tolist()) == sorted(torch.eye(5)[:2].tolist())
    assert torch.equal(centres[2], centres[0])


@pytest.mark.parametrize("frozen", [True, False])
def test_old_proxies_stay_bit_identical_in_the_main_phase(make, frozen):
    options = {"optimizer": {"lr": 0.05, "weight_decay": 0.01, "momentum": 0.9}, **HEAD}
    trial, starts, ends = make(PODNet(freeze_old=frozen, **SHORT), **options), [], []
    trial.before("phases", lambda e: starts.append(copied(trial.strategy.network)))
    at_begin_of(trial, "balanced", lambda e: ends.append(copied(trial.strategy.network)))
    trial.run()
    name = "heads.classifier.weight"
    for i in (1, 2):
        k, start, end = 2 * i, starts[i], ends[i - 1]
        assert torch.equal(end[name][:k], start[name][:k]) is frozen
        assert (end[name][k:] != start[name][k:]).view(6, 8).any(dim=1).all()
        assert not torch.equal(end["heads.classifier.scale"], start["heads.classifier.scale"])


def test_fine_tuning_moves_the_proxies_alone_all_of_them_and_in_eval_mode(make):
    trial, starts, ends, modes = make(PODNet(**SHORT), **HEAD), [], [], []
    at_begin_of(trial, "balanced", lambda e: starts.append(copied(trial.strategy.network)))
    trial.before("after_experience", lambda e: ends.append(copied(trial.strategy.network)) if e.index else None)
    inner = trial.strategy.main_loss

    def watched(batch, output):
        if batch.phase == "balanced":
            modes.append(any(m.training for m in trial.strategy.network.modules()))
        return inner(batch, output)

    trial.strategy.main_loss = watched
    trial.run()
    assert modes
    assert not any(modes)
    for start, end in zip(starts, ends, strict=True):
        assert {n for n in start if not torch.equal(start[n], end[n])} == {"heads.classifier.weight"}
        assert (start["heads.classifier.weight"] != end["heads.classifier.weight"]).any(dim=1).all()


def test_fine_tuning_sees_equally_many_of_every_class(make):
    stream = synthetic_stream(train_per_class=[6, 9, 4])
    trial, seen = make(PODNet(**SHORT), stream, **HEAD), {}
    inner = trial.strategy.main_loss

    def watched(batch, output):
        if batch.phase == "balanced":
            seen.setdefault((batch.experience.index, batch.epoch), []).extend(batch.y.tolist())
        return inner(batch, output)

    trial.strategy.main_loss = watched
    trial.run()
    counts = {key: torch.bincount(torch.tensor(labels)).tolist() for key, labels in seen.items()}
    assert counts == {(1, 0): [6] * 4, (1, 1): [6] * 4, (2, 0): [3] * 6, (2, 1): [3] * 6}


def test_stages_and_their_recipes(make):
    trial, found = make(PODNet(**SHORT), optimizer={"lr": 0.05, "schedule": "cosine"}, **HEAD), []
    recipe = trial.trainer.context.recipe
    trial.trainer.context.recipe = lambda e, c: (found.append(recipe(e, c)), recipe(e, c))[1]
    trial.run()
    phases = [(v["experience"], v["phase"]) for kind, v in trial.recorder.events if kind == "epoch"]
    later = [(i, p) for i in (2, 3) for p in ("train", "balanced") for _ in range(2)]
    assert phases == [(1, "train")] * 2 + later
    main, tuning = found[0], found[2]
    assert (main.lr, main.schedule, main.clip_value) == (0.05, "cosine", 5.0)
    assert (tuning.lr, tuning.schedule, tuning.clip_value, tuning.name) == (0.05, "constant", 5.0, "sgd")
    trial = make(
        PODNet(clip=None, balanced_epochs=0, memory_size=12), optimizer={"clip_value": 0.3, "lr": 0.05}, **HEAD
    )
    trial.trainer.context.recipe = lambda e, c: (found.append(recipe(e, c)), recipe(e, c))[1]
    recipe = type(trial.trainer.context).recipe.__get__(trial.trainer.context)
    trial.run()
    assert found[-1].clip_value == 0.3
    assert "balanced" not in {v["phase"] for kind, v in trial.recorder.events if kind == "epoch"}


# ---- the frame


def test_the_classifier_is_the_papers_unless_another_is_named(make):
    head = make(PODNet()).strategy.network.classifier
    assert isinstance(head, LocalSimilarityHead)
    assert head.proxies == 10
    assert make(PODNet(), **HEAD).strategy.network.classifier.proxies == 3


class Stageless(BackboneConfig):
    """A backbone that shows no stages."""

    width: int = field(default=4, help="Features.")

    def make(self, input_shape):
        class Net(Backbone):
            def __init__(self, width: int):
                super().__init__()
                self.layer, self.feature_dim = torch.nn.Linear(64, width), width

            def forward(self, x):
                return self.layer(x.flatten(1))

        return Net(self.width)


def test_a_backbone_without_stages_is_refused_at_the_first_step(make):
    trial = make(PODNet(**SHORT), backbone=Stageless(), **HEAD)
    with pytest.raises(ConfigurationError, match="needs a backbone that shows its stages"):
        trial.run()
    assert trial.trainer.counters["presentations"] == 0
    make(PODNet(spatial_weight=0.0, **SHORT), backbone=Stageless(), **HEAD).run()


def test_predictions_ignore_the_features_length_and_the_batch(make):
    trial = make(PODNet(**SHORT), **HEAD).run()
    strategy = trial.strategy
    x = trial.trainer.context.test_maker.test_input(trial.stream.test.gather(torch.arange(6)))
    with torch.no_grad():
        scores = strategy.predict(x)
        features = strategy.network(x).features
        torch.testing.assert_close(strategy.network.classifier(7 * features), scores["classifier"])
        torch.testing.assert_close(strategy.predict(x[[4]])["classifier"], scores["classifier"][[4]])
    assert list(scores) == ["classifier", "nme"]


def test_the_teacher_is_the_network_of_the_experience_before(make):
    trial, starts, ends = make(PODNet(**SHORT), **HEAD), [], []
    trial.before("before_experience", lambda e: starts.append(copied(trial.strategy.network)))
    trial.before("after_experience", lambda e: ends.append(e.index and copied(trial.strategy.teacher_)))
    trial.run()
    assert first_difference(starts[1], ends[1]) is None
    assert first_difference(starts[2], ends[2]) is None


@pytest.mark.parametrize("stop_after", [5, 8, 12, 15, 20, 26])
def test_it_resumes_inside_every_stage(resumes, stop_after):
    resumes(PODNet(**SHORT), stop_after, **HEAD)


@pytest.mark.parametrize(
    ("strategy", "options", "said"),
    [
        (PODNet(memory_size=5), {}, "at least one exemplar for each of 6 classes"),
        (PODNet(loss_over="experience"), {}, "trains on older classes too"),
        (PODNet(), {"head": {"name": "linear"}}, "needs local_similarity, received a LinearHead: leave head.name out"),
        (PODNet(), {"head": "cosine"}, "needs local_similarity, received a CosineHead"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(make, strategy, options, said):
    with pytest.raises(ConfigurationError, match=said):
        make(strategy, **options)


@pytest.mark.parametrize("form", ["margin", "public"])
def test_it_beats_fine_tuning_on_digits(make, digits, form):
    options = {"epochs": 5, "batch_size": 32, "backbone": "mlp"}
    plain = make(Finetune(), digits(), **options).run().final_accuracy()
    trial = make(PODNet(nca=form, balanced_epochs=5), digits(), **options).run()
    assert trial.final_accuracy() > plain + 0.5
    assert trial.strategy.network.classifier.scale.item() > 2  # near stays near: the scale has grown, and not sunk
