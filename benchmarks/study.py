"""The recorded study: six strategies on the S25 protocol over seeds, as one page, and in numbers for the README.

    python benchmarks/s25.py --methods joint,der,foster,replay,ewc,finetune --seeds 3 --data-root DIR    # the runs
    python benchmarks/study.py --data-root DIR                                                           # the study
    python benchmarks/study.py --table                                                                   # print its table

It reads the run directories that `s25.py` leaves under `--runs`, makes the representation report of those that lack it
(minutes), and writes `results/study.html`, the page of `clframe compare`, and `results/study.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import clframe
from clframe.metrics.differences import corrected, paired_difference
from clframe.results import Run
from clframe.tracking.files import write_json

RESULTS = Path(__file__).parent / "results"
METHODS = ("joint", "der", "foster", "replay", "ewc", "finetune")
SEEDS = (0, 1, 2)
METRICS = ("final_accuracy", "average_incremental_accuracy", "forgetting_max", "learning_accuracy", "total_train_flops")
PROBED = ("replay", "finetune")
"""Methods whose extractors are reported, to spare an hour for the others; joint training has one model alone."""
PROBE = {"train_per_class": 100, "layers": ["stage1", "stage2", "stage3", "features"], "cka_samples": 500}


def numbers(run: Run) -> dict[str, float | None]:
    """What the study's table holds of a run; fractions, FLOP, bytes, dimensions."""
    head, restriction = run.primary
    values, measured = run.result["values"][head][restriction], run.result["run"]
    found = {name: values.get(name, measured.get(name)) for name in METRICS}
    for name in ("effective_rank", "dormant_units_mean", "deployed_bytes", "exemplar_bytes"):
        found[name] = measured[name][-1]
    return found


def study(runs: Mapping[tuple[str, int], Run]) -> dict[str, Any]:
    """Return the record: every run's numbers, and every pair's difference, corrected for all pairs of a metric."""
    values = {f"{m}/{s}": numbers(run) for (m, s), run in runs.items()}
    differences = {}
    for metric in ("final_accuracy", "average_incremental_accuracy", "forgetting_max", "learning_accuracy"):
        series = {m: {s: values[f"{m}/{s}"][metric] for s in SEEDS} for m in METHODS}
        series = {m: found for m, found in series.items() if all(v is not None for v in found.values())}
        pairs = [(a, b) for i, a in enumerate(series) for b in list(series)[i + 1 :]]
        found = corrected([paired_difference(series[a], series[b]) for a, b in pairs])
        differences[metric] = [
            {"first": a, "second": b, "mean": d.mean, "low": d.low, "high": d.high, "p": d.p, "adjusted": d.adjusted,
             "supported": d.supported} for (a, b), d in zip(pairs, found, strict=True)
        ]  # fmt: skip
    return {
        "schema": 1,
        "heads": {m: runs[m, SEEDS[0]].primary[0] for m in METHODS},
        "runs": values,
        "differences": differences,
    }


def table(record: Mapping[str, Any]) -> str:
    """Return the study's table in Markdown, and what its pairs of final accuracies say."""
    runs = record["runs"]
    joint = np.mean([runs[f"joint/{s}"]["total_train_flops"] for s in SEEDS])

    def cell(method: str, name: str, scale: float = 100.0, digits: int = 1) -> str:
        found = [runs[f"{method}/{s}"][name] for s in SEEDS]
        if any(v is None for v in found):
            return "–"
        given = scale * np.asarray(found, dtype=float)
        return f"{given.mean():.{digits}f} ± {given.std(ddof=1):.{digits}f}"

    lines = [
        "| strategy | final accuracy | average incremental | forgetting (max) | learning accuracy | training, × joint's FLOPs | "
        "model + exemplars [MB] | effective rank |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for method in METHODS:
        head = record["heads"][method]
        held = [np.mean([runs[f"{method}/{s}"][n] for s in SEEDS]) / 1e6 for n in ("deployed_bytes", "exemplar_bytes")]
        flops = np.mean([runs[f"{method}/{s}"]["total_train_flops"] for s in SEEDS]) / joint
        lines.append(
            f"| {method}{'' if head == 'classifier' else f' ({head})'} | {cell(method, 'final_accuracy')} | "
            f"{cell(method, 'average_incremental_accuracy')} | {cell(method, 'forgetting_max')} | "
            f"{cell(method, 'learning_accuracy')} | {flops:.2f} | {held[0]:.2f} + {held[1]:.2f} | "
            f"{cell(method, 'effective_rank', 1.0)} |"
        )
    return "\n".join([*lines, "", *sentences(record)])


def sentences(record: Mapping[str, Any], metric: str = "final_accuracy") -> list[str]:
    """Say which differences the seeds support, and which they don't."""
    told: dict[str, list[str]] = {"corrected": [], "alone": [], "neither": []}
    for d in record["differences"][metric]:
        first, second, sign = (d["first"], d["second"], 1) if d["mean"] >= 0 else (d["second"], d["first"], -1)
        low, high = sorted((sign * d["low"], sign * d["high"]))
        told["corrected" if d["supported"] else "alone" if low > 0 else "neither"].append(
            f"{first} above {second} by {100 * abs(d['mean']):.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        )
    name = metric.replace("_", " ")
    return [
        f"Differences in {name} that three seeds support, in points, with the 95 % interval (paired, Holm-corrected for all "
        f"{len(record['differences'][metric])} pairs): {'; '.join(told['corrected']) or 'none'}.",
        "",
        f"Not supported once corrected, though the pair's own interval leaves zero out: {'; '.join(told['alone']) or 'none'}.",
        "",
        f"Not supported: {'; '.join(told['neither']) or 'none'}.",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the study, or print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/s25"))
    parser.add_argument("--data-root")
    parser.add_argument("--table", action="store_true", help="only print the table of what is recorded")
    given = parser.parse_args(arguments)
    file = RESULTS / "study.json"
    if not given.table:
        import s25

        planned = {(m, s): s25.run_of(m, 32, s, given.runs) for m in METHODS for s in SEEDS}
        missing = [run.name for run in planned.values() if run.state != "finished"]
        if missing:
            sys.exit(f"The study needs runs that aren't there: {', '.join(missing)}. Make them with benchmarks/s25.py.")
        runs = {key: clframe.load(run.directory) for key, run in planned.items()}
        for (method, _), run in runs.items():
            if method in PROBED:
                run.representation(data_root=given.data_root, **PROBE)
        clframe.compare(list(runs.values()), metrics=METRICS).save(RESULTS / "study.html")
        write_json(file, study(runs))
    print(table(json.loads(file.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
