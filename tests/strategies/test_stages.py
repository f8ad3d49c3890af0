"""Classifier stages: nothing but the classifier changes, and by default only what is scored; data, losses, options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from clframe.errors import ConfigurationError
from clframe.losses import normalised_cross_entropy
from clframe.strategies._exemplars import balanced_subset
from clframe.strategies.crt import CRT
from clframe.strategies.der import DER
from clframe.strategies.ewc import EWC
from clframe.strategies.finetune import Finetune
from clframe.strategies.foster import FOSTER
from clframe.strategies.gauss_align import GaussAlign
from clframe.strategies.joint import Joint
from clframe.strategies.lwf import LwF
from clframe.strategies.lws import LWS
from clframe.strategies.replay import Replay
from clframe.strategies.tau_norm import TauNorm, tau_normalised
from clframe.testing.streams import synthetic_stream
from clframe.training.checkpoint import pack
from tests.strategies.laws import assert_gradients, at_begin_of, ce, copied

SMALL = {"memory_size": 12}
SHORT = {"stage_epochs": 2}


def gauss(**options) -> GaussAlign:
    return GaussAlign(**{"samples_per_class": 16, "stage_batch_size": 16, **SHORT, **options})


STAGES = {
    "tau_norm": lambda **o: TauNorm(**o),
    "crt": lambda **o: CRT(**{**SHORT, **o}),
    "lws": lambda **o: LWS(**{**SHORT, **o}),
    "gauss_align": gauss,
}
each_stage = pytest.mark.parametrize("stage", STAGES)


def kept(trial, head: str):
    return {i: c for (_, i, h), c in trial.recorder.kept.items() if h == head}


def same_predictions(a, b) -> bool:
    return all((a[i][n] == b[i][n]).all() for i in a for n in a[i])


# -- what a stage may change ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "stage"),
    [*((Replay(form="step", **SMALL) + LwF() + EWC(), name) for name in STAGES), (DER(**SMALL), "crt")],
)
def test_by_default_learning_goes_on_as_without_the_stage_bit_for_bit(make, same, first, stage):
    plain, both = make(first).run(), make(first + STAGES[stage]()).run()
    same(pack(plain.strategy.network), pack(both.strategy.network))
    before, alone = kept(both, "before_stage"), kept(plain, "classifier")
    assert sorted(before) == [1, 2, 3]
    assert same_predictions(alone, before)
    after = kept(both, "classifier")
    assert same_predictions({1: after[1]}, {1: before[1]})  # the first experience has no stage
    assert not any(same_predictions({i: after[i]}, {i: before[i]}) for i in (2, 3))


@each_stage
def test_when_learning_goes_on_from_it_the_stage_changes_the_classifier_alone(make, stage):
    trial = make(Replay(**SMALL) + STAGES[stage](continue_from="after"))
    name = "align" if stage == "gauss_align" else stage
    before, after, starts = [], [], []
    at_begin_of(trial, name, lambda e: before.append(copied(trial.strategy.network)))
    trial.before("after_experience", lambda e: after.append(copied(trial.strategy.network)))
    trial.before("phases", lambda e: starts.append(copied(trial.strategy.network))).run()
    assert [len(before), len(after)] == [2, 3]
    for i in (1, 2):
        changed = {n for n, v in after[i].items() if not torch.equal(v, before[i - 1][n])}
        assert changed == {"heads.classifier.weight"} | ({"heads.classifier.bias"})
    assert torch.equal(starts[2]["heads.classifier.weight"][:4], after[1]["heads.classifier.weight"])
    last = kept(trial, "before_stage")[3]
    network = trial.strategy.network
    network.heads.classifier.load_state_dict(
        {n: before[1][f"heads.classifier.{n}"] for n in ("weight", "bias")}
    )  # what was scored as before is the classifier as it was
    ids = torch.cat([t.test for t in trial.stream.tasks])
    maker = trial.trainer.context.test_maker
    scores = network.eval()(maker.test_input(maker.table.gather(ids))).logits
    assert scores.argmax(1).tolist() == [
        dict(zip(last["sample"], last["predicted"], strict=True))[i] for i in ids.tolist()
    ]


@each_stage
def test_recorded_norms_are_those_of_what_is_scored(make, stage):
    for keep in ("before", "after"):
        trial = make(Replay(**SMALL) + STAGES[stage](continue_from=keep)).run()
        norms = [v["head_norms"] for kind, v in trial.recorder.events if kind == "evaluation"][-1]
        copy, own = trial.strategy.parts[1].head_["weight"], trial.strategy.network.classifier.weight.detach()
        after, before = (copy, own) if keep == "before" else (own, copy)
        assert np.allclose(norms["classifier"], after.norm(dim=1), atol=1e-5)
        assert np.allclose(norms["before_stage"], before.norm(dim=1), atol=1e-5)
        assert not np.allclose(after, before)


@each_stage
def test_it_takes_the_teachers_view_only_when_learning_goes_on_from_it(make, stage):
    for keep, alike in (("before", False), ("after", True)):
        trial = make(Replay(**SMALL) + LwF() + STAGES[stage](continue_from=keep)).run()
        lwf, part = trial.strategy.parts[1], trial.strategy.parts[2]
        classifier = trial.strategy.network.classifier
        assert torch.equal(lwf.teacher_.classifier.weight, classifier.weight)
        scored = classifier.weight if alike else part.head_["weight"]
        other = part.head_["weight"] if alike else classifier.weight
        assert not torch.equal(scored, other)


@each_stage
def test_in_the_first_experience_only_when_asked_to_or_when_it_is_the_only_one(make, stage):
    def differs(trial, i: int) -> bool:
        return not same_predictions({i: kept(trial, "classifier")[i]}, {i: kept(trial, "before_stage")[i]})

    assert not differs(make(Replay(**SMALL) + STAGES[stage]()).run(), 1)
    assert differs(make(Replay(**SMALL) + STAGES[stage](in_first=True)).run(), 1)
    assert differs(make(STAGES[stage](), synthetic_stream(experiences=[[0, 1, 2]])).run(), 1)


@each_stage
@pytest.mark.parametrize("keep", ["before", "after"])
def test_it_resumes_inside_the_stage(resumes, stage, keep):
    strategy = Replay(form="step", **SMALL) + STAGES[stage](continue_from=keep)
    for stop in (9, 14, 20) if stage != "tau_norm" else (9, 12):
        resumes(strategy, stop)


@each_stage
def test_predictions_do_not_depend_on_the_batch(make, stage):
    trial = make(Replay(**SMALL) + STAGES[stage]()).run()
    x = next(iter(trial.trainer.context.batches(torch.arange(8), batch_size=8))).x
    trial.strategy.network.eval()
    with torch.no_grad():
        whole = trial.strategy.predict(x)
        single = [trial.strategy.predict(x[i : i + 1]) for i in range(8)]
    assert set(whole) == {"classifier", "before_stage", "nme"}
    for head, scores in whole.items():
        assert torch.allclose(scores, torch.cat([s[head] for s in single]), atol=1e-5)


# -- tau_norm ------------------------------------------------------------------------------------------------------------


def test_tau_normalised_rows():
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    norms = np.linalg.norm(weight.numpy(), axis=1, keepdims=True)
    norms[3] = 1
    for tau in (0.0, 0.3, 1.0, 2.0):
        assert np.allclose(tau_normalised(weight, tau), weight.numpy() / norms**tau, atol=1e-6)
    assert torch.equal(tau_normalised(weight, 0.0), weight)


def test_tau_norm_takes_the_lengths_and_the_bias_and_zero_changes_nothing(make):
    trial = make(LwF() + TauNorm(tau=1.0)).run()
    head, weight = trial.strategy.parts[1].head_, trial.strategy.network.classifier.weight
    assert torch.allclose(head["weight"].norm(dim=1), torch.ones(6))
    assert torch.allclose(nn.functional.cosine_similarity(head["weight"], weight), torch.ones(6))
    assert float(head["bias"].abs().max()) == 0
    nothing = make(LwF() + TauNorm(tau=0.0, drop_bias=False)).run()
    assert same_predictions(kept(nothing, "before_stage"), kept(nothing, "classifier"))
    assert nothing.trainer.counters["steps"] == make(LwF()).run().trainer.counters["steps"]


# -- crt and lws ---------------------------------------------------------------------------------------------------------


def staged(make, strategy, stop_at: int = 1, **options):
    """A run stopped when the stage of its second experience has begun, a batch in float64, and the stage's part."""
    trial = make(strategy, **options)
    part = trial.strategy.parts[-1]
    begin = part.begin

    def stop(experience) -> None:
        begin(experience)
        if experience.index == stop_at:
            raise KeyboardInterrupt

    part.begin = stop
    with pytest.raises(KeyboardInterrupt):
        trial.run()
    ids = torch.cat([trial.stream.experiences[1].train[:6], trial.strategy.exemplars()[:6]])
    batch = next(iter(trial.trainer.context.batches(ids, batch_size=12)))
    batch.x = batch.x.double()
    network = trial.strategy.network.double().eval()
    part.head_ = {n: nn.Parameter(v.detach().double()) for n, v in part.head_.items()}
    with torch.no_grad():
        features = network(batch.x).features.numpy()
    return part, batch, features


