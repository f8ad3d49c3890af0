"""Streams of features: the same index sets, and methods on frozen features come to what they do on the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import clframe
from clframe.config import resolve
from clframe.data import DataRoot
from clframe.errors import ConfigurationError, ContractError
from clframe.launch.build import build_setup
from clframe.models import build_backbone
from clframe.scenarios.feature_stream import FeatureStream
from clframe.strategies.finetune import Finetune
from clframe.strategy import ParameterGroup, Phase
from clframe.stream import Experience
from clframe.testing import MemoryRecorder
from clframe.training.trainer import Trainer

INNER = {"name": "split_digits", "train_per_class": 12, "test_per_class": 6, "experiences": 5}
LINEAR = {"name": "mlp", "hidden": []}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLFRAME_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def backbone(tmp_path: Path) -> dict[str, object]:
    """A network with weights and input statistics of its own."""
    torch.manual_seed(5)
    save_file(build_backbone("resnet8", {"width": 4}, (1, 8, 8)).state_dict(), tmp_path / "net.safetensors")
    weights = str(tmp_path / "net.safetensors")
    return {"name": "resnet8", "width": 4, "weights": weights, "input_mean": [0.2], "input_std": [0.6]}


def on_features(backbone, inner=INNER, **options):
    return {"name": "feature_stream", "scenario": inner, "backbone": backbone, **options}


@pytest.mark.parametrize(
    "inner",
    [
        INNER,
        {"name": "rotated", "setting": "task", "train_per_class": 9, "valid_per_class": 2, "experiences": 2},
        {
            "name": "partially_labelled",
            "labelled": 0.2,
            "train_per_class": 10,
            "classes": [3, 1, 4, 5],
            "sizes": [2, 2],
        },
        {"name": "active", "budget": 10, "train_per_class": 10},
        {"name": "unlearning", "train_per_class": 5},
    ],
    ids=lambda i: i["name"],
)
def test_index_sets_stay_and_samples_become_features(backbone, inner):
    images, features = clframe.open_scenario(inner), clframe.open_scenario(on_features(backbone, inner))
    for a, b in zip(images.experiences, features.experiences, strict=True):
        for name in ("train", "valid", "unlabelled", "pool", "forget"):
            assert torch.equal(getattr(a, name), getattr(b, name))
        assert (a.classes, a.new_classes, a.task_id) == (b.classes, b.new_classes, b.task_id)
    for a, b in zip(images.tasks, features.tasks, strict=True):
        assert torch.equal(a.test, b.test)
    assert features.shape == (16,)
    assert features.pretrained
    network = resolve({"backbone": backbone}).backbone.build(images.shape).eval()
    for name in ("train", "test"):
        pixels, found = getattr(images, name), getattr(features, name)
        assert torch.equal(pixels.targets, found.targets)
        owners = images.experiences if name == "train" else images.tasks
        for ids in (getattr(owners[-1], name)[:7], getattr(owners[0], name)[3:4]):
            x = (pixels.gather(ids).permute(0, 3, 1, 2) / 255 - 0.2) / 0.6
            with torch.no_grad():
                torch.testing.assert_close(found.gather(ids), network(x), rtol=1e-4, atol=1e-5)


def test_the_nearest_mean_is_the_same_on_images_and_on_features(backbone, tmp_path):
    made = {}
    for name, scenario, network in (("images", INNER, backbone), ("features", on_features(backbone), LINEAR)):
        made[name] = clframe.run(
            scenario=scenario, strategy="nmc", backbone=network, run_dir=tmp_path / name, progress=False
        )
    np.testing.assert_array_equal(made["images"].matrix(), made["features"].matrix())
    assert made["images"].matrix()[-1].mean() > 0.3
    means = [m.strategy.means() for m in made.values()]
    torch.testing.assert_close(means[0], means[1], rtol=1e-5, atol=1e-6)
    shown = clframe.open_scenario(on_features(backbone))
    ids = shown.tasks[2].test
    there = clframe.load(tmp_path / "features").strategy.predict(shown.test.gather(ids))["nmc"]
    pictures = clframe.open_scenario(INNER).test.gather(ids).permute(0, 3, 1, 2)
    here = made["images"].strategy.predict((pictures / 255 - 0.2) / 0.6)["nmc"]
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-5)


class Probe(Finetune):
    """Trains the classifier alone, on features that never change."""

    def phases(self, experience: Experience) -> list[Phase]:
        return [
            Phase(
                name="train",
                data=self.training_data(experience),
                epochs=self.epochs,
                parameters=[ParameterGroup(list(self.network.classifier.parameters()))],
                eval_modules=[*self.network.branches],
            )
        ]


def test_a_linear_head_trained_without_augmentation_is_the_same(backbone):
    weights, columns = [], []
    inner = {**INNER, "experiences": 2}
    for scenario, network in ((inner, backbone), (on_features(backbone, inner), LINEAR)):
        options = {"augmentation": "none", "device": "cpu", "batch_size": 16, "optimizer": {"lr": 0.3}}
        parts = {"scenario": scenario, "backbone": network, "strategy": Probe(epochs=10)}
        config = resolve({**parts, **options})
        trainer = Trainer(build_setup(config, clframe.open_scenario(scenario)), MemoryRecorder())
        trainer.run()
        weights.append(trainer.strategy.network.classifier.weight.detach())
        columns.append([trainer.recorder.kept["test", after, "classifier"]["predicted"] for after in (1, 2)])
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-4)
    assert all((a == b).all() for a, b in zip(*columns, strict=True))
    assert len(set(columns[0][0].tolist())) > 3


def test_features_are_computed_once_for_images_and_feature_streams(backbone, own_cache, tmp_path):
    first = clframe.open_scenario(on_features(backbone))
    files = sorted(own_cache.rglob("*.safetensors"))
    assert files
    clframe.run(scenario=INNER, strategy="nmc", backbone=backbone, run_dir=tmp_path / "run", progress=False)
    reordered = clframe.open_scenario(on_features(backbone, {**INNER, "order": "seed:4"}))
    assert sorted(own_cache.rglob("*.safetensors")) == files  # nothing new
    assert reordered.fingerprint != first.fingerprint
    run = clframe.run(
        scenario=on_features(backbone), strategy="nmc", backbone=LINEAR, run_dir=tmp_path / "f", progress=False
    )
    assert sorted(own_cache.rglob("*.safetensors")) == files  # the identity is not cached
    assert run.config["scenario"]["backbone"]["weights"] == backbone["weights"]
    assert run.config["scenario"]["scenario"]["version"] == 1


def test_other_weights_statistics_or_transforms_make_another_stream(backbone, tmp_path, monkeypatch):
    prints = {
        clframe.open_scenario(scenario).fingerprint
        for scenario in (
            on_features(backbone),
            on_features({**backbone, "input_mean": [0.3]}),
            on_features({**backbone, "weights": None}),
            on_features(backbone, test_transform=[{"name": "resize", "size": 12}]),
            on_features(backbone, {**INNER, "order": "seed:1"}),
        )
    }
    assert len(prints) == 5
    assert clframe.open_scenario(on_features(backbone)).fingerprint in prints
    plain = clframe.open_scenario(on_features("mlp"))
    assert not plain.pretrained
    monkeypatch.setenv("CLFRAME_CACHE", str(tmp_path / "another"))
    torch.manual_seed(99)
    again = clframe.open_scenario(on_features("mlp"))
    assert torch.equal(again.train.images.gather(torch.arange(20)), plain.train.images.gather(torch.arange(20)))


def test_what_makes_no_sense_is_refused(backbone):
    with pytest.raises(ConfigurationError, match=r"In scenario.scenario: scenario.experience is not an option .*Did"):
        resolve({"scenario": on_features(backbone, {"name": "split_digits", "experience": 5})})
    with pytest.raises(ConfigurationError, match=r"In scenario.backbone: "):
        resolve({"scenario": on_features("resnet9")})
    with pytest.raises(ConfigurationError, match=r"draw nothing, such as resize, received random_crop"):
        clframe.open_scenario(on_features(backbone, test_transform="random_crop"))
    for network, scenario in (({"name": "mlp"}, on_features(backbone)), (LINEAR, on_features("mlp"))):
        with pytest.raises(ConfigurationError, match="needs a backbone with weights"):
            clframe.plan(scenario=scenario, strategy="nmc", backbone=network)
    with pytest.raises(ContractError, match=r"FeatureStream needs the engine to build it: call clframe\.open_"):
        FeatureStream(scenario="split_digits", backbone="mlp").build(DataRoot.resolve())


def test_the_files_of_the_user_are_kept_with_the_run(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.layer = nn.Linear(64, 3)\n\n    def forward(self, x):\n        return self.layer(x.flatten(1))\n"
    )
    config = resolve({"scenario": on_features({"name": f"{file}:Net"})})
    assert config.sources == {"mine.py": file.read_text()}
    assert resolve(config.record).record == config.record
    assert clframe.open_scenario(on_features({"name": f"{file}:Net"})).shape == (3,)


def test_other_weights_under_the_same_name_are_refused_when_a_run_is_repeated(backbone):
    record = resolve({"scenario": on_features(backbone)}).record
    assert list(record["weights"]) == [backbone["weights"]]
    torch.manual_seed(6)
    save_file(build_backbone("resnet8", {"width": 4}, (1, 8, 8)).state_dict(), backbone["weights"])
    with pytest.raises(ConfigurationError, match=r"The weights file .* has changed"):
        resolve(record)
