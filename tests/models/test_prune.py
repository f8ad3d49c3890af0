"""Pruning: the same outputs from really fewer weights, in backbones and in networks that hold them; and widening again."""

from __future__ import annotations

import copy
import json
import random

import pytest
import torch
from torch import nn

from clframe.errors import ContractError
from clframe.models.backbone import build_backbone
from clframe.models.gates import channel_sparsity, gates_of
from clframe.models.heads import HeadConfig
from clframe.models.network import Network
from clframe.models.prune import channels_of, prune, widen
from clframe.testing.bench import first_difference
from tests.models.test_gates import SUPPORTED, scatter

X = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def made(name, options, seed=0):
    torch.manual_seed(seed)
    backbone = build_backbone(name, options, (3, 16, 16))
    for m in backbone.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t in (m.weight.data, m.running_var):
                t.uniform_(0.5, 1.5)
            for t in (m.bias.data, m.running_mean):
                t.normal_(0, 0.5)
    return backbone


def weights(backbone) -> int:
    return sum(p.numel() for p in backbone.parameters())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("name", "options"), SUPPORTED)
def test_pruned_is_what_was_masked_with_binary_gates(name, options, seed):
    masked = made(name, options, seed)
    for gate in scatter(masked, seed).values():
        gate.binarise()
    pruned = copy.deepcopy(masked)
    features = prune(pruned)
    assert not gates_of(pruned)
    assert pruned.feature_dim == len(features) < masked.feature_dim
    last = channels_of(pruned)[masked.channel_layers()[-1].writes]
    assert features.tolist() == last
    for training in (False, True):
        masked.train(training)
        pruned.train(training)
        for m in (*masked.modules(), *pruned.modules()):
            if isinstance(m, nn.Dropout):
                m.eval()  # draws for every unit, so that other units would be dropped
        whole, taps = masked.forward_stages(X)
        less, fewer = pruned.forward_stages(X)
        assert torch.equal(less, pruned.eval()(X)) or training
        torch.testing.assert_close(less, whole[:, features], atol=1e-5, rtol=1e-5)
        gone = [c for c in range(whole.shape[1]) if c not in last]
        assert not whole[:, gone].any()
        assert all(b.shape[1] <= a.shape[1] for a, b in zip(taps, fewer, strict=True))
        torch.testing.assert_close(taps[-1][:, features], fewer[-1], atol=1e-5, rtol=1e-5)
    less.sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in pruned.parameters())


def parameters_by_hand(backbone, kept) -> int:
    """Of a CIFAR ResNet-8 with option A."""
    n = {name: len(channels) for name, channels in kept.items()}
    total, before = 9 * 3 * n["gate"] + 2 * n["gate"], n["gate"]
    for k in (1, 2, 3):
        inner, out = n[f"layer{k}.0.inner_gate"], n[f"layer{k}.0.gate"]
        total += 9 * before * inner + 2 * inner + 9 * inner * out + 2 * out
        before = out
    return total


def test_parameters_are_really_fewer_and_counted_exactly():
    backbone = made("resnet8", {"width": 4})
    for gate in scatter(backbone).values():
        gate.binarise()
    share, before = channel_sparsity(backbone).item(), weights_of_convolutions(backbone)
    prune(backbone)
    assert (
        weights(backbone)
        == parameters_by_hand(backbone, channels_of(backbone))
        < 0.6 * weights(made("resnet8", {"width": 4}))
    )
    assert weights_of_convolutions(backbone) == round(share * before)
    assert {m.out_channels for m in backbone.modules() if isinstance(m, nn.Conv2d)} == {
        m.weight.shape[0] for m in backbone.modules() if isinstance(m, nn.Conv2d)
    }
    assert all(m.num_features == len(m.running_mean) for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))


