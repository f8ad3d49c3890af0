"""Everything registered keeps the contract: every strategy in its main forms, every scenario, some compositions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clframe import registry
from clframe.composite import tags_of
from clframe.config import resolve
from clframe.data import DataRoot
from clframe.errors import ConfigurationError
from clframe.launch.build import check_fit
from clframe.models import backbone_config
from clframe.scenario import Scenario
from clframe.spec import fields_of
from clframe.strategy import Strategy
from clframe.testing import Bench, SyntheticScenario, check_scenario, parametrize_with_checks, strategy_checks
from clframe.testing.devices import StrictMeta
from clframe.testing.streams import synthetic_stream

FORMS: list[tuple[str, dict[str, Any]]] = [
    ("replay", {"form": "step"}),
    ("replay", {"policy": "reservoir"}),
    ("replay", {"policy": "random", "budget": "per_class", "memory_size": 3}),
    ("replay", {"form": "step", "policy": "ring"}),
    ("replay", {"form": "step", "policy": "class_balanced"}),
    ("replay", {"memory_size": 0}),
    ("replay", {"form": "step", "policy": "greedy_balanced"}),
    ("dark_er", {"beta": 0.0}),
    ("dark_er", {"alpha": 0.0, "beta": 1.0}),
    ("dark_er", {"policy": "ring", "logits_of": "last"}),
    ("er_ace", {"incoming": "experience", "policy": "class_balanced"}),
    ("agem", {"policy": "reservoir", "memory_batch": 3}),
    ("gdumb", {"cutmix": 0.0, "fit_batch": None}),
    ("dark_er+lwf", {}),
    ("agem+ewc", {}),
    ("ewc", {"mode": "online", "decay": 0.5, "fisher": "batch"}),
    ("joint", {"every": "experience"}),
    ("cumulative", {"start": "scratch"}),
    ("lwf", {"scale": True}),
    ("si", {"damping": 0.001, "strength": 0.1}),
    ("mas", {"samples": 5}),
    ("l2_anchor", {"from_start": True}),
    ("l2_init", {"strength": 0.1}),
    ("replay+l2_init", {}),
    ("shrink_perturb", {"shrink": 0.0, "perturb": 1.0}),
    ("shrink_perturb+replay", {}),
    ("redo", {"every": 2, "threshold": 0.9}),
    ("replay+redo", {"every": 3, "threshold": 0.5}),
    ("predkd", {"form": "sigmoid", "loss_over": "experience"}),
    ("featkd", {"stages": True}),
    ("bce", {"loss_over": "seen"}),
    ("replay+ewc", {}),
    ("lwf+ewc", {}),
    ("bce+predkd+ewc", {}),
    ("bce+predkd+l2_anchor", {}),
    ("replay+si", {}),
    ("tau_norm", {"tau": 0.5, "drop_bias": False, "in_first": True}),
    ("gauss_align", {"covariance": "shared", "continue_from": "after"}),
    ("gauss_align", {"covariance": "low_rank", "rank": 2, "temperature": None}),
    ("slca", {"covariance": "diagonal", "first_lr_scale": 0.01}),
    ("slca", {"covariance": "none", "ridge": 0.1, "backbone_lr_scale": 0.0}),
    ("replay+crt", {}),
    ("crt+replay", {"balance": "subset", "start": "before", "continue_from": "after", "temperature": 5.0}),
    ("replay+lws", {}),
    ("lwf+tau_norm", {}),
    ("finetune+gauss_align", {}),
    ("der+tau_norm", {}),
    ("joint+crt", {}),
    ("ewc+slca", {}),
    ("icarl", {"loss": "kd"}),
    ("wa", {"clamp": False}),
    ("bic", {"budget": "per_class", "memory_size": 3, "nme": False}),
    ("podnet", {"nca": "public", "imprint": False, "freeze_old": False}),
    ("podnet", {"flat_weight": 0.0, "budget": "per_class", "memory_size": 2}),
    ("replay+ewc", {}),
    ("lwf+ewc", {}),
    ("bic+ewc", {"strength": 1.0}),
    ("podnet+ewc", {}),
    ("layernorm_tuning", {"form": "single_stage"}),
    ("layernorm_tuning", {"key_epochs": 0, "head_epochs": 3, "head_lr": 0.01}),
    ("batchnorm_tuning", {"form": "single_stage"}),
]
"""Forms beside the defaults of everything registered."""

KNOWN_FAILURES: dict[str, dict[str, str]] = {}
"""Strategy to {check: reason}; empty is the aim."""


def strategies() -> list[Strategy]:
    everything = [(name, {}) for name in registry.available("strategy")]
    return [resolve({"strategy": {"name": name, **options}}).strategy for name, options in everything + FORMS]


def known_failures(subject: Any) -> dict[str, str]:
    return KNOWN_FAILURES.get(type(subject).__name__, {})


@parametrize_with_checks(strategies(), known_failures)
def test_strategy(subject: Any, check: Any) -> None:
    check(subject)


EVEN_ODD = {"even": ["0", "2", "4", "6", "8"], "odd": ["1", "3", "5", "7", "9"]}
OPTIONS: dict[str, dict[str, Any]] = {
    "imagenet100": {"classes": None, "size": 8, "crop": 8},
    "imagenet_subset": {"size": 8, "crop": 6},
    "superclass_domains": {"hierarchy": EVEN_ODD},
    "multi_dataset": {"sources": ["digits", "digits"]},
    "feature_stream": {"scenario": "split_digits", "backbone": {"name": "mlp", "hidden": [6]}},
    "compatibility": {"experiences": 4},
}
"""What a scenario needs beside a source and a number of experiences."""

SCENARIOS: list[tuple[str, dict[str, Any]]] = [
    ("split", {"increment": 4}),
    ("split", {"sizes": [1, 2, 3, 4], "order": "seed:1993", "valid_per_class": 3}),
    ("split", {"base": 4, "increment": 2, "train_per_class": 20, "test_per_class": 5}),
    ("split", {"experiences": 5, "setting": "task"}),
    ("split", {"experiences": 5, "setting": "domain", "classes": [9, 8, 7, 6, 5], "valid_per_class": 1}),
    ("split", {"experiences": 1}),
    ("permuted", {"first": False, "images": "shares", "setting": "class", "experiences": 3}),
    ("rotated", {"setting": "task", "experiences": 3, "valid_per_class": 2}),
    ("corrupted", {"corruptions": ["fog"], "severity": [0, 2, 5], "experiences": 3, "images": "shares"}),
    ("corrupted", {"corruptions": ["jpeg_compression", "pixelate"], "experiences": 2, "setting": "task"}),
    ("time_ordered", {"drift": "gaussian_noise", "experiences": 6, "setting": "task"}),
    (
        "feature_stream",
        {
            "scenario": {"name": "rotated", "setting": "task", "experiences": 2},
            "backbone": {"name": "resnet8", "width": 4},
        },
    ),
    ("si_blurry", {"classes": 8, "num_tasks": 2, "evaluate_every": 100, "valid_per_class": 3}),
    ("i_blurry", {"disjoint_percent": 0, "blurry_percent": 100, "online": False}),
    ("gaussian_schedule", {"width": 0.0, "evaluate_every": 300}),
    ("class_repetition", {"generator": "sampling", "valid_per_class": 2}),
    ("data_incremental", {"growth": 0.5}),
    ("long_tailed", {"placement": "ordered", "ratio": 0.1, "experiences": 5}),
    ("few_shot", {"base": 6, "shots": 1, "valid_per_class": 2}),
    ("partially_labelled", {"labelled": 1.0, "setting": "task"}),
    ("noisy_labels", {"kind": "pair", "setting": "domain", "order": "seed:3"}),
    ("unlearning", {"what": "samples", "retain": "none"}),
    ("unlearning", {"share": 0.3, "retrain": True, "order": "seed:4", "valid_per_class": 2}),
    ("unlearning", {"what": "samples", "retrain": True}),
    ("compatibility", {"held_out": 0, "experiences": 5, "test_per_class": 4, "order": "seed:2"}),
    ("compatibility", {"gallery_source": "digits", "sizes": [1, 9], "gallery_share": 0.2}),
    ("feature_stream", {"scenario": {"name": "compatibility"}, "backbone": {"name": "mlp", "hidden": [6]}}),
    ("multi_dataset", {"sources": ["digits", "digits"], "setting": "domain", "size": 12, "train_per_class": 9}),
    ("sandbox", {"truth": "walk", "condition": 10.0, "experiences": 3}),
    ("plasticity", {"kind": "permuted_labels", "experiences": 6}),
    ("superclass_domains", {"hierarchy": EVEN_ODD, "setting": "task", "train_per_class": 20}),
]


def scenarios() -> list[Scenario]:
    """Every registered scenario, cut from the embedded digits, and the forms above."""
    found: list[Scenario] = []
    for name in registry.available("scenario"):
        cls = registry.load("scenario", name)
        usual = {"source": "digits", "experiences": 5}
        fields = {f.name: f.default for f in fields_of(cls)}
        if fields.get("increment") is not None:  # says how many experiences there are
            del usual["experiences"]
        options = {**{n: v for n, v in usual.items() if n in fields}, **OPTIONS.get(name, {})}
        found.append(resolve({"scenario": {"name": name, **options}}).scenario)
        assert isinstance(found[-1], cls)
    for name, options in SCENARIOS:
        sourced = {} if name in ("sandbox", "multi_dataset", "feature_stream") else {"source": "digits"}
        found.append(resolve({"scenario": {"name": name, **sourced, **options}}).scenario)
    synthetic: list[dict[str, Any]] = [
        {},
        {"setting": "task"},
        {"setting": "domain", "experiences": [[0, 1], [0, 1]]},
        {"experiences": [[0, 1], [1, 2], [3, 0]]},
        {"train_per_class": [5, 1, 9], "valid_per_class": 2, "odd": 1},
        {"unlabelled_per_class": 3, "pool_per_class": 4, "query_budget": 2, "forget_per_experience": 2},
        {"score": "squared_error", "experiences": [[0, 1], [0, 1]]},
    ]
    return found + [SyntheticScenario(**options) for options in synthetic]


@parametrize_with_checks(scenarios())
def test_scenario(subject: Any, check: Any) -> None:
    check(subject)


def test_a_scenario_on_real_images(shared_data: Path) -> None:
    """CIFAR-100 from its archive, where it lies on this machine; decoding it once takes some seconds."""
    if "CLFRAME_TEST_CACHE" not in os.environ:
        pytest.skip("needs CLFRAME_TEST_CACHE, so that CIFAR-100 isn't decoded anew in every run of the tests")
    check_scenario("split_cifar100", root=DataRoot.resolve(shared_data))


DEVICE_BACKBONES: list[tuple[str, dict[str, Any]]] = [
    ("mlp", {"hidden": [8]}),
    ("resnet8", {}),
    ("vit_tiny", {"patch": 4, "dim": 12, "depth": 1}),
]


@pytest.mark.parametrize(("backbone", "options"), DEVICE_BACKBONES, ids=[n for n, _ in DEVICE_BACKBONES])
@pytest.mark.parametrize("name", registry.available("strategy"))
def test_steps_on_another_device(name: str, backbone: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Device mix-ups can't hide: every strategy's steps, with real backbones, on the meta device."""
    config = backbone_config(backbone, options)
    config.pretrained = True  # stands for weights, for the methods that need some
    strategy = resolve({"strategy": name}).strategy
    if tags_of(strategy).needs_pretrained:
        file = tmp_path / "weights.safetensors"
        save_file(config.build(synthetic_stream().shape).state_dict(), file)
        config = config.replace(weights=str(file))
    try:
        check_fit(strategy, Bench(strategy).stream(), config)
    except ConfigurationError as error:
        pytest.skip(str(error))
    check = next(c for c in strategy_checks() if c.name == "steps_on_another_device")
    check(strategy, backbone=config)


