"""Pure functions of plasticity, against their definitions in NumPy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from clframe.plasticity import (
    dormancy,
    dormant_units,
    effective_rank,
    largest_eigenvalue,
    mean_absolute,
    running_level,
    srank,
    stable_rank,
    steps_to_threshold,
    weight_distance,
    weight_magnitude,
)

LEVELS = st.lists(st.floats(0, 100, width=32), min_size=1, max_size=20)


@given(LEVELS, st.sampled_from([0.0, 0.025, 0.5, 1.0]))
def test_dormant_units_are_those_of_the_definition(levels: list[float], tau: float) -> None:
    h = np.asarray(levels, dtype=np.float32)
    s = h / h.mean() if h.mean() > 0 else np.zeros_like(h)
    assert dormant_units({"l": torch.tensor(levels)}, tau)["l"] == pytest.approx((s <= tau).mean())


def test_zeroed_units_are_exactly_the_share_that_is_dormant() -> None:
    h = torch.rand(7, 10, 3, 3) + 0.5
    h[:, [2, 5, 8]] = 0
    assert dormant_units({"conv": mean_absolute(h)}) == {"conv": pytest.approx(0.3)}
    assert dormant_units({"conv": mean_absolute(h)}, 0.0) == {"conv": pytest.approx(0.3)}


def test_a_layer_that_says_nothing_is_dormant_as_a_whole() -> None:
    assert dormant_units({"l": torch.zeros(4)}, 0.0) == {"l": 1.0}


@pytest.mark.parametrize(("shape", "dim"), [((5, 4), 1), ((5, 4, 3, 2), 1), ((5, 6, 4), 2)])
def test_levels_are_means_over_samples_and_places(shape: tuple[int, ...], dim: int) -> None:
    h = torch.randn(shape)
    others = tuple(d for d in range(len(shape)) if d != dim)
    np.testing.assert_allclose(mean_absolute(h, dim).numpy(), np.abs(h.numpy()).mean(axis=others), rtol=1e-5)


def test_dormancy_does_not_know_the_scale() -> None:
    h = torch.rand(9)
    torch.testing.assert_close(dormancy(h), dormancy(1000 * h))
    assert float(dormancy(h).mean()) == pytest.approx(1)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_the_effective_rank_of_k_equal_singular_values_is_k(k: int) -> None:
    values = torch.cat([torch.full((k,), 3.0), torch.zeros(4)])
    assert effective_rank(values) == pytest.approx(k)
    assert stable_rank(values) == pytest.approx(k)
    assert srank(values) == k


def test_a_matrix_of_rank_one_has_rank_one_in_every_sense() -> None:
    values = torch.linalg.svdvals(torch.outer(torch.randn(9), torch.randn(5)).double())
    assert stable_rank(values) == pytest.approx(1)
    assert effective_rank(values) == pytest.approx(1, abs=1e-6)
    assert srank(values) == 1


def test_ranks_of_nothing_are_zero() -> None:
    zeros = torch.zeros(3)
    assert (effective_rank(zeros), srank(zeros), stable_rank(zeros)) == (0.0, 0, 0.0)


@given(st.lists(st.floats(0.125, 10, width=32), min_size=1, max_size=12), st.sampled_from([0.01, 0.1, 0.5]))
def test_ranks_are_those_of_the_definitions(values: list[float], delta: float) -> None:
    s = np.sort(np.asarray(values, dtype=np.float64))[::-1]
    p = s / s.sum()
    given_ = torch.tensor(values, dtype=torch.float64)
    assert effective_rank(given_) == pytest.approx(math.exp(-(p * np.log(p)).sum()))
    assert stable_rank(given_) == pytest.approx((s**2).sum() / s[0] ** 2)
    shares = np.cumsum(s) / s.sum()
    assume(np.abs(shares - (1 - delta)).min() > 1e-9)  # where rounding would decide
    assert srank(given_, delta) == 1 + int((shares < 1 - delta).sum())


def test_the_three_ranks_are_three_different_things() -> None:
    values = torch.tensor([10.0, 1.0, 1.0, 1.0])
    assert stable_rank(values) == pytest.approx(1.03)
    assert effective_rank(values) == pytest.approx(math.exp(-10 / 13 * math.log(10 / 13) + 3 / 13 * math.log(13)))
    assert srank(values) == 4


def test_weight_magnitude_weighs_layers_by_their_size() -> None:
    overall, layers = weight_magnitude(
        {"a": torch.tensor([[1.0, -3.0]]), "b": torch.tensor([-5.0]), "c": torch.empty(0)}
    )
    assert overall == pytest.approx(3)
    assert layers == {"a": 2.0, "b": 5.0}


def test_weight_distance_is_over_all_tensors_together() -> None:
    now = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0]), "new": torch.ones(2)}
    start = {"a": torch.zeros(2), "b": torch.zeros(1), "new": torch.zeros(5)}
    assert weight_distance(now, start) == pytest.approx(5)


@pytest.mark.parametrize("spectrum", [[4.0, 1.0, -2.0], [1.5, -9.0, 0.5], [-1.0, -3.0], [0.0, 0.0], [2.0]])
def test_the_largest_eigenvalue_is_numpys(spectrum: list[float]) -> None:
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), dtype=torch.float64)).Q
    h = q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ q.T
    found = largest_eigenvalue(lambda v: h @ v, torch.randn(len(spectrum), dtype=torch.float64), tolerance=1e-9)
    assert found == pytest.approx(np.linalg.eigvalsh(h.numpy()).max(), abs=1e-4)


def test_the_threshold_is_reached_by_a_mean_over_twenty_steps() -> None:
    assert steps_to_threshold([0.0] * 10 + [1.0] * 30, 0.5) == 20
    assert steps_to_threshold([0.0] * 20 + [1.0] * 30, 0.5) == 30
    assert steps_to_threshold([1.0] * 19, 0.5) is None
    assert steps_to_threshold([0.4] * 100, 0.5) is None
    assert running_level([0.0] * 30 + [1.0] * 20) == 1.0
    assert running_level([0.0, 1.0]) == 0.5
