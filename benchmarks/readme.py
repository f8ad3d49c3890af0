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


def overhead() -> str:
    """CPU time of clframe, a bare loop and Avalanche on the same job."""
    results = _results("overhead")
    if results is None:
        return "Not measured yet."
    lines = [
        "| job | bare loop | clframe | Avalanche 0.6.0 | clframe / bare | limit |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, found in results["jobs"].items():
        seconds = found["cpu_seconds"]
        avalanche = f"{seconds['avalanche']:.2f} s" if "avalanche" in seconds else "–"
        lines.append(
            f"| {name} | {seconds['bare']:.2f} s | {seconds['clframe']:.2f} s | {avalanche} "
            f"| {found['clframe_over_bare']:.3f} | {found['limit']:.3f} |"
        )
    machine = results["machine"]
    lines.append(
        f"\nCPU seconds on one thread, medians of paired runs; {machine['processor']}, PyTorch {machine['packages']['torch']}."
    )
    return "\n".join(lines)


def six_methods() -> str:
    """The study of six methods on images."""
    results = _results("study")
    return "Not measured yet." if results is None else study.table(results)


BLOCKS = {"three scenarios": three_scenarios, "study": six_methods, "overhead": overhead}


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
