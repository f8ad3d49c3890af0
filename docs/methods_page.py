"""The page of methods: what each one is, how to run it, what it reached and beside which number, and its recipes."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import recipe_index

from clframe import registry
from clframe.metrics import summarise
from clframe.report.describe import needs_of
from clframe.spec import FieldInfo, fields_of
from clframe.strategy import Strategy

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
FAMILIES = {
    "Baselines and bounds": ("finetune", "cumulative", "joint"),
    "Regularisation and distillation": ("ewc", "lwf", "si", "mas", "l2_anchor", "predkd", "featkd", "bce"),
    "Exemplars": ("replay", "icarl", "wa", "bic", "podnet", "gdumb", "er_ace", "dark_er", "agem", "rer"),
    "Growing networks": ("der", "foster", "pder", "maf_drc"),
    "Classifier stages, behind another method": ("tau_norm", "crt", "lws", "gauss_align"),
    "Pretrained backbones": ("nmc", "slca", "layernorm_tuning"),
    "Plasticity": ("l2_init", "shrink_perturb", "redo", "continual_backprop", "fresh"),
}
"""Where the literature puts a method; any other goes by its tags."""
OTHERS = "Others"
HEAD = """\
# Methods

<!-- Written by docs/generate.py from the strategies themselves and from benchmarks/results: run `make docs`. -->

Every method that clframe brings: what it implements, where it differs from its paper, its options, what it reached, and
beside which published number. [Writing a strategy](strategies.md) says how to add one, [Recipes](recipes.md) lists the
configurations of the literature's tables.

