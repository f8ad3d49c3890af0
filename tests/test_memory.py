"""The exemplar memory against plain transcriptions of the published algorithms."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clframe.errors import ConfigurationError, ContractError
from clframe.memory import ExemplarMemory, herding_order


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features_of(width: int = 5, seed: int = 0):
    """A fixed feature vector for every id, with the calls counted."""
    table = torch.randn(5000, width, generator=gen(seed))
    calls: list[torch.Tensor] = []

    def features(ids: torch.Tensor) -> torch.Tensor:
        calls.append(ids)
        return table[ids]

    return features, calls


def add(memory: ExemplarMemory, ids, targets, seen: int, seed: int = 0, **options) -> None:
    options.setdefault("features", features_of()[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        memory.add_classes(torch.as_tensor(ids), torch.as_tensor(targets), seen, generator=gen(seed), **options)


def observe(memory: ExemplarMemory, ids, targets, generator=None, **options) -> None:
    memory.observe(torch.as_tensor(ids), torch.as_tensor(targets), generator=generator or gen(), **options)


# ---- herding


def naive_herding(features: np.ndarray, count: int) -> list[int]:
    """Greedy: the candidate whose addition brings the exemplars' mean closest to the class mean."""
    v = features / np.linalg.norm(features, axis=1, keepdims=True)
    chosen: list[int] = []
    for k in range(1, min(count, len(v)) + 1):
        rest = [i for i in range(len(v)) if i not in chosen]
        means = [v[[*chosen, i]].sum(axis=0) / k for i in rest]
        chosen.append(rest[int(np.argmin([np.linalg.norm(v.mean(axis=0) - m) for m in means]))])
    return chosen


def running_vector(features: np.ndarray, count: int) -> list[int]:
    """The form in iCaRL's code: w follows the mean, the best-aligned sample is taken and w moves on."""
    v = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean = v.mean(axis=0)
    w, chosen = mean.copy(), []
    for _ in range(min(count, len(v))):
        best = next(i for i in np.argsort(-(v @ w), kind="stable") if i not in chosen)
        chosen.append(int(best))
        w = w + mean - v[best]
    return chosen


@pytest.mark.parametrize("seed", range(8))
def test_herding_equals_both_published_forms(seed):
    features = torch.randn(30, 4, generator=gen(seed), dtype=torch.float64)
    found = herding_order(features, 12).tolist()
    assert found == naive_herding(features.numpy(), 12)
    assert found == running_vector(features.numpy(), 12)


def test_a_shorter_herding_is_the_beginning_of_a_longer_one():
    features = torch.randn(25, 3, generator=gen(3))
    whole = herding_order(features, 100)
    assert sorted(whole.tolist()) == list(range(25))
    assert all(torch.equal(herding_order(features, k), whole[:k]) for k in range(26))


def test_herding_comes_closer_to_the_mean_than_chance():
    features = torch.nn.functional.normalize(torch.randn(200, 8, generator=gen(1)), dim=1)
    mean = features.mean(dim=0)
    chosen = (features[herding_order(features, 10)].mean(dim=0) - mean).norm()
    drawn = [(features[torch.randperm(200, generator=gen(s))[:10]].mean(dim=0) - mean).norm() for s in range(200)]
    assert chosen < min(drawn)


def test_herding_survives_a_zero_feature():
    features = torch.randn(6, 3, generator=gen())
    features[2] = 0
    assert sorted(herding_order(features, 6).tolist()) == list(range(6))


# ---- quotas


def exemplars(memory: ExemplarMemory) -> dict[int, list[int]]:
    return {c: memory.ids[memory.targets == c].tolist() for c in memory.targets.unique().tolist()}