def test_the_loss_of_crt_and_its_gradient(make):
    part, batch, features = staged(make, Replay(**SMALL) + CRT(temperature=3.0, **SHORT))
    weight, bias = (part.head_[n].detach().numpy() for n in ("weight", "bias"))
    found = part.stage_loss(batch)["classification"]
    assert found.item() == pytest.approx(ce((features @ weight.T + bias) / 3, batch.y.numpy()), rel=1e-5)
    everything = [*part.head_.values(), *part.network.parameters()]
    with pytest.raises(AssertionError):  # the copy's two tensors, and nothing of the network
        assert_gradients(lambda: sum(part.stage_loss(batch).values()), everything)
    assert [p.grad is not None for p in everything] == [True, True] + [False] * (len(everything) - 2)


def test_crt_starts_afresh_or_from_before(make):
    for start in ("fresh", "before"):
        trial = make(Replay(**SMALL) + CRT(start=start, **SHORT))
        part, seen = trial.strategy.parts[1], []
        begin = part.begin
        part.begin = lambda e, begin=begin, seen=seen, part=part: (
            begin(e),
            seen.append((part.network.classifier.weight.detach().clone(), part.head_["weight"].detach().clone())),
        )
        trial.run()
        assert len(seen) == 2
        for before, copy in seen:
            assert bool(torch.isclose(before, copy).any()) is (start == "before")
            assert torch.equal(before, copy) is (start == "before")
        assert not torch.equal(part.head_["weight"], seen[-1][1])  # and it trains


