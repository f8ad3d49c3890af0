"""Pretraining: the file, what it says of itself, whom it serves; and weights files as a part of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import clframe
from clframe._version import __version__
from clframe.errors import ConfigurationError, RunDirectoryError
from clframe.models import backbone_config, build_backbone
from clframe.models.weights import read_provenance
from clframe.testing.bench import Stopped
from clframe.testing.streams import synthetic_stream

Cli = Callable[..., Any]
VIT = {"patch": 4, "dim": 12, "depth": 1, "heads": 3}
OPTIONS = ("--backbone", "vit_tiny", "--backbone.patch", "4", "--backbone.dim", "12", "--backbone.depth", "1")
FEW = ("--scenario.exclude", "0,1,2,3", "--scenario.train-per-class", "8")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT pretrained on four digits; not to be changed."""
    folder = tmp_path_factory.mktemp("pretrained")
    scenario = {"name": "split_digits", "classes": 4, "train_per_class": 30}
    clframe.pretrain(out=folder / "vit.safetensors", run_dir=folder / "run", progress=False, scenario=scenario, epochs=2,
                     backbone={"name": "vit_tiny", **VIT}, optimizer={"name": "adamw", "lr": 0.002}, seed=3)  # fmt: skip
    return folder


def test_the_file_holds_the_backbone_of_a_joint_run_bit_for_bit(pretrained: Path, tmp_path: Path) -> None:
    scenario = {"name": "split_digits", "classes": 4, "train_per_class": 30, "experiences": 1}
    run = clframe.run(run_dir=tmp_path / "run", progress=False, scenario=scenario, strategy="finetune", epochs=2,
                      backbone={"name": "vit_tiny", **VIT}, optimizer={"name": "adamw", "lr": 0.002}, seed=3)  # fmt: skip
    found, expected = load_file(pretrained / "vit.safetensors"), run.model.branches[0].state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    made = build_backbone("vit_tiny", {**VIT, "weights": str(pretrained / "vit.safetensors")}, (1, 8, 8))
    assert all(torch.equal(found[name], value) for name, value in made.state_dict().items())


def test_the_file_says_where_it_comes_from(pretrained: Path) -> None:
    said = read_provenance(pretrained / "vit.safetensors")
    assert said is not None
    result = json.loads((pretrained / "run" / "result.json").read_text())
    stream = json.loads((pretrained / "run" / "stream.json").read_text())
    assert said["clframe"] == __version__
    assert said["accuracy"] == result["values"]["classifier"]["global"]["final_accuracy"]
    assert said["classes"] == ["0", "1", "2", "3"]
    assert said["data"] == {"name": "split_digits", "fingerprint": stream["data_fingerprint"], "train": 120,
                            "test": stream["experiences"][0]["test"]}  # fmt: skip
    assert said["input"] == {"shape": [1, 8, 8], "mean": stream["mean"], "std": stream["std"]}
    assert said["backbone"] == {"name": "vit_tiny", **VIT, "mlp_ratio": 4.0, "dropout": 0.0,
                                "input_mean": None, "input_std": None}  # fmt: skip
    assert (said["recipe"]["epochs"], said["recipe"]["optimizer"]["name"], said["seed"]) == (2, "adamw", 3)
    assert said["recipe"]["precision"] in ("fp32", "bf16")
    assert said["config"] == yaml.safe_load((pretrained / "run" / "config.yaml").read_text())


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("vit_tiny", {**VIT, "heads": 2}, r"made for vit_tiny with other options \(heads is 3 in the file, 2 here\)"),
        (
            "vit_tiny",
            {**VIT, "dim": 24, "depth": 2},
            r"\(dim is 12 in the file, 24 here; depth is 1 in the file, 2 here\)",
        ),
        ("resnet8", {}, "made for the backbone vit_tiny, not for resnet8"),
        ("timm/vit_tiny_patch16_224", {}, "made for the backbone vit_tiny, not for timm"),
    ],
)
def test_another_backbone_is_refused(pretrained: Path, name: str, options: dict[str, Any], sentence: str) -> None:
    config = backbone_config(name, {**options, "weights": str(pretrained / "vit.safetensors")})
    with pytest.raises(ConfigurationError, match=sentence) as error:
        config._check_provenance(read_provenance(pretrained / "vit.safetensors"))
    assert "\n" not in str(error.value)


def test_images_of_another_size_are_refused_and_dropout_is_free(pretrained: Path) -> None:
    weights = {"weights": str(pretrained / "vit.safetensors")}
    with pytest.raises(
        ConfigurationError, match=r"made for inputs of 1×8×8, don't fit ViTTiny: 1 tensors differ \(pos_embed"
    ):
        build_backbone("vit_tiny", {**VIT, **weights}, (1, 16, 16))
    build_backbone("vit_tiny", {**VIT, "dropout": 0.5, **weights}, (1, 8, 8))


