"""Class means of frozen features: against NumPy and scikit-learn, in any order, and nothing trained."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.neighbors import NearestCentroid
from torch import nn

import clframe
from clframe.errors import ConfigurationError
from clframe.models import build_backbone
from clframe.strategies.nmc import NMC, SimpleCIL
from clframe.testing import check_strategy
from clframe.testing.bench import first_difference
from clframe.testing.streams import TinyBackbone, synthetic_stream
from clframe.training.checkpoint import pack

BOTH = pytest.mark.parametrize("cls", [NMC, SimpleCIL])
GROUPS = [[0, 1], [2, 3], [4, 5]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLFRAME_CACHE", str(tmp_path / "cache"))


def features_of(trial, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of everything seen, computed without the strategy's road."""
    stream, maker = trial.stream, trial.trainer.context.test_maker
    table = getattr(stream, split)
    ids = torch.cat([e.train for e in stream.experiences] if split == "train" else [t.test for t in stream.tasks])
    with torch.no_grad():
        found = trial.strategy.network.eval().features(maker.test_input(table.gather(ids)))
    return found.double().numpy(), table.targets[ids].numpy()


def scores_of(trial) -> np.ndarray:
    ids = torch.cat([t.test for t in trial.stream.tasks])
    maker = trial.trainer.context.test_maker
    with torch.no_grad():
        (scores,) = trial.strategy.predict(maker.test_input(maker.table.gather(ids))).values()
    return scores.numpy()


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


STREAMS = {
    "class": {"experiences": GROUPS},
    "task": {"experiences": GROUPS, "setting": "task"},
    "domain": {"experiences": [[0, 1, 2]] * 3, "setting": "domain"},
    "classes that come back": {"experiences": [[0, 1], [1, 2, 3], [0, 3, 4]]},
    "unequal sizes": {"experiences": GROUPS, "train_per_class": [9, 1, 4], "odd": 1},
}