def data_of_stage(make, strategy, stream=None):
    """What every epoch of the stage presents, by experience; and the exemplars kept when the experience began."""
    trial = make(strategy, stream)
    part, seen, memory = trial.strategy.parts[-1], {}, {}
    loss = part.stage_loss
    part.stage_loss = lambda b: (seen.setdefault((b.experience.index, b.epoch), []).extend(b.ids.tolist()), loss(b))[1]
    trial.before("phases", lambda e: memory.update({e.index: set(trial.strategy.exemplars().tolist())})).run()
    return trial, seen, memory


@pytest.mark.parametrize("form", ["union", "step"])
@pytest.mark.parametrize("stage", ["crt", "lws"])
def test_it_sees_new_data_and_exemplars_every_class_equally_likely(make, stage, form):
    stream = synthetic_stream(train_per_class=40)
    options = {"stage_epochs": 12}
    trial, seen, memory = data_of_stage(make, Replay(form=form, memory_size=24) + STAGES[stage](**options), stream)
    assert sorted({i for i, _ in seen}) == [1, 2]
    for i in (1, 2):
        allowed = set(stream.experiences[i].train.tolist()) | memory[i]
        every = [k for (j, _), ids in seen.items() if j == i for k in ids]
        assert set(every) <= allowed
        assert set(every) & memory[i]
        counts = torch.bincount(stream.train.targets[torch.tensor(every)]).numpy()
        present = counts[counts > 0]
        share = present / present.sum()
        assert np.abs(share - 1 / len(present)).max() < 4 * np.sqrt(1 / len(present) / present.sum())
    assert len(trial.strategy.exemplars()) == 24