@pytest.mark.parametrize("policy", ["herding", "random"])
def test_a_total_budget_shrinks_every_class_to_the_beginning_of_its_order(policy):
    memory = ExemplarMemory(20, policy=policy)
    before: dict[int, list[int]] = {}
    for step in range(4):
        ids = torch.arange(100 * step, 100 * step + 60)
        add(memory, ids, 2 * step + ids % 2, 2 * step + 2, seed=step)
        now = exemplars(memory)
        assert {c: len(kept) for c, kept in now.items()} == dict.fromkeys(range(2 * step + 2), 20 // (2 * step + 2))
        assert all(now[c] == kept[: len(now[c])] for c, kept in before.items())
        before = now


def test_a_per_class_budget_stays():
    memory = ExemplarMemory(3, budget="per_class")
    for step in range(3):
        ids = torch.arange(10 * step, 10 * step + 10)
        add(memory, ids, torch.full((10,), step), step + 1)
    assert [len(kept) for kept in exemplars(memory).values()] == [3, 3, 3]


def test_memory_keeps_the_herding_order_of_the_features():
    features, calls = features_of()
    memory = ExemplarMemory(12)
    ids = torch.arange(40)
    add(memory, ids, ids % 2, 2, features=features)
    own = torch.arange(1, 40, 2)
    assert exemplars(memory)[1] == own[herding_order(features(own), 6)].tolist()
    assert len(calls) == 2  # one pass for all classes, and the one of this test


def test_a_small_class_gives_what_it_has_and_says_so():
    memory = ExemplarMemory(20, budget="per_class")
    with pytest.warns(UserWarning, match="1 classes have fewer samples than their quota of 20 exemplars"):
        memory.add_classes(
            torch.arange(30), (torch.arange(30) < 5).long(), 2, generator=gen(), features=features_of()[0]
        )
    assert {c: len(kept) for c, kept in exemplars(memory).items()} == {0: 20, 1: 5}


def test_random_choice_is_uniform_and_reproducible():
    def chosen(seed: int) -> list[int]:
        memory = ExemplarMemory(5, policy="random")
        add(memory, torch.arange(20), torch.zeros(20, dtype=torch.int64), 1, seed=seed, features=None)
        return memory.ids.tolist()

    assert chosen(3) == chosen(3)
    counts = np.bincount(np.concatenate([chosen(s) for s in range(800)]), minlength=20)
    assert ((counts - 200) ** 2 / 200).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001


@pytest.mark.parametrize("policy", ["herding", "random"])
def test_a_returning_class_shares_its_quota_in_proportion_to_its_history(policy):
    memory = ExemplarMemory(12, budget="per_class", policy=policy)
    old, new = range(60), range(100, 130)  # twice as many samples before as now
    add(memory, list(old), [0] * 60, 1)
    first = memory.ids.tolist()
    add(memory, list(new), [0] * 30, 1)
    kept = memory.ids.tolist()
    assert sum(i in old for i in kept) == 8
    assert [i for i in kept if i in old] == first[:8]
    assert all(abs(sum(i in old for i in kept[:k]) - 2 * k / 3) <= 1 for k in range(13))


def test_many_returns_of_a_class_keep_its_whole_history():
    memory = ExemplarMemory(20, budget="per_class")
    for visit in range(10):
        add(memory, range(100 * visit, 100 * visit + 50), [0] * 50, 1)
    visits = np.bincount(memory.ids.numpy() // 100, minlength=10)
    assert visits.min() >= 1
    assert visits.max() <= 4


def test_a_sample_is_not_stored_twice():
    memory = ExemplarMemory(10, budget="per_class")
    add(memory, range(6), [0] * 6, 1)
    add(memory, range(4, 8), [0] * 4, 1)
    assert sorted(memory.ids.tolist()) == list(range(8))


@pytest.mark.parametrize(
    ("size", "budget", "policy", "classes"),
    [
        (9, "total", "herding", 10),
        (3, "total", "random", 4),
        (1, "total", "ring", 2),
        (2, "total", "greedy_balanced", 3),
    ],
)
def test_a_budget_that_leaves_a_class_nothing_is_refused(size, budget, policy, classes):
    memory = ExemplarMemory(size, budget=budget, policy=policy)
    with pytest.raises(
        ConfigurationError, match=rf"each of {classes} classes, received memory_size={size}.*raise it to {classes}"
    ):
        memory.check(classes)
    memory.check(size)


def test_a_budget_without_quotas_and_an_empty_one_are_fine():
    for policy in ("reservoir", "class_balanced"):
        ExemplarMemory(3, policy=policy).check(10)
    ExemplarMemory(0).check(10)
    ExemplarMemory(1, budget="per_class").check(10)


@pytest.mark.parametrize("policy", ["reservoir", "class_balanced", "greedy_balanced"])
def test_a_reservoir_has_no_per_class_budget(policy):
    with pytest.raises(
        ConfigurationError, match=f"total budget for the memory policy '{policy}', received 'per_class'"
    ):
        ExemplarMemory(5, budget="per_class", policy=policy)


def test_a_policy_is_filled_in_its_own_way_only():
    with pytest.raises(ContractError, match="'herding' is filled after an experience"):
        observe(ExemplarMemory(5), [1], [0])
    with pytest.raises(ContractError, match="'reservoir', which is filled by observe"):
        add(ExemplarMemory(5, policy="reservoir"), [1], [0], 1)
    with pytest.raises(ContractError, match="herding with features"):
        add(ExemplarMemory(5), [1], [0], 1, features=None)


# ---- reservoir


def batches(total: int, seed: int) -> list[torch.Tensor]:
    cuts = np.random.default_rng(seed).integers(1, 12, size=total).cumsum()
    return list(torch.arange(total).tensor_split(torch.from_numpy(cuts[cuts < total])))


def one_by_one_reservoir(size: int, parts: list[torch.Tensor], generator: torch.Generator) -> list[int]:
    """Vitter's algorithm R, sample after sample, on the draws that the memory takes: two per sample that finds it full."""
    kept: list[int] = []
    seen = 0
    for part in parts:
        room = max(0, min(size - len(kept), len(part)))
        rest = len(part) - room
        draws = torch.rand(rest, 2, generator=generator, dtype=torch.float64).tolist() if rest else []
        for k, sample in enumerate(part.tolist()):
            seen += 1
            if k < room:
                kept.append(sample)
            else:
                slot = int(draws[k - room][0] * seen)
                if slot < size:
                    kept[slot] = sample
    return kept


@pytest.mark.parametrize("seed", range(10))
def test_reservoir_equals_the_one_by_one_algorithm_on_the_same_draws(seed):
    parts, generator = batches(200, seed), gen(seed)
    memory = ExemplarMemory(15, policy="reservoir")
    for part in parts:
        observe(memory, part, part % 3, generator)
    assert memory.ids.tolist() == one_by_one_reservoir(15, parts, gen(seed))
    assert torch.equal(memory.targets, memory.ids % 3)


def test_every_sample_of_the_stream_is_equally_likely_in_the_reservoir():
    total, size, runs = 60, 12, 3000
    generator, counts = gen(5), np.zeros(60)
    parts = batches(total, 1)
    for _ in range(runs):
        memory = ExemplarMemory(size, policy="reservoir")
        for part in parts:
            observe(memory, part, torch.zeros_like(part), generator)
        counts[memory.ids.numpy()] += 1
    expected = runs * size / total
    statistic = ((counts - expected) ** 2 / (expected * (1 - size / total))).sum() * (total - 1) / total
    assert statistic < 98.3  # chi-square, 59 degrees of freedom, p = 0.001


# ---- class balance


def one_by_one_balanced(size: int, parts, labels, generator: torch.Generator) -> list[int]:
    """Algorithm 1 of Chrysakis and Moens 2020 with Python lists."""
    kept: list[int] = []
    encountered: dict[int, int] = {}
    full: set[int] = set()
    for part in parts:
        room = max(0, min(size - len(kept), len(part)))
        rest = len(part) - room
        draws = torch.rand(rest, 2, generator=generator, dtype=torch.float64).tolist() if rest else []
        for k, sample in enumerate(part.tolist()):
            c = labels[sample]
            encountered[c] = encountered.get(c, 0) + 1
            if len(kept) < size:
                kept.append(sample)
                continue
            stored = [labels[s] for s in kept]
            amount = {label: stored.count(label) for label in stored}
            full |= {label for label, n in amount.items() if n == max(amount.values())}
            u, v = draws[k - room]
            if c not in full:
                largest = min(label for label, n in amount.items() if n == max(amount.values()))
                places = [i for i, label in enumerate(stored) if label == largest]
                kept[places[int(u * len(places))]] = sample
            elif u <= amount.get(c, 0) / encountered[c]:
                places = [i for i, label in enumerate(stored) if label == c]
                kept[places[int(v * len(places))]] = sample
    return kept


def imbalanced(total: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).choice(5, size=total, p=[0.55, 0.25, 0.12, 0.05, 0.03]).tolist()


@pytest.mark.parametrize("seed", range(8))
def test_class_balance_equals_a_transcription_of_the_paper_on_the_same_draws(seed):
    parts, labels, generator = batches(250, seed), imbalanced(250, seed), gen(seed)
    memory = ExemplarMemory(20, policy="class_balanced")
    for part in parts:
        observe(memory, part, torch.tensor(labels)[part], generator)
    assert memory.ids.tolist() == one_by_one_balanced(20, parts, labels, gen(seed))


def test_a_rare_class_keeps_more_than_a_reservoir_would_give_it():
    labels = torch.tensor(imbalanced(1000, 0))
    shares = {}
    for policy in ("reservoir", "class_balanced"):
        memory = ExemplarMemory(50, policy=policy)
        observe(memory, torch.arange(1000), labels)
        shares[policy] = torch.bincount(memory.targets, minlength=5)
    assert shares["class_balanced"].tolist() == [10, 10, 10, 10, 10]
    assert shares["reservoir"].min() < 5


# ---- greedy balance


def one_by_one_greedy(size: int, parts, labels, generator: torch.Generator) -> list[int]:
    """Algorithm 1 of Prabhu et al. 2020 with Python lists: quota k / |Y|, a random sample of the largest class leaves."""
    kept: list[int] = []
    seen: set[int] = set()
    for part in parts:
        draws = torch.rand(len(part), generator=generator, dtype=torch.float64).tolist()
        for sample, draw in zip(part.tolist(), draws, strict=True):
            c = labels[sample]
            seen.add(c)
            stored = [labels[s] for s in kept]
            if stored.count(c) >= size / len(seen):
                continue
            if len(kept) < size:
                kept.append(sample)
                continue
            largest = min(label for label in stored if stored.count(label) == max(map(stored.count, stored)))
            places = [i for i, label in enumerate(stored) if label == largest]
            kept[places[int(draw * len(places))]] = sample
    return kept


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [3, 20, 23])
def test_greedy_balance_equals_a_transcription_of_the_paper_on_the_same_draws(seed, size):
    parts, labels, generator = batches(250, seed), imbalanced(250, seed), gen(seed)
    memory = ExemplarMemory(size, policy="greedy_balanced")
    for part in parts:
        observe(memory, part, torch.tensor(labels)[part], generator)
    assert memory.ids.tolist() == one_by_one_greedy(size, parts, labels, gen(seed))
    assert torch.equal(memory.targets, torch.tensor(labels)[memory.ids])


def test_greedy_balance_keeps_every_class_within_one_of_the_others():
    memory, following = ExemplarMemory(17, policy="greedy_balanced"), 0
    for seen in (1, 2, 3, 5):  # classes arrive one after the other, each with enough samples
        label = torch.randint(seen, (200,), generator=gen(seen))
        observe(memory, torch.arange(following, following + 200), label, gen(seen))
        following += 200
        counts = torch.bincount(memory.targets, minlength=seen)
        assert len(memory) == 17
        assert counts.max() - counts.min() <= 1


def test_greedy_balance_never_gives_a_class_more_than_its_share_where_cbrs_fills_up():
    labels = torch.tensor([0] * 3 + [1] * 50)
    shares = {}
    for policy in ("greedy_balanced", "class_balanced"):
        memory = ExemplarMemory(20, policy=policy)
        observe(memory, torch.arange(53), labels)
        shares[policy] = torch.bincount(memory.targets).tolist()
        if policy == "greedy_balanced":
            assert memory.ids[memory.targets == 1].tolist() == list(range(3, 13))  # at its share a class takes no more
    assert shares == {"greedy_balanced": [3, 10], "class_balanced": [3, 17]}


def test_greedy_balance_fills_what_unlearning_has_emptied():
    memory = ExemplarMemory(6, policy="greedy_balanced")
    observe(memory, range(10), [0, 1] * 5)
    memory.remove(torch.tensor([0, 1, 2]))
    observe(memory, range(10, 20), [0, 1] * 5)
    assert torch.bincount(memory.targets).tolist() == [3, 3]


# ---- ring


def test_ring_keeps_the_newest_of_every_class():
    memory = ExemplarMemory(3, budget="per_class", policy="ring")
    labels = torch.tensor(imbalanced(120, 4))
    for part in batches(120, 4):
        observe(memory, part, labels[part])
        seen = torch.arange(int(part[-1]) + 1)
        expected = {int(c): seen[labels[seen] == c][-3:].tolist() for c in labels[seen].unique()}
        assert exemplars(memory) == expected


def test_ring_of_a_total_budget_makes_room_for_new_classes():
    memory = ExemplarMemory(12, policy="ring")
    observe(memory, range(30), [0] * 30)
    assert exemplars(memory) == {0: list(range(18, 30))}
    observe(memory, range(30, 60), [1, 2] * 15)
    assert exemplars(memory) == {0: [26, 27, 28, 29], 1: [52, 54, 56, 58], 2: [53, 55, 57, 59]}


def test_ring_renews_a_sample_that_it_has():
    memory = ExemplarMemory(5, budget="per_class", policy="ring")
    observe(memory, [0, 1, 2], [0, 0, 0])
    observe(memory, [0, 5, 5], [0, 0, 0])
    assert memory.ids.tolist() == [1, 2, 0, 5]


# ---- what every policy shares


def operation():
    """A random step of a memory's life."""
    return st.one_of(
        st.tuples(st.just("new"), st.integers(0, 40), st.integers(1, 6)),
        st.tuples(st.just("remove"), st.integers(0, 10), st.integers(0, 0)),
        st.tuples(st.just("sample"), st.integers(0, 30), st.integers(0, 0)),
    )


KINDS = [("herding", "total"), ("herding", "per_class"), ("random", "total"), ("reservoir", "total"), ("ring", "total"),
         ("ring", "per_class"), ("class_balanced", "total"), ("greedy_balanced", "total")]  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    size=st.integers(0, 25),
    seed=st.integers(0, 999),
    steps=st.lists(operation(), max_size=12),
)
def test_the_budget_is_never_exceeded_and_labels_and_extras_stay_with_their_samples(kind, size, seed, steps):
    policy, budget = kind
    memory = ExemplarMemory(size, budget=budget, policy=policy, sample_bytes=3)
    generator, following, seen = gen(seed), 0, 0
    label_of: dict[int, int] = {}
    for what, number, classes in steps:
        if what == "new":
            ids = torch.arange(following, following + number)
            following += number
            seen = max(seen, classes)
            extras = {"mark": ids.float()}
            if policy in ("herding", "random"):
                add(memory, ids, ids % classes, seen, seed=seed, extras=extras)
            else:
                memory.observe(ids, ids % classes, generator=generator, extras=extras)
            label_of.update(zip(ids.tolist(), (ids % classes).tolist(), strict=True))
        elif what == "remove":
            gone = memory.ids[:number].clone()
            assert memory.remove(gone) == len(gone)
            assert not torch.isin(memory.ids, gone).any()
        else:
            rows = memory.sample(number, generator=generator)
            assert len(rows) == min(number, len(memory)) == len(rows.unique())
        assert len(memory.ids.unique()) == len(memory)
        assert len(memory) <= (size if budget == "total" else size * seen)
        if budget == "per_class":
            assert not len(memory) or torch.bincount(memory.targets).max() <= size
        if len(memory):
            assert memory.extras["mark"].tolist() == memory.ids.tolist()
            assert memory.targets.tolist() == [label_of[i] for i in memory.ids.tolist()]
        assert memory.bytes == len(memory) * (3 + 8 + (4 if memory.extras else 0))


