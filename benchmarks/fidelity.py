"""Hold our results on the S25 protocol against those of PyCIL's own code on it.

    python benchmarks/fidelity.py        # reads results/s25.json, writes results/fidelity.json, prints the table

PyCIL (revision f3509b8) was run once per method, always initialised by seed 1; ours vary the seed. So the deviation of
our n seeds, s, is taken for theirs as well, and the standard error of the difference of our mean and their one run is
s·√(1 + 1/n). A value agrees when it lies within the larger of 2 points and two such errors. Where
`first_experience.py` has trained the first experience alone with more seeds, those are compared.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from clframe.metrics import summarise

FOLDER = Path(__file__).parent / "results"

PYCIL: dict[tuple[str, int, str], tuple[float, ...]] = {
    # (our method, batch, our head): top-1 percent over all classes seen, after each experience
    ("replay", 128, "classifier"): (31.0, 22.0, 21.3, 11.2, 11.7),
    ("replay", 128, "nme"): (33.0, 23.2, 22.3, 16.9, 14.6),
    ("icarl", 128, "classifier"): (31.0, 23.2, 20.7, 12.8, 12.0),
    ("icarl", 128, "nme"): (33.0, 23.5, 23.8, 18.5, 16.3),
    ("wa", 128, "classifier"): (31.0, 16.8, 15.4, 11.3, 10.1),
    ("wa", 128, "nme"): (33.0, 18.7, 17.5, 14.8, 12.8),
    ("der_pycil", 128, "classifier"): (36.6, 28.5, 24.9, 14.8, 15.8),
    ("der_pycil", 128, "nme"): (36.6, 30.4, 29.3, 25.1, 23.4),
    ("foster", 128, "teacher"): (44.0, 32.4, 32.0, 18.4, 19.4),
    ("foster", 128, "nme"): (45.0, 36.9, 30.3, 19.8, 18.0),
    ("foster", 128, "student"): (math.nan, 28.1, 21.7, 16.9, 14.6),
    ("replay", 32, "classifier"): (37.4, 28.5, 28.7, 20.9, 20.5),
    ("replay", 32, "nme"): (39.8, 31.8, 33.0, 30.0, 30.0),
    ("wa", 32, "classifier"): (37.4, 28.0, 29.7, 21.2, 20.8),
    ("wa", 32, "nme"): (39.8, 32.9, 34.4, 30.3, 31.8),
    ("foster", 32, "teacher"): (30.8, 32.7, 29.5, 24.0, 23.6),
    ("foster", 32, "nme"): (31.6, 35.9, 30.7, 25.6, 24.7),
    ("foster", 32, "student"): (math.nan, 25.5, 20.5, 18.0, 16.7),
}


@dataclass(frozen=True)
class Comparison:
    """One number of ours and PyCIL's, in percent.

    Attributes:
        method: Ours.
        batch: Samples per step.
        head: Our report head.
        what: `first`, `average` or `last`: after the first experience, mean of all, after the last.
        ours: Mean over our seeds.
        std: Their standard deviation.
        seeds: How many.
        pycil: Its one run.
        allowed: The larger of 2 points and two standard errors of the difference.
        agrees: Whether the two lie within it.
    """

    method: str
    batch: int
    head: str
    what: str
    ours: float
    std: float
    seeds: int
    pycil: float
    allowed: float
    agrees: bool


def compare(method: str, batch: int, head: str, what: str, ours: dict[int, float], pycil: float) -> Comparison:
    """Compare one number over our seeds, in percent, with PyCIL's."""
    found = summarise(ours)
    allowed = max(2.0, 2 * found.std * math.sqrt(1 + 1 / len(ours)))
    agrees = abs(found.mean - pycil) <= allowed
    return Comparison(method, batch, head, what, found.mean, found.std, len(ours), pycil, allowed, agrees)


def comparisons(
    rows: list[dict[str, Any]], first_alone: Mapping[str, Mapping[str, float]] = MappingProxyType({})
) -> list[Comparison]:
    """Compare everything that is recorded, the first experience first.

    Args:
        rows: Of `results/s25.json`.
        first_alone: Accuracies in percent by seed, of `results/first_experience.json`; where a method has some, its
            classifier's first experience is compared over these, which are more seeds.
    """
    found: list[Comparison] = []
    for (method, batch, head), theirs in PYCIL.items():
        curves = {
            r["seed"]: [100 * a for a in r["heads"][head]["curve"]]
            for r in rows
            if r["method"] == method and r["batch_size"] == batch and head in r["heads"]
        }
        if len(curves) < 2:
            continue
        start = 1 if math.isnan(theirs[0]) else 0  # the student begins with the second experience
        known = theirs[start:]
        if not start:
            alone = {int(s): a for s, a in first_alone.get(f"{method} {batch}", {}).items()} if head != "nme" else {}
            first = {s: c[0] for s, c in curves.items()} | alone
            found.append(compare(method, batch, head, "first", first, theirs[0]))
        average = {s: sum(c[start:]) / len(known) for s, c in curves.items()}
        found.append(compare(method, batch, head, "average", average, sum(known) / len(known)))
        found.append(compare(method, batch, head, "last", {s: c[-1] for s, c in curves.items()}, theirs[-1]))
    order = {"first": 0, "average": 1, "last": 2}
    return sorted(found, key=lambda c: (-c.batch, order[c.what]))


def table(found: list[Comparison]) -> str:
    """Return the Markdown table."""
    lines = [
        "| batch | what | method | head | ours | PyCIL | difference | allowed | agrees |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {c.batch} | {c.what} | {c.method} | {c.head} | {c.ours:.2f} ± {c.std:.2f} ({c.seeds} seeds) | {c.pycil:.2f} | "
        f"{c.ours - c.pycil:+.2f} | {c.allowed:.2f} | {'yes' if c.agrees else '**no**'} |"
        for c in found
    ]
    return "\n".join(lines)


def main() -> None:
    """Compare what is recorded."""
    source = FOLDER / "s25.json"
    if not source.exists():
        sys.exit("There are no results yet: run benchmarks/s25.py first.")
    alone = FOLDER / "first_experience.json"
    first_alone = json.loads(alone.read_text())["accuracy"] if alone.exists() else {}
    found = comparisons(json.loads(source.read_text())["runs"], first_alone)
    (FOLDER / "fidelity.json").write_text(
        json.dumps({"schema": 1, "comparisons": [asdict(c) for c in found]}, indent=1) + "\n"
    )
    print(table(found))


if __name__ == "__main__":
    main()
