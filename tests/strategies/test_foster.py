"""FOSTER: class weights, boosting, compression, and what each leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clframe.errors import ConfigurationError
from clframe.losses import balanced_distillation, class_weights, distillation
from clframe.strategies.finetune import Finetune
from clframe.strategies.foster import FOSTER
from clframe.testing import check_strategy
from clframe.testing.bench import first_difference
from clframe.testing.streams import synthetic_stream
from tests.strategies.laws import assert_gradients, at_begin_of, ce, copied, log_softmax


def reference_weights(counts: list[int], beta: float) -> np.ndarray:
    """As the authors' code computes them."""
    effective = 1.0 - np.power(beta, counts)
    weights = (1.0 - beta) / np.array(effective)
    return weights / np.sum(weights) * len(counts)


@pytest.mark.parametrize(
    ("counts", "beta", "golden"),
    [
        ([200] * 10 + [500] * 10, 0.96, (1.0001, 0.9999)),
        ([22] * 90 + [500] * 10, 0.96, (1.0424, 0.6178)),
        ([22] * 90 + [500] * 10, 0.97, None),
        ([1, 3, 20, 500], 0.99, None),
    ],
)
def test_class_weights_equal_the_authors(counts, beta, golden):
    weights = class_weights(torch.tensor(counts), beta)
    np.testing.assert_allclose(weights.numpy(), reference_weights(counts, beta), rtol=1e-6)
    assert weights.sum().item() == pytest.approx(len(counts), rel=1e-6)
    if golden is not None:
        assert (weights[0].item(), weights[-1].item()) == pytest.approx(golden, abs=1e-4)


def test_class_weights_are_uniform_without_beta_and_finite_for_an_empty_class():
    counts = torch.tensor([2, 50, 700])
    assert torch.equal(class_weights(counts, 0.0), torch.ones(3))
    assert (class_weights(counts, 1e-9) - 1).abs().max() < 1e-6
    assert torch.equal(class_weights(torch.tensor([0, 5]), 0.9), class_weights(torch.tensor([1, 5]), 0.9))


def test_balanced_distillation_with_uniform_weights_is_distillation():
    z, t = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0)).double()
    plain = distillation(z, t, 3.0)
    assert balanced_distillation(z, t, torch.ones(5), 3.0).item() == pytest.approx(plain.item(), rel=1e-12)
    assert balanced_distillation(z, t, torch.tensor([2.0, 1, 1, 1, 1]), 3.0).item() != pytest.approx(plain.item(), 1e-3)


# ---- the contract


@pytest.mark.parametrize("strategy", [FOSTER(), FOSTER(new_on_old="zero")], ids=["train", "zero"])
def test_it_keeps_the_contract(strategy):
    check_strategy(strategy)


@pytest.mark.parametrize("stop_after", [5, 7, 12, 14, 17, 20, 22, 28])
def test_it_resumes_inside_every_stage(resumes, stop_after):
    resumes(FOSTER(memory_size=12), stop_after)


def test_the_first_experience_is_plain_training(make, same):
    stream = synthetic_stream(experiences=[[0, 1, 2]])
    foster = make(FOSTER(), stream).run()
    plain = make(Finetune(), stream).run()
    same(foster.bits("student"), plain.bits())
    same(foster.bits("teacher"), plain.bits())


# ---- losses


@pytest.fixture
def second(make):
    """A run that has grown for its second experience and not trained there, a batch, and counted weights; float64."""
    trial = make(FOSTER(memory_size=6, temperature=3.0, distill_weight=0.7, beta1=0.9, beta2=0.8))

    def stop(experience) -> None:
        if experience.index == 1:
            raise KeyboardInterrupt

    trial.before("phases", stop)
    with pytest.raises(KeyboardInterrupt):
        trial.run()
    strategy, experience = trial.strategy, trial.stream.experiences[1]
    ids = torch.cat([experience.train[3:9], strategy.memory_.ids])
    trial.trainer.context.experience = experience
    batch = next(iter(trial.trainer.context.batches(ids, batch_size=12)))
    batch.x = batch.x.double()
    strategy.network.double().train()
    strategy.student_.double().train()
    losses = {p.name: p.loss for p in type(strategy).phases(strategy, experience)}
    return trial, batch, losses


def parts_of(network, x):
    with torch.no_grad():
        old, new = (b(x) for b in network.branches)
        w, e, o = (network.heads[n] for n in ("classifier", "enhancement", "old"))
        z = torch.cat([old, new], 1) @ w.weight.T + w.bias
        return z.numpy(), (new @ e.weight.T + e.bias).numpy(), (old @ o.weight.T + o.bias).numpy()


def test_the_boosting_loss_and_its_gradient(second):
    trial, batch, losses = second
    network, y = trial.strategy.network, batch.y.numpy()
    loss = losses["boost"]
    terms = loss(batch)
    z, z_e, z_o = parts_of(network, batch.x)
    w = reference_weights([3, 3, 6, 6], 0.9)
    kd = -(np.exp(log_softmax(z_o / 3)) * log_softmax(z[:, :2] / 3)).sum(1).mean()
    assert {n: v.item() for n, v in terms.items()} == pytest.approx(
        {"classification": ce(z / w, y), "enhancement": ce(z_e, y), "distillation": 0.7 * kd}, rel=1e-5
    )
    assert_gradients(lambda: sum(loss(batch).values()), [p for p in network.parameters() if p.requires_grad])