**How to read the results.** They are of the S25 protocol (25 classes of CIFAR-100 in five experiences, ResNet-32, 12
epochs, 250 exemplars; `benchmarks/s25.py`): mean ± sample standard deviation over seeds, in percent, of the accuracy on
all classes seen, as a mean over experiences (*average*) and after the last (*last*). *Reference* is what PyCIL's own code
reached on the same protocol in one run. A result is *verified* when the first experience, the average and the last all lie
within the larger of 2 points and two standard errors of that run (`benchmarks/fidelity.py`), and *off* when one doesn't.
"""


def page() -> str:
    """Return the whole page."""
    methods = registry.load_all("strategy")
    rows, checks = _read("s25").get("runs", []), _read("fidelity").get("comparisons", [])
    recipes, runs = recipe_index.recipes(), recipe_index.recorded()
    parts = [HEAD]
    for family, names in grouped(methods).items():
        parts.append(f"\n**{family}**\n\n| name | what | results |\n|---|---|---|\n")
        parts += [f"| [`{n}`](#{n}) | {_summary(methods[n])} | {verdict(n, rows, checks)} |\n" for n in names]
    parts.append("\n## Options that every method has\n\n" + option_table(fields_of(Strategy)))
    for names in grouped(methods).values():
        for name in names:
            own = [r for r in recipes if name in registry.split_names(r.strategy)]
            parts.append(_section(name, methods[name], rows, checks))
            parts += [recipes_of(own, runs)] if own else []
    return "".join(parts)


def _read(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def grouped(methods: Mapping[str, type[Strategy]]) -> dict[str, list[str]]:
    """Sort methods into families; those that hold none are left out."""
    found: dict[str, list[str]] = {family: [] for family in (*FAMILIES, OTHERS)}
    for name in sorted(methods):
        found[family_of(name, methods[name])].append(name)
    return {family: names for family, names in found.items() if names}


def family_of(name: str, cls: type[Strategy]) -> str:
    """Return a method's family: the literature's, or the one that its tags suggest."""
    named = next((family for family, names in FAMILIES.items() if name in names), None)
    if named is not None:
        return named
    tags = cls.tags
    if tags.needs_all_data:
        return "Baselines and bounds"
    if tags.needs_pretrained:
        return "Pretrained backbones"
    return "Exemplars" if tags.stores_samples else OTHERS


def _summary(cls: type[Strategy]) -> str:
    return inspect.cleandoc(cls.__doc__ or "").split("\n", 1)[0]


def paper_of(cls: type[Strategy]) -> str:
    """Find the first citation in a docstring, authors, year and title in quotation marks: where a paragraph begins, or later."""
    paragraphs = [" ".join(part.split()) for part in inspect.cleandoc(cls.__doc__ or "").split("\n\n")]
    begins = (re.match(rf"([A-Z][^`(\"“]{{1,120}}?{_CITED}", text) for text in paragraphs)
    within = (re.search(rf"([A-Z][\w&., -]{{1,100}}?{_CITED}", text) for text in paragraphs)
    found = next((m for m in (*begins, *within) if m), None)
    return f"{found[1]}, *{found[2].rstrip(',')}*" if found else "no single paper"


_CITED = r"\b(?:19|20)\d\d), [\"“]([^\"”]+)[\"”]"


# -- a method's section ------------------------------------------------------------------------------------------------


def _section(
    name: str, cls: type[Strategy], rows: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]]
) -> str:
    changed = f" History: {' '.join(cls.history)}" if cls.version > 1 else ""
    lines = [
        f"\n## {name}\n",
        f"**Paper:** {paper_of(cls)}. **Version:** `{name}@{cls.version}`.{changed}\n",
        f"{' '.join(needs_of(cls.tags).split())}\n",
        f"```\n{inspect.cleandoc(cls.__doc__ or '')}\n```\n",
    ]
    common = {f.name: f for f in fields_of(Strategy)}
    own = [f for f in fields_of(cls) if common.get(f.name) != f]
    lines.append(option_table(own) if own else "It has no options of its own.\n")
    lines.append(results_of(name, rows, checks))
    lines.append(frozen_results(name))
    return "\n".join(line for line in lines if line)


def option_table(fields: Iterable[FieldInfo], section: str = "strategy") -> str:
    """Return a line per option of a section: as it is typed, what it takes, its default, its help."""
    lines = ["| option | value | default | what it does |\n|---|---|---|---|\n"]
    for info in fields:
        typed = f"--{section}.{info.name.replace('_', '-')}"
        default = f"`{_default(info.default)}`" if info.has_default else "must be given"
        lines.append(f"| `{typed}` | {_cell(info.accepts)} | {default} | {_cell(info.help)} |\n")
    return "".join(lines)


def _default(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) or "none at all"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _cell(text: str) -> str:
    return re.sub(r"([\\|<>*])", r"\\\1", " ".join(text.split()))


# -- results -----------------------------------------------------------------------------------------------------------


def _variants(name: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The methods of the protocol that run this strategy, alone or first in a composition."""
    return list(dict.fromkeys(r["method"] for r in rows if registry.split_names(r["strategy"])[0] == name))


def _checks_of(
    checks: Sequence[Mapping[str, Any]], method: str, batch: int, head: str | None = None
) -> list[Mapping[str, Any]]:
    return [c for c in checks if (c["method"], c["batch"]) == (method, batch) and head in (None, c["head"])]


def verdict(name: str, rows: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]]) -> str:
    """Say in a word how a method stands: verified, off, measured (without a reference) or not measured."""
    variants = _variants(name, rows)
    own = [c for c in checks if c["method"] in variants]
    if own:
        return "verified" if all(c["agrees"] for c in own) else "off in part"
    return "measured" if variants else "not measured"


def results_of(name: str, rows: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]]) -> str:
    """Return a method's table of results with the command that makes them again; a sentence where there are none."""
    variants = _variants(name, rows)
    if not variants:
        return "Results: not measured on the S25 protocol.\n"
    lines = ["| run as | batch | head | average | last | seeds | reference, average / last | verified |\n"]
    lines.append("|---|---:|---|---:|---:|---:|---:|---|\n")
    for variant in variants:
        for batch in sorted({r["batch_size"] for r in rows if r["method"] == variant}):
            own = [r for r in rows if (r["method"], r["batch_size"]) == (variant, batch)]
            lines += _result_lines(variant, batch, own, checks)
    batches = ",".join(map(str, sorted({r["batch_size"] for r in rows if r["method"] in variants})))
    command = f"python benchmarks/s25.py --methods {','.join(variants)} --batch {batches}"
    return f"{''.join(lines)}\nAgain: `{command}`.\n"


