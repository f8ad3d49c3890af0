"""The pages of methods and recipes show what is registered, recorded and indexed, and nothing that isn't."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

import clframe
from clframe import registry
from clframe.spec import fields_of
from clframe.strategy import Strategy

ROOT = Path(__file__).resolve().parents[2]


def _load(name: str) -> Any:
    full = f"clframe_docs_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, ROOT / "docs" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


generate = _load("generate")
methods_page, recipes_page = generate.methods_page, generate.recipes_page


def section(page: str, name: str) -> str:
    return page.split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]


def row(method: str, seed: int, heads: dict[str, dict[str, float]], **more: Any) -> dict[str, Any]:
    facts = {"method": method, "strategy": method, "batch_size": 32, "seed": seed, "primary": next(iter(heads))}
    return {**facts, "heads": heads, **more}


def scalars(last: float, average: float | None = 0.5) -> dict[str, float]:
    return {"final_accuracy": last} | ({} if average is None else {"average_incremental_accuracy": average})


def check(
    method: str, head: str, what: str, ours: float, pycil: float, agrees: bool, batch: int = 32
) -> dict[str, Any]:
    found = {"method": method, "batch": batch, "head": head, "what": what, "ours": ours, "pycil": pycil}
    return {**found, "std": 1.0, "seeds": 3, "allowed": 2.0, "agrees": agrees}


# -- families and papers -----------------------------------------------------------------------------------------------


def test_every_registered_method_is_in_one_family_and_has_its_section() -> None:
    methods = registry.load_all("strategy")
    listed = [n for names in methods_page.grouped(methods).values() for n in names]
    assert sorted(listed) == sorted(methods)
    page = methods_page.page()
    for name, cls in methods.items():
        assert page.count(f"\n## {name}\n") == 1
        own = section(page, name)
        assert f"`{name}@{cls.version}`" in own
        for info in fields_of(cls):
            inherited = info in fields_of(Strategy)
            assert (f"| `--strategy.{info.name.replace('_', '-')}` |" in own) is not inherited, f"{name}: {info.name}"


def test_a_method_that_the_literature_does_not_place_goes_by_its_tags() -> None:
    def with_tags(**tags: bool) -> type[Strategy]:
        return type("Mine", (Strategy,), {"tags": clframe.Tags(**tags), "__module__": __name__})

    assert methods_page.family_of("mine", with_tags(needs_all_data=True)) == "Baselines and bounds"
    assert (
        methods_page.family_of("mine", with_tags(needs_pretrained=True, stores_samples=True)) == "Pretrained backbones"
    )
    assert methods_page.family_of("mine", with_tags(stores_samples=True)) == "Exemplars"
    assert methods_page.family_of("mine", with_tags()) == "Others"
    assert methods_page.family_of("der", with_tags()) == "Growing networks"


@pytest.mark.parametrize(
    ("doc", "paper"),
    [
        ('A.\n\nKirkpatrick et al. 2017, "Overcoming\nforgetting", eq. 3:', "Kirkpatrick et al. 2017, *Overcoming forgetting*"),
        ('A.\n\n`form=step` (Chaudhry et al. 2019, "On Tiny Memories"; other', "Chaudhry et al. 2019, *On Tiny Memories*"),
        ('A "quoted" word of 2019.\n\nYan, Xie & He 2021, "DER: X,", CVPR', "Yan, Xie & He 2021, *DER: X*"),
        ("A.\n\nThere is no single paper.", "no single paper"),
        (None, "no single paper"),
    ],
)  # fmt: skip
def test_the_paper_is_the_first_citation(doc: str | None, paper: str) -> None:
    class Mine:
        __doc__ = doc

    assert methods_page.paper_of(Mine) == paper


def test_papers_of_registered_methods_are_found() -> None:
    methods = registry.load_all("strategy")
    papers = {n: methods_page.paper_of(c) for n, c in methods.items()}
    assert papers["ewc"].startswith("Kirkpatrick et al. 2017, *Overcoming")
    assert papers["der"].startswith("Yan, Xie & He 2021, *DER: Dynamically")
    assert {papers[n] for n in ("finetune", "joint", "cumulative")} == {"no single paper"}
    assert all(len(p) < 250 for p in papers.values())


# -- results -----------------------------------------------------------------------------------------------------------


def test_a_method_without_results_says_so() -> None:
    assert methods_page.results_of("der", [], []) == "Results: not measured on the S25 protocol.\n"
    assert methods_page.verdict("der", [], []) == "not measured"


def test_results_are_mean_and_deviation_beside_the_reference() -> None:
    rows = [
        row("wa", s, {"classifier": scalars(v), "nme": scalars(0.3, None)}) for s, v in enumerate((0.2, 0.22, 0.27))
    ]
    checks = [
        check("wa", "classifier", "first", 31.0, 31.0, True),
        check("wa", "classifier", "average", 50.0, 49.5, True),
        check("wa", "classifier", "last", 23.0, 20.8, False),
    ]
    text = methods_page.results_of("wa", rows, checks)
    std = 100 * math.sqrt(((0.2 - 0.23) ** 2 + (0.22 - 0.23) ** 2 + (0.27 - 0.23) ** 2) / 2)
    assert f"| `wa` | 32 | classifier | 50.00 ± 0.00 | 23.00 ± {std:.2f} | 3 | 49.50 / 20.80 | no: last +2.20 |" in text
    assert "| `wa` | 32 | nme | – | 30.00 ± 0.00 | 3 | – | no reference |" in text
    assert "Again: `python benchmarks/s25.py --methods wa --batch 32`." in text
    assert methods_page.verdict("wa", rows, checks) == "off in part"
    assert methods_page.verdict("wa", rows, checks[:2]) == "verified"
    assert methods_page.verdict("wa", rows, []) == "measured"


def test_variants_batches_and_compositions_are_told_apart() -> None:
    one = {"classifier": scalars(0.2)}
    rows = [
        row("der_pycil", 0, one, strategy="der", batch_size=128),
        row("der", 0, one),
        row("der_ewc", 0, one, strategy="der+ewc"),
        row("lwf", 0, one),
    ]
    text = methods_page.results_of("der", rows, [])
    assert [line.split(" | ")[:2] for line in text.split("\n") if line.startswith("| `")] == [
        ["| `der_pycil`", "128"], ["| `der`", "32"], ["| `der_ewc`", "32"],
    ]  # fmt: skip
    assert "--methods der_pycil,der,der_ewc --batch 32,128`" in text
    assert "± " not in text  # one seed has no deviation
    assert methods_page.results_of("ewc", rows, []).startswith("Results: not measured")


def test_a_head_that_some_runs_lack_is_no_number() -> None:
    rows = [
        row("foster", 0, {"student": scalars(0.2), "nme": scalars(0.3)}),
        row("foster", 1, {"student": scalars(0.4)}),
    ]
    text = methods_page.results_of("foster", rows, [])
    assert "| nme | – | – | 2 | – | no reference |" in text
    assert "| student | 50.00 ± 0.00 | 30.00 ± 14.14 | 2 |" in text


def test_the_page_stands_without_any_results_and_with_partial_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods_page, "RESULTS", tmp_path)
    page = methods_page.page()
    assert page.count("Results: not measured on the S25 protocol.") == len(registry.available("strategy"))
    (tmp_path / "s25.json").write_text(json.dumps({"runs": [row("replay", 0, {"classifier": scalars(0.2)})]}))
    page = methods_page.page()
    assert "| `replay` | 32 | classifier | 50.00 | 20.00 | 1 | – | no reference |" in section(page, "replay")
    assert "not measured on the S25" in section(page, "der")


def test_options_show_bounds_units_and_defaults_and_no_bar_breaks_a_row() -> None:
    class Mine(Strategy):
        """Mine."""

        history: ClassVar[tuple[str, ...]] = ("1: a.", "2: b.")
        version: ClassVar[int] = 2
        size: int = clframe.field(default=3, ge=1, unit="samples", help="How | many.")
        kind: str | None = clframe.field(help="Which.")

    text = methods_page._section("mine", Mine, [], [])
    assert "| `--strategy.size` | int ≥ 1 samples | `3` | How \\| many. |" in text
    assert "| `--strategy.kind` | str or None | must be given | Which. |" in text
    assert "**Version:** `mine@2`. History: 1: a. 2: b." in text
    assert "--strategy.epochs" not in text


# -- recipes -----------------------------------------------------------------------------------------------------------


def test_every_recipe_is_listed_with_its_command_and_under_its_method() -> None:
    page, methods = recipes_page.page(), methods_page.page()
    every = recipes_page.recipes()
    for recipe in every:
        own = page.split(f"\n### {recipe.name}\n", 1)[1].split("\n### ", 1)[0]
        assert f"```sh\n{recipe.command}\n```" in own
        assert (ROOT / recipe.command.rpartition(" ")[2]).is_file()
        assert f"- State: {recipes_page.state(recipe, recipes_page.recorded())}" in own
        assert page.count(f"(#{recipe.name})") == 1
        if recipe.strategy in registry.available("strategy"):
            assert f"(recipes.md#{recipe.name})" in section(methods, recipe.strategy)
    for reason in (reason for _, reason in recipes_page.without()):
        assert reason in page


def test_recipes_fall_into_groups_of_one_protocol() -> None:
    found = recipes_page.grouped(recipes_page.recipes())
    assert sum(map(len, found.values())) == len(recipes_page.recipes())
    assert recipes_page.OTHERS not in found
    assert recipes_page.group_of("cifar100_b0_10_wa_r18") == "CIFAR-100, ResNet-18"
    assert recipes_page.group_of("cifar100_b0_10_wa") == "CIFAR-100, ten steps from zero, ResNet-32"
    assert recipes_page.group_of("mine") == recipes_page.OTHERS
