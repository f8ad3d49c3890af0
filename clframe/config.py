"""A run's configuration: from names and plain values to the objects that a run is made of.

One road for Python, YAML and the command line: a nested dictionary is read, every problem is named at once, and the
resolved form is written to `config.yaml`; feeding that back repeats the run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from clframe import registry
from clframe.errors import ConfigurationError, did_you_mean
from clframe.spec import Configurable, build, field, fields_of, to_dict, validate

__all__ = ["SECTIONS", "RunConfig", "RunOptions", "resolve"]

SECTIONS = ("scenario", "strategy", "backbone", "head", "optimizer", "first_optimizer")
SCHEMA = 1


class RunOptions(Configurable):
    """What belongs to a run rather than to one of its parts."""

    seed: int = field(default=0, ge=0, help="Seed of everything random but the class order.")
    init_seed: int | None = field(default=None, ge=0, help="Seed of initialisation; none means `seed`.")
    data_seed: int | None = field(default=None, ge=0, help="Seed of sample order and augmentation; none means `seed`.")
    batch_size: int = field(default=64, ge=1, unit="samples", help="Samples per training step.")
    eval_batch_size: int = field(default=512, ge=1, unit="samples", help="Samples per forward pass when scoring.")
    augmentation: str | list[Any] = field(default="auto", help="Preset or list of transforms; auto: what the scenario states.")
    device: str = field(default="auto", help="cpu, cuda, cuda:1, …; auto: a GPU when there is one.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = field(
        default="auto", help="Automatic mixed precision; auto: bf16 on a GPU that has it, else fp32."
    )
    channels_last: bool = field(default=True, help="Keep channels last in convolutions.")
    threads: int | None = field(default=None, ge=1, help="CPU threads; none leaves PyTorch's choice.")
    evaluate_future: bool = field(default=False, help="Score unseen tasks and the untrained model too (forward transfer).")
    keep_models: bool = field(default=False, help="Keep the checkpoint after every experience.")
    checkpoint_minutes: float = field(default=5.0, gt=0, unit="minutes", help="Longest time between two checkpoints.")


@dataclass(kw_only=True, eq=False)
class RunConfig:
    """A checked configuration; nothing has been computed or read yet.

    Attributes:
        scenario: Cuts the stream.
        strategy: The method.
        backbone: Makes the network's body.
        head: The classifier's kind.
        recipe: Of the optimiser.
        first_recipe: Of the first experience; None means the same.
        options: The rest.
        record: The resolved plain form, as `config.yaml` holds it.
        sources: Text of the user's files that were used, by file name.
    """

    scenario: Any
    strategy: Any
    backbone: Any
    head: Any
    recipe: Any
    first_recipe: Any
    options: RunOptions
    record: dict[str, Any]
    sources: dict[str, str]


def resolve(values: Mapping[str, Any]) -> RunConfig:
    """Check a configuration and build its parts.

    Args:
        values: Sections by name (a name, an object, or a mapping with `name` and its options) and run options;
            `epochs` stands for the strategy's.

    Raises:
        ConfigurationError: Every problem found, one sentence each.
    """
    given = {k.replace("-", "_"): v for k, v in values.items() if v is not None}
    schema = given.pop("schema", SCHEMA)
    if schema != SCHEMA:
        raise ConfigurationError(f"Expected a configuration of schema {SCHEMA}, received {schema!r}.")
    options = {k: given.pop(k) for k in list(given) if k in {f.name for f in fields_of(RunOptions)}}
    epochs = given.pop("epochs", None)
    unknown = [k for k in given if k not in SECTIONS]
    if unknown:
        known = [*SECTIONS, "epochs", *(f.name for f in fields_of(RunOptions))]
        hints = (f"{k} is not an option of a run.{did_you_mean(k, known)}" for k in unknown)
        raise ConfigurationError("\n".join(hints))
    return _Resolver(given, options, epochs).config()


class _Resolver:
    """Builds the parts one after the other and collects what is wrong with each."""

    def __init__(self, given: dict[str, Any], options: dict[str, Any], epochs: Any) -> None:
        self.given = given
        self.epochs = epochs
        self.options = options
        self.problems: list[str] = []
        self.record: dict[str, Any] = {"schema": SCHEMA}
        self.classes: list[type] = []

    def config(self) -> RunConfig:
        from clframe.models import HeadConfig
        from clframe.training.recipe import Recipe

        scenario = self._try(self._named, "scenario", "split_digits")
        strategy = self._try(self._strategy)
        backbone = self._try(self._backbone)
        head = self._try(self._plain, HeadConfig, "head")
        recipe = self._try(self._plain, Recipe, "optimizer")
        first = self._try(self._first_recipe, recipe)
        options = self._try(build, RunOptions, self.options, "run")
        if self.problems:
            raise ConfigurationError("\n".join(self.problems))
        self.record.update(to_dict(options))
        return RunConfig(
            scenario=scenario, strategy=strategy, backbone=backbone, head=head, recipe=recipe, first_recipe=first,
            options=options, record=self.record, sources=self._sources(),
        )  # fmt: skip

    def _try(self, call: Any, *args: Any) -> Any:
        try:
            return call(*args)
        except ConfigurationError as error:
            self.problems.append(str(error))
            return None

    def _named(self, section: Literal["scenario"], default: str) -> Any:
        from clframe.stream import Stream

        value = self.given.get(section, default)
        if isinstance(value, Stream):
            self.record[section] = {"name": f"python:{value.name}", "fingerprint": value.fingerprint}
            return value
        if isinstance(value, Configurable):
            validate(value, section)
            name, part = registry.name_of(section, type(value)), value
        else:
            name, options = _name_and_options(value, section, default)
            cls = registry.load(section, name)
            _check_version(options.pop("version", None), cls, section, name)
            part = build(_configurable(cls, section, name), options, section)
        self.classes.append(type(part))
        self.record[section] = {"name": name, "version": getattr(type(part), "version", 1), **to_dict(part)}
        return part

    def _strategy(self) -> Any:
        from clframe.composite import SHARED_FIELDS, Composite

        value = self.given.get("strategy", "finetune")
        if isinstance(value, Configurable):
            parts = list(value.parts) if isinstance(value, Composite) else [value]
            for part in parts:
                validate(part, "strategy")
            parts = [p.replace(epochs=int(self.epochs)) if self.epochs is not None else p.replace() for p in parts]
            names = [registry.name_of("strategy", type(p)) for p in parts]
        else:
            names, parts = self._strategy_from_names(value)
        self.classes += [type(p) for p in parts]
        versions = {n: type(p).version for n, p in zip(names, parts, strict=True)}
        if len(parts) == 1:
            self.record["strategy"] = {"name": names[0], "version": versions[names[0]], **to_dict(parts[0])}
            return parts[0]
        composite = Composite(parts=parts)
        composite.share_fields()
        shared = {k: v for k, v in to_dict(parts[0]).items() if k in SHARED_FIELDS}
        own = {
            n: {"version": versions[n], **{k: v for k, v in to_dict(p).items() if k not in SHARED_FIELDS}}
            for n, p in zip(names, parts, strict=True)
        }
        self.record["strategy"] = {"name": "+".join(names), **shared, **own}
        return composite

    def _strategy_from_names(self, value: Any) -> tuple[list[str], list[Any]]:
        name, options = _name_and_options(value, "strategy", "finetune")
        if self.epochs is not None:
            options["epochs"] = self.epochs
        names = name.split("+")
        if len(set(names)) != len(names):
            raise ConfigurationError(f"A composition needs different strategies, received {name!r}.")
        classes = {n: _configurable(registry.load("strategy", n), "strategy", n) for n in names}
        shares = _share_options(classes, options)
        parts = []
        for n, cls in classes.items():
            _check_version(shares[n].pop("version", None), cls, "strategy", n)
            parts.append(build(cls, shares[n], "strategy" if len(names) == 1 else f"strategy.{n}"))
        return names, parts

    def _backbone(self) -> Any:
        from clframe.models import BackboneConfig, backbone_config

        value = self.given.get("backbone", "mlp")
        if isinstance(value, BackboneConfig):
            validate(value, "backbone")
            name, part = registry.name_of("backbone", type(value)), value
        elif callable(value) and not isinstance(value, Mapping):
            part = backbone_config(_maker(value), {})
            name = _python_name(value)
        else:
            name, options = _name_and_options(value, "backbone", "mlp")
            options.pop("version", None)
            part = backbone_config(name, options)
        self.classes.append(type(part))
        self.record["backbone"] = {"name": name, **to_dict(part)}
        return part

    def _plain(self, cls: type[Configurable], section: str) -> Any:
        value = self.given.get(section, {})
        if isinstance(value, cls):
            validate(value, section)
            part = value
        else:
            part = build(cls, {"name": value} if isinstance(value, str) else value, section)
        self.record[section] = to_dict(part)
        return part

    def _first_recipe(self, recipe: Any) -> Any:
        changes = self.given.get("first_optimizer") or {}
        self.record["first_optimizer"] = dict(changes)
        if not changes or recipe is None:
            return None
        return build(type(recipe), {**to_dict(recipe), **changes}, "first_optimizer")

    def _sources(self) -> dict[str, str]:
        files = {registry.source_file(c) for c in self.classes} - {None}
        return {f.name: f.read_text(encoding="utf-8") for f in files if f is not None}


def _name_and_options(value: Any, section: str, default: str) -> tuple[str, dict[str, Any]]:
    named = value if isinstance(value, str) else value.get("name", "") if isinstance(value, Mapping) else ""
    if str(named).startswith("python:"):
        raise ConfigurationError(
            f"The {section} {named[7:]!r} of this run was an object in Python: give it again, as in "
            f"clframe.resume(directory, {section}=...)."
        )
    if isinstance(value, str):
        return value, {}
    if isinstance(value, Mapping):
        options = {str(k).replace("-", "_"): v for k, v in value.items()}
        return str(options.pop("name", default)), options
    raise ConfigurationError(
        f"{section}: expected a name, a mapping with a name and options, or an object, received {type(value).__name__}."
    )


def _share_options(classes: dict[str, Any], options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Give every option of a composition to the part that has it; shared ones to all, `part: {…}` to that part."""
    from clframe.composite import SHARED_FIELDS

    shares: dict[str, dict[str, Any]] = {n: {} for n in classes}
    if len(classes) == 1:
        return {next(iter(classes)): dict(options)}
    for key, value in options.items():
        holders = [n for n, c in classes.items() if key in {f.name for f in fields_of(c)}]
        if key in classes and isinstance(value, Mapping):
            shares[key].update({str(k).replace("-", "_"): v for k, v in value.items()})
        elif key in SHARED_FIELDS or len(holders) == 1:
            for n in holders:
                shares[n][key] = value
        elif holders:
            raise ConfigurationError(
                f"strategy.{key} belongs to {' and '.join(holders)}: say which, as in --strategy.{holders[0]}.{key.replace('_', '-')}."
            )
        else:
            known = [f.name for c in classes.values() for f in fields_of(c)]
            raise ConfigurationError(f"strategy.{key} is not an option of {'+'.join(classes)}.{did_you_mean(key, known)}")
    return shares


def _maker(value: Any) -> Any:
    """Return a class or factory as it is; of a module, a factory of copies, so that the user's own stays untrained."""
    from torch import nn

    if not isinstance(value, nn.Module):
        return value

    def copy_of_module() -> nn.Module:
        return copy.deepcopy(value)

    return copy_of_module


def _python_name(value: Any) -> str:
    """Return a name under which a resumed run finds a class again, or one that says that it must be given again."""
    if isinstance(value, type) and value.__module__ != "__main__":
        return registry.name_of("backbone", value)
    return f"python:{getattr(value, '__name__', type(value).__name__)}"


def _configurable(cls: type, section: str, name: str) -> type[Configurable]:
    if not issubclass(cls, Configurable):
        raise ConfigurationError(f"The {section} {name!r} must derive from clframe's {section.title()}, but is a {cls.__name__}.")
    return cls


def _check_version(asked: Any, cls: type, section: str, name: str) -> None:
    current = getattr(cls, "version", 1)
    if asked is not None and asked != current:
        raise ConfigurationError(
            f"The configuration asks for {section} {name}@{asked}, but this clframe has {name}@{current}: "
            "install the version that made it, or drop the version to run the current one."
        )