def frozen_results(name: str) -> str:
    """Return what a method on frozen features reached on CIFAR-100 (`benchmarks/nmc.py`); empty where it wasn't measured."""
    lines = []
    for backbone, found in _read("nmc").get("backbones", {}).items():
        runs = [r for r in found["runs"] if r["method"] == name]
        if not runs:
            continue
        finals, averages = ([100 * r[k] for r in runs] for k in ("final_accuracy", "average_incremental_accuracy"))
        cold, warm = ([r["cpu_seconds"] for r in runs if r["cold"] is cold] for cold in (True, False))
        centroid = f"{100 * found['nearest_centroid_accuracy']:.2f}" if name == "nmc" else "–"
        spent = f"{cold[0]:.0f} s / {min(warm):.1f} s" if cold and warm else "–"
        lines.append(
            f"| {backbone} | {min(finals):.2f} to {max(finals):.2f} | {min(averages):.2f} to {max(averages):.2f} | "
            f"{centroid} | {spent} |\n"
        )
    if not lines:
        return ""
    head = (
        "CIFAR-100, all classes, ten experiences, four class orders, percent (`python benchmarks/nmc.py`); CPU time of the run "
        "that computes the features and of one that finds them:\n\n"
        "| backbone | final, over orders | average, over orders | scikit-learn's NearestCentroid | first / later run |\n"
        "|---|---|---|---|---|\n"
    )
    return head + "".join(lines)


def _result_lines(
    variant: str, batch: int, own: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]]
) -> list[str]:
    lines = []
    first = own[0]["primary"]
    for head in [first, *(h for h in dict.fromkeys(h for r in own for h in r["heads"]) if h != first)]:
        values = {r["seed"]: r["heads"].get(head, {}) for r in own}
        average = _text({s: v.get("average_incremental_accuracy") for s, v in values.items()})
        last = _text({s: v.get("final_accuracy") for s, v in values.items()})
        found = _checks_of(checks, variant, batch, head)
        theirs = {c["what"]: f"{c['pycil']:.2f}" for c in found}
        reference = f"{theirs.get('average', '–')} / {theirs.get('last', '–')}" if found else "–"
        state = "no reference" if not found else "yes" if all(c["agrees"] for c in found) else _off(found)
        lines.append(
            f"| `{variant}` | {batch} | {head} | {average} | {last} | {len(values)} | {reference} | {state} |\n"
        )
    return lines


def _off(found: Sequence[Mapping[str, Any]]) -> str:
    return "no: " + ", ".join(f"{c['what']} {c['ours'] - c['pycil']:+.2f}" for c in found if not c["agrees"])


def _text(values: Mapping[int, float | None]) -> str:
    if not values or any(v is None for v in values.values()):
        return "–"
    found = summarise(dict(values))
    std = "" if math.isnan(found.std) else f" ± {100 * found.std:.2f}"
    return f"{100 * found.mean:.2f}{std}"


def recipes_of(recipes: Sequence[recipe_index.Recipe], runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the list of a method's recipes."""
    lines = ["\n| recipe | published, in percent | state |\n|---|---|---|\n"]
    for r in recipes:
        number = f"{recipe_index.numbers(r.expected)} [{r.mark}]"
        if not r.expected:
            number = f"band {recipe_index.numbers(recipe_index.bands()[r.band])} [ours]"
        lines.append(f"| [`{r.name}`](recipes.md#{r.name}) | {number} | {recipe_index.state(r, runs)} |\n")
    return "".join(lines)
