"""DER with channel masks: annealing, sparsity loss, pruning between the stages, the next extractor."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

import clframe
from clframe.errors import ConfigurationError
from clframe.models import backbone_config
from clframe.models.gates import gates_of
from clframe.models.prune import channels_of
from clframe.strategies.der import DER
from clframe.strategies.finetune import Finetune
from clframe.testing import check_strategy
from clframe.testing.bench import first_difference
from tests.strategies.laws import assert_gradients, at_begin_of, copied

SMALL = backbone_config("resnet8", {"width": 3})
SHORT = {"balanced_epochs": 2, "memory_size": 12}
MASKED = {**SHORT, "masks": True, "sparsity": 30.0}


def masked(make, options=None, strategy=None, **run):
    return make(strategy or DER(**{**MASKED, **(options or {})}), backbone=SMALL, **run)


def size(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_it_keeps_the_contract():
    check_strategy(DER(**MASKED), backbone=backbone_config("resnet8", {"width": 2}))


@pytest.mark.parametrize("stage", ["balanced", "align", "none"])
def test_open_masks_without_sparsity_loss_are_der_bit_for_bit(make, same, stage):
    options = {"stage": stage, "warmup_epochs": 1, **SHORT}
    plain = make(DER(**options), backbone=SMALL).run()
    opened = make(DER(masks=True, sparsity=0.0, mask_start=1e9, **options), backbone=SMALL).run()
    same(plain.bits(), opened.bits())


def test_the_scale_is_annealed_within_every_epoch(make):
    trial, found = masked(make, {"mask_scale": 8.0}), []
    loss = trial.strategy.masked_loss

    def watched(batch):
        terms = loss(batch)
        found.append((batch.experience.index, batch.epoch, batch.step, batch.num_steps, gate().scale.item()))
        return terms

    def gate():
        return next(iter(gates_of(trial.strategy.extractor).values()))

    trial.strategy.masked_loss = watched
    trial.run()
    assert {(e, k) for e, k, *_ in found} == {(e, k) for e in range(3) for k in range(2)}
    for _, _, step, steps, scale in found:
        assert scale == pytest.approx(1 / 8 + (8 - 1 / 8) * step / (steps - 1))
    assert {scale for *_, step, _, scale in found if step == 0} == {0.125}
    assert {scale for *_, step, steps, scale in found if step == steps - 1} == {8.0}


def ready(make, **options):
    """A trial that has learnt two classes, at the start of the next two, and a batch in the middle of an epoch."""
    trial = masked(make, options)
    trial.trainer.setup.strategy.epochs = 1
    trial.before("phases", lambda e: stop() if e.index == 1 else None)

    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        trial.run()
    batch = next(iter(trial.trainer.context.batches(trial.stream.experiences[1].train[:8], batch_size=8)))
    batch.x, batch.phase, batch.step, batch.num_steps = batch.x.double(), "train", 3, 9
    trial.strategy.network.double().train()
    return trial, batch


def test_the_sparsity_loss_and_the_gradients(make):
    largest = 1.0 + 1e-9
    trial, batch = ready(make, mask_scale=largest)  # s = 1: there is nothing to compensate
    strategy = trial.strategy
    for k, gate in enumerate(gates_of(strategy.extractor).values()):
        gate.logits.data = torch.linspace(-1, 1, len(gate.logits), dtype=torch.float64) + 0.1 * k
    terms = strategy.masked_loss(batch)
    assert list(terms) == ["classification", "auxiliary", "sparsity"]
    plain = strategy.loss_terms(batch)
    assert all(torch.equal(plain[n], terms[n]) for n in plain)
    norms = [1 / (1 + np.exp(-g.logits.detach().numpy())) for g in gates_of(strategy.extractor).values()]
    n = [1, *(m.sum() for m in norms)]  # synthetic images have one channel
    c = [1, 3, 3, 3, 6, 6, 12, 12]
    expected = 30.0 * sum(9 * a * b for a, b in pairwise(n))
    expected /= sum(9 * a * b for a, b in pairwise(c))
    assert terms["sparsity"].item() == pytest.approx(expected, rel=1e-6)
    trained = [p for g in strategy.masked_groups() for p in g.parameters if p.requires_grad]
    assert_gradients(lambda: sum(strategy.masked_loss(batch).values()), trained)


def test_the_masks_train_without_weight_decay_and_everything_else_as_ever(make):
    trial, _ = ready(make, mask_lr=7.0)
    others, masks = trial.strategy.masked_groups()
    gates = gates_of(trial.strategy.extractor).values()
    assert [id(p) for p in masks.parameters] == [id(g.logits) for g in gates]
    assert {id(p) for p in [*others.parameters, *masks.parameters]} == set(map(id, trial.strategy.network.parameters()))
    assert (masks.lr_scale, masks.weight_decay) == (7.0, 0.0)
    assert (others.lr_scale, others.weight_decay) == (1.0, None)


def test_every_extractor_is_pruned_before_the_classifier_stage_and_stays_as_it_is(make):
    trial, seen, kept = masked(make), [], {}

    def at_balanced(experience) -> None:
        network = trial.strategy.network
        seen.append(experience.index)
        assert not any(gates_of(b) for b in network.branches)
        assert trial.strategy.extractor.kept_channels is not None
        assert network.classifier.in_features == network.heads["stage1"].in_features == network.feature_dim

    def compare(_) -> None:
        for i, branch in enumerate(trial.strategy.network.branches):
            kept.setdefault(i, []).append(copied(branch))

    at_begin_of(trial, "balanced", at_balanced)
    trial.before("after_experience", compare).run()
    compare(None)
    assert seen == [1, 2]
    assert [len(kept[i]) for i in range(3)] == [4, 3, 2]
    assert all(first_difference(versions[0], v) is None for versions in kept.values() for v in versions)
    network = trial.strategy.network
    for branch in network.branches:
        n = [len(v) for v in channels_of(branch).values()]
        assert size(branch) == sum(9 * a * b for a, b in pairwise([1, *n])) + 2 * sum(n)
        assert size(branch) < size(SMALL.build((1, 8, 8)))
    assert size(network) == sum(map(size, network.branches)) + 2 * 6 * (network.feature_dim + 1)


def test_the_features_are_those_under_binary_masks(make):
    trial, before = masked(make), []
    prune = trial.strategy.network.prune_branch
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def watched(index) -> None:
        network = trial.strategy.network.eval()
        for gate in gates_of(network.branches[index]).values():
            gate.binarise()
        with torch.no_grad():
            before.append(network(x).logits)
            prune(index)
            torch.testing.assert_close(network(x).logits, before[-1], atol=1e-5, rtol=1e-5)

    trial.strategy.network.prune_branch = watched
    trial.run()
    assert [len(b[0]) for b in before] == [2, 4, 6]


def test_the_next_extractor_is_whole_and_starts_from_what_was_kept(make):
    trial, starts = masked(make), []

    def look(experience) -> None:
        if experience.index:
            old, new = trial.strategy.network.branches[-2:]
            rows = channels_of(old)["layer3.0.inner_gate"]
            starts.append((rows, old.layer3[0].bn1.running_mean, new.layer3[0].bn1.running_mean.clone()))
            assert size(new) - sum(len(g.logits) for g in gates_of(new).values()) == size(SMALL.build((1, 8, 8)))
            assert min(g.logits.min().item() for g in gates_of(new).values()) > 0

    trial.before("phases", look).run()
    assert len(starts) == 2
    for rows, old, new in starts:
        assert torch.equal(new[rows], old)
        assert not new[[k for k in range(12) if k not in rows]].any()


@pytest.mark.parametrize("stop_after", [1, 6, 13, 17, 31])
def test_it_resumes_inside_every_stage(resumes, stop_after):
    resumes(DER(warmup_epochs=1, **MASKED), stop_after, backbone=SMALL)


def test_a_pruned_run_is_loaded_as_it_was(tmp_path):
    run = clframe.run(
        scenario={"name": "split_digits", "classes": 4, "experiences": 2, "train_per_class": 10},
        strategy=DER(mask_lr=50.0, **{**MASKED, "memory_size": 20}),
        backbone=SMALL,
        epochs=1,
        run_dir=tmp_path / "run",
    )
    again = clframe.load(run.path)
    assert size(again.model) == size(run.model)
    assert again.model.structure()["kept"] == run.model.structure()["kept"]
    assert all(k is not None for k in again.model.structure()["kept"])
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.model(x).logits, run.model(x).logits)
    assert size(again.model.branches[0]) < size(SMALL.build((1, 8, 8)))


@pytest.mark.parametrize("backbone", [None, backbone_config("preact_resnet18", {"width": 2})])
def test_backbones_without_channels_to_prune_are_refused_before_the_run(make, backbone):
    options = {} if backbone is None else {"backbone": backbone}
    with pytest.raises(ConfigurationError, match="DER prunes channels, expected a backbone that supports it"):
        make(DER(**MASKED), **options)


def test_it_prunes_and_still_beats_fine_tuning_on_digits(make, digits):
    options = {"epochs": 5, "batch_size": 32, "backbone": "mlp"}
    pruned = make(DER(balanced_epochs=10, masks=True, mask_lr=100.0), digits(), **options).run()
    plain = make(Finetune(), digits(), **options).run().final_accuracy()
    whole = 64 * 400 + 400 + 400 * 400 + 400
    assert all(1000 < size(b) < 0.8 * whole for b in pruned.strategy.network.branches)
    assert pruned.final_accuracy() > plain + 0.4