def test_bytes_count_pixels_labels_and_extras():
    memory = ExemplarMemory(4, policy="reservoir", sample_bytes=3 * 32 * 32)
    assert memory.bytes == 0
    observe(memory, range(4), [0] * 4, extras={"logits": torch.zeros(4, 10)})
    assert memory.bytes == 4 * (3072 + 8 + 40)


@pytest.mark.parametrize("policy", ["reservoir", "class_balanced", "greedy_balanced", "ring"])
def test_wider_logits_pad_the_older_ones(policy):
    memory = ExemplarMemory(6, policy=policy)
    observe(memory, range(6), [0, 1] * 3, extras={"logits": torch.arange(6.0)[:, None].expand(6, 2)})
    for start in range(6, 60, 6):
        ids = torch.arange(start, start + 6)
        observe(memory, ids, ids % 3, gen(start), extras={"logits": ids[:, None].expand(6, 3).float()})
    logits = memory.extras["logits"]
    assert logits.shape == (6, 3)
    for row, sample in zip(logits, memory.ids.tolist(), strict=True):
        known = 2 if sample < 6 else 3
        assert row[:known].tolist() == [sample] * known
        assert row[known:].isnan().all()
    narrow = ExemplarMemory(2, policy="reservoir")
    observe(narrow, [0], [0], extras={"logits": torch.ones(1, 3)})
    observe(narrow, [1], [0], extras={"logits": torch.ones(1, 2)})
    assert narrow.extras["logits"].isnan().tolist() == [[False] * 3, [False, False, True]]