def test_the_compression_loss_and_its_gradient(second):
    trial, batch, losses = second
    network, student = trial.strategy.network.eval(), trial.strategy.student_
    loss = losses["compress"]
    z = parts_of(network, batch.x)[0]
    with torch.no_grad():
        s = student(batch.x).logits.numpy()
    q = reference_weights([3, 3, 6, 6], 0.8) * np.exp(log_softmax(z / 3))
    q /= q.sum(1, keepdims=True)
    network.zero_grad()
    found = loss(batch)
    assert {n: v.item() for n, v in found.items()} == pytest.approx(
        {"compression": -(q * log_softmax(s / 3)).sum(1).mean()}, rel=1e-5
    )
    sum(found.values()).backward()
    assert all(p.grad is None for p in network.parameters())
    assert_gradients(lambda: sum(loss(batch).values()), list(student.parameters()))


# ---- what each stage leaves alone


def test_the_old_branch_and_head_stay_bit_identical(make):
    trial, starts, ends = make(FOSTER(memory_size=12)), [], []
    trial.before("before_experience", lambda e: starts.append(copied(trial.strategy.network)))
    trial.before("after_experience", lambda e: ends.append(copied(trial.strategy.network)))
    trial.run()
    for i in (1, 2):
        for name, value in starts[i].items():
            now = name.replace("heads.classifier", "heads.old")
            assert torch.equal(ends[i][now], value), name
        assert not torch.equal(ends[i]["branches.1.conv.weight"], starts[i]["branches.0.conv.weight"])
        assert not torch.equal(ends[i]["branches.1.bn.running_mean"], starts[i]["branches.0.bn.running_mean"])


def test_everything_starts_from_the_last_student(make):
    trial, before, grown = make(FOSTER(memory_size=12)), [], []
    trial.before("before_experience", lambda e: before.append(copied(trial.strategy.network)))
    trial.before("phases", lambda e: grown.append((copied(trial.strategy.network), trial.strategy.student_)))
    at_begin_of(trial, "compress", lambda e: students.append(copied(trial.strategy.student_)))
    students: list[dict[str, torch.Tensor]] = []
    trial.run()
    for i in (1, 2):
        k, last, now, student = 2 * i, before[i], grown[i][0], students[i - 1]
        for name in last:
            if name.startswith("branches.0"):
                assert torch.equal(now[name.replace("branches.0", "branches.1")], last[name])
                assert torch.equal(student[name], last[name])
        for name in ("heads.classifier.weight", "heads.classifier.bias"):
            assert torch.equal(student[name][:k], last[name])
        assert torch.equal(now["heads.classifier.weight"][:k, :8], last["heads.classifier.weight"])
        assert now["heads.enhancement.weight"].shape == (k + 2, 8)


def test_compression_leaves_the_teacher_alone_and_the_student_is_one_backbone(make):
    trial, starts = make(FOSTER(memory_size=12)), []
    at_begin_of(trial, "compress", lambda e: starts.append(copied(trial.strategy.network)))
    modes = []
    compression = trial.strategy.compression_loss

    def watched(batch, weights):
        strategy = trial.strategy
        modes.append((any(m.training for m in strategy.network.modules()), strategy.student_.training))
        return compression(batch, weights)

    trial.strategy.compression_loss = watched
    trial.run()
    strategy = trial.strategy
    assert set(modes) == {(False, True)}
    assert len(starts) == 2
    assert first_difference(starts[-1], copied(strategy.teacher_)) is None
    plain = make(Finetune()).run().strategy.network
    assert [p.shape for p in strategy.network.parameters()] == [p.shape for p in plain.parameters()]
    assert set(strategy.network.heads) == {"classifier"}
    assert strategy.network.frozen_branches == ()
    assert all(p.requires_grad for p in strategy.network.parameters())
    assert strategy.student_ is None


def test_stages_lengths_and_weight_decay(make):
    trial, decays = make(FOSTER(memory_size=12, compression_epochs=3), optimizer={"lr": 0.05, "weight_decay": 0.01}), []
    recipe = trial.trainer.context.recipe
    trial.trainer.context.recipe = lambda e, c: (decays.append(recipe(e, c).weight_decay), recipe(e, c))[1]
    trial.run()
    epochs = [(v["experience"], v["phase"]) for kind, v in trial.recorder.events if kind == "epoch"]
    later = [(i, p) for i in (2, 3) for p in ("boost",) * 2 + ("compress",) * 3]
    assert epochs == [(1, "train")] * 2 + later
    assert decays == [0.01, 0.01, 0.0, 0.01, 0.0]


