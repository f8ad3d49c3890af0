"""Files to start from: a run's configuration with every option explained, and a strategy to fill in.

Both follow from the code: the options and their help from the fields, the hooks from the contract.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from clframe import registry
from clframe.errors import ConfigurationError
from clframe.spec import FieldInfo, fields_of
from clframe.tracking.files import to_yaml

__all__ = ["class_name_of", "starter_yaml", "strategy_skeleton"]

_WIDTH = 110
_SECTIONS = {
    "scenario": "The stream: which data, and how it is cut into experiences. `clframe list scenarios` names others.",
    "strategy": "The method; a+b composes. `clframe list strategies` names others.",
    "backbone": "The network's body. `clframe list backbones` names others.",
    "head": "The classifier on top of it.",
    "optimizer": "The optimiser and its schedule.",
}
_HEAD = """\
# A run of clframe:  clframe run --config {file}
#
# Every option stands here with its value and what it means; leave out what you don't change. What is given on the
# command line beside this file wins:  clframe run --config {file} --seed 1
"""
_FIRST = "# The optimiser of the first experience, where it is another: options that differ from those above."
_TRACK = "# What watches the run; no part of what it is. `clframe list trackers` names others."
_HOOKS = (
    "check", "before_experience", "phases", "extra_phases", "training_data", "before_epoch", "main_loss", "after_backward",
    "after_step", "final_output", "report_heads",
)  # fmt: skip
"""Hooks that the skeleton names, beside those that it fills."""


def starter_yaml(given: Mapping[str, Any], file: str = "run.yaml") -> str:
    """Return a configuration as a YAML file in which every option is explained.

    Args:
        given: What differs from the defaults.
        file: What it will be called.

    Raises:
        ConfigurationError: The configuration can't be run.
    """
    from clframe.config import RunOptions, resolve

    config = resolve(given)
    record, recipe = config.record, config.recipe
    lines = [_HEAD.format(file=file)]
    parts: dict[str, Sequence[FieldInfo]] = {
        "scenario": fields_of(type(config.scenario)), "backbone": fields_of(type(config.backbone)),
        "head": fields_of(type(config.head)), "optimizer": fields_of(type(recipe)),
    }  # fmt: skip
    for section, title in _SECTIONS.items():
        lines += [f"\n# -- {title}", f"{section}:"]
        if section == "strategy":
            lines += _strategy(config.strategy, record[section])
        else:
            lines += _section(parts[section], record[section])
    changed = record["first_optimizer"]
    lines += ["", _FIRST, to_yaml({"first_optimizer": changed}).rstrip() if changed else "# first_optimizer: {lr: 0.1}"]
    lines += ["", "# -- The run itself."]
    lines += _options(fields_of(RunOptions), record, "")
    lines += ["", _TRACK, "# track: [wandb, tensorboard]"]
    return "\n".join(lines) + "\n"


def _section(fields: Sequence[FieldInfo], record: Mapping[str, Any]) -> list[str]:
    own = [f for f in fields if f.name != "name"]
    named = next((f for f in fields if f.name == "name"), None)
    head = _comment(named, "  ") if named is not None else []
    return [*head, _line("name", record["name"], "  "), *_options(own, record, "  ")]


def _strategy(strategy: Any, record: Mapping[str, Any]) -> list[str]:
    """A strategy's options; of a composition those of all parts, then those of each."""
    from clframe.composite import SHARED_FIELDS, leaves

    parts = leaves(strategy)
    if len(parts) == 1:
        return _section(fields_of(type(parts[0])), record)
    shared = [f for f in fields_of(type(parts[0])) if f.name in SHARED_FIELDS]
    lines = [_line("name", record["name"], "  "), *_options(shared, record, "  ")]
    for name, part in zip(registry.split_names(record["name"]), parts, strict=True):
        own = [f for f in fields_of(type(part)) if f.name not in SHARED_FIELDS]
        lines += [f"  {name}:", *(_options(own, record[name], "    ") or ["    {}"])]
    return lines