def weights_of_convolutions(backbone) -> int:
    return sum(m.weight.numel() for m in backbone.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(("name", "options"), SUPPORTED)
def test_one_channel_of_every_set_is_enough(name, options):
    masked = made(name, options).eval()
    for gate in scatter(masked).values():
        gate.logits.data = -gate.logits.data.abs() - 1
        gate.binarise()
    pruned = copy.deepcopy(masked)
    features = prune(pruned)
    assert {len(v) for v in channels_of(pruned).values()} == {1}
    torch.testing.assert_close(pruned(X), masked(X)[:, features], atol=1e-5, rtol=1e-5)


def test_pruning_twice_is_pruning_once():
    twice, once = made("resnet8", {"width": 4}), made("resnet8", {"width": 4})
    first = {"gate": [0, 1, 3], "layer2.0.gate": [1, 2, 5, 6, 7], "layer3.0.gate": list(range(2, 14))}
    then = {"gate": [1, 3], "layer2.0.gate": [2, 5, 7], "layer3.0.gate": [3, 4, 13], "layer3.0.inner_gate": [0, 9]}
    prune(twice, first)
    assert prune(twice, then).tolist() == [1, 2, 11]
    assert prune(once, {**first, **then}).tolist() == [3, 4, 13]
    assert channels_of(twice) == channels_of(once)
    assert first_difference(dict(twice.state_dict()), dict(once.state_dict())) is None
    assert torch.equal(twice.eval()(X), once.eval()(X))


def test_when_nothing_is_cut_nothing_changes():
    backbone = made("resnet8", {"width": 4})
    before = list(backbone.parameters())
    scatter(backbone, spread=0.0)
    for gate in gates_of(backbone).values():
        gate.logits.data.fill_(1.0)
    assert prune(backbone).tolist() == list(range(16))
    assert all(a is b for a, b in zip(before, backbone.parameters(), strict=True))
    assert backbone.kept_channels is None


def test_it_keeps_dtype_memory_format_and_the_wish_for_gradients():
    backbone = made("resnet8", {"width": 4}).double().to(memory_format=torch.channels_last)
    backbone.bn1.requires_grad_(False)
    prune(backbone, {"layer1.0.gate": [0, 2], "gate": [1, 2], "layer3.0.inner_gate": [1, 2, 3]})
    assert {p.dtype for p in backbone.parameters()} == {torch.float64}
    assert backbone.layer3[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not backbone.layer3[0].conv1.weight.is_contiguous()
    assert [n for n, p in backbone.named_parameters() if not p.requires_grad] == ["bn1.weight", "bn1.bias"]


@pytest.mark.parametrize("kept", [{"gate": []}, {"gate": [1, 0]}, {"gate": [0, 4]}, {"gat": [0]}, {"gate": [1, 1]}])
def test_channels_that_are_not_there_are_refused(kept):
    backbone = made("resnet8", {"width": 4})
    with pytest.raises(ContractError, match="ascending numbers of those that are there, at least one"):
        prune(backbone, kept)
    assert weights(backbone) == weights(made("resnet8", {"width": 4}))


# -- widening -----------------------------------------------------------------------------------------------------------

NESTED = {
    "gate": [0, 1, 3],
    "layer1.0.gate": [1, 3],
    "layer1.0.inner_gate": [2],
    "layer2.0.gate": [3, 5],  # options A and B: channel 5 is channel 3 of layer1
    "layer3.0.inner_gate": [4, 5, 11],
    "layer3.0.gate": [7, 9],
}


@pytest.mark.parametrize(
    ("name", "options", "kept"),
    [
        ("resnet8", {"width": 4}, NESTED),
        ("resnet8", {"width": 4, "shortcut": "B"}, NESTED),
        ("mlp", {"hidden": [6, 5]}, {"gates.0": [1, 4], "gates.2": [0, 3, 4]}),
    ],
)
def test_a_widened_backbone_computes_what_was_kept_beside_what_is_fresh(name, options, kept):
    pruned, whole = made(name, options), made(name, options, seed=1)
    fresh = copy.deepcopy(whole)
    features = prune(pruned, kept)
    widen(whole, pruned)
    assert whole.kept_channels is None
    with torch.no_grad():
        a, b = pruned.eval()(X), whole.eval()(X)
    torch.testing.assert_close(b[:, features], a, atol=1e-5, rtol=1e-5)
    others = [k for k in range(b.shape[1]) if k not in features.tolist()]
    assert not torch.isclose(b[:, others], a.mean()).all()
    changed = {n for n, v in whole.state_dict().items() if not torch.equal(v, fresh.state_dict()[n])}
    assert changed == {n for n in whole.state_dict() if not n.endswith("num_batches_tracked")}
    for layer in whole.channel_layers():
        rows = channels_of(pruned)[layer.writes]
        gone = [k for k in range(len(whole.get_submodule(layer.module).weight)) if k not in rows]
        new, old = whole.get_submodule(layer.module).weight, fresh.get_submodule(layer.module).weight
        assert torch.equal(new[gone], old[gone])
        assert not (new[rows] == old[rows]).any()


def test_a_branch_added_from_a_pruned_one_is_whole_and_trains():
    net = Network(lambda: build_backbone("resnet8", {"width": 4}, (3, 16, 16)), HeadConfig())
    net.grow(3)
    net.prune_branch(0, NESTED)
    net.freeze_branch(0)
    branch = net.add_branch(copy_from=0)
    assert net.branch_dims == (2, 16)
    assert net.classifier.in_features == 18
    assert all(p.requires_grad for p in branch.parameters())
    out = net.eval()(X)
    torch.testing.assert_close(out.branch_features[1][:, [7, 9]], out.branch_features[0], atol=1e-5, rtol=1e-5)


# -- networks -----------------------------------------------------------------------------------------------------------


def network(kind="linear", backbone="resnet8") -> Network:
    options = {"resnet8": {"width": 4}, "mlp": {"hidden": [6, 5]}}[backbone]
    net = Network(lambda: made(backbone, options, seed=random.randrange(1000)), HeadConfig(name=kind))
    net.grow(3)
    for _ in range(2):
        net.add_branch()
    for name, inputs in (("old", 1), ("last", "last"), ("all", "all")):
        net.add_head(name, 4, inputs)
    return net.eval()


def all_logits(net: Network) -> list[torch.Tensor]:
    with torch.no_grad():
        out = net(X)
        return [net.head_logits(name, out) for name in net.heads]


@pytest.mark.parametrize("kind", ["linear", "multi"])
@pytest.mark.parametrize("backbone", ["resnet8", "mlp"])
def test_heads_lose_the_columns_and_say_the_same(kind, backbone):
    net = network(kind, backbone)
    for k, index in enumerate((1, -1, 0)):
        for gate in scatter(net.branches[index], seed=k).values():
            gate.binarise()
        before, sizes, width = all_logits(net), net.branch_dims, net.feature_dim
        net.heads["old"].requires_grad_(False)
        net.prune_branch(index)
        assert net.branch_dims[index] < sizes[index]
        assert net.feature_dim == width - sizes[index] + net.branch_dims[index] == net.classifier.in_features
        for a, b in zip(before, all_logits(net), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert net.heads["old"].in_features == net.branch_dims[1]
    assert net.heads["last"].in_features == net.branch_dims[2]
    assert not any(p.requires_grad for p in net.heads["old"].parameters())


def test_a_cosine_head_compares_with_what_is_left_of_its_rows():
    net = network("cosine")
    weight = net.classifier.weight.detach().clone()
    net.prune_branch(1, {"layer3.0.gate": [0, 3]})
    columns = [*range(16), 16, 19, *range(32, 48)]
    assert torch.equal(net.classifier.weight, weight[:, columns])
    with torch.no_grad():
        out = net(X)
        expected = nn.functional.cosine_similarity(out.features[:, None], weight[None, :, columns], dim=2)
    torch.testing.assert_close(out.logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backbone", ["resnet8", "mlp"])
def test_a_pruned_and_a_gated_branch_survive_a_round_trip(backbone):
    net = network(backbone=backbone)
    net.freeze_branch(0)
    for index in (0, 1):
        scatter(net.branches[index], seed=index)
        net.prune_branch(index)
    net.add_gates(2)
    for gate in gates_of(net.branches[2]).values():
        gate.anneal(3.0)
    for twin in (net, net.frozen_copy()):
        structure = json.loads(json.dumps(twin.structure()))
        again = Network.from_structure(structure, net._factory)
        again.load_state_dict(twin.state_dict())
        assert again.structure() == twin.structure()
        assert [(n, p.shape) for n, p in again.named_parameters()] == [(n, p.shape) for n, p in twin.named_parameters()]
        assert first_difference(all_logits(net), all_logits(again.eval())) is None
    net.prune_branch(2, {})
    assert "gates" not in net.structure()


def test_the_structure_of_a_whole_network_says_nothing_of_pruning():
    assert set(network().structure()) == {"branches", "frozen_branches", "frozen", "heads"}


def test_every_step_runs_on_the_meta_device():
    with torch.device("meta"):
        net = Network(lambda: build_backbone("resnet8", {"width": 4}, (3, 16, 16)), HeadConfig())
        net.grow(2)
    net.add_gates(0)
    assert channel_sparsity(net.branches[0]).is_meta
    assert net(X.to("meta")).logits.shape == (5, 2)
    net.prune_branch(0, NESTED)
    assert all(t.is_meta for t in (*net.parameters(), *net.buffers()))
    assert net(X.to("meta")).logits.shape == (5, 2)


def test_a_perceptron_without_hidden_layers_has_no_channels_to_gate():
    backbone = build_backbone("mlp", {"hidden": []}, (5,))
    assert backbone.channel_layers() == ()
    assert gates_of(backbone) == {}
