"""The results as a page: from the record alone, so that no number is typed by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Row = list[str]


def page(record: Mapping[str, Any]) -> str:
    """Return the Markdown page of a record."""
    parts = record["parts"]
    text = ["# Speed", "", _about(record), ""]
    if any(True for _ in targets(parts)):
        text += ["## Targets", "", *target_table(parts), ""]
    for name, (title, make) in SECTIONS.items():
        if name in parts:
            text += [f"## {title}", "", *make(parts[name]["found"]), ""]
    return "\n".join(text)


def _about(record: Mapping[str, Any]) -> str:
    machine, parts = record["machine"], record["parts"]
    took = ", ".join(f"{n} {p['seconds']:.0f} s" for n, p in parts.items())
    small = [n for n, p in parts.items() if p["quick"]]
    warning = f" **In the small form, which says nothing about speed: {', '.join(small)}.**" if small else ""
    return (
        f"Written by `python benchmarks/speed.py` from `speed.json`. {machine['processor']}, {machine['cores']} cores, "
        f"{machine['threads']} threads used, {machine['vector_instructions']}, Python {machine['python']}, PyTorch "
        f"{machine['packages']['torch']}. Unless it says otherwise a time is CPU time, all threads of the process; contestants "
        f"take turns, and a ratio is the median of the ratios within a round. How long each part took: {took}.{warning}"
    )


def table(head: Row, rows: list[Row], words: int = 1) -> list[str]:
    """Return a table whose first columns are words and the rest numbers."""
    rule = ["---" if k < words else "---:" for k in range(len(head))]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]


def targets(found: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield where, what and how far for every target in a record."""
    for key, value in found.items():
        if key == "targets":
            for name, one in value.items():
                yield ", ".join(p for p in path if p != "found"), name, one
        elif isinstance(value, Mapping):
            yield from targets(value, (*path, str(key)))


def target_table(parts: Mapping[str, Any]) -> list[str]:
    """Return every target with what was measured."""
    rows = [
        [
            where,
            name,
            f"{t['value']:.3g}",
            f"{'≤' if t['at_most'] else '≥'} {t['limit']:g}",
            "yes" if t["met"] else "**no**",
        ]
        for where, name, t in targets(parts)
    ]
    return table(["what", "number", "measured", "target", "met"], rows, 2)


def _training(found: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, r in found.items():
        ops = f"{r['flops']['clframe'] / r['flops']['needed']:.3f}" if "flops" in r else "–"
        wall = r["wall"]
        rows.append(
            [name, f"{r['cpu']['bare']:.2f} s", f"{r['cpu']['clframe']:.2f} s", f"{r['clframe_over_bare']:.3f}",
             f"{wall['bare']:.2f} s", f"{wall['clframe']:.2f} s", ops]
        )  # fmt: skip
    head = ["method, backbone", "bare loop", "clframe", "ratio", "bare, wall", "clframe, wall", "operations / needed"]
    return [
        "Whole runs; clframe's with logging, metrics, cost account and checkpoints, which the bare loop has none of.",
        "",
        *table(head, rows),
    ]


def _ends(found: Mapping[str, Any]) -> list[str]:
    names = ("bare", "clframe", "avalanche")
    rows = [
        [name, *(f"{r['cpu'][n]:.2f} s" for n in names), f"{r['avalanche_over_bare']:.2f}",
         f"{r['avalanche_over_clframe']:.2f}", *(f"{100 * r['final_accuracy'][n]:.1f}" for n in names)]
        for name, r in found.items()
    ]  # fmt: skip
    head = ["method, backbone", "bare loop", "clframe", "Avalanche 0.6.0", "Avalanche / bare", "Avalanche / clframe"]
    return [
        "Training, and evaluation of all classes seen after each of ten experiences. Avalanche is set up as its documentation "
        "and tutorial do (`SplitCIFAR100` with its transforms, the tutorial's metrics), without loggers and disk usage. "
        "Accuracies (percent, of the last round) only show that all learn: heads, draws and memory rules differ.",
        "",
        *table([*head, "bare, final", "clframe, final", "Avalanche, final"], rows),
    ]


def _evaluation(found: Mapping[str, Any]) -> list[str]:
    rows = [[n, f"{v:.1f} µs"] for n, v in found["microseconds_per_image"].items()]
    return [
        f"Per image, of {found['images']} test images of ten experiences, MLP.",
        "",
        *table(["", "per image"], rows),
    ]


def _setup(found: Mapping[str, Any]) -> list[str]:
    rows = [[n, f"{1000 * v:.1f} ms"] for n, v in found["cpu"].items()]
    head = "Split CIFAR-100 of ten experiences in a fresh process, imports apart; clframe has decoded the images once before."
    return [head, "", *table(["", "CPU time"], rows)]


def _memory(found: Mapping[str, Any]) -> list[str]:
    both = ("bare", "clframe")
    rows = [
        [f"a batch of 64 offered to a reservoir of {n}", *(f"{r[b]:.0f} µs" for b in both)]
        for n, r in found["reservoir"].items()
    ]
    rows += [
        [f"herding 200 exemplars of {n} features (64)", *(f"{r[b]:.1f} ms" for b in both)]
        for n, r in found["herding"].items()
    ]
    return table(["update", "bare loop", "clframe"], rows)


def _growth(found: Mapping[str, Any]) -> list[str]:
    words = {
        "experiences": "experiences",
        "classes": "classes",
        "train_per_class": "samples per class",
        "memory": "exemplars",
    }
    long = found["long"]
    count = len(next(iter(long.values()))["milliseconds_per_experience"])
    rows = [
        [n, str(r["experiences"]), *(f"{v:.1f}" for v in r["milliseconds_per_experience"])] for n, r in long.items()
    ]
    text = [
        "Milliseconds per experience of a long stream of permuted digits, medians of its tenths, evaluation apart.",
        "",
    ]
    text += table(["method", "experiences", *(f"{k + 1}." for k in range(count))], rows)
    text += ["", "Replay with the MLP, microseconds per new sample of whole runs, evaluation included.", ""]
    axes = [
        [f"{n} {word}", *(f"{r['microseconds_per_new_sample'][s]:.0f}" for s in ("bare", "clframe"))]
        for axis, word in words.items()
        for n, r in found[axis].items()
    ]
    return [*text, *table(["", "bare loop", "clframe"], axes)]


def _peak(found: Mapping[str, Any]) -> list[str]:
    rows = [
        [n, f"{r['bare']:.0f} MB", f"{r['clframe']:.0f} MB", f"{r['clframe'] - r['bare']:+.0f} MB"]
        for n, r in found.items()
    ]
    head = "Largest resident memory of a whole process: CIFAR-100 in ten experiences, batch 64, scored by 512."
    return [head, "", *table(["method, backbone", "bare loop", "clframe", "difference"], rows)]


def _startup(found: Mapping[str, Any]) -> list[str]:
    rows = [[n, f"{r['cpu']:.2f} s", f"{r['wall']:.2f} s"] for n, r in found.items()]
    return table(["process", "CPU", "wall"], rows)


SECTIONS: dict[str, tuple[str, Any]] = {
    "training": ("Training", _training),
    "avalanche": ("Whole runs against Avalanche", _ends),
    "evaluation": ("Evaluation", _evaluation),
    "setup": ("Set-up", _setup),
    "memory": ("Memory updates", _memory),
    "growth": ("Growth", _growth),
    "peak": ("Peak memory", _peak),
    "startup": ("Start-up", _startup),
}
