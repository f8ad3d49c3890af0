from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clframe.errors import ConfigurationError
from clframe.models.backbone import build_backbone
from clframe.models.resnet import ResidualNet, subsample_and_pad


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def randomise(module: nn.Module) -> None:
    """Give BatchNorm statistics and scales that an error can't hide behind."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t in (m.weight.data, m.running_var):
                t.uniform_(0.5, 1.5)
            for t in (m.bias.data, m.running_mean):
                t.normal_(0, 0.1)


def cifar_parameters(n: int, width: int) -> int:
    """Count by hand: stem, then 3 stages of n blocks with two 3×3 convolutions and two BatchNorms each."""
    total, before = 27 * width + 2 * width, width
    for channels in (width, 2 * width, 4 * width):
        total += 9 * before * channels + 9 * channels * channels * (2 * n - 1) + 4 * channels * n
        before = channels
    return total


@pytest.mark.parametrize(
    ("name", "n"), [("resnet8", 1), ("resnet20", 3), ("resnet32", 5), ("resnet44", 7), ("resnet56", 9)]
)
@pytest.mark.parametrize("width", [16, 5])
def test_cifar_resnets_have_the_parameters_of_the_paper(name, n, width):
    backbone = build_backbone(name, {"width": width}, (3, 32, 32))
    assert count(backbone) == cifar_parameters(n, width)
    assert backbone.feature_dim == 4 * width


def test_published_parameter_counts():
    assert (
        count(build_backbone("resnet32", {}, (3, 32, 32))) == 464_154 - 650
    )  # the literature's count has a classifier
    assert count(build_backbone("resnet18", {}, (3, 32, 32))) == 11_173_962 - 5_130
    assert count(build_backbone("resnet34", {"stem": "imagenet"}, (3, 64, 64))) == 21_797_672 - 513_000


class NaiveOptionA(nn.Module):
    """ResNet-8 with option A from its definition: parameters read by name, shortcut filled element by element."""

    def __init__(self, net: ResidualNet) -> None:
        super().__init__()
        self.p = net.state_dict()

    def bn(self, x, name):
        p = self.p
        mean, var = p[f"{name}.running_mean"], p[f"{name}.running_var"]
        shape = (1, -1, 1, 1)
        x = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + 1e-5)
        return x * p[f"{name}.weight"].view(shape) + p[f"{name}.bias"].view(shape)

    def forward(self, x):
        x = self.bn(F.conv2d(x, self.p["conv1.weight"], padding=1), "bn1").clamp_min(0)
        for k, stride in ((1, 1), (2, 2), (3, 2)):
            b = f"layer{k}.0"
            y = self.bn(F.conv2d(x, self.p[f"{b}.conv1.weight"], stride=stride, padding=1), f"{b}.bn1").clamp_min(0)
            y = self.bn(F.conv2d(y, self.p[f"{b}.conv2.weight"], padding=1), f"{b}.bn2")
            shortcut = torch.zeros_like(y)
            extra = (y.shape[1] - x.shape[1]) // 2
            for c in range(x.shape[1]):
                for i in range(y.shape[2]):
                    for j in range(y.shape[3]):
                        shortcut[:, c + extra, i, j] = x[:, c, i * stride, j * stride]
            x = (y + shortcut).clamp_min(0)
        return x.mean((2, 3))


@pytest.mark.parametrize("size", [(8, 8), (9, 11)])
def test_option_a_equals_its_definition(size):
    net = build_backbone("resnet8", {"width": 4}, (2, *size)).eval()
    randomise(net)
    x = torch.randn(3, 2, *size)
    with torch.no_grad():
        torch.testing.assert_close(net(x), NaiveOptionA(net)(x), rtol=1e-4, atol=1e-5)


def test_option_a_keeps_channels_last():
    x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    out = subsample_and_pad(x, 32, 2)
    assert out.shape == (2, 32, 4, 4)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_imagenet_resnet18_equals_torchvision():
    models = pytest.importorskip("torchvision.models")
    theirs = models.resnet18(num_classes=7).eval()
    ours = build_backbone("resnet18", {"stem": "imagenet"}, (3, 64, 64)).eval()
    randomise(theirs)
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    assert state.keys() == ours.state_dict().keys()
    ours.load_state_dict(state)
    theirs.fc = nn.Identity()
    x = torch.randn(2, 3, 65, 50)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_small_stem_with_pooling_is_the_imagenet_network_with_another_first_convolution():
    models = pytest.importorskip("torchvision.models")
    theirs = models.resnet18(num_classes=7)
    theirs.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    randomise(theirs.eval())
    ours = build_backbone("resnet18", {"stem": "imagenet_3x3"}, (3, 64, 64)).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    theirs.fc = nn.Identity()
    x = torch.randn(2, 3, 33, 40)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet20", {"width": 4}),
        ("resnet20", {"width": 4, "last_relu": False, "shortcut": "B"}),
        ("resnet18", {"width": 4}),
        ("resnet18", {"width": 4, "stem": "imagenet", "last_relu": False}),
    ],
)
def test_stages_are_taken_before_the_last_relu_and_feed_the_next_stage(name, options):
    net = build_backbone(name, options, (3, 16, 16)).eval()
    randomise(net)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        features, stages = net.forward_stages(x)
        assert torch.equal(features, net(x))
        assert len(stages) == (3 if name == "resnet20" else 4)
        for k, stage in enumerate(stages):
            assert (stage < 0).any()  # nothing has cut the negative values
            y = stage if k == len(stages) - 1 and not net_last_relu(options) else torch.relu(stage)
            for later in range(k + 1, len(stages)):
                y = net.get_submodule(f"layer{later + 1}")(y)
            torch.testing.assert_close(y.mean((2, 3)), features)


def net_last_relu(options):
    return options.get("last_relu", True)


def test_taking_stages_gives_the_same_gradients():
    net = build_backbone("resnet8", {"width": 4}, (3, 8, 8))
    x = torch.randn(4, 3, 8, 8)
    parameters = list(net.parameters())
    plain = torch.autograd.grad(net(x).square().sum(), parameters)
    tapped = torch.autograd.grad(net.forward_stages(x)[0].square().sum(), parameters)
    for a, b in zip(plain, tapped, strict=True):
        torch.testing.assert_close(a, b)


def test_convolutions_start_from_he_initialisation_and_batchnorm_from_identity():
    torch.manual_seed(0)
    net = build_backbone("resnet8", {"width": 64}, (3, 8, 8))
    for name, p in net.named_parameters():
        if p.dim() == 4:
            expected = math.sqrt(2 / (p.shape[2] * p.shape[3] * p.shape[0]))
            assert p.std().item() == pytest.approx(expected, rel=0.1), name
            assert abs(p.mean().item()) < 5 * expected / math.sqrt(p.numel())
        else:
            assert torch.equal(p.detach(), torch.full_like(p, float("weight" in name)))


def test_zero_init_last_makes_blocks_start_as_the_identity():
    net = build_backbone("resnet18", {"width": 4, "zero_init_last": True}, (3, 8, 8)).eval()
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(net.get_submodule("layer1")(x), x)


def test_too_small_images_and_flat_inputs_are_refused():
    for shape in ((3, 7, 9), (64,)):
        with pytest.raises(ConfigurationError, match="at least 8×8"):
            build_backbone("resnet32", {}, shape)


def cifar_batch(root, classes, per_class):
    import io
    import zipfile

    import numpy as np
    from PIL import Image

    images, labels = [], []
    with zipfile.ZipFile(root / "cifar100.zip") as archive:
        for label, name in enumerate(classes):
            members = sorted(
                n for n in archive.namelist() if n.startswith(f"cifar100/test/{name}/") and n.endswith(".png")
            )
            for member in members[:per_class]:
                pixels = np.asarray(Image.open(io.BytesIO(archive.read(member))).convert("RGB"))
                images.append(torch.tensor(pixels).permute(2, 0, 1) / 255)
                labels.append(label)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (torch.stack(images) - mean.view(3, 1, 1)) / std.view(3, 1, 1), torch.tensor(labels)


@pytest.mark.parametrize("name", ["resnet20", "resnet32"])
def test_pretrained_cifar10_weights_recognise_what_cifar100_shares(name, shared_data):
    from safetensors.torch import load_file

    path = shared_data / "weights" / f"{name}_cifar10.safetensors"
    net = build_backbone(name, {"weights": str(path)}, (3, 32, 32)).eval()
    file = load_file(path)
    assert torch.equal(net.get_parameter("layer3.1.conv2.weight").detach(), file["layer3.1.conv2.weight"])
    # CIFAR-10's own classifier on our features: CIFAR-100's pickup trucks are trucks, its streetcars are vehicles
    x, labels = cifar_batch(shared_data, ["pickup_truck", "streetcar", "wolf", "leopard"], 40)
    with torch.no_grad():
        predicted = F.linear(net(x), file["linear.weight"], file["linear.bias"]).argmax(1)
    vehicle = torch.isin(predicted, torch.tensor([0, 1, 8, 9]))  # airplane, automobile, ship, truck
    assert (vehicle == (labels < 2)).float().mean() > 0.9