def test_the_subset_of_crt_is_the_balanced_stage_of_der(make):
    stream = synthetic_stream(train_per_class=[6, 9, 4])
    _, seen, memory = data_of_stage(make, Replay(**SMALL) + CRT(balance="subset", **SHORT), stream)
    assert set(seen) == {(1, 0), (1, 1), (2, 0), (2, 1)}
    for (i, _epoch), ids in seen.items():
        quota = min(12 // (2 * i), 4 if i == 2 else 6)
        assert torch.bincount(stream.train.targets[torch.tensor(ids)]).tolist() == [quota] * (2 * (i + 1))
        assert len(set(ids)) == len(ids)
        assert set(ids) <= set(stream.experiences[i].train.tolist()) | memory[i]
        assert sorted(ids) == sorted(seen[i, 0])


def test_a_balanced_subset(make):
    trial = make(Finetune(), synthetic_stream(train_per_class=[6, 9, 4]))
    ids = torch.cat([e.train for e in trial.stream.experiences])
    chosen = balanced_subset(ids, trial.trainer.context)
    assert torch.bincount(trial.stream.train.targets[chosen]).tolist() == [4] * 6
    assert len(chosen.unique()) == 24


def test_the_loss_of_lws_and_its_gradient(make):
    part, batch, features = staged(make, Replay(**SMALL) + LWS(**SHORT))
    assert part.scales_.tolist() == [1.0] * 4
    with torch.no_grad():
        part.scales_ = nn.Parameter(torch.tensor([0.5, 2.0, 1.5, 1.0], dtype=torch.float64))
    weight, bias = (part.head_[n].detach().numpy() for n in ("weight", "bias"))
    z = (features @ weight.T + bias) * part.scales_.detach().numpy()
    total = lambda: sum(part.stage_loss(batch).values())  # noqa: E731
    assert total().item() == pytest.approx(ce(z, batch.y.numpy()), rel=1e-5)
    total().backward()
    gradient = part.scales_.grad.clone()
    for k in range(4):
        values = []
        for shift in (1e-5, -2e-5):
            part.scales_.data[k] += shift
            values.append(total().item())
        part.scales_.data[k] += 1e-5
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(gradient[k].item(), rel=1e-4)
    assert [g.parameters[0] is part.scales_ for g in part.scale_parameters()] == [True]


def test_lws_changes_lengths_alone(make):
    trial = make(Replay(**SMALL) + LWS(stage_epochs=4)).run()
    part, head = trial.strategy.parts[1], trial.strategy.network.classifier
    ratio = part.head_["weight"] / head.weight.detach()
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-3)
    assert torch.allclose(part.head_["bias"] / head.bias.detach(), ratio[:, 0], rtol=1e-3)
    assert float((ratio[:, 0] - 1).abs().min()) > 1e-4
    assert part.scales_ is None


# -- gauss_align ---------------------------------------------------------------------------------------------------------


def test_the_normalised_loss_and_its_gradient():
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    y = torch.tensor([0, 4, 2, 2, 1, 3])
    tasks = [[0, 3], [1, 2, 4]]
    found = normalised_cross_entropy(z, y, tasks, 0.1)
    v = z.detach().numpy()
    length = np.stack([np.linalg.norm(v[:, t], axis=1) for t in tasks]).mean(0)
    assert found.item() == pytest.approx(ce(v / (0.1 * length[:, None]), y.numpy()), rel=1e-5)
    assert torch.autograd.gradcheck(lambda t: normalised_cross_entropy(t, y, tasks, 0.1), (z,))
    assert normalised_cross_entropy(7 * z, y, tasks, 0.1).item() == pytest.approx(found.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.1, None])
