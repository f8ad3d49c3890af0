"""Laws that every registered backbone keeps, and those of PreAct, WRN, MLP and ViT."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from clframe import registry
from clframe.errors import ConfigurationError
from clframe.models.backbone import BackboneConfig, build_backbone

NAMES = [n for n in registry.available("backbone") if n != "timm"]
SMALL = {
    "mlp": {"hidden": [12, 7]},
    "vit_tiny": {"dim": 12, "depth": 2, "heads": 3},
    "wrn16": {"widen": 1},
    "wrn28": {"widen": 1},
}


def small(name: str) -> dict:
    return SMALL.get(name, {"width": 4})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_every_name_of_the_issue_is_registered():
    assert {"mlp", "resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet18", "resnet34"} <= set(NAMES)
    assert {"preact_resnet18", "wrn16", "wrn28", "vit_tiny", "timm"} <= set(registry.available("backbone"))
    assert all(issubclass(registry.load("backbone", n), BackboneConfig) for n in registry.available("backbone"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_on_the_meta_device_forward_and_backward_have_the_right_shapes(name, channels):
    with torch.device("meta"):
        net = build_backbone(name, {}, (channels, 32, 32))
        x = torch.empty(2, channels, 32, 32)
    features, stages = net.forward_stages(x)
    assert features.shape == net(x).shape == (2, net.feature_dim)
    assert features.is_meta
    assert stages
    assert all(s.shape[0] == 2 and s.is_meta for s in stages)
    features.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(8, 8), (12, 20), (9, 11)])
def test_odd_sizes_batch_of_one_and_channels_last(name, size):
    if name == "vit_tiny" and size == (9, 11):
        size = (4, 16)  # a patch must divide the image
    torch.manual_seed(0)
    net = build_backbone(name, small(name), (2, *size)).eval()
    x = torch.randn(3, 2, *size)
    with torch.no_grad():
        all_at_once = net(x)
        for i in range(3):
            torch.testing.assert_close(net(x[i : i + 1])[0], all_at_once[i], rtol=1e-4, atol=1e-5)
        net.to(memory_format=torch.channels_last)
        torch.testing.assert_close(net(x.to(memory_format=torch.channels_last)), all_at_once, rtol=1e-4, atol=1e-5)
        features, _ = net.forward_stages(x)
    torch.testing.assert_close(features, all_at_once, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_construction_is_decided_by_the_global_seed_and_computing_draws_nothing(name):
    def make() -> nn.Module:
        torch.manual_seed(7)
        return build_backbone(name, small(name), (1, 8, 8))

    first, second = make().state_dict(), make().state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    net, state = make(), torch.get_rng_state()
    net(torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(state, torch.get_rng_state())


def preact_parameters(stem: int, widths: list[int], blocks: int) -> int:
    total, before = 27 * stem, stem
    for k, c in enumerate(widths):
        for i in range(blocks):
            total += 2 * before + 9 * before * c + 2 * c + 9 * c * c
            total += before * c if i == 0 and (k > 0 or before != c) else 0
            before = c
    return total + 2 * before


def test_preact_and_wide_parameter_counts():
    assert count(build_backbone("preact_resnet18", {}, (3, 32, 32))) == preact_parameters(64, [64, 128, 256, 512], 2)
    assert count(build_backbone("wrn16", {"widen": 3}, (3, 32, 32))) == preact_parameters(16, [48, 96, 192], 2)
    with torch.device("meta"):
        wide = build_backbone("wrn28", {"widen": 10}, (3, 32, 32))
    assert count(wide) == 36_479_194 - 6_410  # published with a classifier for CIFAR-10


@pytest.mark.parametrize(("name", "options"), [("preact_resnet18", {"width": 4}), ("wrn16", {"widen": 2})])
def test_preactivation_stages_feed_the_next_and_the_last_gives_the_features(name, options):
    net = build_backbone(name, options, (3, 16, 16)).eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        features, stages = net.forward_stages(x)
        assert all((s < 0).any() for s in stages)
        torch.testing.assert_close(torch.relu(stages[-1]).mean((2, 3)), features)
        y = stages[0]
        for later in range(2, len(stages) + 1):
            y = net.get_submodule(f"layer{later}")(y)
        torch.testing.assert_close(torch.relu(net.get_submodule("bn")(y)).mean((2, 3)), features)


def test_preactivation_stem_for_large_images_is_seven_by_seven_of_step_two_and_a_pooling():
    small, large = (
        build_backbone("preact_resnet18", {"width": 4, "stem": s}, (3, 32, 32)) for s in ("cifar", "imagenet")
    )
    assert count(large) - count(small) == 3 * 4 * (7 * 7 - 3 * 3)
    x = torch.randn(2, 3, 31, 40)
    with torch.no_grad():
        wide = torch.nn.functional.conv2d(x, large.conv1.weight, stride=2, padding=3)
        expected = torch.nn.functional.max_pool2d(wide, 3, stride=2, padding=1)
        torch.testing.assert_close(large.stem(x), expected)
        assert torch.equal(large.forward_stages(x)[0], large(x))
        assert small.stem(x).shape == (2, 4, 31, 40)


def test_preactivation_block_equals_its_formula():
    from clframe.models.preact import PreActBlock

    block = PreActBlock(4, 6, 2).eval()
    x = torch.randn(2, 4, 9, 9)
    kept = x.clone()
    with torch.no_grad():
        active = block.bn1(x).clamp_min(0)
        expected = block.conv2(block.bn2(block.conv1(active)).clamp_min(0)) + block.shortcut(active)
        torch.testing.assert_close(block(x), expected)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh", "leaky_relu"])
def test_mlp_is_its_formula(activation):
    net = build_backbone("mlp", {"hidden": [6, 5], "activation": activation, "layer_norm": True}, (2, 3, 4)).eval()
    act = {"relu": torch.relu, "gelu": nn.functional.gelu, "tanh": torch.tanh, "leaky_relu": nn.functional.leaky_relu}
    x = torch.randn(3, 2, 3, 4)
    with torch.no_grad():
        features, (first, second) = net.forward_stages(x)
        linear1, norm1, _, linear2, norm2, _ = net.layers
        torch.testing.assert_close(first, norm1(linear1(x.flatten(1))))
        torch.testing.assert_close(second, norm2(linear2(act[activation](first))))
        torch.testing.assert_close(features, act[activation](second))


def test_mlp_takes_vectors_and_images_alike():
    torch.manual_seed(0)
    images = build_backbone("mlp", {"hidden": "6,5"}, (2, 3, 4))
    torch.manual_seed(0)
    vectors = build_backbone("mlp", {"hidden": [6, 5]}, (24,))
    x = torch.randn(3, 2, 3, 4)
    assert torch.equal(images(x), vectors(x.reshape(3, 24)))
    bare = build_backbone("mlp", {"hidden": []}, (2, 3, 4))
    assert bare.feature_dim == 24
    assert torch.equal(bare(x), x.reshape(3, 24))


def test_mlp_dropout_only_in_training():
    net = build_backbone("mlp", {"hidden": [50], "dropout": 0.5}, (8,))
    x = torch.randn(4, 8)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_vit_equals_timm():
    timm = pytest.importorskip("timm.models.vision_transformer")
    theirs = timm.VisionTransformer(
        img_size=16, patch_size=4, in_chans=3, num_classes=0, embed_dim=24, depth=3, num_heads=4
    ).eval()
    ours = build_backbone("vit_tiny", {"dim": 24, "depth": 3, "heads": 4}, (3, 16, 16)).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
        features, stages = ours.forward_stages(x)
        assert [s.shape for s in stages] == [(2, 17, 24)] * 3
        torch.testing.assert_close(ours.norm(stages[-1])[:, 0], features)


def test_vit_refuses_what_does_not_divide():
    with pytest.raises(ConfigurationError, match="divisor of the image"):
        build_backbone("vit_tiny", {"patch": 5}, (3, 32, 32))
    with pytest.raises(ConfigurationError, match="divisor of dim"):
        build_backbone("vit_tiny", {"heads": 5}, (3, 32, 32))


def test_wrong_names_options_and_values_are_one_sentence_each():
    with pytest.raises(ConfigurationError, match="Did you mean 'resnet32'"):
        build_backbone("resent32", {}, (3, 32, 32))
    with pytest.raises(ConfigurationError, match="Did you mean 'width'"):
        build_backbone("resnet32", {"widht": 8}, (3, 32, 32))
    with pytest.raises(ConfigurationError, match="expected int ≥ 1 channels, received 0"):
        build_backbone("resnet32", {"width": 0}, (3, 32, 32))
    with pytest.raises(ConfigurationError, match="at least 1 unit"):
        build_backbone("mlp", {"hidden": [5, 0]}, (8,))


def test_importing_the_models_imports_neither_timm_nor_torchvision():
    code = "import sys, clframe.models; print([m for m in ('timm', 'torchvision', 'safetensors') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