# ---- the command


def test_the_command_writes_a_file_that_run_takes(cli: Cli, tmp_path: Path) -> None:
    said = cli(
        "pretrain",
        "--scenario.classes",
        "4",
        *FEW[2:],
        *OPTIONS,
        "--epochs",
        "1",
        "--out",
        "new/w.safetensors",
        "--quiet",
    )
    assert said.code == 0, said.err
    assert "vit_tiny trained on 4 classes of split_digits, 32 images" in said.out
    assert "weights: new/w.safetensors" in said.out
    again = cli(
        "pretrain",
        "--scenario.classes",
        "4",
        *FEW[2:],
        *OPTIONS,
        "--epochs",
        "1",
        "--out",
        "new/w.safetensors",
        "--json",
    )
    made = json.loads(again.out)
    assert f"accuracy on {made['data']['test']} test images: {100 * made['accuracy']:.2f} %" in said.out
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [
        p.name for p in (tmp_path / "runs").glob("split_digits-joint-0-*")
    ]
    for strategy in ("layernorm_tuning", "linear_probe", "finetune"):
        run = cli("run", *FEW, "--scenario.experiences", "2", *OPTIONS, "--backbone.weights", "new/w.safetensors",
                  "--strategy", strategy, "--epochs", "1", "--quiet", "--json")  # fmt: skip
        assert run.code == 0, run.err
        assert json.loads(run.out)["values"]["classifier"]["global"]["final_accuracy"] >= 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "The following arguments are required: --out."),
        (("--out", "w.pth"), "Expected a file name ending in .safetensors for --out, received w.pth."),
        (
            ("--out", "w.safetensors", "--strategy", "ewc"),
            "strategy: pretraining is plain training on all classes at once",
        ),
        (("--out", "w.safetensors", "--scenario.clases", "3"), "scenario.clases is not an option of SplitDigits."),
        (("--out", "w.safetensors", "--scenario", "splt_digits"), "There is no scenario named 'splt_digits'."),
        (("--out", "w.safetensors", "--epoch", "3"), "There is no option --epoch. Did you mean '--epochs'?"),
    ],
)
def test_bad_input_gets_one_sentence_and_writes_nothing(
    cli: Cli, tree: Any, tmp_path: Path, arguments: Any, sentence: str
) -> None:
    said = cli("pretrain", *arguments)
    assert said.code == 2
    assert said.problems[0].startswith(sentence), said.err
    assert len(said.problems) == 1
    assert tree(tmp_path) == {}


def test_a_dry_run_writes_nothing(cli: Cli, tree: Any, tmp_path: Path) -> None:
    said = cli("pretrain", "--dry-run", "--out", "w.safetensors", *OPTIONS, "--epochs", "2")
    assert said.code == 0, said.err
    assert "optimiser steps in all" in said.out
    assert "experiences: 1" in said.out
    assert tree(tmp_path) == {}


