"""Schedules against PyTorch's own, and parameter groups."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from clframe.errors import ConfigurationError
from clframe.strategy import ParameterGroup
from clframe.training.recipe import Recipe


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(3))


def ours(recipe: Recipe, epochs: int) -> list[float]:
    optimizer = recipe.build([ParameterGroup([parameter()])])
    rates = []
    for epoch in range(epochs):
        recipe.set_rate(optimizer, epoch, epochs)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def theirs(make: Any, lr: float, epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([parameter()], lr=lr)
    schedule = make(optimizer)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_constant() -> None:
    assert ours(Recipe(lr=0.3), 5) == [0.3] * 5


@given(st.integers(2, 30), st.floats(1e-4, 1), st.floats(0.05, 1), st.sets(st.integers(1, 29), max_size=4))
def test_multistep_is_torchs(epochs: int, lr: float, gamma: float, milestones: set[int]) -> None:
    recipe = Recipe(lr=lr, schedule="multistep", milestones=sorted(milestones), gamma=gamma)
    expected = theirs(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, sorted(milestones), gamma), lr, epochs)
    assert ours(recipe, epochs) == pytest.approx(expected)


def test_multistep_in_fractions_of_the_phase() -> None:
    recipe = Recipe(lr=1.0, schedule="multistep", milestones=[0.5, 0.75], gamma=0.1)
    assert ours(recipe, 8) == pytest.approx([1] * 4 + [0.1] * 2 + [0.01] * 2)
    whole = Recipe(lr=1.0, schedule="multistep", milestones=[4, 6], gamma=0.1)
    assert ours(recipe, 8) == ours(whole, 8)


@given(st.integers(2, 40), st.floats(1e-4, 1))
def test_cosine_is_torchs(epochs: int, lr: float) -> None:
    expected = theirs(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, epochs), lr, epochs)
    assert ours(Recipe(lr=lr, schedule="cosine"), epochs) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(st.integers(1, 70), st.floats(1e-4, 1), st.integers(1, 5), st.integers(1, 3), st.floats(0.001, 0.5))
def test_cosine_with_restarts_is_torchs(epochs: int, lr: float, first: int, factor: int, lowest: float) -> None:
    marks, length = [first], first
    while marks[-1] < epochs:
        length *= factor
        marks.append(marks[-1] + length)
    expected = theirs(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, first, factor, eta_min=lr * lowest),
        lr,
        epochs,
    )
    recipe = Recipe(lr=lr, schedule="cosine_restarts", milestones=[float(m) for m in marks], gamma=lowest)
    assert ours(recipe, epochs) == pytest.approx(expected, rel=1e-6)


def test_cosine_without_restarts_falls_to_its_lowest_rate_at_the_end() -> None:
    recipe = Recipe(lr=1.0, schedule="cosine_restarts", gamma=0.2, per="step")
    assert [recipe.factor(e, 4) for e in (0, 1, 2, 3, 4)] == pytest.approx(
        [1, 0.6 + 0.4 * math.cos(math.pi / 4), 0.6, 0.6 - 0.4 * math.cos(math.pi / 4), 0.2]
    )
    halves = Recipe(schedule="cosine_restarts", milestones=[0.5], gamma=0.2, warmup=1)
    assert [halves.factor(e, 6) for e in (0, 1, 2, 3, 4.5)] == pytest.approx([1, 1, 0.6, 1, 0.6])


@pytest.mark.parametrize("warmup", [1, 3, 5])
def test_warm_up_by_epoch_is_linear_and_never_zero(warmup: int) -> None:
    rates = ours(Recipe(lr=2.0, warmup=warmup), 8)
    assert rates == pytest.approx([2.0 * min(1, (e + 1) / warmup) for e in range(8)])


def test_warm_up_by_step_rises_from_zero() -> None:
    recipe = Recipe(lr=1.0, warmup=2, per="step")
    assert [recipe.factor(s / 4, 5) for s in range(12)] == pytest.approx([min(1, s / 8) for s in range(12)])


def test_cosine_after_warm_up_covers_the_rest() -> None:
    recipe = Recipe(lr=1.0, warmup=2, schedule="cosine")
    expected = [0.5, 1.0, *(0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8))]
    assert ours(recipe, 10) == pytest.approx(expected)


def test_the_rate_is_a_function_of_the_position_alone() -> None:
    recipe = Recipe(lr=0.1, schedule="cosine")
    optimizer = recipe.build([ParameterGroup([parameter()])])
    recipe.set_rate(optimizer, 7, 10)
    later = optimizer.param_groups[0]["lr"]
    for epoch in (1, 9, 3, 7):
        recipe.set_rate(optimizer, epoch, 10)
    assert optimizer.param_groups[0]["lr"] == later


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_groups_keep_their_own_rate_and_decay(name: Any, kind: type) -> None:
    recipe = Recipe(name=name, lr=0.2, weight_decay=0.01, beta2=0.98, schedule="multistep", milestones=[1])
    slow, plain = parameter(), parameter()
    optimizer = recipe.build(
        [ParameterGroup([slow], lr_scale=0.1, weight_decay=0.0), ParameterGroup([plain]), ParameterGroup([])]
    )
    assert type(optimizer) is kind
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(pytest.approx(0.02), 0.0), (0.2, 0.01)]
    recipe.set_rate(optimizer, 1, 2)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.002, 0.02])
    if name != "sgd":
        assert optimizer.param_groups[0]["betas"] == (0.9, 0.98)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_steps_as_pytorchs(nesterov: bool) -> None:
    a, b = parameter(), parameter()
    made = Recipe(lr=0.1, momentum=0.8, nesterov=nesterov, weight_decay=0.1).build([ParameterGroup([a])])
    reference = torch.optim.SGD([b], lr=0.1, momentum=0.8, nesterov=nesterov, weight_decay=0.1)
    for _ in range(4):
        for p, optimizer in ((a, made), (b, reference)):
            optimizer.zero_grad()
            (p**3).sum().backward()
            optimizer.step()
    assert torch.equal(a, b)


def test_clipping() -> None:
    p = parameter()
    p.grad = torch.tensor([3.0, -4.0, 0.0])
    Recipe(clip_norm=1.0).clip([p])
    assert p.grad.tolist() == pytest.approx([0.6, -0.8, 0.0], abs=1e-5)
    Recipe(clip_value=0.5).clip([p])
    assert p.grad.tolist() == pytest.approx([0.5, -0.5, 0.0], abs=1e-5)
    assert not Recipe().clips
    assert Recipe(clip_value=0.5).clips


def test_changes_by_name() -> None:
    recipe = Recipe(lr=0.1, momentum=0.5)
    changed = recipe.changed({"lr": 0.01, "schedule": "cosine"})
    assert (changed.lr, changed.momentum, changed.schedule, recipe.lr) == (0.01, 0.5, "cosine", 0.1)
    assert recipe.changed(None) is recipe
    with pytest.raises(ConfigurationError, match="'rate'"):
        recipe.changed({"rate": 1})


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="parameters to train"):
        Recipe().build([ParameterGroup([])])
