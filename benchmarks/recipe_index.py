"""The recipes for the literature: what each reproduces, and what our runs of it gave.

    python benchmarks/recipe_index.py                   # write the facts of recipes/index.yaml to the head of each file
    python benchmarks/recipe_index.py --check           # whether they stand there already
    python benchmarks/recipe_index.py --record DIR...   # add finished runs of recipes to results/recipes.json

A recipe is a configuration that `clframe run --config benchmarks/recipes/NAME.yaml` takes. A run counts as one of a
recipe when its configuration is the recipe's in everything but seed, machine and place of the data, and, where the
paper averages over several class orders, the order. Nobody types a result: a recipe's state follows from the record.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import clframe
from clframe.config import resolve
from clframe.metrics import Summary, summarise
from clframe.tracking.files import read_config

FOLDER = Path(__file__).parent / "recipes"
RESULTS = Path(__file__).parent / "results" / "recipes.json"
SHOWN = {"average": "average_incremental_accuracy", "last": "final_accuracy"}
"""What a recipe's numbers are called, and the metric that each is."""
FREE = {
    "": {
        *("seed", "init_seed", "data_seed", "device", "precision", "channels_last", "threads", "eval_batch_size"),
        *("checkpoint_minutes", "keep_models", "evaluate_future", "sources"),
    },
    "scenario": {"source", "mode", "skip_corrupt"},
    "backbone": {"weights", "pretrained"},
}
"""Options, by section, in which a run of a recipe may differ from it."""
_NOTE = "From index.yaml, by `python benchmarks/recipe_index.py`."


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A configuration file, and what is known of the row that it reproduces.

    Attributes:
        name: Of the file, without its suffix.
        title: The method and its form.
        paper: Where the method is from.
        row: Where the number is from: whose table or figure, and on what protocol.
        head: The report head that the number belongs to.
        mark: How sure it is: a key of the index's `marks`.
        data: What it learns from.
        expected: The number, in percent, by `average` and `last`; empty where only a band is known.
        band: A key of the index's `bands`, where acceptance rests on it.
        also: Neighbouring numbers.
        orders: The named class orders that the paper averages over.
        differs: What differs from the row.
        missing: What a run needs and clframe doesn't bring.
    """

    name: str
    title: str
    paper: str
    row: str
    head: str
    mark: str
    data: str
    expected: Mapping[str, float] = field(default_factory=dict)
    band: str = ""
    also: str = ""
    orders: str = ""
    differs: Sequence[str] = ()
    missing: Sequence[str] = ()

    @property
    def path(self) -> Path:
        """The file."""
        return FOLDER / f"{self.name}.yaml"

    @property
    def command(self) -> str:
        """How it is run from the repository's root."""
        return f"clframe run --config benchmarks/recipes/{self.name}.yaml"

    @property
    def config(self) -> dict[str, Any]:
        """The file's content."""
        return read_config(self.path)

    @property
    def strategy(self) -> str:
        """The strategy that it names."""
        return str(self.config["strategy"]["name"])


@functools.cache
def _index() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / "index.yaml").read_text(encoding="utf-8"))
    return found


def marks() -> dict[str, str]:
    """Return how sure a number may be, by its mark."""
    return dict(_index()["marks"])


def bands() -> dict[str, dict[str, tuple[float, float]]]:
    """Return the acceptance bands in percent: method, `average` or `last`, lower and upper end."""
    return {n: {what: (ends[0], ends[1]) for what, ends in band.items()} for n, band in _index()["bands"].items()}


def recipes() -> list[Recipe]:
    """Return every recipe, in the order of the index."""
    return [Recipe(name=name, **facts) for name, facts in _index()["recipes"].items()]


def without() -> list[tuple[str, str]]:
    """Return the known rows that have no recipe, each with the reason."""
    return [(entry["row"], entry["reason"]) for entry in _index()["without"]]


# -- results -----------------------------------------------------------------------------------------------------------


def recorded(out: Path | None = None) -> list[dict[str, Any]]:
    """Return the rows that have been recorded, one per run."""
    path = RESULTS if out is None else out
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    return rows


def reached(recipe: Recipe, rows: Sequence[Mapping[str, Any]], what: str) -> Summary | None:
    """Return one of a recipe's numbers over its runs, in percent; None while there is none."""
    own = [row["heads"][recipe.head].get(what) for row in rows if row["recipe"] == recipe.name]
    return summarise([100 * value for value in own]) if own and None not in own else None


