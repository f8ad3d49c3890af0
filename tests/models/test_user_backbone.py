"""A user's own module, weights files, and the timm bridge."""

from __future__ import annotations

import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from clframe import spec
from clframe.errors import ConfigurationError, ContractError
from clframe.models.backbone import Backbone, UserBackbone, backbone_config, build_backbone


class Net(nn.Module):
    """A user's network."""

    def __init__(self, channels: int, units: int = 5, *, scale=1.0, deep: bool = False) -> None:
        super().__init__()
        self.scale, self.deep = scale, deep
        self.conv = nn.Conv2d(channels, units, 3)
        self.bn = nn.BatchNorm2d(units).eval()

    def forward(self, x):
        return self.bn(self.conv(x)).mean((2, 3)) * self.scale


def test_a_class_measures_its_features_and_changes_nothing_by_it():
    config = backbone_config(Net, {"channels": "3", "units": 7, "scale": "2"})
    net = config.build((3, 9, 9))
    assert isinstance(net, UserBackbone)
    assert net.feature_dim == 7
    assert net.module.scale == 2
    assert [m.training for m in net.module.modules()] == [True, True, False]  # as the constructor left them
    assert net.module.bn.num_batches_tracked == 0
    x = torch.randn(4, 3, 9, 9)
    assert torch.equal(net.eval()(x), net.module(x))
    features, stages = net.forward_stages(x)
    assert torch.equal(features, net(x))
    assert stages == ()


def test_options_are_the_constructor_keywords_and_survive_a_round_trip():
    config = backbone_config(Net, {"channels": 2})
    values = spec.to_dict(config)
    engines = {"weights": None, "input_mean": None, "input_std": None}
    assert values == {**engines, "channels": 2, "units": 5, "scale": 1.0, "deep": False}
    assert backbone_config(Net, values) == config
    with pytest.raises(ConfigurationError, match="Did you mean 'units'"):
        backbone_config(Net, {"channels": 2, "unit": 3})
    with pytest.raises(ConfigurationError, match="expected int, received 'many'"):
        backbone_config(Net, {"channels": 2, "units": "many"})
    with pytest.raises(ConfigurationError, match="channels must be given"):
        backbone_config(Net, {})


def test_a_factory_is_told_the_input_shape():
    def make(input_shape, units=3):
        return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(input_shape).numel(), units))

    assert build_backbone(make, {"units": 4}, (1, 2, 3)).feature_dim == 4
    assert "input_shape" not in spec.to_dict(backbone_config(make, {}))


@pytest.mark.parametrize("written", ["Net", "make"])
def test_a_file_gives_a_class_or_a_factory(tmp_path, written):
    file = tmp_path / "mine.py"
    file.write_text(
        textwrap.dedent("""
        from torch import nn

        class Net(nn.Module):
            feature_dim = 6
            def __init__(self, width: int = 6):
                super().__init__()
                self.layer = nn.Linear(4, width)
            def forward(self, x):
                return self.layer(x)
            def forward_stages(self, x):
                return self.layer(x).relu(), [self.layer(x)]

        def make(width: int = 6):
            return Net(width)
        """)
    )
    net = build_backbone(f"{file}:{written}", {}, (4,))
    x = torch.randn(2, 4)
    assert net.feature_dim == 6
    features, stages = net.forward_stages(x)
    assert torch.equal(stages[0].relu(), features)
    with pytest.raises(ContractError, match="says feature_dim = 6, but its forward gives 5"):
        build_backbone(f"{file}:{written}", {"width": 5}, (4,))
    with pytest.raises(ConfigurationError, match="Did you mean 'make'"):
        build_backbone(f"{file}:mak", {}, (4,))


def test_a_backbone_of_ones_own_is_not_wrapped():
    class Mine(Backbone):
        feature_dim = 4

        def forward(self, x):
            return x

    assert type(build_backbone(Mine, {}, (4,))) is Mine


@pytest.mark.parametrize(
    ("module", "received"),
    [
        (lambda: nn.Conv2d(3, 4, 3), r"gave shape \(2, 4, 6, 6\)"),
        (lambda: nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 1))), r"gave shape \(384, 1\)"),
        (lambda: nn.Linear(5, 5), "forward failed"),
        (lambda: nn.AdaptiveMaxPool2d(1, return_indices=True), "gave tuple"),
    ],
)
def test_a_module_that_gives_no_feature_vectors_is_refused(module, received):
    with pytest.raises(ContractError, match=received):
        build_backbone(module, {}, (3, 8, 8))


def test_a_module_that_changes_its_mind_is_refused_later():
    class Moody(nn.Module):
        def forward(self, x):
            return x.flatten(1) if x.shape[0] == 2 else x

    net = build_backbone(Moody, {}, (3, 2, 2))
    with pytest.raises(ContractError, match=r"gave shape \(5, 3, 2, 2\)"):
        net(torch.zeros(5, 3, 2, 2))


def test_what_is_no_module_is_refused():
    with pytest.raises(ConfigurationError, match="received a Linear; give the class"):
        backbone_config(nn.Linear(2, 2), {})
    with pytest.raises(ConfigurationError, match="received dict"):
        backbone_config(dict, {})
    with pytest.raises(ContractError, match="must return a torch module, it returned int"):
        build_backbone(lambda: 3, {}, (4,))


# ---- weights files


