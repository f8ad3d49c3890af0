"""Gates on channels: gradient compensation, annealing, binarising, the sparsity loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clframe.errors import ContractError
from clframe.models.backbone import build_backbone
from clframe.models.gates import (
    ChannelGate,
    annealed_scale,
    attach_gates,
    channel_sparsity,
    gates_of,
    remove_gates,
)
from clframe.testing.bench import first_difference

SUPPORTED = [
    ("resnet8", {"width": 3}),
    ("resnet20", {"width": 2, "last_relu": False}),
    ("resnet8", {"width": 3, "shortcut": "B"}),
    ("resnet18", {"width": 2}),
    ("resnet34", {"width": 2, "stem": "imagenet"}),
    ("mlp", {"hidden": [6, 5, 4]}),
    ("mlp", {"hidden": [6, 5], "activation": "gelu", "dropout": 0.5}),
]


def sigmoid(v: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-v))


def scatter(backbone, seed: int = 0, spread: float = 1.0) -> dict[str, ChannelGate]:
    """Put gates on all sets and draw their values."""
    attach_gates(backbone)
    generator = torch.Generator().manual_seed(seed)
    for gate in gates_of(backbone).values():
        gate.logits.data.normal_(0, spread, generator=generator)
    return gates_of(backbone)


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.7, 20.0])
def test_the_gradient_is_compensated_as_the_formula_says(scale):
    gate = ChannelGate(4).double()
    e = np.array([-0.7, 0.2, 0.9, 1.6])
    gate.logits.data = torch.tensor(e)
    gate.anneal(scale)
    assert gate.values().detach().numpy() == pytest.approx(sigmoid(gate.scale.item() * e), rel=1e-12)
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gate(x).square().sum().backward()
    s = gate.scale.item()
    m = sigmoid(s * e)
    g = (x.square().sum((0, 2, 3)).numpy() * 2 * m) * s * m * (1 - m)  # of m = sigmoid(s e), not compensated
    expected = g * sigmoid(e) * (1 - sigmoid(e)) / (s * m * (1 - m))
    assert gate.logits.grad.numpy() == pytest.approx(expected, rel=1e-9)


def test_far_from_zero_the_gradient_stays_finite_and_large():
    gate = ChannelGate(3)
    gate.logits.data = torch.tensor([-2.0, 2.0, 1e9])
    gate.anneal(400.0)
    gate(torch.ones(1, 3)).sum().backward()
    assert gate.logits.grad.tolist() == pytest.approx([0.104994, 0.104994, 0.0], abs=1e-6)


def test_the_scale_grows_in_equal_steps_within_an_epoch():
    found = [annealed_scale(b, 5, 10.0) for b in range(5)]
    assert found == pytest.approx([0.1, 0.1 + 9.9 / 4, 0.1 + 9.9 / 2, 0.1 + 3 * 9.9 / 4, 10.0])
    assert annealed_scale(0, 1, 10.0) == 10.0


def test_binary_gates_are_exactly_zero_and_one():
    gate = ChannelGate(5)
    gate.logits.data = torch.tensor([0.3, -0.1, 1e-6, 0.0, -3.0])
    gate.anneal(0.1)
    assert gate.open_channels() == [0, 2]
    gate.binarise()
    assert gate.values().tolist() == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert gate.open_channels() == [0, 2]
    gate.logits.data = torch.tensor([-0.3, -0.1, -2.0, -0.2, -3.0])
    gate.binarise()
    assert gate.values().tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]  # one stays


def test_every_channel_starts_open_and_none_alike():
    e = ChannelGate(4, start=2.0).logits.tolist()
    assert e == [0.25, 0.75, 1.25, 1.75]


@pytest.mark.parametrize(("name", "options"), SUPPORTED)
def test_a_closed_gate_is_an_exactly_zero_channel(name, options):
    torch.manual_seed(0)
    backbone = build_backbone(name, options, (3, 16, 16)).eval()
    for m in backbone.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.bias.data.fill_(3.0)  # what BatchNorm would add to a channel that is only scaled before it
    gates, seen = scatter(backbone), {}
    for key, gate in gates.items():
        gate.binarise()
        gate.register_forward_hook(lambda _m, _x, y, key=key: seen.__setitem__(key, y))
    with torch.no_grad():
        x = torch.randn(2, 3, 16, 16)
        features, stages = backbone.forward_stages(x)
        assert torch.equal(backbone(x), features)
    assert list(seen) == list(dict.fromkeys(layer.writes for layer in backbone.channel_layers()))
    for key, y in seen.items():
        opened = gates[key].open_channels()
        closed = [c for c in range(y.shape[1]) if c not in opened]
        assert not y[:, closed].any()
        assert y[:, opened].any()
    last = list(gates.values())[-1]
    closed = [c for c in range(backbone.feature_dim) if c not in last.open_channels()]
    assert not features[:, closed].any()
    assert not stages[-1][:, closed].any()


@pytest.mark.parametrize(("name", "options"), SUPPORTED)
def test_open_gates_change_no_bit_and_come_off_without_a_trace(name, options):
    torch.manual_seed(0)
    backbone = build_backbone(name, options, (3, 16, 16)).eval()
    x, before = torch.randn(2, 3, 16, 16), {k: v.clone() for k, v in backbone.state_dict().items()}
    with torch.no_grad():
        plain = backbone.forward_stages(x)
        attach_gates(backbone, 1e9)
        assert len(backbone.state_dict()) == len(before) + 2 * len(gates_of(backbone))
        assert first_difference(list(plain), list(backbone.forward_stages(x))) is None
        assert torch.equal(backbone(x), plain[0])
        remove_gates(backbone)
        assert torch.equal(backbone(x), plain[0])
    assert not gates_of(backbone)
    assert first_difference(before, dict(backbone.state_dict())) is None


def resnet8_layers(w: int) -> list[tuple[int, str | None, str, int, int]]:
    """(K_l, what it reads, what it writes, c_{l-1}, c_l) of a CIFAR ResNet-8, by hand."""
    return [
        (9, None, "gate", 3, w),
        (9, "gate", "layer1.0.inner_gate", w, w),
        (9, "layer1.0.inner_gate", "layer1.0.gate", w, w),
        (9, "layer1.0.gate", "layer2.0.inner_gate", w, 2 * w),
        (9, "layer2.0.inner_gate", "layer2.0.gate", 2 * w, 2 * w),
        (9, "layer2.0.gate", "layer3.0.inner_gate", 2 * w, 4 * w),
        (9, "layer3.0.inner_gate", "layer3.0.gate", 4 * w, 4 * w),
    ]


PROJECTED = [
    (1, "layer1.0.gate", "layer2.0.gate", 3, 6),
    (1, "layer2.0.gate", "layer3.0.gate", 6, 12),
]
MLP = [(1, None, "gates.0", 768, 6), (1, "gates.0", "gates.2", 6, 5), (1, "gates.2", "gates.4", 5, 4)]


@pytest.mark.parametrize(
    ("index", "layers"), [(0, resnet8_layers(3)), (2, resnet8_layers(3) + PROJECTED), (5, MLP)], ids=["A", "B", "mlp"]
)
def test_the_sparsity_loss_is_the_papers_fraction(index, layers):
    backbone = build_backbone(*SUPPORTED[index], (3, 16, 16)).double()
    gates = scatter(backbone)
    for gate in gates.values():
        gate.double().anneal(2.5)
    norm = {k: sigmoid(2.5 * g.logits.detach().numpy()).sum() for k, g in gates.items()}
    assert set(norm) == {writes for _, _, writes, _, _ in layers}
    used = sum(k * (norm[reads] if reads else c0) * norm[writes] for k, reads, writes, c0, _ in layers)
    expected = used / sum(k * c0 * c1 for k, _, _, c0, c1 in layers)
    assert channel_sparsity(backbone).item() == pytest.approx(expected, rel=1e-9)


def test_its_gradient_is_that_of_finite_differences():
    backbone = build_backbone("resnet8", {"width": 3}, (3, 16, 16)).double()
    gates = [g.double() for g in scatter(backbone).values()]  # at s = 1 there is nothing to compensate
    channel_sparsity(backbone).backward()
    for gate in gates:
        for c in range(len(gate.logits)):
            values = []
            for shift in (1e-5, -2e-5, 1e-5):
                gate.logits.data[c] += shift
                values.append(channel_sparsity(backbone).item())
            assert (values[0] - values[1]) / 2e-5 == pytest.approx(gate.logits.grad[c].item(), rel=1e-6)


def test_a_set_without_a_gate_counts_whole():
    backbone = build_backbone("mlp", {"hidden": [6, 4]}, (3, 2, 2))
    attach_gates(backbone, only=["gates.0"])
    gates_of(backbone)["gates.0"].logits.data = torch.tensor([1.0, -1, -1, -1, 1, 1])
    gates_of(backbone)["gates.0"].binarise()
    assert channel_sparsity(backbone).item() == pytest.approx(0.5)  # (12·3 + 3·4) / (12·6 + 6·4)
    remove_gates(backbone)
    assert channel_sparsity(backbone).item() == 1.0


@pytest.mark.parametrize(
    ("name", "options"), [("preact_resnet18", {"width": 2}), ("mlp", {"layer_norm": True}), ("vit_tiny", {"depth": 1})]
)
def test_backbones_without_support_are_refused(name, options):
    backbone = build_backbone(name, options, (3, 16, 16))
    for call in (attach_gates, channel_sparsity):
        with pytest.raises(ContractError, match=r"no channels that can be gated or pruned: use a residual network"):
            call(backbone)
