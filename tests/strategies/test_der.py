"""DER: frozen extractors, auxiliary head, balanced stage, weight alignment, warm-up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clframe.errors import ConfigurationError
from clframe.losses import auxiliary_targets
from clframe.strategies.der import DER
from clframe.strategies.finetune import Finetune
from clframe.testing import check_strategy
from clframe.testing.bench import first_difference
from clframe.testing.streams import synthetic_stream
from tests.strategies.laws import assert_gradients, ce, copied

SHORT = {"balanced_epochs": 2, "memory_size": 12}


def at_end_of(trial, name: str, call) -> None:
    """Call something with the trainer at the end of every epoch of a phase."""
    inner = trial.trainer._end_epoch

    def both(experience, phase, stepper, epoch):
        if phase.name == name:
            call(experience, epoch)
        inner(experience, phase, stepper, epoch)

    trial.trainer._end_epoch = both


@pytest.mark.parametrize("strategy", [DER(), DER(stage="align", reuse_head=True)], ids=["paper", "pycil"])
def test_it_keeps_the_contract(strategy):
    check_strategy(strategy)


@pytest.mark.parametrize("stage", ["balanced", "align", "none"])
def test_old_extractors_stay_bit_identical(make, stage):
    trial, kept = make(DER(stage=stage, **SHORT)), {}

    def compare(experience) -> None:
        for i, branch in enumerate(trial.strategy.network.branches):
            kept.setdefault(i, []).append(copied(branch))

    trial.before("after_experience", compare).run()
    compare(None)
    assert [len(kept[i]) for i in range(3)] == [4, 3, 2]
    for versions in kept.values():
        assert all(first_difference(versions[0], v) is None for v in versions)
    assert first_difference(kept[0][0], kept[1][0]) is not None  # the copy has trained on, parameters and statistics
    assert not torch.equal(kept[0][0]["bn.running_mean"], kept[1][0]["bn.running_mean"])


def test_a_new_extractor_starts_as_a_copy_of_the_last(make):
    trial, starts = make(DER(**SHORT)), []
    trial.before("phases", lambda e: starts.append([copied(b) for b in trial.strategy.network.branches])).run()
    assert [len(s) for s in starts] == [1, 2, 3]
    assert all(first_difference(s[-1], s[-2]) is None for s in starts[1:])


@pytest.mark.parametrize("stage", ["balanced", "none"])
def test_it_grows_by_one_extractor_and_by_the_heads(make, stage):
    network = make(DER(stage=stage, **SHORT)).run().strategy.network
    extractor = sum(p.numel() for p in network.branches[0].parameters())
    head = 6 * (3 * 8 + 1)
    assert sum(p.numel() for p in network.parameters()) == 3 * extractor + head * (2 if stage == "balanced" else 1)
    assert sum(p.requires_grad for b in network.branches[:2] for p in b.parameters()) == 0


def test_auxiliary_targets():
    y = torch.tensor([0, 3, 2, 5, 4, 3])
    assert auxiliary_targets(y, (3, 5)).tolist() == [0, 1, 0, 2, 0, 1]
    assert auxiliary_targets(y, ()).tolist() == [0] * 6


def ready_for_second(make, strategy, **options):
    """A run that has grown for its second experience and not trained there, and a batch of it, in float64."""
    trial = make(strategy, **options)

    def stop(experience) -> None:
        if experience.index == 1:
            raise KeyboardInterrupt

    trial.before("phases", stop)
    with pytest.raises(KeyboardInterrupt):
        trial.run()
    ids = torch.cat([trial.stream.experiences[1].train[3:9], trial.strategy.memory_.ids[:6]])
    trial.trainer.context.experience = trial.stream.experiences[1]
    found = next(iter(trial.trainer.context.batches(ids, batch_size=12)))
    found.x, found.phase = found.x.double(), "train"
    trial.strategy.network.double().train()
    return trial, found


def test_the_loss_and_its_gradient(make):
    trial, batch = ready_for_second(make, DER(aux_weight=0.7, **SHORT))
    network, y = trial.strategy.network, batch.y.numpy()
    terms = trial.strategy.loss_terms(batch)
    with torch.no_grad():
        parts = [b(batch.x) for b in network.branches]
        h, a = network.classifier, network.heads["auxiliary"]
        z = (torch.cat(parts, 1) @ h.weight.T + h.bias).numpy()
        z_a = (parts[-1] @ a.weight.T + a.bias).numpy()
    assert z_a.shape[1] == 3
    assert terms["classification"].item() == pytest.approx(ce(z, y), rel=1e-5)
    y_a = np.array([{2: 1, 3: 2}.get(int(c), 0) for c in y])
    assert set(y_a.tolist()) == {0, 1, 2}
    assert terms["auxiliary"].item() == pytest.approx(0.7 * ce(z_a, y_a), rel=1e-5)
    trained = [p for p in network.parameters() if p.requires_grad]
    assert_gradients(lambda: sum(trial.strategy.loss_terms(batch).values()), trained)


def test_the_balanced_loss_divides_by_its_temperature_and_moves_the_head_alone(make):
    trial, batch = ready_for_second(make, DER(temperature=5.0, **SHORT))
    with torch.no_grad():
        z = trial.strategy.network(batch.x).logits.numpy()
    loss = trial.strategy.balanced_loss(batch)["classification"]
    assert loss.item() == pytest.approx(ce(z / 5, batch.y.numpy()), rel=1e-5)


def test_one_experience_is_plain_training_bit_for_bit(make, same):
    for strategy in (DER(aux_weight=0.0), DER()):
        stream = synthetic_stream(experiences=[[0, 1, 2]])
        same(make(strategy, stream).run().bits(), make(Finetune(), stream).run().bits())


def test_without_auxiliary_weight_there_is_no_auxiliary_head(make):
    trial = make(DER(aux_weight=0.0, **SHORT))
    trial.before("after_experience", lambda e: heads.append(set(trial.strategy.network.heads)))
    heads: list[set[str]] = []
    trial.run()
    assert heads == [{"classifier"}, {"classifier", "stage1"}, {"classifier", "stage1"}]


def test_the_balanced_stage_changes_the_classifier_alone_and_starts_afresh(make):
    trial, ends, starts = make(DER(**SHORT)), [], []
    at_end_of(trial, "train", lambda e, k: ends.append((e.index, copied(trial.strategy.network))))
    renew = trial.strategy.renew_head
    trial.strategy.renew_head = lambda: (renew(), starts.append(copied(trial.strategy.network.classifier)))
    trial.before("after_experience", lambda e: finals.append(copied(trial.strategy.network)))
    finals: list[dict[str, torch.Tensor]] = []
    trial.run()
    for i in (1, 2):
        before, after = [s for index, s in ends if index == i][-1], finals[i]
        assert {n for n in before if not torch.equal(before[n], after[n])} == {
            "heads.classifier.weight",
            "heads.classifier.bias",
        }
        assert torch.equal(after["heads.stage1.weight"], before["heads.classifier.weight"])
        assert torch.equal(after["heads.stage1.bias"], before["heads.classifier.bias"])
        assert not torch.isclose(starts[i - 1]["weight"], before["heads.classifier.weight"]).any()  # nothing is kept
        assert not torch.equal(starts[i - 1]["weight"], after["heads.classifier.weight"])  # and it trains


def test_the_balanced_stage_sees_equally_many_of_every_class_before_herding(make):
    stream = synthetic_stream(train_per_class=[6, 9, 4])
    trial, seen, memory = make(DER(**SHORT), stream), {}, {}
    loss = trial.strategy.balanced_loss
    trial.strategy.balanced_loss = lambda b: (
        seen.setdefault((b.experience.index, b.epoch), []).extend(b.ids.tolist()),
        loss(b),
    )[1]
    trial.before("phases", lambda e: memory.update({e.index: set(trial.strategy.memory_.ids.tolist())})).run()
    assert set(seen) == {(1, 0), (1, 1), (2, 0), (2, 1)}
    for (i, _epoch), ids in seen.items():
        labels = stream.train.targets[torch.tensor(ids)]
        quota = min(12 // (2 * i), 4 if i == 2 else 6)
        assert torch.bincount(labels).tolist() == [quota] * (2 * (i + 1))
        assert len(set(ids)) == len(ids)
        assert set(ids) <= set(stream.experiences[i].train.tolist()) | memory[i]
        assert sorted(ids) == sorted(seen[i, 0])


def test_report_heads(make):
    kept = make(DER(**SHORT)).run().recorder.kept
    assert {h for _, _, h in kept} == {"classifier", "stage1", "nme"}
    first, last = ((kept["test", i, "classifier"], kept["test", i, "stage1"]) for i in (1, 3))
    assert (first[0]["energy"] == first[1]["energy"]).all()
    assert (last[0]["energy"] != last[1]["energy"]).any()
    assert {h for _, _, h in make(DER(stage="align", nme=False)).run().recorder.kept} == {"classifier"}


def test_alignment_equalises_norms_and_keeps_the_order_within_old_and_new(make):
    trial, before = make(DER(stage="align", **SHORT), epochs=3, head={"bias": False}), []
    align = trial.strategy.align
    trial.strategy.align = lambda e: (before.append(copied(trial.strategy.network)), align(e))
    trial.run()
    weight, old = trial.strategy.network.classifier.weight.detach(), before[-1]["heads.classifier.weight"]
    norms = weight.norm(dim=1)
    assert len(before) == 2
    assert norms[:4].mean().item() == pytest.approx(norms[4:].mean().item(), rel=1e-5)
    assert old.norm(dim=1)[:4].mean().item() != pytest.approx(old.norm(dim=1)[4:].mean().item(), rel=1e-3)
    assert torch.equal(weight[:4], old[:4])
    features = trial.trainer.context.features(torch.cat([e.train for e in trial.stream.experiences]))
    for part in (slice(0, 4), slice(4, 6)):
        assert torch.equal((features @ weight.T)[:, part].argmax(1), (features @ old.T)[:, part].argmax(1))
    changed = {n for n, v in trial.strategy.network.state_dict().items() if not torch.equal(v, before[-1].get(n, v))}
    assert changed == {"heads.classifier.weight"}


@pytest.mark.parametrize("reuse", [True, False])
def test_old_rows_are_reused_when_asked_to(make, reuse):
    trial, ends, starts = make(DER(reuse_head=reuse, stage="none", **SHORT)), [], []
    trial.before("after_experience", lambda e: ends.append(trial.strategy.network.classifier.weight.detach().clone()))
    trial.before("phases", lambda e: starts.append(trial.strategy.network.classifier.weight.detach().clone())).run()
    assert torch.equal(starts[1][:2, :8], ends[0]) is reuse
    assert starts[1].shape == (4, 16)


def test_the_heads_start_afresh_after_the_warm_up(make):
    trial, before, after = make(DER(warmup_epochs=2, stage="none", **SHORT), epochs=4), [], []
    hook = trial.strategy.before_epoch

    def watched(phase, epoch) -> None:
        before.append(copied(trial.strategy.network))
        hook(phase, epoch)
        after.append(copied(trial.strategy.network))

    trial.strategy.before_epoch = watched
    trial.run()
    assert len(before) == 12
    for k, (a, b) in enumerate(zip(before, after, strict=True)):
        changed = {n for n in a if not torch.equal(a[n], b[n])}
        heads = ["classifier"] if k < 4 else ["classifier", "auxiliary"]
        assert changed == ({f"heads.{h}.{p}" for h in heads for p in ("weight", "bias")} if k % 4 == 2 else set())
    rates = [v["lr"] for kind, v in trial.recorder.events if kind == "epoch"]
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.05, 0.05])


@pytest.mark.parametrize("stop_after", [5, 13, 16, 22, 26, 31])
def test_it_resumes_inside_every_stage(resumes, stop_after):
    resumes(DER(warmup_epochs=1, **SHORT), stop_after)


@pytest.mark.parametrize(
    ("strategy", "options", "said"),
    [
        (DER(memory_size=5), {}, "at least one exemplar for each of 6 classes"),
        (DER(loss_over="experience"), {}, "trains on older classes too"),
        (DER(warmup_epochs=2), {}, "expected fewer than the 2 epochs of the main phase, received 2"),
        (DER(stage="align"), {"head": {"name": "cosine"}}, "a cosine head.s scores don.t depend on"),
        (DER(), {"head": {"name": "multi"}}, "one classifier over all classes, received multi"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(make, strategy, options, said):
    with pytest.raises(ConfigurationError, match=said):
        make(strategy, **options)


def test_a_cosine_head_keeps_its_scale_for_stage_1(make):
    network = make(DER(**SHORT), head={"name": "cosine", "scale": 3.0}).run().strategy.network
    assert network.heads["stage1"].scale.item() != 3.0


def test_it_beats_fine_tuning_on_digits(make, digits):
    for seed in (0, 1):
        options = {"epochs": 5, "batch_size": 32, "backbone": "mlp", "seed": seed}
        der = make(DER(balanced_epochs=10), digits(), **options).run()
        plain = make(Finetune(), digits(), **options).run().final_accuracy()
        assert der.final_accuracy() > plain + 0.4
        assert der.final_accuracy("stage1") > plain + 0.3
