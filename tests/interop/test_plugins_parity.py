"""A hosted plugin does what it does in Avalanche's own loop: the same weights, bit for bit, and it does something."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from clframe.interop.avalanche import AvalanchePlugins
from clframe.models.mlp import MLP
from clframe.strategies.finetune import Finetune
from clframe.testing import TinyBackbone, synthetic_stream
from clframe.testing.bench import first_difference
from tests.fakes import run
from tests.interop.native import RECIPE, run_hosted, run_native

EWC = {"name": "EWCPlugin", "ewc_lambda": 5.0}
REPLAY = {"name": "ReplayPlugin", "mem_size": 8}
AGEM = {"name": "AGEMPlugin", "patterns_per_experience": 6, "sample_size": 6}

PLUGINS: dict[str, list[dict[str, Any]]] = {
    "EWC": [EWC],
    "EWC online": [{**EWC, "mode": "online", "decay_factor": 0.5}],
    "LwF": [{"name": "LwFPlugin", "alpha": 1.0, "temperature": 2.0}],
    "MAS": [{"name": "MASPlugin", "lambda_reg": 1.0, "alpha": 0.5}],
    "RWalk": [{"name": "RWalkPlugin", "ewc_lambda": 1.0, "delta_t": 2}],
    "A-GEM": [AGEM],
    "GEM": [{"name": "GEMPlugin", "patterns_per_experience": 6, "memory_strength": 0.5}],
    "replay": [REPLAY],
    "replay, small batches": [{**REPLAY, "batch_size": 3, "batch_size_mem": 2}],
    "MIR": [{"name": "MIRPlugin", "batch_size_mem": 3, "mem_size": 12, "subsample": 6}],
    "GDumb": [{"name": "GDumbPlugin", "mem_size": 10}],
    "RAR": [{"name": "RARPlugin", "batch_size_mem": 4, "mem_size": 8}],
    "from scratch": [{"name": "FromScratchTrainingPlugin"}],
    "CWR*": [{"name": "CWRStarPlugin"}],
    "replay and LwF": [REPLAY, {"name": "LwFPlugin"}],
    "A-GEM and EWC": [AGEM, EWC],
}
OTHER_STREAMS: list[tuple[str, dict[str, Any], Any]] = [
    (name, {"setting": setting, **({"experiences": [[0, 1], [0, 1], [0, 1]]} if setting == "domain" else {})}, backbone)
    for setting, backbone, names in [
        ("task", MLP(hidden=[12]), ["EWC", "LwF", "A-GEM", "replay", "MIR", "GDumb"]),
        ("domain", MLP(hidden=[12]), ["MAS", "LwF"]),
        ("class", TinyBackbone(), ["EWC", "RWalk", "A-GEM", "CWR*"]),
    ]
    for name in names
]


@pytest.mark.parametrize("name", PLUGINS)
def test_hosted_equals_native(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(name, {}, MLP(hidden=[12]), monkeypatch)


@pytest.mark.parametrize(("name", "stream", "backbone"), OTHER_STREAMS, ids=str)
def test_hosted_equals_native_elsewhere(
    name: str, stream: dict[str, Any], backbone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(name, stream, backbone, monkeypatch)


def check(name: str, options: dict[str, Any], backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "GEM" and importlib.util.find_spec("quadprog") is None:
        pytest.skip("needs the solver quadprog: pip install 'clframe[quadprog]'")
    stream = synthetic_stream(train_per_class=9, size=6, **options)
    hosted = run_hosted(stream, PLUGINS[name], monkeypatch, backbone=backbone, batch_size=5)
    native = run_native(hosted, AvalanchePlugins(plugins=PLUGINS[name]).make_plugins)
    ours, theirs = hosted.network.state_dict(), native.model.network.state_dict()
    assert first_difference(dict(ours), dict(theirs)) is None
    plain = run(Finetune(epochs=2), stream, optimizer=RECIPE, backbone=backbone, batch_size=5)
    without = plain.strategy.network.state_dict()
    moved = max(float((v - without[k]).abs().max()) for k, v in ours.items() if v.is_floating_point())
    assert moved > 1e-4, f"{name} changes nothing"
    assert torch.isfinite(torch.cat([v.flatten() for v in ours.values()])).all()
