"""Every recipe says what it reproduces, resolves, and would run where its data is at hand."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image

import clframe
from clframe import registry
from clframe.config import merged, resolve

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "recipes"
INDEX: dict[str, Any] = yaml.safe_load((FOLDER / "index.yaml").read_text(encoding="utf-8")) if FOLDER.is_dir() else {}
NAMES = list(INDEX.get("recipes", {}))
COMING = {"icarl", "wa", "bic", "podnet", "slca", "layernorm_tuning", "nmc", "dark_er"}
"""Strategies that recipes may name before they are registered; any other name is a mistake."""


@pytest.fixture(scope="module")
def ri(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("recipe_index")


def config_of(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return config


def wordnet_ids() -> list[str]:
    """The ids of ILSVRC's 1000 classes, as timm lists them; timm itself need not be imported."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        pytest.skip("needs timm, which lists ImageNet's classes")
    listed = Path(spec.origin).parent / "data" / "_info" / "imagenet_synsets.txt"
    return listed.read_text(encoding="utf-8").split()


def stand_in(config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Put fine-tuning in the place of a strategy that isn't registered yet; says so in the second value."""
    strategy = config["strategy"]
    if strategy["name"] in registry.available("strategy"):
        return config, ""
    assert strategy["name"] in COMING, f"there is no strategy {strategy['name']!r}"
    shared = {n: strategy[n] for n in ("epochs", "first_epochs") if n in strategy}
    return {
        **config,
        "strategy": {"name": "finetune", **shared},
    }, f"the strategy {strategy['name']} isn't registered yet"


# -- the index ---------------------------------------------------------------------------------------------------------


def test_files_and_index_name_the_same_recipes() -> None:
    assert {p.stem for p in FOLDER.glob("*.yaml")} - {"index", "orders"} == set(NAMES)


def test_the_heads_of_the_files_are_those_of_the_index(ri: ModuleType) -> None:
    assert ri.main(["--check"]) == 0, "write them anew: python benchmarks/recipe_index.py"


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_states_its_facts(name: str, ri: ModuleType) -> None:
    recipe = next(r for r in ri.recipes() if r.name == name)
    assert recipe.mark in ri.marks()
    assert recipe.data in ("cifar100", "imagenet100")
    assert recipe.differs
    assert recipe.expected or recipe.band
    assert set(recipe.expected) <= set(ri.SHOWN)
    text = recipe.path.read_text(encoding="utf-8")
    assert f"# State: {ri.state(recipe, ri.recorded())}" in text
    assert all(f"{v:g} {what}" in " ".join(text.split()) for what, v in recipe.expected.items())


def test_every_acceptance_band_has_a_recipe_of_its_protocol(ri: ModuleType) -> None:
    held = {b: [r for r in ri.recipes() if r.band == b] for b in ri.bands()}
    assert set(held) == {"replay", "icarl", "wa", "der", "foster"}
    assert {r.band for r in ri.recipes()} - {""} == set(held)
    for own in held.values():
        assert own
        for recipe in own:
            config = recipe.config
            assert config["scenario"] == {"name": "split_cifar100", "increment": 10, "order": "seed:1993"}
            assert config["backbone"] == {"name": "resnet32"}
            assert config["augmentation"] == "crop_flip_jitter"
            assert config["batch_size"] == 128
            assert config["strategy"]["memory_size"] == 2000
            assert config["strategy"].get("budget", "total") == "total"
            for what, value in recipe.expected.items():  # a band lies around the number that it was drawn from
                low, high = ri.bands()[recipe.band][what]
                assert low <= value <= high, recipe.name


def test_rows_without_a_recipe_have_a_reason(ri: ModuleType) -> None:
    assert all(row and reason for row, reason in ri.without())


def test_class_orders_are_permutations_and_recipes_hold_the_first(ri: ModuleType) -> None:
    podnet = ri.orders("podnet")
    assert len({tuple(o) for o in podnet}) == 3
    assert all(sorted(o) == list(range(100)) for o in podnet)
    averaging = [r for r in ri.recipes() if r.orders]
    assert averaging
    assert all(r.config["scenario"]["order"] == ri.orders(r.orders)[0] for r in averaging)


def test_imagenet100_is_the_sorted_first_hundred_of_ilsvrc() -> None:
    listed = (FOLDER.parents[1] / "scenarios" / "imagenet100.txt").read_text(encoding="utf-8").split()
    assert listed == sorted(wordnet_ids())[:100]


# -- the configurations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_resolves(name: str) -> None:
    config, reason = stand_in(config_of(name))
    record = resolve(config).record
    assert resolve(record).record == record
    if reason:
        pytest.skip(f"{reason}; the rest of the file was checked")


def expected_experiences(name: str) -> int:
    """The number that the file's name states; B50 counts the base one too."""
    for pattern, count in (("b0", 0), ("b50", 1)):
        found = re.search(rf"_{pattern}_(\d+)", name)
        if found:
            return int(found[1]) + count
    return 10


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `imagenet` of the first 120 classes, two tiny images each, in a data folder of its own."""
    out = io.BytesIO()
    Image.new("RGB", (12, 9), (90, 120, 60)).save(out, format="PNG")
    root = tmp_path_factory.mktemp("data")
    for split, count in (("train", 2), ("val", 1)):
        for wnid in sorted(wordnet_ids())[:120]:
            folder = root / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            for k in range(count):
                (folder / f"{k}.png").write_bytes(out.getvalue())
    return root


@pytest.fixture(scope="module")
def small_vit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A vision transformer with a file of weights, in the place of a large one that would be downloaded."""
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    options = {"depth": 2, "embed_dim": 24, "num_heads": 2}
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0, **options).state_dict(), path)
    return {"model": "vit_tiny_patch16_224", "pretrained": False, "weights": str(path), "options": options}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_would_run(name: str, request: pytest.FixtureRequest) -> None:
    """The whole stream is cut and every phase is planned; the network alone is made narrow."""
    config, reason = stand_in(config_of(name))
    pretrained = config["backbone"]["name"] == "timm"
    changes: dict[str, Any] = {"device": "cpu", "backbone": {"width": 4}}
    if pretrained:
        changes["backbone"] = request.getfixturevalue("small_vit")
    if INDEX["recipes"][name]["data"] == "cifar100":
        root, train = request.getfixturevalue("shared_data"), 50_000
    else:
        root, train = request.getfixturevalue("imagenet"), 200
        changes["scenario"] = {"mode": "stream"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few samples of a class for its share of the memory
        plan = clframe.plan(data_root=root, **merged(config, changes))
    assert len(plan.stream) == expected_experiences(name)
    first = {}
    for row in plan.phases:
        first.setdefault(row["experience"], row)
    strategy = config["strategy"]
    if strategy["name"] == "joint":
        assert [row["samples"] for row in plan.phases] == [train]
    elif not reason and "epochs" in strategy:
        assert len(first) == len(plan.stream)
        assert first[1]["epochs"] == strategy.get("first_epochs", strategy["epochs"])
        assert all(row["epochs"] == strategy["epochs"] for k, row in first.items() if k > 1)
    if reason:
        pytest.skip(f"{reason}; its data, network and recipe were checked")


# -- results -----------------------------------------------------------------------------------------------------------

TINY = {
    "scenario": {"name": "split_digits", "train_per_class": 6},
    "strategy": "finetune",
    "epochs": 1,
    "batch_size": 8,
}


@pytest.fixture
def tiny(ri: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of one recipe, and a place for its results."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    facts = {"title": "A", "paper": "B", "row": "C", "head": "classifier", "expected": {"last": 19.0}, "mark": "fig"}
    index = {
        "marks": {"fig": "read off a figure"},
        "bands": {"b": {"last": [0, 100]}},
        "recipes": {"tiny": {**facts, "data": "digits", "differs": ["D"], "band": "b", "orders": "two"}},
        "without": [],
    }
    config = {**TINY, "scenario": {**TINY["scenario"], "order": [*range(10)]}, "strategy": {"name": "finetune"}}
    (folder / "index.yaml").write_text(yaml.safe_dump(index))
    (folder / "orders.yaml").write_text(yaml.safe_dump({"two": [[*range(10)], [*range(9, -1, -1)]]}))
    (folder / "tiny.yaml").write_text("# old head\n" + yaml.safe_dump(config))
    monkeypatch.setattr(ri, "FOLDER", folder)
    monkeypatch.setattr(ri, "RESULTS", tmp_path / "recipes.json")
    ri._index.cache_clear()
    yield tmp_path
    ri._index.cache_clear()


def run_of(config: dict[str, Any], path: Path, **changes: Any) -> Path:
    return clframe.run(run_dir=path, progress=False, **merged(config, changes)).path


def test_runs_of_a_recipe_are_recorded_once_and_become_its_state(ri: ModuleType, tiny: Path) -> None:
    (recipe,) = ri.recipes()
    assert ri.state(recipe, ri.recorded()) == "not yet run"
    assert ri.main(["--check"]) == 1
    assert ri.main([]) == 0
    assert recipe.path.read_text().startswith("# A\n# Paper: B\n# Row: C\n# Expected: 19 last, head classifier [fig")
    assert "# State: not yet run\n" in recipe.path.read_text()
    backwards = {"scenario": {"order": [*range(9, -1, -1)]}}
    runs = [run_of(recipe.config, tiny / "a", seed=0), run_of(recipe.config, tiny / "b", seed=1, **backwards)]
    assert ri.main(["--record", *map(str, runs)]) == 0
    assert ri.main(["--record", str(runs[0])]) == 0
    rows = json.loads((tiny / "recipes.json").read_text())["runs"]
    assert [(r["recipe"], r["seed"]) for r in rows] == [("tiny", 0), ("tiny", 1)]
    last = [100 * clframe.load(r).metric("final_accuracy") for r in runs]
    mean, std = sum(last) / 2, abs(last[0] - last[1]) / 2**0.5
    assert f"{mean:.2f} ± {std:.2f} last (2 runs), inside the band" in ri.state(recipe, rows)
    assert "# State: run: " in recipe.path.read_text()
    assert ri.main(["--check"]) == 0


def test_a_run_of_something_else_is_not_taken_for_a_recipe(ri: ModuleType, tiny: Path) -> None:
    (recipe,) = ri.recipes()
    other = run_of(recipe.config, tiny / "c", optimizer={"lr": 0.3})
    with pytest.raises(SystemExit, match=r"is of no recipe: the nearest, tiny, differs in optimizer\.lr"):
        ri.record([other])
    shuffled = run_of(recipe.config, tiny / "d", scenario={"order": [1, 0, *range(2, 10)]})
    with pytest.raises(SystemExit, match=r"differs in scenario\.order"):
        ri.record([shuffled])
    assert not (tiny / "recipes.json").exists()
