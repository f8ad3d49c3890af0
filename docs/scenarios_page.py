"""The page of scenarios: what each one presents, which settings it has, its options, and a command that runs it."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Mapping
from typing import Any

from methods_page import option_table

import clframe
from clframe import registry
from clframe.cli import parse_overrides
from clframe.report.describe import listing, prose_of, scenario_example, settings_line
from clframe.scenario import Scenario, settings_of
from clframe.scenarios._parts import SourceScenario
from clframe.spec import FieldInfo, fields_of

FAMILIES = {
    "Classes of one source, group by group": (
        *(
            "split",
            "split_digits",
            "split_mnist",
            "split_fashion_mnist",
            "split_cifar10",
            "split_cifar100",
            "split_svhn",
        ),
        *("split_tiny_imagenet", "split_folder", "imagenet_subset", "imagenet100"),
    ),
    "Classes with another twist": (
        *("few_shot", "long_tailed", "noisy_labels", "partially_labelled", "class_repetition", "unlearning"),
        "compatibility",
    ),
    "Domains": ("permuted", "rotated", "superclass_domains", "multi_dataset", "data_incremental", "plasticity"),
    "One pass, without boundaries": ("online", "si_blurry", "i_blurry", "gaussian_schedule"),
}
"""What a reader would look for together; any other scenario stands under `OTHERS`."""
OTHERS = "Others"
HEAD = """\
# List of scenarios

<!-- Written by docs/generate.py from the scenarios themselves: run `make docs`. -->

Every scenario that clframe brings: what it presents, which settings it has, its options, and a command that runs it on data
that comes with scikit-learn. [Scenarios and data](scenarios.md) says how to give your own images and write your own scenario.

**Settings.** *class*: a prediction is made among all classes seen, and accuracy within the sample's own task is reported beside
it; *task*: the id of the task is given, in training and in testing; *domain*: all experiences share one set of labels. Where a
scenario has several, `--scenario.setting` chooses.
"""


def page() -> str:
    """Return the whole page."""
    scenarios: Mapping[str, Any] = registry.load_all("scenario")
    sentences = {row["name"]: row["what"] for row in listing("scenario")}
    parts = [HEAD]
    found = grouped(scenarios)
    for family, names in found.items():
        parts.append(f"\n**{family}**\n\n| name | what | settings |\n|---|---|---|\n")
        parts += [f"| [`{n}`](#{n}) | {sentences[n]} | {', '.join(settings_of(scenarios[n]))} |\n" for n in names]
    parts.append("\n## Options of every scenario that cuts one source\n\n" + option_table(_common(), "scenario"))
    parts += [_section(name, scenarios[name]) for names in found.values() for name in names]
    return "".join(parts)


def grouped(scenarios: Mapping[str, type[Scenario]]) -> dict[str, list[str]]:
    """Sort scenarios into families; those that hold none are left out."""
    known = {name for names in FAMILIES.values() for name in names}
    found = {family: [n for n in names if n in scenarios] for family, names in FAMILIES.items()}
    found[OTHERS] = sorted(set(scenarios) - known)
    return {family: names for family, names in found.items() if names}


def _common() -> tuple[FieldInfo, ...]:
    return fields_of(SourceScenario)


def _section(name: str, cls: Any) -> str:
    changed = f" History: {' '.join(cls.history)}" if cls.version > 1 else ""
    common = {f.name: f for f in _common()} if issubclass(cls, SourceScenario) else {}
    own = [f for f in fields_of(cls) if common.get(f.name) != f]
    example = scenario_example(name)
    return "\n".join(
        [
            f"\n## {name}\n",
            f"```\n{prose_of(cls) or inspect.cleandoc(cls.__doc__ or '')}\n```\n",
            f"{settings_line(cls)} **Version:** `{name}@{cls.version}`.{changed}\n",
            option_table(own, "scenario") if own else "It has no options of its own.\n",
            f"```sh\n{example}\n```\n",
            f"{stream_of(example)}\n",
        ]
    )


def stream_of(command: str) -> str:
    """Say in a sentence what stream a command's scenario is."""
    stream = clframe.open_scenario(parse_overrides(shlex.split(command)[2:])["scenario"])
    sizes = sorted({len(e.train) for e in stream.experiences})
    span = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    facts = [
        f"{_counted(len(stream.experiences), 'experience')} of {span} labelled training samples",
        _counted(len(stream.tasks), "test task"),
        _counted(stream.num_classes, "output" if stream.score == "squared_error" else "class"),
    ]
    more = [
        (stream.score == "squared_error", "scored by the squared error"),
        (not stream.boundaries, "boundaries are not told"),
        (stream.online, "every sample is presented once"),
        (any(len(e.unlabelled) for e in stream.experiences), "with samples without labels"),
        (any(len(e.pool) for e in stream.experiences), "with a pool whose labels can be bought"),
        (any(len(e.forget) for e in stream.experiences), "with samples to forget"),
        (stream.retrieval is not None, "with a gallery to search"),
    ]
    return f"Its stream: {', '.join([*facts, *(text for holds, text in more if holds)])}."


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 'es' if what.endswith('s') else 's'}"