def state(recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence whether a recipe has been run, and what it gave."""
    found = {what: s for what in SHOWN if (s := reached(recipe, rows, what)) is not None}
    if not found:
        return "not yet run"
    numbers = " / ".join(f"{s.mean:.2f}{'' if s.n < 2 else f' ± {s.std:.2f}'} {what}" for what, s in found.items())
    count = next(iter(found.values())).n
    band = bands().get(recipe.band, {})
    inside = all(low <= found[what].mean <= high for what, (low, high) in band.items() if what in found)
    verdict = f", {'inside' if inside else 'outside'} the band" if band else ""
    return f"run: {numbers} ({count} run{'s' if count > 1 else ''}){verdict}"


def record(directories: Sequence[Path], out: Path | None = None) -> list[dict[str, Any]]:
    """Add finished runs to the record; one that is there already is left alone.

    Raises:
        SystemExit: A directory holds no run of any recipe.
    """
    path = RESULTS if out is None else out
    rows = recorded(path)
    for directory in directories:
        run = clframe.load(directory)
        same = [r for r in recipes() if r.strategy == run.config["strategy"]["name"]]
        found = next((r for r in same if not differences(r, run.config)), None)
        if found is None:
            sys.exit(f"The run in {directory} is of no recipe: {_nearest(run.config)}.")
        if any(row["directory"] == run.path.name for row in rows):
            continue
        heads = {
            head: {what: values["global"].get(metric) for what, metric in SHOWN.items()}
            for head, values in run.result["values"].items()
        }
        order = run.config["scenario"]["order"] if found.orders else None
        facts = {"recipe": found.name, "seed": run.config["seed"], "order": order, "heads": heads}
        rows.append({**facts, "counters": dict(run.result["counters"]), "directory": run.path.name})
    rows.sort(key=lambda row: (row["recipe"], row["seed"], row["directory"]))
    path.write_text(json.dumps({"schema": 1, "runs": rows}, indent=1) + "\n", encoding="utf-8")
    return rows


def differences(recipe: Recipe, config: Mapping[str, Any]) -> list[str]:
    """Return the options in which a run's configuration isn't the recipe's, apart from those that are free."""
    wanted = _flat(resolve(recipe.config).record)
    given = _flat(config)
    free = {f"{section}.{n}" if section else n for section, names in FREE.items() for n in names}
    free |= {"scenario.order"} if recipe.orders and config["scenario"]["order"] in orders(recipe.orders) else set()
    return sorted(k for k in {*wanted, *given} - free if wanted.get(k) != given.get(k))


def orders(name: str) -> list[list[int]]:
    """Return the class orders of a name."""
    found: list[list[int]] = yaml.safe_load((FOLDER / "orders.yaml").read_text(encoding="utf-8"))[name]
    return found


def _nearest(config: Mapping[str, Any]) -> str:
    name = config["strategy"]["name"]
    same = {r.name: differences(r, config) for r in recipes() if r.strategy == name}
    if not same:
        return f"none has the strategy {name}"
    best = min(same, key=lambda n: len(same[n]))
    return f"the nearest, {best}, differs in {', '.join(same[best])}"


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    nested = {k: v for k, v in config.items() if isinstance(v, Mapping)}
    flat = {k: v for k, v in config.items() if k not in nested}
    return flat | {f"{section}.{k}": v for section, options in nested.items() for k, v in options.items()}


# -- the head of a file ------------------------------------------------------------------------------------------------


def numbers(values: Mapping[str, Any]) -> str:
    """Put numbers, or bands, in words: `59.2 average, 40.9 last`."""
    return ", ".join(f"{_number(v)} {what}" for what, v in values.items())


def _number(value: Any) -> str:
    return f"{value[0]:g}–{value[1]:g}" if isinstance(value, tuple) else f"{value:g}"


def header(recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the comment that stands at the head of a recipe's file."""
    lines = [recipe.title, f"Paper: {recipe.paper}", f"Row: {recipe.row}"]
    if recipe.expected:
        lines.append(
            f"Expected: {numbers(recipe.expected)}, head {recipe.head} [{recipe.mark}: {marks()[recipe.mark]}]"
        )
    if recipe.band:
        lines.append(f"Band: {numbers(bands()[recipe.band])} [ours]")
    lines += [f"Also: {recipe.also}"] if recipe.also else []
    lines += [f"Differs: {text}" for text in recipe.differs]
    lines += [f"Needs: {text}" for text in recipe.missing]
    lines += [f"State: {state(recipe, rows)}", _NOTE]
    return "".join(
        textwrap.fill(line, 118, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False) + "\n"
        for line in lines
    )


def written() -> Iterator[tuple[Path, str, str]]:
    """Yield each recipe's file, what it holds, and what it should hold."""
    rows = recorded()
    for recipe in recipes():
        text = recipe.path.read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        start = next(k for k, line in enumerate(lines) if not line.startswith("#"))
        yield recipe.path, text, header(recipe, rows) + "".join(lines[start:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Record runs, and write the files' heads, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a head is stale")
    parser.add_argument("--record", nargs="+", type=Path, metavar="DIR", help="run directories of recipes")
    given = parser.parse_args(arguments)
    if given.record:
        record(given.record)
    stale = [(path, new) for path, old, new in written() if old != new]
    if not given.check:
        for path, new in stale:
            path.write_text(new, encoding="utf-8")
    return int(given.check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
