"""Variants of the split stream: counts, shots, labels withheld or wrong, unlearning events, queries, superclasses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clframe
from clframe.data import DataRoot
from clframe.errors import ConfigurationError
from clframe.scenarios.active import Active
from clframe.scenarios.few_shot import FewShot
from clframe.scenarios.long_tailed import LongTailed
from clframe.scenarios.noisy_labels import NoisyLabels
from clframe.scenarios.partially_labelled import PartiallyLabelled
from clframe.scenarios.split import SplitDigits
from clframe.scenarios.superclass_domains import CIFAR100_SUPERCLASSES, SuperclassDomains
from clframe.scenarios.unlearning import Unlearning
from clframe.stream import Stream

SEEDED = [LongTailed, FewShot, PartiallyLabelled, NoisyLabels, Active]
FINGERPRINTS = {
    "LongTailed": "45ced2fd5f0d89db",
    "FewShot": "1420bf19ae48564f",
    "PartiallyLabelled": "cfabecf200307adf",
    "NoisyLabels": "920a8ef980ba4919",
    "Active": "34a66770aa087d2d",
    "Unlearning": "1c7755c40ea70975",
}


def built(cls, **options) -> Stream:
    return cls(**options).build(DataRoot.resolve())


def counts(stream: Stream) -> list[int]:
    return torch.bincount(stream.train.targets[torch.cat([e.train for e in stream.experiences])]).tolist()


@pytest.mark.parametrize("cls", [*SEEDED, Unlearning])
def test_golden_fingerprints_and_seeds(cls):
    options = {"what": "samples"} if cls is Unlearning else {}
    stream = built(cls, **options)
    assert stream.fingerprint[:16] == FINGERPRINTS[cls.__name__]
    assert built(cls, **options, stream_seed=1).fingerprint != stream.fingerprint


# ---- long-tailed


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=30), st.floats(0.001, 1), st.integers(0, 3))
def test_the_profile_is_exponential_in_the_rank(available, ratio, seed):
    ordered = LongTailed(ratio=ratio, placement="ordered").profile(available)
    last = len(available) - 1
    assert ordered == sorted(ordered, reverse=True)
    assert ordered[0] == min(available)
    assert ordered[-1] == max(1, round(min(available) * (ratio if last else 1)))
    middle = last // 2
    expected = min(available) * np.exp(np.log(ratio) * middle / max(1, last))
    assert ordered[middle] == pytest.approx(max(1, expected), abs=0.5000001)
    shuffled = LongTailed(ratio=ratio, stream_seed=seed).profile(available)
    assert sorted(shuffled, reverse=True) == ordered


def test_only_training_samples_are_cut_down():
    stream, plain = built(LongTailed, ratio=0.1, placement="ordered"), built(SplitDigits)
    found = counts(stream)
    assert found == LongTailed(ratio=0.1, placement="ordered").profile(counts(plain))
    assert [len(t.test) for t in stream.tasks] == [len(t.test) for t in plain.tasks]
    given_counts = [9, 8, 7, 6, 5, 4, 3, 2, 1, 1]
    assert counts(built(LongTailed, counts=given_counts)) == given_counts
    with pytest.raises(ConfigurationError, match="expected 10 numbers of at most"):
        built(LongTailed, counts=[5] * 9)


# ---- few-shot


def test_every_class_after_the_base_has_its_shots():
    stream = built(FewShot, shots=3)
    whole = counts(built(SplitDigits))
    assert counts(stream) == [*whole[:4], 3, 3, 3, 3, 3, 3]
    assert [len(e.classes) for e in stream.experiences] == [4, 2, 2, 2]
    with pytest.raises(ConfigurationError, match="at most the 4 training samples of the class '4', received 5"):
        built(FewShot, train_per_class=4)


# ---- labels


@pytest.mark.parametrize("share", [0.01, 0.25, 1.0])
def test_a_share_of_every_class_keeps_its_labels_whatever_the_order(share):
    stream, plain = built(PartiallyLabelled, labelled=share), built(SplitDigits)
    for e, whole in zip(stream.experiences, plain.experiences, strict=True):
        joined = torch.cat([e.train, e.unlabelled])
        assert sorted(joined.tolist()) == whole.train.tolist()
    expected = [max(1, round(share * n)) for n in counts(plain)]
    assert counts(stream) == expected
    other = built(PartiallyLabelled, labelled=share, order="seed:4")
    kept = [set(torch.cat([e.train for e in s.experiences]).tolist()) for s in (stream, other)]
    assert kept[0] == kept[1]


def test_labels_withheld_are_refused_by_a_method_that_cannot_use_them():
    with pytest.raises(ConfigurationError, match=r"can't use samples without labels.*put \+pseudo_labels behind it"):
        clframe.plan(scenario="partially_labelled", strategy="finetune")
    assert clframe.plan(scenario="partially_labelled", strategy="finetune+pseudo_labels").phases


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_exactly_the_declared_share_is_wrong_and_stays_in_its_experience(kind, noise):
    options = {"order": "seed:2", "sizes": [3, 3, 4]}
    stream, clean = built(NoisyLabels, noise=noise, kind=kind, **options), built(SplitDigits, **options)
    for e in clean.experiences:
        true, given_labels = clean.train.targets[e.train], stream.train.targets[e.train]
        for label in e.classes:
            own = true == label
            wrong = given_labels[own][given_labels[own] != label]
            assert len(wrong) == round(noise * int(own.sum()))
            assert set(wrong.tolist()) <= set(e.classes)
            if kind == "pair" and len(wrong):
                place = e.classes.index(label)
                assert set(wrong.tolist()) == {e.classes[(place + 1) % len(e.classes)]}
    assert torch.equal(stream.test.targets, clean.test.targets)


# ---- unlearning


def test_classes_or_samples_are_named_and_only_what_stays_may_be_trained_on():
    stream = built(Unlearning, share=0.2)
    event = stream.experiences[-1]
    assert set(stream.train.targets[event.forget].tolist()) == {0, 1}
    learnt = torch.cat([e.train for e in stream.experiences[:-1]])
    assert sorted(torch.cat([event.train, event.forget]).tolist()) == sorted(learnt.tolist())
    assert event.classes == tuple(range(2, 10))
    samples = built(Unlearning, what="samples", share=0.25, retain="none").experiences[-1]
    assert len(samples.train) == 0
    assert torch.bincount(stream.train.targets[samples.forget]).tolist() == [
        round(0.25 * n) for n in counts(built(SplitDigits))
    ]


@pytest.mark.parametrize("options", [{"what": "samples", "share": 0.25}, {"share": 0.3, "order": "seed:2"}])
def test_the_reference_stream_is_the_same_without_what_is_forgotten(options):
    stream, reference = built(Unlearning, **options), built(Unlearning, retrain=True, **options)
    forget = set(stream.experiences[-1].forget.tolist())
    left = [sorted(set(e.train.tolist()) - forget) for e in stream.experiences]
    assert [e.train.tolist() for e in reference.experiences] == [ids for ids in left if ids]
    assert not any(len(e.forget) for e in reference.experiences)
    alone = built(Unlearning, retrain=True, retain="none", **options)  # in the event nothing would be left to do
    assert [e.train.tolist() for e in alone.experiences] == [e.train.tolist() for e in reference.experiences[:-1]]
    for table in ("train", "test"):
        names = [np.array(s.class_names)[getattr(s, table).targets] for s in (stream, reference)]
        known = getattr(reference, table).targets >= 0
        assert (names[0][known] == names[1][known]).all()
        gone = set(np.unique(getattr(stream, table).targets[~known]).tolist())
        assert gone == (set() if "what" in options else {0, 1, 2})


def test_a_reference_without_anything_is_refused():
    with pytest.raises(ConfigurationError, match="leave some of the 2 classes"):
        built(Unlearning, retrain=True, share=0.9, classes=2, experiences=1)
    with pytest.raises(ConfigurationError, match="training samples of every class"):
        built(Unlearning, retrain=True, what="samples", share=0.9, train_per_class=1)


def test_replay_forgets_and_goes_on(tmp_path):
    scenario = {"name": "unlearning", "train_per_class": 12, "test_per_class": 5, "share": 0.2, "retain": "none"}
    strategy = {"name": "replay", "memory_size": 20}
    run = clframe.run(scenario=scenario, strategy=strategy, epochs=1, run_dir=tmp_path / "run", progress=False)
    stream = clframe.open_scenario(scenario)
    kept = run.strategy.memory_
    assert len(kept) == 16
    assert not torch.isin(kept.ids, stream.experiences[-1].forget).any()
    with pytest.raises(ConfigurationError, match="can't unlearn samples, which this stream asks for"):
        clframe.plan(scenario=scenario, strategy="lwf")


# ---- active


def test_a_label_is_bought_once(tmp_path, monkeypatch):
    from clframe.strategies.finetune import Finetune

    pools: list[set[int]] = []

    class Greedy(Finetune):
        """Always buys the first samples of the pool."""

        def query(self, experience):
            pools.append(set(experience.pool.tolist()))
            return experience.pool[: experience.query_budget]

    scenario = {"name": "active", "budget": 30, "rounds": 4, "test_per_class": 5}
    clframe.run(scenario=scenario, strategy=Greedy(epochs=1), run_dir=tmp_path / "run", progress=False)
    stream = clframe.open_scenario(scenario)
    rest = set(stream.experiences[1].pool.tolist())
    assert len(stream.experiences[0].train) == 30
    assert not rest & set(stream.experiences[0].train.tolist())
    assert [len(p) for p in pools] == [len(rest), len(rest) - 30, len(rest) - 60]
    assert pools[2] < pools[1] < pools[0]


def test_more_labels_than_samples_are_refused():
    with pytest.raises(
        ConfigurationError, match="5 rounds to buy at most the 100 training samples, received 21 a round"
    ):
        built(Active, train_per_class=10, budget=21)


# ---- superclasses


EVEN_ODD = {"even": ["0", "2", "4", "6", "8"], "odd": ["1", "3", "5", "7", "9"]}


def test_every_experience_shows_another_subclass_of_every_superclass():
    stream = built(SuperclassDomains, source="digits", hierarchy=EVEN_ODD, setting="task")
    digits = clframe.open_scenario("split_digits").train.targets
    for i, e in enumerate(stream.experiences):
        assert set(digits[e.train].tolist()) == {2 * i, 2 * i + 1}
        assert torch.equal(stream.train.targets[e.train], digits[e.train] % 2)
        assert set(stream.train.task_ids[e.train].tolist()) == {i}
    assert stream.class_names == ("even", "odd")


def test_the_superclasses_of_cifar100_are_twenty_of_five():
    flat = [c for classes in CIFAR100_SUPERCLASSES.values() for c in classes]
    assert (len(CIFAR100_SUPERCLASSES), len(flat), len(set(flat))) == (20, 100, 100)


@pytest.mark.parametrize(
    ("hierarchy", "said"),
    [
        ({"a": ["0", "1"], "b": ["2"]}, r"equally many classes of every superclass, received \{'a': 2, 'b': 1\}"),
        ({"a": ["0"], "b": ["zero"]}, "the source has no class 'zero'"),
        ({"a": ["0"], "b": ["0"]}, "a class is named twice"),
    ],
)
def test_a_hierarchy_that_does_not_fit(hierarchy, said):
    with pytest.raises(ConfigurationError, match=said):
        built(SuperclassDomains, source="digits", hierarchy=hierarchy)


def test_the_hierarchy_of_cifar100_fits_its_class_names(shared_data):
    stream = clframe.open_scenario("superclass_domains", data_root=shared_data, train_per_class=5, test_per_class=2)
    assert [len(e.train) for e in stream.experiences] == [100] * 5
    assert len(stream.class_names) == 20
