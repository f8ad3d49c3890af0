"""Writes the pages that follow from the code: `python docs/generate.py`, or `make docs`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import api_page
import command_line_page
import methods_page
import recipes_page
import reproduce_page
import scenarios_page

from clframe.metrics import CATALOGUE
from clframe.metrics.metric import Metric

FOLDER = Path(__file__).resolve().parent
HEAD = """\
# Metrics

<!-- Written by docs/generate.py from clframe.metrics.CATALOGUE: change that, then run `make docs`. -->

Every metric is a pure function of the predictions that a run keeps, so `clframe metrics DIR` computes all of them again
without a model. A run reports what it can give; `result.json` names the others under `absent`, each with its reason.

## How to read the formulas

- `a[i,j]` is the accuracy on the test samples of task `j` after `i` experiences; `a[0,j]` is before any training.
- `T` is the number of experiences. `A_i` is the accuracy over everything seen after experience `i`.
- `n_j` is the number of test samples of task `j`; `C_i` are the classes of experience `i`.

A prediction is made among a set of classes, the *restriction*:

| restriction | the prediction is made among | the accuracy answers |
|---|---|---|
| `global` | all classes seen so far | class-incremental learning |
| `local` | the classes of the sample's own task | task-incremental learning |
| `upto` | the classes of the tasks up to the sample's own | how much later classes take away |

Metrics of the `run` as a whole don't come from predictions: a run measures them while it trains (`measure`), and
`result.json` holds them under `run`. A value by layer is one curve per layer.

Higher is better where the column *better* has ↑, lower where it has ↓; ↕ means that neither is. A metric marked
*curve* has one value after every experience.

## The metrics

| metric | better | unit | among | definition |
|---|---|---|---|---|
"""
TAIL = """
## Where they come from

"""


def metrics_page() -> str:
    """Return the page of metrics."""
    sources = "".join(f"- `{m.name}`: {m.reference}.\n" for m in CATALOGUE.values() if m.reference)
    return HEAD + "".join(map(_row, CATALOGUE.values())) + TAIL + sources


def _row(metric: Metric) -> str:
    better = {True: "↑", False: "↓", None: "↕"}[metric.higher_is_better]
    unit = metric.unit + (", curve" if metric.curve else "")
    definition = "`" + metric.definition.replace("|", "\\|") + "`"
    return f"| `{metric.name}` | {better} | {unit} | {', '.join(metric.restrictions)} | {definition} |\n"


PAGES: dict[str, Callable[[], str]] = {
    **api_page.pages(),
    "command-line.md": command_line_page.page,
    "metrics.md": metrics_page,
    "methods.md": methods_page.page,
    "recipes.md": recipes_page.page,
    "reproduce.md": reproduce_page.page,
    "scenarios-list.md": scenarios_page.page,
}
"""What makes each generated page."""

if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).parent.mkdir(exist_ok=True)
        (FOLDER / name).write_text(page(), encoding="utf-8")
        print(f"wrote docs/{name}")