def test_what_is_stored_beside_a_sample_can_be_renewed():
    memory = ExemplarMemory(4, policy="reservoir")
    observe(memory, [5, 3, 8], [0, 1, 0], extras={"logits": torch.tensor([[5.0], [3.0], [8.0]])})
    new = torch.tensor([[80.0, 81.0], [70.0, 71.0], [50.0, 51.0]])
    memory.renew(torch.tensor([8, 7, 5]), {"logits": new})
    assert memory.extras["logits"].nan_to_num(-1).tolist() == [[50, 51], [3, -1], [80, 81]]
    memory.renew(torch.tensor([3]), {"logits": torch.tensor([[30.0]])})  # narrower ones are padded
    assert memory.extras["logits"].nan_to_num(-1).tolist() == [[50, 51], [30, -1], [80, 81]]
    memory.renew(torch.tensor([1]), {"other": torch.ones(1)})
    with pytest.raises(ContractError, match=r"the same extras: expected \['logits'\], received \['other'\]"):
        memory.renew(torch.tensor([3]), {"other": torch.ones(1)})


def test_extras_of_some_samples_only_are_refused():
    memory = ExemplarMemory(6, policy="reservoir")
    observe(memory, [0, 1], [0, 0])
    with pytest.raises(ContractError, match=r"the same extras: expected \[\], received \['logits'\]"):
        observe(memory, [2], [0], extras={"logits": torch.zeros(1, 2)})