def test_weights_round_trip_and_a_classifier_is_ignored(tmp_path):
    source = build_backbone("resnet8", {"width": 4}, (3, 8, 8))
    state = {**source.state_dict(), "fc.weight": torch.zeros(10, 16), "linear.bias": torch.zeros(10)}
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        loaded = build_backbone("resnet8", {"width": 4, "weights": str(tmp_path / name)}, (3, 8, 8))
        assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in source.state_dict().items())


def test_a_users_module_loads_under_its_own_names(tmp_path):
    save_file(Net(3).state_dict(), tmp_path / "w.safetensors")
    config = backbone_config(Net, {"channels": 3, "weights": str(tmp_path / "w.safetensors")})
    net, skeleton = config.build((3, 9, 9)), config.skeleton((3, 9, 9))
    kernel = load_file(tmp_path / "w.safetensors")["conv.weight"]
    assert torch.equal(net.module.conv.weight.detach(), kernel)
    assert not torch.equal(skeleton.module.conv.weight.detach(), kernel)


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(build_backbone("resnet8", {"width": 4}, (3, 8, 8)).state_dict(), path)
    with pytest.raises(
        ConfigurationError, match=r"fit ResNet8: .*conv1.weight is 4×3×3×3 in the file, 5×3×3×3 in the backbone"
    ):
        build_backbone("resnet8", {"width": 5, "weights": str(path)}, (3, 8, 8))
    with pytest.raises(ConfigurationError, match=r"layer1.1.conv1.weight isn't in the file") as caught:
        build_backbone("resnet20", {"width": 4, "weights": str(path)}, (3, 8, 8))
    assert "\n" not in str(caught.value)
    save_file(build_backbone("resnet20", {"width": 4}, (3, 8, 8)).state_dict(), path)
    with pytest.raises(ConfigurationError, match=r"layer1.1.bn1.bias isn't in the backbone"):
        build_backbone("resnet8", {"width": 4, "weights": str(path)}, (3, 8, 8))


def test_weights_that_are_missing_or_damaged_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="There is no weights file"):
        build_backbone("resnet8", {"weights": str(tmp_path / "none.safetensors")}, (3, 8, 8))
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    (tmp_path / "bad.pth").write_bytes(b"nonsense")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("bad.safetensors", "bad.pth", "list.pth"):
        with pytest.raises(ConfigurationError, match="can't be read"):
            build_backbone("resnet8", {"weights": str(tmp_path / name)}, (3, 8, 8))


# ---- timm


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("resnet10t", (1, 32, 32)),
        ("test_vit", (3, 160, 160)),
        ("test_efficientnet", (3, 40, 40)),
    ],
)
def test_timm_features_are_those_of_the_model_without_its_classifier(model, shape):
    timm = pytest.importorskip("timm")
    net = build_backbone(f"timm/{model}", {}, shape).eval()
    theirs = timm.create_model(model, num_classes=0, in_chans=shape[0]).eval()
    theirs.load_state_dict(net.weights_target().state_dict())
    x = torch.randn(2, *shape)
    with torch.no_grad():
        features, stages = net.forward_stages(x)
        assert torch.equal(net(x), theirs(x))
        torch.testing.assert_close(features, net(x))
    assert features.shape == (2, net.feature_dim)
    assert len(stages) > 1
    assert len(net.input_mean) == len(net.input_std) == shape[0]
    assert net.input_size == tuple(theirs.pretrained_cfg["input_size"][1:])


def test_timm_on_the_meta_device():
    pytest.importorskip("timm")
    with torch.device("meta"):
        net = build_backbone("timm/resnet10t", {}, (1, 32, 32))
        assert net(torch.empty(2, 1, 32, 32)).shape == (2, net.feature_dim)


def test_timm_resizes_only_when_told():
    pytest.importorskip("timm")
    with pytest.raises(
        ConfigurationError, match=r"takes images of 160×160 pixels, received 32×32; set --backbone.resize 160"
    ):
        build_backbone("timm/test_vit", {}, (3, 32, 32))
    net = build_backbone("timm/test_vit", {"resize": 160}, (3, 32, 32)).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        large = nn.functional.interpolate(x, (160, 160), mode="bilinear", antialias=True)
        assert torch.equal(net(x), net.model(large))
    assert build_backbone("timm/test_vit", {"options": {"img_size": 32}}, (3, 32, 32))(x).shape == (2, net.feature_dim)


def test_timm_errors(monkeypatch):
    timm = pytest.importorskip("timm")
    with pytest.raises(ConfigurationError, match=r"no model named 'resnet10x'.*Did you mean"):
        build_backbone("timm/resnet10x", {}, (3, 32, 32))
    with pytest.raises(ConfigurationError, match=r"backbone.model must be given"):
        build_backbone("timm", {}, (3, 32, 32))
    with pytest.raises(ConfigurationError, match="received both"):
        build_backbone("timm/resnet10t", {"pretrained": True, "weights": "x.safetensors"}, (3, 32, 32))
    with pytest.raises(ConfigurationError, match=r"change backbone.options"):
        build_backbone("timm/resnet10t", {"options": {"nonsense": 1}}, (3, 32, 32))

    def offline(*_, **keywords):
        if keywords["pretrained"]:
            raise OSError("no route to host")
        return create(*_, **keywords)

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", offline)
    config = backbone_config("timm/resnet10t", {"pretrained": True})
    with pytest.raises(ConfigurationError, match=r"neither in the cache nor to be downloaded.*no route to host"):
        config.build((3, 32, 32))
    assert config.skeleton((3, 32, 32)).feature_dim == 512
