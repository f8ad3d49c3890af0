"""Class statistics against NumPy: running sums, every covariance, samples, bytes and checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clframe.class_statistics import ClassStatistics
from clframe.errors import ContractError
from clframe.testing.bench import first_difference
from clframe.testing.streams import TinyNet
from clframe.training.checkpoint import pack, read_checkpoint, unpack, write_checkpoint

KINDS = ["full", "shared", "diagonal", "low_rank"]


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(counts=(30, 7, 19), dim: int = 4, seed: int = 0):
    """Features of classes 0, 2, 4, … with different means and covariances, shuffled."""
    generator = gen(seed)
    parts = [3 * k + torch.randn(n, dim, generator=generator) @ torch.randn(dim, dim, generator=generator)
             for k, n in enumerate(counts)]  # fmt: skip
    y = torch.cat([torch.full((n,), 2 * k) for k, n in enumerate(counts)])
    order = torch.randperm(len(y), generator=generator)
    return torch.cat(parts)[order], y[order]


def filled(x, y, kind="full", pieces=1, **options) -> ClassStatistics:
    made = ClassStatistics(kind, **options)
    for part in torch.arange(len(y)).chunk(pieces):
        made.update(x[part], y[part])
    return made


def expected(x, y, label, kind) -> np.ndarray:
    of = {c: x[y == c].double().numpy() for c in y.unique().tolist()}
    if kind == "shared":
        scatter = sum((len(v) - 1) * np.cov(v.T) for v in of.values())
        return scatter / (len(y) - len(of))
    full = np.cov(of[label].T)
    return np.diag(np.diag(full)) if kind == "diagonal" else full


@pytest.mark.parametrize("pieces", [1, 3, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_counts_means_and_covariances_do_not_depend_on_how_samples_come(kind, pieces):
    x, y = data()
    found = filled(x, y, kind, pieces, rank=4)
    assert found.labels == [0, 2, 4]
    assert found.counts == {0: 30, 2: 7, 4: 19}
    assert np.allclose(found.mean([4, 0]), [x[y == 4].mean(0), x[y == 0].mean(0)], atol=1e-5)
    for label in found.labels:
        assert np.allclose(found.covariance(label), expected(x, y, label, kind), rtol=1e-5, atol=1e-5)
        ridged = found.covariance(label, ridge=0.5).numpy()
        assert np.allclose(ridged, expected(x, y, label, kind) + 0.5 * np.eye(4), rtol=1e-5, atol=1e-5)


def test_a_low_rank_keeps_the_leading_directions_and_the_whole_variance():
    x, y = data(counts=(60,), dim=8)
    whole = expected(x, y, 0, "full")
    values, vectors = np.linalg.eigh(whole)
    found = filled(x, y, "low_rank", rank=3).covariance(0).numpy()
    rest = values[:5].mean()
    assert np.allclose(found, (vectors * np.r_[np.full(5, rest), values[5:]]) @ vectors.T, atol=1e-4)
    running = filled(x, y, "low_rank", pieces=6, rank=3).covariance(0).numpy()
    assert np.trace(running) == pytest.approx(np.trace(whole), rel=1e-5)
    assert np.linalg.eigvalsh(running)[-1] == pytest.approx(values[-1], rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_means_and_covariances(kind):
    x, y = data()
    statistics = filled(x, y, kind, rank=2)
    drawn, labels = statistics.sample([4, 0], 40000, generator=gen(), mean_scales=[0.5, 1.0], ridge=0.3)
    assert drawn.dtype == torch.float32
    assert labels.tolist() == [4] * 40000 + [0] * 40000
    for label, scale in ((4, 0.5), (0, 1.0)):
        own, target = drawn[labels == label], statistics.covariance(label, ridge=0.3).numpy()
        size = np.trace(target)
        assert np.allclose(own.mean(0), scale * x[y == label].mean(0), atol=0.03 * size**0.5)
        assert np.allclose(np.cov(own.T.numpy()), target, atol=0.03 * size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 5])
def test_fewer_samples_than_dimensions(kind, count):
    x, y = data(counts=(count,), dim=12)
    statistics = filled(x, y, kind, rank=3)
    exact, _ = statistics.sample([0], 200, generator=gen())
    assert bool(exact.isfinite().all())
    if count == 1:
        assert torch.allclose(exact, x.expand(200, -1), atol=1e-5)
    elif kind in ("full", "shared"):  # draws stay in the affine span of the samples
        basis = torch.linalg.svd((x - x.mean(0)).double(), full_matrices=False)[2][: count - 1]
        away = (exact - x.mean(0)).double()
        assert float((away - away @ basis.T @ basis).norm()) < 1e-3 * float(away.norm())
        assert float(away.std()) > 0.1
    ridged, _ = statistics.sample([0], 200, generator=gen(), ridge=1e-4)
    assert bool(ridged.isfinite().all())
    assert int(torch.linalg.matrix_rank((ridged - ridged.mean(0)).double(), rtol=1e-6)) == 12


def test_samples_are_the_generators():
    statistics = filled(*data())
    a, b, c = (statistics.sample([0, 4], 3, generator=gen(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert [len(t) for t in statistics.sample([], 3, generator=gen())] == [0, 0]


def test_means_alone():
    x, y = data()
    statistics = filled(x, y, "none", pieces=4)
    assert np.allclose(statistics.mean([2]), x[y == 2].mean(0), atol=1e-5)
    with pytest.raises(ContractError, match="keep means alone"):
        statistics.covariance(2)
    drawn, _ = statistics.sample([2], 5000, generator=gen(), ridge=0.25)
    assert np.allclose(np.cov(drawn.T.numpy()), 0.25 * np.eye(4), atol=0.02)


@pytest.mark.parametrize(
    ("kind", "values"), [("none", 0), ("full", 3 * 16), ("shared", 16), ("diagonal", 12), ("low_rank", 24)]
)
def test_bytes(kind, values):
    extra = 8 * 3 if kind == "low_rank" else 0
    assert filled(*data(), kind, rank=2).bytes == 4 * (3 * 4 + values) + 8 * 3 + extra
    assert ClassStatistics(kind).bytes == 0


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_a_checkpoint_brings_them_back(kind, tmp_path):
    x, y = data()
    half = len(y) // 2
    kept = filled(x[:half], y[:half], kind, rank=2)
    write_checkpoint(tmp_path / "c.pt", {"value": pack(kept)})
    back = unpack(read_checkpoint(tmp_path / "c.pt")["value"], lambda: TinyNet(1, 8, 2))
    for one in (kept, back):
        one.update(x[half:], y[half:])
    assert isinstance(back, ClassStatistics)
    assert first_difference(pack(kept), pack(back)) is None