def test_pinned_weights_stay_zero(make):
    for mode in ("zero", "train"):
        network = make(FOSTER(new_on_old=mode, memory_size=12)).run().strategy.teacher_
        block = network.classifier.weight[4:, :8]
        assert bool((block == 0).all()) is (mode == "zero")
        assert (network.classifier.weight[:4].abs().sum(1) > 0).all()
        assert (network.classifier.weight[4:, 8:].abs().sum(1) > 0).all()


def test_exemplars_are_herded_on_the_teachers_features(make):
    from clframe.memory import herding_order

    trial = make(FOSTER(memory_size=18)).run()
    context, strategy = trial.trainer.context, trial.strategy
    for label in (4, 5):
        ids = trial.stream.experiences[2].train
        ids = ids[trial.stream.train.targets[ids] == label]
        wanted = ids[herding_order(context.features(ids, strategy.teacher_), 3)]
        assert strategy.memory_.ids[strategy.memory_.targets == label].tolist() == wanted.tolist()


def test_report_heads_are_the_two_networks(make):
    trial = make(FOSTER(memory_size=12, nme=False)).run()
    assert list(dict.fromkeys(h for _, _, h in trial.recorder.kept)) == ["student", "teacher"]
    x = trial.trainer.context.test_maker.test_input(trial.stream.test.gather(torch.arange(6)))
    trial.strategy.network.eval()
    with torch.no_grad():
        scores = trial.strategy.predict(x)
        assert torch.equal(scores["student"], trial.strategy.network(x).logits)
        assert torch.equal(scores["teacher"], trial.strategy.teacher_(x).logits)
    assert not torch.allclose(scores["student"], scores["teacher"])


def test_the_exemplar_means_are_of_the_teachers_features(make):
    trial = make(FOSTER(memory_size=12)).run()
    strategy, stream = trial.strategy, trial.stream
    x = trial.trainer.context.test_maker.test_input(stream.test.gather(torch.arange(6)))
    stored = trial.trainer.context.train_maker.test_input(stream.train.gather(strategy.memory_.ids))
    with torch.no_grad():
        teacher = strategy.teacher_.eval()
        unit = torch.nn.functional.normalize(teacher(stored).features.double(), dim=1).numpy()
        own = torch.nn.functional.normalize(teacher(x).features.double(), dim=1).numpy()
        scores = strategy.predict(x)["nme"].numpy()
    labels = strategy.memory_.targets.numpy()
    means = np.stack([unit[labels == c].mean(axis=0) for c in range(stream.num_classes)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(scores, -((own[:, None] - means) ** 2).sum(axis=2), atol=1e-5)


# ---- β


def weights_used(make, **options) -> list[tuple[str, list[float]]]:
    trial, found = make(FOSTER(memory_size=6, **options)), []
    phases = trial.strategy.phases

    def both(experience):
        made = phases(experience)
        found.extend((p.name, p.loss.keywords["weights"].tolist()) for p in made if p.loss)
        return made

    trial.strategy.phases = both
    trial.run()
    return found


def test_a_beta_for_every_experience_or_one_for_all(make):
    counts = [[3, 3, 6, 6], [1, 1, 1, 1, 6, 6]]
    for beta1, beta2 in ((0.9, [0.8, 0.7]), ([0.5, 0.6], 0.97)):
        found = weights_used(make, beta1=beta1, beta2=beta2)
        assert [name for name, _ in found] == ["boost", "compress"] * 2
        for k, (_, weights) in enumerate(found):
            beta = (beta1, beta2)[k % 2]
            expected = reference_weights(counts[k // 2], beta[k // 2] if isinstance(beta, list) else beta)
            assert weights == pytest.approx(expected.tolist(), rel=1e-6)


@pytest.mark.parametrize(
    ("strategy", "options", "said"),
    [
        (FOSTER(beta1=[0.9]), {}, "one value for each of 2 experiences after the first, received 1"),
        (FOSTER(beta2=[0.9, 1.0]), {}, "beta2"),
        (FOSTER(beta1=1.0), {}, "beta1"),
        (FOSTER(memory_size=5), {}, "at least one exemplar for each of 6 classes"),
        (FOSTER(loss_over="experience"), {}, "trains on older classes too"),
        (FOSTER(), {"head": {"name": "multi"}}, "one classifier over all classes, received multi"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(make, strategy, options, said):
    with pytest.raises(ConfigurationError, match=said):
        make(strategy, **options)


def test_a_cosine_head_passes_its_scale_on(make):
    trial, scales = make(FOSTER(memory_size=12), head={"name": "cosine", "scale": 3.0}), []
    trial.before("phases", lambda e: e.index and scales.append((
        trial.strategy.network.heads["old"].scale.item(), trial.strategy.student_.classifier.scale.item())))  # fmt: skip
    trial.run()
    assert all(a == b != 3.0 for a, b in scales)


def test_it_beats_fine_tuning_on_digits(make, digits):
    for seed in (0, 1):
        options = {"epochs": 5, "batch_size": 32, "backbone": "mlp", "seed": seed}
        foster = make(FOSTER(), digits(), **options).run()
        plain = make(Finetune(), digits(), **options).run().final_accuracy()
        assert foster.final_accuracy("student") > plain + 0.3
        assert foster.final_accuracy("teacher") > plain + 0.3