def _options(fields: Sequence[FieldInfo], record: Mapping[str, Any], indent: str) -> list[str]:
    """Every option with its comment; one that is none anyway is commented out."""
    lines: list[str] = []
    for info in fields:
        value = record[info.name]
        off = "# " if value is None and info.has_default and info.default is None else ""
        lines += [*_comment(info, indent), _line(info.name, value, indent + off)]
    return lines


def _comment(info: FieldInfo, indent: str) -> list[str]:
    text = f"{info.help.rstrip('.')}. " if info.help else ""
    return textwrap.wrap(
        f"{text}({info.accepts})", _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ",
        break_long_words=False,
    )  # fmt: skip


def _line(name: str, value: Any, indent: str) -> str:
    flow = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10_000).strip()
    return f"{indent}{name}: {flow[1:-1]}"


# -- a strategy ------------------------------------------------------------------------------------------------------------


def class_name_of(file: Path) -> str:
    """Return a class's name from its file's: `my_method.py` holds `MyMethod`.

    Raises:
        ConfigurationError: The file's name gives none.
    """
    name = "".join(part[:1].upper() + part[1:] for part in file.stem.replace("-", "_").split("_"))
    if not name.isidentifier():
        raise ConfigurationError(
            f"Expected a file name such as my_method.py, received {file.name!r}: choose another one."
        )
    return name


def strategy_skeleton(file: Path) -> str:
    """Return a strategy to fill in: it is plain fine-tuning until its strength is more than 0, and keeps the contract."""
    return _SKELETON.format(name=class_name_of(file), file=file, hooks="\n".join(_hooks()))


def _hooks() -> Iterator[str]:
    from clframe.strategy import Strategy

    for name in _HOOKS:
        hook = getattr(Strategy, name)
        arguments = ", ".join(n for n in inspect.signature(hook).parameters if n != "self")
        first = inspect.cleandoc(hook.__doc__).split("\n\n")[0]
        yield from textwrap.wrap(
            f"{name}({arguments}): {' '.join(first.split())}",
            _WIDTH,
            initial_indent="    #   ",
            subsequent_indent="    #       ",
        )


_SKELETON = '''\
"""A strategy of continual learning. Try it:

    clframe check {file}:{name}
    clframe run --strategy {file}:{name} --strategy.strength 0.1
"""

from __future__ import annotations

import clframe


class {name}(clframe.Strategy):
    """What the method does, in a sentence.

    Author et al. year, "Title", eq. 1:

        L = cross-entropy + strength / 2 · Σ (θ − θ*)²

    Differs from the paper: nothing known.

    Version history:
        1: first version.
    """

    # Hyperparameters: a type, a default, bounds and what it means. The command line, YAML, `clframe describe` and the
    # run's record follow from them. Don't write an `__init__`.
    strength: float = clframe.field(default=0.0, ge=0, help="Weight of the penalty; 0 is plain fine-tuning.")

    def setup(self):
        # State is built when the run starts. Names that end in an underscore are saved with every checkpoint: tensors,
        # numbers, lists, dictionaries, networks, exemplar memories.
        self.anchor_ = {{}}

    def extra_losses(self, batch, output):
        # batch.x (B, C, H, W), batch.y (B,); output.logits (B, classes seen), output.features (B, D). Each term has a
        # name under which it is logged; their sum with the cross-entropy is minimised.
        now = dict(self.network.named_parameters())
        moved = [(now[n] - old).square().sum() for n, old in self.anchor_.items() if now[n].shape == old.shape]
        return {{"anchor": self.strength / 2 * sum(moved)}} if moved else {{}}

    def after_experience(self, experience):
        # Memory and statistics, once an experience has been learnt.
        self.anchor_ = {{n: p.detach().clone() for n, p in self.network.named_parameters()}}

    # Other hooks; each has a default, and all defaults together are fine-tuning:
    #
{hooks}
    #
    # self.network is the model. self.run lends the rest: the device, self.run.rng("purpose") for every random choice,
    # features and labels of samples by their ids. docs/strategies.md goes on with memory and phases.
'''