def test_the_meta_device_is_used() -> None:
    """The trial is worth something: the network really lies on the meta device, and a mixture is refused."""
    bench = Bench(resolve({"strategy": "finetune"}).strategy)
    from clframe.training.context import Context

    network = Context(bench.setup(device="meta")).network
    assert {p.device.type for p in network.parameters()} == {"meta"}
    here, there = torch.ones(3), torch.ones(3, device="meta")
    with StrictMeta(), pytest.raises(Exception, match="mixes"):
        here + there
    with StrictMeta(), pytest.raises(Exception, match="positions"):
        here[torch.zeros(2, dtype=torch.int64, device="meta")]
    with StrictMeta():
        assert there[torch.tensor([0, 1])].shape == (2,)  # as a GPU allows
        assert there.sum().item() == 1.0
        assert torch.equal(there.cpu(), torch.zeros(3))


def test_everything_registered_is_there() -> None:
    """A name that is registered and can't be loaded would silently drop out of this folder."""
    assert {"finetune", "joint", "cumulative", "replay", "ewc", "lwf", "nmc", "simplecil"} <= set(
        registry.available("strategy")
    )
    source = Path(__file__).resolve().parents[2] / "strategies"
    files = {p.stem for p in source.glob("*.py") if not p.stem.startswith("_")}
    assert {registry.load("strategy", n).__module__.rsplit(".", 1)[1] for n in registry.available("strategy")} == files