def test_the_loss_of_the_alignment(make, temperature):
    part, _, _ = staged(make, Finetune() + gauss(temperature=temperature))
    x = torch.randn(9, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = torch.arange(9) % 4
    batch = type("B", (), {"x": x, "y": y})()
    weight, bias = (part.head_[n].detach().numpy() for n in ("weight", "bias"))
    z = x.numpy() @ weight.T + bias
    length = np.stack([np.linalg.norm(z[:, t], axis=1) for t in ([0, 1], [2, 3])]).mean(0)
    expected = ce(z if temperature is None else z / (0.1 * length[:, None]), y.numpy())
    assert part.align_loss(batch)["alignment"].item() == pytest.approx(expected, rel=1e-5)


def test_statistics_are_of_test_features_at_the_end_of_the_class_s_experience(make):
    trial, features = make(Finetune() + gauss()), {}
    trial.before(
        "after_experience",
        lambda e: features.update({e.index: trial.trainer.context.features(e.train).double().numpy()}),
    ).run()
    statistics, targets = trial.strategy.parts[1].statistics_, trial.stream.train.targets
    assert statistics.labels == list(range(6))
    for label in range(6):
        own = features[label // 2][targets[trial.stream.experiences[label // 2].train].numpy() == label]
        assert np.allclose(statistics.mean([label])[0], own.mean(0), atol=1e-5)
        assert np.allclose(statistics.covariance(label), np.cov(own.T), atol=1e-5)


def test_draws_follow_the_gaussians_with_older_means_scaled(make):
    trial = make(Finetune() + gauss(samples_per_class=4000, mean_decay=0.3, stage_batch_size=9999)).run()
    part, last = trial.strategy.parts[1], trial.stream.experiences[2]
    view = part.drawn_features(last)
    assert torch.bincount(view.y).tolist() == [4000] * 6
    assert view.batch_size == 9999
    for label in range(6):
        own, sigma = view.x[view.y == label], part.statistics_.covariance(label, 1e-4).numpy()
        scale = 0.7 + 0.3 * (label // 2 + 1) / 3
        assert np.allclose(own.mean(0), scale * part.statistics_.means[label], atol=0.1 * np.trace(sigma) ** 0.5)
        assert np.allclose(np.cov(own.T.numpy()), sigma, atol=0.1 * np.trace(sigma))
    returning = make(Finetune() + gauss(), synthetic_stream(experiences=[[0, 1], [1, 2], [0]])).run().strategy.parts[1]
    assert returning.tasks() == [[0], [1, 2]] or returning.tasks() == [[1, 2], [0]]
    assert returning.task_of_ == {0: 2, 1: 1, 2: 1}


def test_the_draws_are_the_runs(make):
    trial = make(Finetune() + gauss()).run()
    part, streams = trial.strategy.parts[1], trial.trainer.context.streams
    views = []
    for scope in (("phase", 2, 1), ("phase", 2, 1), ("phase", 1, 1)):
        streams.enter(*scope)
        views.append(part.drawn_features(trial.stream.experiences[2]).x)
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


# -- refusals, and what it is good for -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "options", "said"),
    [
        (CRT(), {}, "needs exemplars of the classes seen before"),
        (LwF() + LWS(), {}, "needs exemplars of the classes seen before"),
        (Replay(memory_size=0) + CRT(), {}, "received memory_size 0: raise it"),
        (Replay() + CRT() + TauNorm(), {}, "Expected one classifier stage in a composition, received CRT and TauNorm"),
        (FOSTER() + TauNorm(), {}, "FOSTER predicts in a way of its own"),
        (Joint() + GaussAlign(), {}, "keeps all data: use crt"),
        (DER() + GaussAlign(), {}, "features grow longer"),
        (GaussAlign(covariance="none", ridge=0.0), {}, "expected a ridge above 0"),
        (TauNorm(), {"head": {"name": "cosine"}}, "a cosine head's scores don't depend on"),
        (Replay() + LWS(), {"head": {"name": "cosine"}}, "a cosine head's scores don't depend on"),
        (GaussAlign(), {"head": {"name": "multi"}}, "one classifier over all classes, received multi"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(make, strategy, options, said):
    with pytest.raises(ConfigurationError, match=said):
        make(strategy, **options)


def test_a_cosine_head_keeps_the_scale_of_its_own(make):
    trial = make(Replay(**SMALL) + CRT(**SHORT), head={"name": "cosine", "scale": 3.0}).run()
    head = trial.strategy.parts[1].head_
    assert set(head) == {"weight", "scale"}
    assert head["scale"].item() != trial.strategy.network.classifier.scale.item()


def test_exemplars_are_those_of_every_part(make):
    trial = make(Replay(**SMALL) + TauNorm()).run()
    assert trial.strategy.exemplars().tolist() == sorted(trial.strategy.parts[0].memory_.ids.tolist())
    assert trial.strategy.parts[1].exemplars().tolist() == []
    joint = make(Joint() + CRT(**SHORT)).run()
    everything = torch.cat([e.train for e in joint.stream.experiences])
    assert joint.strategy.exemplars().tolist() == sorted(everything.tolist())


def test_it_closes_the_gap_between_old_and_new_classes_on_digits(make, digits):
    for stage, least in ((CRT(), 0.15), (LWS(), 0.03)):
        trial = make(Replay(memory_size=20) + stage, digits(), epochs=5, batch_size=32, backbone="mlp").run()
        gaps = []
        for head in ("before_stage", "classifier"):
            columns = kept(trial, head)[5]
            right, old = columns["predicted"] == columns["target"], columns["target"] < 8
            gaps.append(right[~old].mean() - right[old].mean())
        assert gaps[1] < gaps[0] - 0.2
        assert trial.final_accuracy() > trial.final_accuracy("before_stage") + least
