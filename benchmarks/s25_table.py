"""The recorded table of the S25 protocol: every method, its difference to replay, and the orderings one expects.

    python benchmarks/s25.py --table        # reads results/s25.json, writes results/s25.md, prints it

Statistics are those of `clframe.metrics`: mean ± sample standard deviation, and Student's t on the differences of the
seeds that two methods share. A difference is supported when at least three seeds stand behind it and its 95 % interval
leaves out zero; intervals are not corrected for the number of comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clframe.metrics import Difference, paired_difference
from clframe.report import Column, Estimate, Table

AVERAGE, LAST, FORGETTING = "average_incremental_accuracy", "final_accuracy", "forgetting_max"
REFERENCE = "replay"
ABOVE: tuple[tuple[str, str], ...] = (
    # the first is expected above the second; joint training bounds every method and is added for each
    ("der", "icarl"),
    ("der", REFERENCE),
    ("der_pycil", "icarl"),
    ("der_pycil", REFERENCE),
    ("foster", "icarl"),
    ("foster", REFERENCE),
    ("wa", REFERENCE),
    ("bic", REFERENCE),
)
Row = Mapping[str, Any]
Verdict = Literal["supported", "not supported", "the reverse is supported", "not measured"]

HEAD = """\
# The S25 protocol

<!-- Written by `python benchmarks/s25.py --table` from results/s25.json. -->

25 classes of CIFAR-100 in five experiences of five, 200 training images each, ResNet-32, 12 epochs, 250 exemplars, the
class order of seed 1993 (`benchmarks/s25.py`). A number is the mean over seeds ± the sample standard deviation. *average*
is the mean over experiences of the accuracy on all classes seen, *last* that after the last experience. Of every method
the first head is its primary one. Training time is wall-clock on one thread of a machine that ran other things too.
"""


def text(rows: Sequence[Row]) -> str:
    """Return the whole page in Markdown."""
    parts = [HEAD]
    for batch in sorted({row["batch_size"] for row in rows}):
        own = [row for row in rows if row["batch_size"] == batch]
        parts.append(f"\n## Batch {batch}\n\n{methods_table(own).to_markdown()}")
        if any(row["method"] == REFERENCE for row in own):
            parts.append(f"\n### Against {REFERENCE}\n\n{differences_table(own).to_markdown()}")
        parts.append(f"\n### Expected orderings\n\n{orderings_table(own).to_markdown()}")
    return "".join(parts) if rows else f"{HEAD}\nNothing has been measured yet.\n"


def methods_table(rows: Sequence[Row]) -> Table:
    """Return a row per method and report head."""
    percent = [Column(n, unit="%", scale=100, right=True) for n in ("average", "last", "forgetting (max)")]
    columns = [Column("method"), Column("head"), *percent]
    columns += [Column(n, right=True, digits=d) for n, d in (("parameters", 0), ("training [s]", 0), ("seeds", 0))]
    lines = []
    for method in methods(rows):
        own = [row for row in rows if row["method"] == method]
        cost = [_parameters(own), Estimate.over({r["seed"]: r["counters"]["train_seconds"] for r in own}), len(own)]
        for k, head in enumerate(heads(own)):
            found = [Estimate.over(values(own, method, metric, head)) for metric in (AVERAGE, LAST, FORGETTING)]
            lines.append([method if k == 0 else "", head, *found, *(cost if k == 0 else [None] * 3)])
    return Table(columns, lines)


def differences_table(rows: Sequence[Row]) -> Table:
    """Return every method's primary head minus that of replay, seed by seed."""
    columns = [Column("method"), Column("head"), Column("of"), Column("difference [points]", right=True)]
    columns += [Column("95 % interval", right=True), Column("seeds", right=True), Column("supported")]
    lines = []
    for method in methods(rows):
        for name, metric in (("average", AVERAGE), ("last", LAST)):
            gap = difference(rows, method, REFERENCE, metric)
            if method != REFERENCE and gap is not None:
                supported = "yes" if gap.supported else "no"
                lines.append([method, primary(rows, method), name, _points(gap.mean), _interval(gap), gap.n, supported])
    return Table(columns, lines)


def orderings_table(rows: Sequence[Row]) -> Table:
    """Return each ordering that one expects, and whether the data supports it."""
    columns = [Column(n) for n in ("expected", "of", "difference [points]", "95 % interval", "the data")]
    lines = []
    for found in orderings(rows):
        shown = ["–", "–"] if found.gap is None else [_points(found.gap.mean), _interval(found.gap)]
        lines.append([f"{found.upper} above {found.lower}", found.of, *shown, found.verdict])
    return Table(columns, lines)


@dataclass(frozen=True)
class Ordering:
    """One expectation.

    Attributes:
        upper: The method that should be better.
        lower: The one that should be worse.
        of: `average` or `last`.
        gap: Their difference; None where either has no such number.
    """

    upper: str
    lower: str
    of: str
    gap: Difference | None

    @property
    def verdict(self) -> Verdict:
        """What the data says of it."""
        if self.gap is None:
            return "not measured"
        if not self.gap.supported:
            return "not supported"
        return "supported" if self.gap.mean > 0 else "the reverse is supported"


def orderings(rows: Sequence[Row]) -> list[Ordering]:
    """Return every expectation: of both numbers where both methods have them, else of the last accuracy."""
    pairs = [*ABOVE, *(("joint", m) for m in methods(rows) if m != "joint")]
    found = []
    for upper, lower in pairs:
        average = difference(rows, upper, lower, AVERAGE)
        found += [Ordering(upper, lower, "average", average)] if average is not None else []
        found.append(Ordering(upper, lower, "last", difference(rows, upper, lower, LAST)))
    return found


# -- reading rows ------------------------------------------------------------------------------------------------------


def methods(rows: Iterable[Row]) -> list[str]:
    """Return the methods in the order of their rows."""
    return list(dict.fromkeys(row["method"] for row in rows))


def heads(own: Sequence[Row]) -> list[str]:
    """Return the report heads of a method's rows, the primary one first."""
    first = own[0]["primary"]
    return [first, *(h for h in dict.fromkeys(h for row in own for h in row["heads"]) if h != first)]


def primary(rows: Iterable[Row], method: str) -> str:
    """Return a method's primary head."""
    return str(next(row["primary"] for row in rows if row["method"] == method))


def values(rows: Iterable[Row], method: str, metric: str, head: str | None = None) -> dict[int, float | None]:
    """Return one number by seed: of a head, or of the primary one."""
    own = [row for row in rows if row["method"] == method]
    return {row["seed"]: row["heads"].get(head or row["primary"], {}).get(metric) for row in own}


def difference(rows: Sequence[Row], first: str, second: str, metric: str) -> Difference | None:
    """Compare the primary heads of two methods; None where one of them lacks the number in any seed."""
    found = [values(rows, method, metric) for method in (first, second)]
    if any(not v or None in v.values() for v in found):
        return None
    return paired_difference(*found)


def _parameters(own: Sequence[Row]) -> str:
    counts = {row["parameters"] for row in own}
    return f"{counts.pop():,}" if len(counts) == 1 else "differ"


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _interval(gap: Difference) -> str:
    return "too few seeds" if math.isnan(gap.low) else f"{_points(gap.low)} … {_points(gap.high)}"
