"""The page of methods: what each one is, how to run it, and what it reached on the S25 protocol."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

from clframe import registry
from clframe.metrics import summarise
from clframe.report.describe import needs_of
from clframe.strategy import Strategy

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
HEAD = """\
# Methods

<!-- Written by docs/generate.py from the strategies themselves and from benchmarks/results: run `make docs`. -->

Every method, what it implements and where it differs from its paper. Where it has been measured on the S25 protocol (25
classes of CIFAR-100 in five experiences, ResNet-32, 12 epochs, 250 exemplars, batch 32; see `benchmarks/s25.py`), the table
gives mean ± sample standard deviation over seeds, in percent: the mean over experiences of the accuracy on all classes
seen, and that after the last. *PyCIL* is what its own code reached on the same protocol, one run; *agrees* says whether
the two lie within the larger of 2 points and two standard errors (`benchmarks/fidelity.py`). A method without a table
has not been measured there yet.
"""


def page() -> str:
    """Return the whole page."""
    results, checks = _read("s25")["runs"], _read("fidelity")["comparisons"]
    methods = sorted(registry.load_all("strategy").items())
    index = "".join(f"| [`{n}`](#{n}) | {_summary(cls)} |\n" for n, cls in methods)
    parts = [HEAD, "\n| name | what |\n|---|---|\n", index]
    parts += [_section(name, cls, results, checks) for name, cls in methods]
    return "".join(parts)


def _read(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    empty: dict[str, Any] = {"runs": [], "comparisons": []}
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty


def _summary(cls: type[Strategy]) -> str:
    return inspect.cleandoc(cls.__doc__ or "").split("\n", 1)[0]


def _section(name: str, cls: type[Strategy], results: list[dict[str, Any]], checks: list[dict[str, Any]]) -> str:
    history = "; ".join(cls.history)
    lines = [
        f"\n## {name}\n",
        f"`{name}@{cls.version}` ({history}). {needs_of(cls.tags)}\n",
        f"```\n{inspect.cleandoc(cls.__doc__ or '')}\n```\n",
        f"Options: `clframe describe {name}`.\n",
    ]
    rows = [line for variant in _variants(name, results) for line in _rows(variant, results, checks)]
    if rows:
        lines.append(
            "| S25 as | head | average | last | seeds | PyCIL average / last | agrees |\n|---|---|---|---|---|---|---|\n"
            + "".join(rows)
        )
        names = ",".join(_variants(name, results))
        lines.append(f"Again: `python benchmarks/s25.py --methods {names}`.\n")
    return "\n".join(lines)


def _variants(name: str, results: list[dict[str, Any]]) -> list[str]:
    """The rows of the protocol that run this strategy, alone or first in a composition."""
    return list(
        dict.fromkeys(r["method"] for r in results if r["batch_size"] == 32 and r["strategy"].split("+")[0] == name)
    )


def _rows(variant: str, results: list[dict[str, Any]], checks: list[dict[str, Any]]) -> list[str]:
    runs = [r for r in results if r["method"] == variant and r["batch_size"] == 32]
    lines = []
    for head in runs[0]["heads"]:
        values = {r["seed"]: r["heads"][head] for r in runs}
        average = _text({s: v.get("average_incremental_accuracy") for s, v in values.items()})
        last = _text({s: v.get("final_accuracy") for s, v in values.items()})
        own = {c["what"]: c for c in checks if (c["method"], c["batch"], c["head"]) == (variant, 32, head)}
        theirs = f"{own['average']['pycil']:.2f} / {own['last']['pycil']:.2f}" if own else "–"
        verdict = "–" if not own else "yes" if all(c["agrees"] for c in own.values()) else "no"
        lines.append(f"| {variant} | {head} | {average} | {last} | {len(runs)} | {theirs} | {verdict} |\n")
    return lines


def _text(values: dict[int, float | None]) -> str:
    if any(v is None for v in values.values()):
        return "–"
    found = summarise(values)
    std = "" if math.isnan(found.std) else f" ± {100 * found.std:.2f}"
    return f"{100 * found.mean:.2f}{std}"
