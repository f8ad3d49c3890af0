"""ReDo: dormant units are recycled."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from clframe.models import backbone_config
from clframe.models.mlp import MLP
from clframe.strategies.finetune import Finetune
from clframe.strategies.redo import ReDo
from clframe.testing.streams import synthetic_stream

NETWORKS = {
    "mlp": (MLP(hidden=[12, 10]), ["gates.0", "gates.2"]),
    "resnet8": (backbone_config("resnet8", {"width": 4}), ["layer1.0.inner_gate", "layer2.0.inner_gate", "layer3.0.inner_gate"]),
    "resnet8 B": (
        backbone_config("resnet8", {"width": 4, "shortcut": "B"}),
        ["layer1.0.inner_gate", "layer2.0.inner_gate", "layer3.0.inner_gate"],
    ),
}  # fmt: skip


def stream(setting: str = "class", **options):
    groups = [[0, 1]] * 3 if setting == "domain" else [[0, 1], [2, 3], [4, 5]]
    return synthetic_stream(setting=setting, experiences=groups, **options)


def trained(make, name: str, setting: str = "class", strategy: ReDo | None = None):
    """A strategy after a run that recycled nothing, and a batch of its inputs."""
    chosen = strategy or ReDo(every=10_000)
    trial = make(chosen, stream(setting), backbone=NETWORKS[name][0]).run()
    trial.trainer.context.experience = trial.stream.experiences[-1]
    batch = next(iter(trial.trainer.context.batches(trial.stream.experiences[-1].train, batch_size=16)))
    trial.strategy.network.eval()
    return trial, batch.x


def silence(trial, name: str, numbers: list[int]) -> None:
    """Make units of the first set say nothing on any input."""
    backbone = trial.strategy.network.branches[0]
    with torch.no_grad():
        owner = backbone.layers[0] if name == "mlp" else backbone.layer1[0].bn1
        owner.weight[numbers] = 0
        owner.bias[numbers] = -1


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
@pytest.mark.parametrize("options", [{"every": 10_000, "threshold": 9.0}, {"every": 1, "threshold": 0.0}])
def test_where_nothing_is_dormant_it_is_fine_tuning_bit_for_bit(make, same, setting, options):
    net = MLP(hidden=[12, 10], activation="tanh")  # a unit of which is never exactly 0
    redo = make(ReDo(**options), stream(setting), backbone=net).run()
    assert redo.strategy.recycled_ == 0
    same(redo.bits(), make(Finetune(), stream(setting), backbone=net).run().bits())


def test_it_searches_every_f_steps(make):
    trial = make(ReDo(every=3, threshold=0.0), backbone=NETWORKS["mlp"][0])
    calls = []
    inner = trial.strategy.recycle
    trial.strategy.recycle = lambda x: (calls.append(trial.strategy.steps_), inner(x))[1]
    trial.run()
    assert trial.strategy.steps_ == trial.trainer.counters["steps"] > 9
    assert calls == list(range(3, trial.strategy.steps_ + 1, 3))


@pytest.mark.parametrize("name", NETWORKS)
def test_dormancy_is_the_mean_activation_relative_to_its_layers(make, name):
    trial, x = trained(make, name)
    backbone = trial.strategy.network.branches[0]
    with torch.no_grad():
        if name == "mlp":
            first = backbone.layers[1](backbone.layers[0](x.flatten(1)))
            activations = [first, backbone(x)]
        else:
            stem = backbone.stem(x)
            first = torch.relu(backbone.layer1[0].bn1(backbone.layer1[0].conv1(stem)))
            second = backbone.layer2[0]
            activations = [first, torch.relu(second.bn1(second.conv1(backbone.layer1(stem))))]
    found = trial.strategy.dormancy(x)
    assert list(found) == NETWORKS[name][1]
    for s, h in zip(found.values(), activations, strict=False):
        h = h.numpy()
        level = np.abs(h).mean(axis=(0, *range(2, h.ndim)))
        np.testing.assert_allclose(s.numpy(), level / level.mean(), rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_measuring_changes_nothing(make, same, training):
    trial, x = trained(make, "resnet8")
    network = trial.strategy.network.train(training)
    before = copy.deepcopy(network.state_dict())
    trial.strategy.dormancy(x)
    same(before, network.state_dict())
    assert all(m.training == training for m in network.modules())
    assert not any(m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_change_by_what_the_dormant_units_contributed(make, name):
    trial, x = trained(make, name, strategy=ReDo(every=10_000, threshold=0.6))
    network = trial.strategy.network
    muted = copy.deepcopy(network)
    found = {n: (s <= 0.6).nonzero().flatten() for n, s in trial.strategy.dormancy(x).items()}
    assert any(len(index) for index in found.values())
    backbone = muted.branches[0]
    with torch.no_grad():
        for set_, index in found.items():
            readers = [backbone.get_submodule(r.module) for r in backbone.channel_layers() if r.reads == set_]
            (readers or [muted.classifier])[0].weight[:, index] = 0
    assert trial.strategy.recycle(x).keys() == {n for n, i in found.items() if len(i)}
    with torch.no_grad():
        torch.testing.assert_close(network(x).logits, muted(x).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_silent_units_leave_no_trace_and_come_back_with_fresh_weights(make, name):
    trial, x = trained(make, name, strategy=ReDo(every=10_000, threshold=0.0))
    strategy, network = trial.strategy, trial.strategy.network
    silence(trial, name, [1, 3])
    first = NETWORKS[name][1][0]
    before, old = copy.deepcopy(network), strategy.dormancy(x)
    assert {1, 3} <= set((old[first] == 0).nonzero().flatten().tolist())
    drawn = []
    inner = trial.trainer.context.fresh_network
    trial.trainer.context.fresh_network = lambda: (drawn.append(inner()), drawn[-1])[1]
    found = strategy.recycle(x)
    with torch.no_grad():
        torch.testing.assert_close(network(x).logits, before(x).logits, rtol=1e-5, atol=1e-6)
    # exactly the entries of the dormant units are other than before
    backbone, fresh = network.branches[0], drawn[0].branches[0]
    values, reads, writes = dict(before.branches[0].state_dict()), {}, {}
    for layer in backbone.channel_layers():
        if layer.reads in found:
            reads[f"{layer.module}.weight"] = found[layer.reads]
        if layer.writes in found and layer.own:
            writes |= {k: found[layer.writes] for k in values if k.rpartition(".")[0] in (layer.module, layer.norm)}
    for key, value in values.items():
        expected = value.clone()
        if key in writes and value.dim():
            expected[writes[key]] = fresh.state_dict()[key][writes[key]]
        if key in reads:
            expected[:, reads[key]] = 0
        assert torch.equal(backbone.state_dict()[key], expected), key
    assert strategy.recycled_ == sum(len(i) for i in found.values())
    assert (strategy.dormancy(x)[first] > 0)[[1, 3]].any()


def test_last_units_leave_through_every_tasks_layer(make):
    trial, x = trained(make, "mlp", "task", ReDo(every=10_000, threshold=0.8))
    index = trial.strategy.recycle(x)["gates.2"]
    assert not trial.strategy.network.classifier.weight[:, index].any()
    kept = [i for i in range(10) if i not in index.tolist()]
    assert kept
    assert trial.strategy.network.classifier.weight[:, kept].all()


def test_a_head_of_directions_keeps_its_features(make):
    trial = make(ReDo(every=1, threshold=0.5), backbone=MLP(hidden=[12, 10]), head={"name": "cosine"}).run()
    assert list(trial.strategy.dormancy(torch.randn(3, *trial.stream.shape))) == ["gates.0"]


def test_frozen_layers_are_left_alone(make, same):
    trial, x = trained(make, "mlp", strategy=ReDo(every=10_000, threshold=9.0))
    trial.strategy.network.branches[0].requires_grad_(False)
    before = copy.deepcopy(trial.strategy.network.state_dict())
    assert trial.strategy.recycle(x) == {}
    same(before, trial.strategy.network.state_dict())
