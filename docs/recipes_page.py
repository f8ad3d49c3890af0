"""The page of recipes: the configurations of the literature's tables, what each reproduces, and how far we are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recipe_index import Recipe, bands, marks, numbers, recipes, recorded, state, without

GROUPS = (
    ("CIFAR-100, ten steps from zero, ResNet-32", ("cifar100_b0_10_",), ("_r18",)),
    ("CIFAR-100, half of the classes first, ResNet-32", ("cifar100_b50_",), ("_r18",)),
    ("CIFAR-100, ResNet-18", ("cifar100_b", "cifar100_joint"), ()),
    ("ImageNet-100", ("imagenet100_",), ()),
    ("CIFAR-100, pretrained vision transformers", ("cifar100_vit_",), ()),
    ("CIFAR-100, the replay benchmark", ("cifar100_er_", "cifar100_dark_er_"), ()),
)
"""Title, and how a recipe's name begins and does not end; the first that fits holds it."""
OTHERS = "Others"
HEAD = """\
# Recipes for the literature

<!-- Written by docs/generate.py from benchmarks/recipes/index.yaml and results/recipes.json: run `make docs`. -->

A recipe is a configuration file of one published row. From the repository's root:

```sh
clframe run --config benchmarks/recipes/cifar100_b0_10_replay.yaml --dry-run     # what it would do
clframe run --config benchmarks/recipes/cifar100_b0_10_replay.yaml --seed 1
python benchmarks/recipe_index.py --record runs/split_cifar100-replay-1-*        # its result, to results/recipes.json
```

They are full runs: hours to days on one GPU each. *Expected* is the published number in percent, *average* the mean over
experiences of the accuracy on all classes seen, the first included, and *last* that after the last. *Band* is what our own
runs should reach. Rows are only comparable at equal network, augmentation and report head.

A row whose paper averages over PODNet's three class orders holds the first; the others are in `benchmarks/recipes/orders.yaml`
and given as `--scenario.order LIST`. For ImageNet-100 put the image folder of ILSVRC 2012 (`train/WNID/…`, `val/WNID/…`) under the
name `imagenet` into a data folder: the scenario `imagenet100` knows the list of its classes.

How sure a number is:

"""


def page() -> str:
    """Return the whole page."""
    runs = recorded()
    parts = [HEAD, *(f"- `[{mark}]`: {text}\n" for mark, text in marks().items())]
    found = grouped(recipes())
    for title, own in found.items():
        parts.append(
            f"\n## {title}\n\n| recipe | method | head | expected | band | state |\n|---|---|---|---|---|---|\n"
        )
        parts += [_line(r, runs) for r in own]
    parts.append("\n## Rows without a recipe\n\n| row | why |\n|---|---|\n")
    parts += [f"| {row} | {reason} |\n" for row, reason in without()]
    parts.append("\n## One by one\n")
    parts += [_section(r, runs) for own in found.values() for r in own]
    return "".join(parts)


def grouped(every: Sequence[Recipe]) -> dict[str, list[Recipe]]:
    """Sort recipes into groups; empty ones are left out."""
    found: dict[str, list[Recipe]] = {title: [] for title in (*(g[0] for g in GROUPS), OTHERS)}
    for recipe in every:
        found[group_of(recipe.name)].append(recipe)
    return {title: own for title, own in found.items() if own}


def group_of(name: str) -> str:
    """Return the group of a recipe's name."""
    return next(
        (t for t, begins, ends in GROUPS if name.startswith(begins) and not (ends and name.endswith(ends))), OTHERS
    )


def _line(recipe: Recipe, runs: Sequence[Mapping[str, Any]]) -> str:
    expected = f"{numbers(recipe.expected)} [{recipe.mark}]" if recipe.expected else "–"
    band = numbers(bands()[recipe.band]) if recipe.band else "–"
    cells = [f"[`{recipe.name}`](#{recipe.name})", recipe.title, recipe.head, expected, band, state(recipe, runs)]
    return f"| {' | '.join(cells)} |\n"


def _section(recipe: Recipe, runs: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"\n### {recipe.name}\n", f"{recipe.title}. {recipe.paper}.\n"]
    lines += [f"```sh\n{recipe.command}\n```\n", f"- Row: {recipe.row}"]
    if recipe.expected:
        lines.append(f"- Expected: {numbers(recipe.expected)}, head `{recipe.head}` [{recipe.mark}]")
    lines += [f"- Band: {numbers(bands()[recipe.band])} [ours]"] if recipe.band else []
    lines += [f"- Also: {recipe.also}"] if recipe.also else []
    lines += [f"- Differs: {text}" for text in recipe.differs]
    lines += [f"- Needs: {text}" for text in recipe.missing]
    return "\n".join([*lines, f"- State: {state(recipe, runs)}", ""])