@pytest.mark.parametrize(("policy", "budget"), KINDS)
def test_a_restored_memory_goes_on_as_if_nothing_had_happened(policy, budget):
    def step(memory: ExemplarMemory, k: int) -> None:
        ids = torch.arange(20 * k, 20 * k + 20)
        extras = {"logits": torch.full((20, k + 1), float(k))}
        if policy in ("herding", "random"):
            add(memory, ids, ids % (k + 1), k + 1, seed=k, extras=extras)
        else:
            observe(memory, ids, ids % (k + 1), gen(k), extras=extras)

    whole = ExemplarMemory(9, budget=budget, policy=policy, sample_bytes=7)
    for k in range(3):
        step(whole, k)
    state = whole.state_dict()
    snapshot = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
    restored = ExemplarMemory.from_state(state)
    for memory in (whole, restored):
        step(memory, 3)
        step(memory, 4)
    assert torch.equal(state["ids"], snapshot["ids"])  # what was saved doesn't change afterwards
    assert torch.equal(whole.ids, restored.ids)
    assert torch.equal(whole.targets, restored.targets)
    torch.testing.assert_close(whole.extras, restored.extras, rtol=0, atol=0, equal_nan=True)
    assert (whole.num_observed, whole.class_counts, whole.full_classes, whole.bytes) == (
        restored.num_observed, restored.class_counts, restored.full_classes, restored.bytes
    )  # fmt: skip


def test_small_and_large_draws_are_uniform():
    memory = ExemplarMemory(40, policy="reservoir")
    observe(memory, range(40), [0] * 40)
    generator = gen(2)
    for count in (3, 20):
        rows = torch.cat([memory.sample(count, generator=generator) for _ in range(2000)])
        expected = 2000 * count / 40
        statistic = ((torch.bincount(rows, minlength=40) - expected) ** 2 / expected).sum()
        assert statistic < 72.1  # chi-square, 39 degrees of freedom, p = 0.001 (a draw without repetition spreads less)
