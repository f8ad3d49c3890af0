"""A-GEM: the projection, the reference, and what reaches the memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clframe.errors import ConfigurationError
from clframe.strategies.agem import AGEM, projections
from clframe.strategies.finetune import Finetune
from clframe.testing import check_strategy
from clframe.testing.streams import synthetic_stream

POLICIES = ["random", "reservoir", "ring"]


def stream(setting: str = "class", **options):
    groups = {"experiences": [[0, 1], [0, 1], [0, 1]]} if setting == "domain" else {}
    return synthetic_stream(setting=setting, **groups, **options)


def flat(tensors) -> np.ndarray:
    return np.concatenate([t.detach().double().numpy().ravel() for t in tensors])


# ---- the projection


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-3, 1.0, 30.0]))
def test_the_projection_equals_numpy_and_never_goes_against_the_reference(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    g, r = ([scale * torch.randn(*s, generator=generator).double() for s in ((3, 2), (4,))] for _ in range(2))
    change = projections(g, r)
    a, b = flat(g), flat(r)
    expected = a - min(0.0, a @ b) / (b @ b) * b
    found = a - flat(change)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert found @ b >= -1e-6
    if a @ b >= 0:
        assert all((c == 0).all() for c in change)
    else:
        assert found @ b == pytest.approx(0, abs=1e-9 * (1 + abs(a @ b)))
        assert np.linalg.norm(found) <= np.linalg.norm(a)


def test_a_reference_without_a_gradient_changes_nothing():
    assert torch.equal(projections([torch.ones(3)], [torch.zeros(3)])[0], torch.zeros(3))


def watch_steps(trial) -> list[dict]:
    """Of every step with a reference: gradients before and after, g_ref, and the ids it was computed on."""
    strategy, found = trial.strategy, []
    after, reference, batches = (
        strategy.after_backward,
        strategy.reference_gradients,
        trial.trainer.context.training_batch,
    )

    def watched(batch) -> None:
        gradients = [p.grad for p in strategy.network.parameters()]
        found.append({"batch": batch, "before": flat(gradients), "memory": strategy.memory_.ids.tolist()})
        after(batch)
        found[-1]["after"] = flat(gradients)
        if "reference" not in found[-1]:
            found.pop()

    def given_reference(batch, parameters):
        assert torch.is_grad_enabled()
        made = reference(batch, parameters)
        loss = torch.nn.functional.cross_entropy(strategy.network(batch.x).logits, batch.y)
        again = torch.autograd.grad(loss, parameters)
        np.testing.assert_allclose(flat(made), flat(again), rtol=1e-4, atol=1e-6)
        found[-1]["reference"] = flat(made)
        return made

    strategy.after_backward, strategy.reference_gradients = watched, given_reference
    trial.trainer.context.training_batch = lambda ids, purpose: (
        found[-1].update(ids=ids.tolist()), batches(ids, purpose))[1]  # fmt: skip
    return found


@pytest.mark.parametrize("setting", ["class", "domain"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_step_is_projected_as_the_paper_says_on_earlier_experiences_alone(make, policy, setting):
    trial = make(AGEM(memory_size=12, memory_batch=5, policy=policy), stream(setting))
    found = watch_steps(trial)
    trial.run()
    experiences = trial.stream.experiences
    indices = [s["batch"].experience.index for s in found]
    if (policy, setting) == ("ring", "domain"):  # the newest of a class that comes again soon are all of the present
        assert set(indices) == {1, 2}
        assert len(indices) < 12
    else:
        assert indices == [1] * 6 + [2] * 6
    kept = 0
    for step in found:
        a, b, after = step["before"], step["reference"], step["after"]
        if a @ b >= 0:
            assert (a == after).all()
            kept += 1
        else:
            np.testing.assert_allclose(after, a - (a @ b) / (b @ b) * b, rtol=1e-4, atol=1e-6)
        assert after @ b >= -1e-6 * max(1.0, np.linalg.norm(a) * np.linalg.norm(b))
        past = {i for e in experiences[: step["batch"].experience.index] for i in e.train.tolist()}
        earlier = past & set(step["memory"])
        assert set(step["ids"]) <= earlier
        assert len(step["ids"]) == len(set(step["ids"])) == min(5, len(earlier))
    assert (kept < len(found)) if setting == "class" else (0 < kept < len(found))


def test_what_is_aligned_is_not_changed_bit_for_bit(make, same):
    trial = make(AGEM(memory_size=12), augmentation="crop_flip")
    trial.strategy.reference_gradients = lambda batch, parameters: [2 * p.grad for p in parameters]
    same(trial.run().bits(), make(Finetune(), augmentation="crop_flip").run().bits())


# ---- limits and memory


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_without_memory_and_in_the_first_experience_it_is_fine_tuning_bit_for_bit(make, same, setting, policy):
    same(
        make(AGEM(memory_size=0, policy=policy), stream(setting)).run().bits(),
        make(Finetune(), stream(setting)).run().bits(),
    )
    one = synthetic_stream(experiences=[[0, 1, 2]])
    same(make(AGEM(policy=policy), one).run().bits(), make(Finetune(), one).run().bits())


def test_random_exemplars_are_balanced_over_the_classes_and_chosen_when_an_experience_ends(make):
    trial, held = make(AGEM(memory_size=12)), []
    trial.before("after_experience", lambda e: held.append(trial.strategy.memory_.ids.tolist()))
    trial.run()
    assert [len(ids) for ids in held] == [0, 12, 12]
    assert torch.bincount(trial.strategy.memory_.targets).tolist() == [2] * 6


def test_without_boundaries_the_whole_memory_is_the_reference(make):
    trial = make(AGEM(memory_size=12, policy="reservoir"), stream(boundaries=False), epochs=1)
    found = watch_steps(trial)
    trial.run()
    assert len(found) == 9 - 1
    assert any(
        set(s["ids"]) & set(s["batch"].experience.train.tolist()) for s in found if s["batch"].experience.index == 0
    )
    with pytest.raises(ConfigurationError, match="expected reservoir, ring or class_balanced, received 'random'"):
        make(AGEM(), stream(boundaries=False))


def test_the_reference_counts_as_presented(make):
    trial = make(AGEM(memory_size=12))
    found = watch_steps(trial)
    trial.watch().run()
    expected = sum(len(b.ids) for b in trial.batches) + sum(len(s["ids"]) for s in found)
    assert trial.trainer.counters["presentations"] == expected


@pytest.mark.parametrize("head", ["linear", "multi"])
def test_a_head_for_every_task(make, head):
    trial = make(AGEM(memory_size=12), stream("task", online=True), head={"name": head}, epochs=1).run()
    assert len(trial.strategy.memory_) == 12


# ---- contract, resuming, refusals


def test_it_keeps_the_contract():
    check_strategy(AGEM())


@pytest.mark.parametrize("policy", POLICIES)
def test_it_resumes_in_the_middle_of_an_epoch(resumes, policy):
    for stop_after in (2, 8, 17):
        resumes(AGEM(memory_size=12, policy=policy), stop_after, augmentation="crop_flip")


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (AGEM(loss_over="experience"), "trains on older classes too, so expected auto or seen"),
        (AGEM(memory_size=5), "at least one exemplar for each of 6 classes"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(make, strategy, said):
    with pytest.raises(ConfigurationError, match=said):
        make(strategy)


def test_it_forgets_less_than_fine_tuning_on_digits_with_a_head_for_every_task(make, digits):
    options = {"epochs": 2, "batch_size": 16, "backbone": "mlp", "optimizer": {"lr": 0.05}, "head": {"name": "multi"}}
    source, found = digits(setting="task"), []
    for strategy in (AGEM(memory_size=100), Finetune()):
        runs = [make(strategy, source, seed=seed, **options).run() for seed in range(2)]
        found.append(np.mean([r.final_accuracy(column="predicted_local") for r in runs]))
    assert found[0] > found[1] + 0.01
