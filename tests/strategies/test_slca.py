"""SLCA: slow backbone, frozen heads, local loss, alignment that leaves no trace in learning."""

from __future__ import annotations

import pytest
import torch

from clframe.errors import ConfigurationError
from clframe.models import backbone_config
from clframe.strategies.finetune import Finetune
from clframe.strategies.gauss_align import GaussAlign
from clframe.strategies.slca import SLCA
from clframe.testing import check_strategy
from clframe.testing.streams import TinyBackbone, synthetic_stream
from tests.strategies.laws import at_begin_of, ce, copied

FAST = {"samples_per_class": 16, "stage_batch_size": 16, "stage_epochs": 2}


def slca(**options) -> SLCA:
    return SLCA(**{**FAST, **options})


def of(trial, head: str):
    return {i: c for (_, i, h), c in trial.recorder.kept.items() if h == head}


def test_it_keeps_the_contract_on_a_vision_transformer():
    check_strategy(SLCA(), backbone=backbone_config("vit_tiny", {"patch": 4, "dim": 12, "depth": 1}))


@pytest.mark.parametrize("classes", [[[0, 1], [2, 3], [4, 5]], [[0, 1, 2], [2, 3], [0]]])
def test_heads_of_other_experiences_stay_bit_identical(make, classes):
    trial, starts, ends = make(slca(), synthetic_stream(experiences=classes)), [], []
    trial.before("phases", lambda e: starts.append(copied(trial.strategy.network.classifier)))
    trial.before("after_experience", lambda e: ends.append(copied(trial.strategy.network.classifier))).run()
    for group, before, after in zip(classes, starts, ends, strict=True):
        other = [c for c in range(len(before["weight"])) if c not in group]
        for name in ("weight", "bias"):
            assert torch.equal(before[name][other], after[name][other])
            assert not torch.isclose(before[name][group], after[name][group], rtol=0, atol=1e-7).all()


def test_alignment_leaves_no_trace_in_learning(make, same):
    """The heads after an experience are those before alignment; the next one starts from them and the same backbone."""
    trial, before, after, starts = make(slca()), [], [], []
    at_begin_of(trial, "align", lambda e: before.append(copied(trial.strategy.network)))
    trial.before("after_experience", lambda e: after.append(copied(trial.strategy.network)))
    trial.before("phases", lambda e: starts.append(copied(trial.strategy.network))).run()
    assert [len(before), len(after)] == [2, 3]
    same(before, after[1:])
    assert torch.equal(starts[2]["heads.classifier.weight"][:4], after[1]["heads.classifier.weight"])
    longer = make(slca(stage_epochs=5, covariance="diagonal")).run()
    assert all((of(trial, "unaligned")[i][n] == c[n]).all() for i, c in of(longer, "unaligned").items() for n in c)
    aligned = trial.strategy.head_
    assert set(aligned) == {"weight", "bias"}
    assert (
        not torch.isclose(aligned["weight"], trial.strategy.network.classifier.weight, rtol=0, atol=1e-7).any(1).all()
    )


def test_report_heads(make):
    trial = make(slca()).run()
    assert list({h: 0 for _, _, h in trial.recorder.kept}) == ["classifier", "unaligned"]
    classifier, unaligned = of(trial, "classifier"), of(trial, "unaligned")
    assert (classifier[1]["energy"] == unaligned[1]["energy"]).all()
    assert all((classifier[i]["energy"] != unaligned[i]["energy"]).any() for i in (2, 3))


def rates(trial) -> list[dict[str, float]]:
    """The rate of classifier and backbone at the beginning of every main phase."""
    found = []
    inner = trial.trainer.begin_phase

    def both(experience, number, phase, start):
        begun = inner(experience, number, phase, start)
        if phase.name == "train":
            network = trial.strategy.network
            names = {id(p): n for n in ("heads", "branches") for p in getattr(network, n).parameters()}
            found.append({names[id(g.parameters[0])]: g.lr_scale for g in begun.parameters})
            assert len(names) == sum(len(g.parameters) for g in begun.parameters) or len(begun.parameters) == 1
        return begun

    trial.trainer.begin_phase = both
    return found


@pytest.mark.parametrize(
    ("options", "scales"),
    [({}, [1.0, 0.01, 0.01]), ({"first_lr_scale": 0.1, "backbone_lr_scale": 0.5}, [0.1, 0.5, 0.5]),
     ({"backbone_lr_scale": 0.0}, [1.0, None, None])],
)  # fmt: skip
def test_the_backbone_learns_slowly_after_a_base_task(make, options, scales):
    trial = make(slca(**options), backbone=TinyBackbone(pretrained=False))
    found = rates(trial)
    trial.run()
    assert found == [{"heads": 1.0, **({} if s is None else {"branches": s})} for s in scales]


def test_a_pretrained_backbone_is_slow_from_the_start(make):
    trial = make(slca(), backbone=TinyBackbone(pretrained=True))
    found = rates(trial)
    trial.run()
    assert [f["branches"] for f in found] == [0.01] * 3


def test_a_frozen_backbone_keeps_its_statistics_too(make):
    trial, starts = make(slca(backbone_lr_scale=0.0)), []
    trial.before("phases", lambda e: starts.append(copied(trial.strategy.network.branches))).run()
    assert all(torch.equal(starts[1][n], v) for n, v in trial.strategy.network.branches.state_dict().items())


def test_the_loss_is_over_the_experience_s_classes(make):
    trial = make(slca()).run()
    batch = next(iter(trial.trainer.context.batches(trial.stream.experiences[2].train, batch_size=8)))
    with torch.no_grad():
        z = trial.strategy.network.eval()(batch.x).logits.numpy()
        terms = trial.strategy.loss_terms(batch)
    assert set(terms) == {"classification"}
    assert terms["classification"].item() == pytest.approx(ce(z[:, 4:], batch.y.numpy() - 4), rel=1e-5)


def test_at_one_rate_in_one_experience_it_is_local_fine_tuning_bit_for_bit(make, same):
    stream = synthetic_stream(experiences=[[0, 1, 2]])
    options = {"backbone": TinyBackbone(pretrained=False)}
    a, b = (make(s, stream, **options).run() for s in (slca(), Finetune(loss_over="experience")))
    same(a.strategy.network.state_dict(), b.strategy.network.state_dict())
    assert (of(a, "unaligned")[1]["energy"] == of(b, "classifier")[1]["energy"]).all()


@pytest.mark.parametrize("stop_after", [5, 9, 13, 17, 25, 33])
def test_it_resumes_inside_every_stage(resumes, stop_after):
    resumes(slca(covariance="low_rank", rank=2), stop_after)


@pytest.mark.parametrize(
    ("strategy", "options", "said"),
    [
        (SLCA(), {"head": {"name": "cosine"}}, "a cosine head has one scale for all"),
        (SLCA(), {"head": {"name": "multi"}}, "one classifier over all classes, received multi"),
        (SLCA() + GaussAlign(), {}, "Expected one classifier stage in a composition, received SLCA and GaussAlign"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(make, strategy, options, said):
    with pytest.raises(ConfigurationError, match=said):
        make(strategy, **options)


def test_it_beats_fine_tuning_at_one_rate_and_the_alignment_does_its_part_on_digits(make, digits):
    options = {"epochs": 5, "batch_size": 32, "backbone": "mlp"}
    trial = make(SLCA(), digits(), **options).run()
    plain = make(Finetune(loss_over="experience"), digits(), **options).run()
    assert trial.final_accuracy() > plain.final_accuracy() + 0.15
    assert trial.final_accuracy() > trial.final_accuracy("unaligned") + 0.2
