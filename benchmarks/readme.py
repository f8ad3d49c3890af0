"""Write the README's tables from the recorded results, so that no number is typed by hand.

    python benchmarks/readme.py [--check]

A table stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->`. With `--check` nothing is written and the exit
code says whether the README is up to date.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import study
from speed_suite.table import target_table
from three_scenarios import table

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
TITLES = {"digits": "scikit-learn digits", "fashion_mnist": "Fashion-MNIST"}


def _results(name: str) -> dict[str, Any] | None:
    path = HERE / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def three_scenarios() -> str:
    """Final accuracy and forgetting in percent, mean ± sample standard deviation over seeds."""
    results = _results("three_scenarios")
    if results is None:
        return "Not measured yet."
    parts = []
    for source, title in TITLES.items():
        rows = [r for r in results["runs"] if r["source"] == source]
        if rows:
            seeds = len({r["seed"] for r in rows})
            parts.append(
                f"**{title}**, five experiences of two classes, {seeds} seeds, percent:\n\n{table(results, source)}"
            )
    return "\n\n".join(parts)


def speed() -> str:
    """Every target of the speed benchmark beside what was measured."""
    record = _results("speed")
    if record is None:
        return "Not measured yet."
    machine = record["machine"]
    about = f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores, PyTorch {machine['packages']['torch']}."
    return "\n".join([*target_table(record["parts"]), "", about])


def six_methods() -> str:
    """The study of six methods on images."""
    results = _results("study")
    return "Not measured yet." if results is None else study.table(results)


BLOCKS = {"three scenarios": three_scenarios, "study": six_methods, "speed": speed}


def filled(text: str) -> str:
    """Return the README's text with every block written anew.

    Raises:
        ValueError: A block is missing.
    """
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- begin: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md has no block {name!r}")
        block = f"\n{make()}\n\n"
        text = pattern.sub(lambda found, block=block: found.group(1) + block + found.group(2), text)  # type: ignore[misc]
    return text


def main() -> int:
    """Write the README, or check it."""
    text = README.read_text(encoding="utf-8")
    new = filled(text)
    if "--check" in sys.argv:
        return int(new != text)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