def test_ctrl_c_says_how_to_go_on(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clframe.api.pretrain", interrupted)
    said = cli("pretrain", "--out", "w.safetensors")
    assert (said.code, said.problems) == (130, ["interrupted; the same command continues the pretraining."])


# ---- stopping, repeating


def small(**more: Any) -> dict[str, Any]:
    return {"scenario": synthetic_stream(), "backbone": {"name": "vit_tiny", **VIT}, "epochs": 2, "batch_size": 8, "progress": False,
            **more}  # fmt: skip


def test_a_stopped_pretraining_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clframe.pretrain(out="whole.safetensors", run_dir="whole", **small())
    with pytest.raises(Stopped):
        clframe.pretrain(out="parts.safetensors", stop_after=3, **small())
    assert not (tmp_path / "parts.safetensors").exists()
    made = clframe.pretrain(out="parts.safetensors", **small())
    assert (tmp_path / "parts.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert clframe.pretrain(out="parts.safetensors", **small()) == made
    copy = clframe.pretrain(out="copy.safetensors", **small())  # of the run that has finished
    assert copy == made
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    clframe.pretrain(out=out, run_dir=tmp_path / "run", **small())
    before = out.read_bytes()
    with pytest.raises(ConfigurationError, match=r"w\.safetensors exists and was made otherwise"):
        clframe.pretrain(out=out, run_dir=tmp_path / "other", **small(seed=1))
    with pytest.raises(RunDirectoryError, match="holds another run"):
        clframe.pretrain(out=tmp_path / "v.safetensors", run_dir=tmp_path / "run", **small(seed=1))
    save_file({"a": torch.zeros(1)}, out)
    with pytest.raises(ConfigurationError, match="made otherwise"):
        clframe.pretrain(out=out, run_dir=tmp_path / "run", **small())
    assert out.read_bytes() != before


def test_a_stream_of_several_experiences_is_learnt_at_once(tmp_path: Path) -> None:
    made = clframe.pretrain(out=tmp_path / "w.safetensors", run_dir=tmp_path / "run", **small())
    assert (made["data"]["train"], made["data"]["test"], len(made["classes"])) == (36, 18, 6)
    trained = clframe.load(tmp_path / "run").events("epoch")
    assert [(e["experience"], e["steps"]) for e in trained] == [(3, 5)] * 2


class Wrapped(torch.nn.Module):
    """A user's own network."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.body = torch.nn.Linear(64, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x.flatten(1)).tanh()


@pytest.mark.parametrize("given", [Wrapped, Wrapped(width=5)])
def test_a_users_own_module_can_be_pretrained(tmp_path: Path, given: Any) -> None:
    out = tmp_path / "w.safetensors"
    clframe.pretrain(out=out, run_dir=tmp_path / "run", **small(backbone=given))
    assert set(load_file(out)) == {"body.weight", "body.bias"}
    width = 6 if given is Wrapped else 5
    for file in (out, tmp_path / "run" / "checkpoints" / "model.safetensors"):
        made = build_backbone(Wrapped, {"width": width, "weights": str(file)}, (1, 8, 8))
        assert torch.equal(made.module.body.weight, load_file(out)["body.weight"])


# ---- a weights file is part of a run


def tuned(pretrained: Path, tmp_path: Path, **more: Any) -> tuple[Path, dict[str, Any]]:
    file = tmp_path / "w.safetensors"
    file.write_bytes((pretrained / "vit.safetensors").read_bytes())
    config = {"scenario": {"name": "split_digits", "experiences": 2, "classes": [4, 5], "train_per_class": 8}, "epochs": 2,
              "backbone": {"name": "vit_tiny", **VIT, "weights": str(file)}, "progress": False}  # fmt: skip
    return file, {**config, "run_dir": tmp_path / "run", **more}


def test_the_record_of_a_run_knows_the_file(pretrained: Path, tmp_path: Path) -> None:
    file, config = tuned(pretrained, tmp_path)
    run = clframe.run(**config)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert run.config["weights"] == {str(file): digest[:16]}
    said = json.loads((run.path / "environment.json").read_text())["weights"]
    assert said == {"file": str(file), "sha256": digest, "provenance": read_provenance(file)}


def test_a_changed_or_moved_file_is_noticed_when_a_run_goes_on(pretrained: Path, tmp_path: Path) -> None:
    file, config = tuned(pretrained, tmp_path)
    with pytest.raises(Stopped):
        clframe.run(stop_after=1, **config)
    content = file.read_bytes()
    file.rename(tmp_path / "moved.safetensors")
    with pytest.raises(
        ConfigurationError, match=r"w\.safetensors is gone since the run was made \(SHA-256 .*bring it back"
    ):
        clframe.resume(tmp_path / "run", progress=False)
    tensors = load_file(tmp_path / "moved.safetensors")
    save_file({k: v + 1 for k, v in tensors.items()}, file)
    with pytest.raises(ConfigurationError, match=r"w\.safetensors has changed \(SHA-256 .*since the run was made"):
        clframe.resume(tmp_path / "run", progress=False)
    file.write_bytes(content)
    assert clframe.resume(tmp_path / "run", progress=False).finished


def test_a_record_with_another_file_is_another_run(pretrained: Path, tmp_path: Path) -> None:
    file, config = tuned(pretrained, tmp_path)
    record = clframe.run(**config).config
    other = tmp_path / "other.safetensors"
    save_file({k: v + 1 for k, v in load_file(file).items()}, other)
    changed = {**record, "backbone": {**record["backbone"], "weights": str(other)}}
    run = clframe.run(run_dir=tmp_path / "again", progress=False, **changed)
    assert list(run.config["weights"]) == [str(other)]


def test_pretraining_on_the_streams_own_classes_is_told(pretrained: Path, tmp_path: Path) -> None:
    _, config = tuned(pretrained, tmp_path)
    config["scenario"] = {**config["scenario"], "classes": [3, 4]}
    with pytest.warns(UserWarning, match=r"pretrained on 1 classes of this very stream \(3\)"):
        clframe.run(**config)