@pytest.mark.parametrize("options", STREAMS.values(), ids=STREAMS)
def test_nmc_equals_numpy_and_scikit_learn(make, options):
    trial = make(NMC(), synthetic_stream(test_per_class=7, **options)).run()
    (x, y), (tx, ty) = features_of(trial, "train"), features_of(trial, "test")
    means = np.stack([unit(x)[y == k].mean(axis=0) for k in range(y.max() + 1)])
    assert (np.linalg.norm(means, axis=1) < 1 - 1e-4).any()  # not normalised again
    np.testing.assert_allclose(trial.strategy.means().numpy(), means, rtol=1e-5, atol=1e-6)
    distances = ((unit(tx)[:, None] - means[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(scores_of(trial), -distances, rtol=1e-4, atol=1e-6)
    columns = trial.recorder.kept["test", 3, "nmc"]
    expected = NearestCentroid().fit(unit(x), y).predict(unit(tx))
    clear = np.diff(np.sort(distances, axis=1)[:, :2], axis=1)[:, 0] > 1e-5
    assert clear.mean() > 0.9
    assert (columns["predicted"] == expected)[clear].all()
    assert (columns["target"] == ty).all()


@pytest.mark.parametrize("options", STREAMS.values(), ids=STREAMS)
def test_simplecil_equals_numpy(make, options):
    trial = make(SimpleCIL(), synthetic_stream(test_per_class=7, **options)).run()
    (x, y), (tx, _) = features_of(trial, "train"), features_of(trial, "test")
    prototypes = np.stack([x[y == k].mean(axis=0) for k in range(y.max() + 1)])
    np.testing.assert_allclose(trial.strategy.means().numpy(), prototypes, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores_of(trial), unit(tx) @ unit(prototypes).T, rtol=1e-4, atol=1e-5)
    assert not np.allclose(
        unit(prototypes), unit(np.stack([unit(x)[y == k].mean(0) for k in range(y.max() + 1)])), atol=1e-4
    )


@BOTH
def test_nothing_is_trained_and_the_network_keeps_every_bit(make, cls):
    trial = make(cls())
    before = {k: v.clone() for k, v in trial.strategy.network.branches.state_dict().items()}
    trial.run()
    assert trial.strategy.network.backbone_frozen
    assert trial.trainer.counters["steps"] == trial.trainer.counters["presentations"] == 0
    assert first_difference(pack(before), pack(dict(trial.strategy.network.branches.state_dict()))) is None
    assert not any(p.requires_grad for p in trial.strategy.network.branches.parameters())
    assert trial.final_accuracy(head={"NMC": "nmc", "SimpleCIL": "cosine"}[cls.__name__]) > 0.8


@BOTH
def test_the_order_of_classes_and_experiences_does_not_matter(make, cls):
    """The same images in another order: every class has the same mean, and every test image the same scores."""
    found = []
    for groups in (GROUPS, [[5, 2], [4, 0], [3, 1]], [[0, 1, 2, 3, 4, 5]]):
        trial = make(cls(), reordered(groups), backbone=fixed()).run()
        order = torch.tensor(trial.stream.class_order)
        found.append((trial.strategy.means()[order.argsort()], trial.final_accuracy(next(iter(heads(trial))))))
    for means, accuracy in found[1:]:
        torch.testing.assert_close(means, found[0][0], rtol=1e-6, atol=1e-7)
        assert accuracy == found[0][1]


def heads(trial) -> set[str]:
    return {head for _, _, head in trial.recorder.kept}


def reordered(groups):
    """The digits of scikit-learn, cut by `groups`."""
    from clframe.data import DataRoot
    from clframe.scenarios.split import SplitDigits

    sizes, flat = [len(g) for g in groups], [c for g in groups for c in g]
    scenario = SplitDigits(classes=sorted(flat), order=flat, sizes=sizes, train_per_class=12, test_per_class=10)
    return scenario.build(DataRoot.resolve())


def fixed() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten())


def test_sums_are_exact_where_single_precision_is_not(make):
    """A million times 0.1 added one by one drifts by a percent in single precision."""
    trial = make(NMC())
    strategy = trial.strategy
    trial.trainer.run()
    assert strategy.sums_.dtype == torch.float64
    count, values = 3000, torch.full((1000, strategy.network.feature_dim), 0.1)
    strategy.run.features = lambda ids: values
    strategy.run.targets = lambda ids: torch.zeros(len(values), dtype=torch.int64)
    strategy.setup()
    experience = trial.stream.experiences[0]
    for _ in range(count):
        strategy.after_experience(experience)
    expected = 1 / np.sqrt(values.shape[1])
    assert float(strategy.sums_[0, 0]) == pytest.approx(count * len(values) * expected, rel=1e-9)
    assert strategy.counts_.tolist() == [count * len(values), 0]


def test_a_class_without_samples_is_never_predicted(make):
    stream = synthetic_stream(setting="domain", experiences=[[0, 1, 2]] * 2)
    trial = make(NMC(), stream)
    targets = trial.trainer.context.targets
    trial.trainer.context.targets = lambda ids: targets(ids).clamp(max=1)
    trial.run()
    columns = trial.recorder.kept["test", 2, "nmc"]
    assert set(columns["predicted"].tolist()) <= {0, 1}
    assert np.isfinite(columns["confidence"]).all()


@BOTH
@pytest.mark.parametrize("experiences", [1, 2])
def test_it_goes_on_from_a_checkpoint(make, cls, experiences):
    whole, resumed = make(cls()), make(cls())
    whole.recorder.saves = True
    whole.run()
    resumed.trainer.load_state(torch.load(io.BytesIO(whole.recorder.saved[experiences - 1]), weights_only=True))
    resumed.run()
    for name in ("sums_", "counts_"):
        assert torch.equal(getattr(whole.strategy, name), getattr(resumed.strategy, name))
    last = max(whole.recorder.kept)
    pairs = zip(whole.recorder.kept[last].values(), resumed.recorder.kept[last].values(), strict=True)
    assert all((a == b).all() for a, b in pairs)


@BOTH
def test_it_needs_weights(make, cls):
    with pytest.raises(
        ConfigurationError, match=r"^\w+ needs a backbone with weights: give --backbone.weights FILE, .*module\.$"
    ):
        make(cls(), backbone={"name": "resnet8"})
    make(cls(), backbone=fixed())


@BOTH
def test_it_keeps_the_contract_on_a_network_whose_weights_are_given(cls):
    check_strategy(cls(), backbone=TinyBackbone(width=3))


@BOTH
def test_a_finished_run_predicts_images_without_data_cache_and_weights_file(tmp_path, monkeypatch, cls):
    torch.manual_seed(1)
    weights = tmp_path / "weights.safetensors"
    save_file(build_backbone("resnet8", {"width": 4}, (1, 8, 8)).state_dict(), weights)
    backbone = {"name": "resnet8", "width": 4, "weights": str(weights), "input_mean": [0.2], "input_std": [0.7]}
    scenario = {"name": "split_digits", "train_per_class": 10, "test_per_class": 10}
    run = clframe.run(scenario=scenario, strategy=cls(), backbone=backbone, run_dir=tmp_path / "run", progress=False)
    weights.unlink()
    monkeypatch.setenv("CLFRAME_CACHE", str(tmp_path / "elsewhere"))
    loaded = clframe.load(tmp_path / "run")
    stream = reordered([list(range(10))])
    (head,) = run.result["values"]
    kept = np.load(run.path / "predictions" / "test" / f"0005-{head}.npz")
    names = loaded.predict(stream.test.gather(torch.from_numpy(kept["sample"])))
    expected = [loaded.directory.stream["class_names"][k] for k in kept["predicted"]]
    assert len(names) == 100
    assert np.mean([a == b for a, b in zip(names, expected, strict=True)]) > 0.97  # but for ties in the last bit
    assert not (tmp_path / "elsewhere" / "features").exists()
