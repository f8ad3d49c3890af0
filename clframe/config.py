"""A run's configuration: from names and plain values to the objects that a run is made of.

One road for Python, YAML and the command line: a nested dictionary is read, every problem is named at once, and the
resolved form is written to `config.yaml`; feeding that back repeats the run.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clframe import registry
from clframe.errors import ConfigurationError, did_you_mean
from clframe.registry import Kind
from clframe.spec import Configurable, FieldInfo, build, field, fields_of, to_dict, validate

__all__ = ["SECTIONS", "RunConfig", "RunOptions", "merged", "option_names", "resolve"]

SECTIONS = ("scenario", "strategy", "backbone", "head", "optimizer", "first_optimizer")
SCHEMA = 1


class RunOptions(Configurable):
    """What belongs to a run rather than to one of its parts."""

    seed: int = field(default=0, ge=0, help="Seed of everything random but the class order.")
    init_seed: int | None = field(default=None, ge=0, help="Seed of initialisation; none means `seed`.")
    data_seed: int | None = field(default=None, ge=0, help="Seed of sample order and augmentation; none means `seed`.")
    batch_size: int = field(default=64, ge=1, unit="samples", help="Samples per training step.")
    steps_per_experience: int | list[int] | None = field(
        default=None,
        ge=1,
        unit="steps",
        help="Exactly so many optimiser steps in every experience that trains (a list: one number for each), whatever the "
        "method trains on; spread evenly over the epochs of all its phases. None: as many as the epochs have.",
    )
    eval_batch_size: int = field(default=512, ge=1, unit="samples", help="Samples per forward pass when scoring.")
    augmentation: str | list[Any] = field(
        default="auto", help="Preset or list of transforms; auto: what the scenario states."
    )
    test_transform: str | list[Any] = field(
        default="auto", help="The same for images that are not augmented, such as a centre crop; auto likewise."
    )
    device: str = field(default="auto", help="cpu, cuda, cuda:1, …; auto: a GPU when there is one.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = field(
        default="auto", help="Automatic mixed precision; auto: bf16 on a GPU that has it, else fp32."
    )
    channels_last: bool = field(default=True, help="Keep channels last in convolutions.")
    threads: int | None = field(default=None, ge=1, help="CPU threads; none leaves PyTorch's choice.")
    feature_cache: Literal["auto", "off"] = field(
        default="auto",
        help="Features of a network that is frozen as a whole; auto: kept, on disk where other runs can use them; off: "
        "computed anew each time.",
    )
    first_experiences: int | None = field(
        default=None,
        ge=1,
        unit="experiences",
        help="Run only so many experiences, the first of the scenario's; none: all. For choosing hyperparameters.",
    )
    scored_on: Literal["test", "valid"] = field(
        default="test",
        help="Samples that the metrics are of; valid: only those that the scenario set aside for validation, and no test "
        "sample is looked at.",
    )
    evaluate_future: bool = field(
        default=False, help="Score unseen tasks and the untrained model too (forward transfer, open set)."
    )
    measure: str | list[str] = field(
        default="default", help="What the run measures of itself while it trains: default, all, none, or names."
    )
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
        track: What watches the run, which is no part of what it is: trackers by name, and objects.
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
    track: list[Any]
    record: dict[str, Any]
    sources: dict[str, str]


def option_names() -> list[str]:
    """Return what may stand at the top of a configuration: sections, `epochs`, `track` and run options."""
    return [*SECTIONS, "epochs", "track", *(f.name for f in fields_of(RunOptions))]


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay changes over a configuration; a section whose name changes starts afresh.

    >>> merged({"strategy": "ewc", "seed": 1}, {"strategy": {"decay": 0.5}})
    {'strategy': {'name': 'ewc', 'decay': 0.5}, 'seed': 1}
    """
    found = dict(base)
    if "epochs" not in changes and isinstance(changes.get("strategy"), Mapping) and "epochs" in changes["strategy"]:
        found.pop("epochs", None)  # the short form stands above the section and would win
    for key, value in changes.items():
        name = (
            key if key in found else next((k for k in found if str(k).replace("-", "_") == key.replace("-", "_")), key)
        )
        old = found.get(name)
        if isinstance(value, Mapping):
            old = {"name": old} if isinstance(old, str) else old
            renamed = isinstance(old, Mapping) and "name" in value and value["name"] != old.get("name")
            value = merged(old, value) if isinstance(old, Mapping) and not renamed else dict(value)
        elif isinstance(value, str) and key in SECTIONS and isinstance(old, Mapping) and old.get("name") == value:
            value = old
        found[name] = value
    return found


def resolve(values: Mapping[str, Any]) -> RunConfig:
    """Check a configuration and build its parts.

    Args:
        values: Sections by name (a name, an object, or a mapping with `name` and its options) and run options;
            `epochs` stands for the strategy's. `track` chooses trackers and leaves no trace in the record.

    Raises:
        ConfigurationError: Every problem found, one sentence each.
    """
    given = {str(k).replace("-", "_"): v for k, v in values.items() if v is not None}
    schema = given.pop("schema", SCHEMA)
    if schema != SCHEMA:
        raise ConfigurationError(
            f"Expected a configuration of schema {SCHEMA}, received {schema!r}: use the clframe that wrote it."
        )
    digests = given.pop("sources", None)
    weights = given.pop("weights", None)
    options = {f.name: given.pop(f.name) for f in fields_of(RunOptions) if f.name in given}
    epochs = given.pop("epochs", None)
    resolver = _Resolver(given, options, epochs, given.pop("track", None))
    for key in [k for k in given if k not in SECTIONS]:
        resolver.problems.append(f"{key} is not an option of a run.{did_you_mean(key, option_names())}")
        del given[key]
    config = resolver.config()
    if isinstance(weights, Mapping):
        _refuse_other_weights(weights, config.record)
    if isinstance(digests, Mapping) and dict(digests) != config.record.get("sources", {}):
        changed = sorted(
            n for n in {*digests, *config.sources} if digests.get(n) != config.record.get("sources", {}).get(n)
        )
        raise ConfigurationError(
            f"{', '.join(changed)} changed since the run was made: bring back the text that the run directory keeps under "
            "source/, or start a new run (a configuration without its section `sources` takes the files as they are)."
        )
    return config


def _refuse_other_weights(recorded: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Refuse a weights file that is no longer what a configuration was made with; another file's path is another choice.

    Raises:
        ConfigurationError: The file has changed, or is gone.
    """
    for file in _weights_files(record):
        before, now = recorded.get(file), record.get("weights", {}).get(file)
        if before is not None and before != now:
            what = "is gone" if now is None else f"has changed (SHA-256 {now}…)"
            raise ConfigurationError(
                f"The weights file {file} {what} since the run was made (SHA-256 {before}…): bring it back, or start a new "
                "run (a configuration without its section `weights` takes the file as it is)."
            )


def _weights_files(record: Mapping[str, Any]) -> list[str]:
    """Return the files of weights that a configuration names, those of backbones inside a scenario too."""
    own = [record[s] for s in ("backbone", "scenario") if isinstance(record.get(s), Mapping)]
    found = [part["weights"] for part in own if isinstance(part.get("weights"), str)]
    return list(dict.fromkeys(found + [f for part in own for f in _weights_files(part)]))


class _Resolver:
    """Builds the parts one after the other and collects what is wrong with each."""

    def __init__(self, given: dict[str, Any], options: dict[str, Any], epochs: Any, track: Any = None) -> None:
        self.given = given
        self.track = track
        self.epochs = epochs
        self.options = options
        self.problems: list[str] = []
        self.record: dict[str, Any] = {"schema": SCHEMA}
        self.makers: list[Any] = []  # classes and factories whose source is kept when it is the user's file

    def config(self) -> RunConfig:
        from clframe.models import HeadConfig
        from clframe.tracking.choice import choices
        from clframe.training.recipe import Recipe

        scenario = self._try(self._scenario)
        strategy = self._try(self._strategy)
        backbone = self._try(self._backbone)
        head = self._try(self._plain, HeadConfig, "head", _wanted_head(strategy))
        recipe = self._try(self._plain, Recipe, "optimizer")
        first = self._try(self._first_recipe, recipe)
        options = self._try(self._run_options)
        track = self._try(choices, self.track)
        if self.problems:
            raise ConfigurationError("\n".join(self.problems))
        _refuse_unwritable(self.record)
        sources = self._sources()
        if sources:  # a user's file is part of what a run is
            self.record["sources"] = {n: hashlib.sha256(t.encode()).hexdigest()[:16] for n, t in sources.items()}
        files = [f for f in _weights_files(self.record) if Path(f).is_file()]
        if files:  # so is a file of weights, whatever it is called
            from clframe.models.weights import file_digest

            self.record["weights"] = {f: file_digest(f)[:16] for f in files}
        return RunConfig(
            scenario=scenario, strategy=strategy, backbone=backbone, head=head, recipe=recipe, first_recipe=first,
            options=options, track=track, record=self.record, sources=sources,
        )  # fmt: skip

    def _try(self, call: Any, *args: Any) -> Any:
        try:
            return call(*args)
        except ConfigurationError as error:
            self.problems.append(str(error))
            return None

    def _scenario(self) -> Any:
        from clframe.scenario import Scenario
        from clframe.stream import Stream

        value = self.given.get("scenario", "split_digits")
        if isinstance(value, Stream):
            self.record["scenario"] = {"name": f"python:{value.name}", "fingerprint": value.fingerprint}
            return value
        if isinstance(value, Configurable):
            validate(value, "scenario")
            name, part = _python_name("scenario", type(value)), value
        else:
            name, options = _name_and_options(value, "scenario", "split_digits")
            name, cls = _class("scenario", name, options)
            part = build(cls, options, "scenario")
        if isinstance(part, Scenario):
            part = part.settled()
        self.makers.append(type(part))
        record = {"name": name, "version": _version(type(part)), **_values(part)}
        for section in getattr(type(part), "sections", ()):
            record[section] = self._nested(section, getattr(part, section))
        self.record["scenario"] = record
        return part

    def _nested(self, section: str, value: Any) -> dict[str, Any]:
        """Check a section inside the scenario, and return its record."""
        inner = _Resolver({section: value}, {}, None)
        try:
            _ = inner._scenario() if section == "scenario" else inner._backbone()
        except ConfigurationError as error:
            raise ConfigurationError(
                "\n".join(f"In scenario.{section}: {line}" for line in str(error).split("\n"))
            ) from None
        self.makers += inner.makers
        found: dict[str, Any] = inner.record[section]
        return found

    def _strategy(self) -> Any:
        from clframe.composite import SHARED_FIELDS, Composite

        value = self.given.get("strategy", "finetune")
        given_object = isinstance(value, Configurable)
        names, parts = self._strategy_from_object(value) if given_object else self._strategy_from_names(value)
        if len(set(names)) != len(names):
            raise ConfigurationError(f"A composition needs different strategies, received {'+'.join(names)!r}.")
        self.makers += [type(p) for p in parts]
        versions = {n: _version(type(p)) for n, p in zip(names, parts, strict=True)}
        if len(parts) == 1:
            self.record["strategy"] = {"name": names[0], "version": versions[names[0]], **_values(parts[0])}
            return parts[0]
        composite = Composite(parts=parts)
        composite.share_fields()
        shared = {k: v for k, v in _values(parts[0]).items() if k in SHARED_FIELDS}
        own = {
            n: {"version": versions[n], **{k: v for k, v in _values(p).items() if k not in SHARED_FIELDS}}
            for n, p in zip(names, parts, strict=True)
        }
        self.record["strategy"] = {"name": "+".join(names), **shared, **own}
        return composite

    def _strategy_from_object(self, value: Any) -> tuple[list[str], list[Any]]:
        """Take an object apart and copy the parts, so that the user's own object stays without state."""
        from clframe.composite import Composite
        from clframe.strategy import Strategy

        if not isinstance(value, Strategy) or (isinstance(value, Composite) and not value.parts):
            raise ConfigurationError(
                f"strategy: expected a strategy, received {value!r}: give a name or a Strategy object."
            )
        changes = {} if self.epochs is None else {"epochs": self.epochs}
        parts = []
        for part in _flat(value):
            own = {f.name: getattr(part, f.name) for f in fields_of(type(part))}
            parts.append(build(type(part), {**own, **changes}, "strategy"))
        return [_python_name("strategy", type(p)) for p in parts], parts

    def _strategy_from_names(self, value: Any) -> tuple[list[str], list[Any]]:
        name, options = _name_and_options(value, "strategy", "finetune")
        if self.epochs is not None:
            options["epochs"] = self.epochs
        wanted = registry.split_names(name)
        if len(wanted) == 1:
            full, cls = _class("strategy", wanted[0], options)
            return [full], [build(cls, options, "strategy")]
        classes: dict[str, type[Configurable]] = {}
        for part in wanted:
            full, cls = _class("strategy", part, {})
            if full in classes:
                raise ConfigurationError(f"A composition needs different strategies, received {name!r}.")
            classes[full] = cls
        shares = _share_options(classes, options)
        for n, cls in classes.items():
            _check_version(shares[n].pop("version", None), cls, "strategy", n)
        parts, problems = [], []
        for n, cls in classes.items():
            try:
                parts.append(build(cls, shares[n], f"strategy.{n}"))
            except ConfigurationError as error:
                problems.append(str(error))
        if problems:
            raise ConfigurationError("\n".join(dict.fromkeys(problems)))
        return list(classes), parts

    def _backbone(self) -> Any:
        from clframe.models import BackboneConfig, backbone_config

        value = self.given.get("backbone", "mlp")
        if isinstance(value, BackboneConfig):
            validate(value, "backbone")
            part, maker = value, getattr(type(value), "factory", type(value))
            name = _python_name("backbone", maker)
        elif callable(value) and not isinstance(value, Mapping):
            part, maker = backbone_config(_maker(value), {}), value
            name = _python_name("backbone", value)
        else:
            name, options = _name_and_options(value, "backbone", "mlp")
            options.pop("version", None)
            name = registry.absolute(name)
            part = backbone_config(name, options)
            maker = getattr(type(part), "factory", type(part))
        self.makers.append(maker)
        self.record["backbone"] = {"name": name, **_values(part)}
        return part

    def _plain(self, cls: type[Configurable], section: str, wanted: Mapping[str, Any] | None = None) -> Any:
        value = self.given.get(section, {})
        if isinstance(value, cls):
            validate(value, section)
            part = value
        else:
            options = merged({section: wanted or {}}, {section: _mapping(value, section)})[section]
            part = build(cls, options, section)
        self.record[section] = to_dict(part)
        return part

    def _first_recipe(self, recipe: Any) -> Any:
        value = self.given.get("first_optimizer") or {}
        if recipe is None:  # its own problem has been noted
            return None
        changes = to_dict(value) if isinstance(value, type(recipe)) else _mapping(value, "first_optimizer")
        built = build(type(recipe), {**to_dict(recipe), **changes}, "first_optimizer")
        self.record["first_optimizer"] = {k: v for k, v in to_dict(built).items() if k in changes}
        return built if changes else None

    def _run_options(self) -> RunOptions:
        options = build(RunOptions, self.options, "")
        for name in ("augmentation", "test_transform"):
            given = getattr(options, name)
            if not isinstance(given, str):
                options = options.replace(**{name: [_transform_record(t) for t in given]})
        self.record.update(to_dict(options))
        return options

    def _sources(self) -> dict[str, str]:
        files = {registry.source_file(c) for c in self.makers} - {None}
        found: dict[str, str] = {}
        for file in sorted(f for f in files if f is not None):
            name = file.name if file.name not in found else f"{file.parent.name}_{file.name}"
            found[name] = file.read_text(encoding="utf-8")
        return found


def _wanted_head(strategy: Any) -> Mapping[str, Any]:
    """The classifier that a strategy asks for where the configuration names none."""
    from clframe.composite import tags_of

    return {} if strategy is None else tags_of(strategy).head


def _flat(strategy: Any) -> list[Any]:
    """The parts of a composition, those of compositions inside it too."""
    from clframe.composite import leaves

    parts = leaves(strategy)
    return parts if parts == [strategy] else [leaf for part in parts for leaf in _flat(part)]


def _mapping(value: Any, section: str) -> dict[str, Any]:
    """Options of a section that has a single class; a bare name means the option `name`."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping):
        return {str(k).replace("-", "_"): v for k, v in value.items()}
    raise ConfigurationError(
        f"{section}: expected a name or a mapping of options, received {type(value).__name__}: see `clframe describe {section}`."
    )


def _name_and_options(value: Any, section: str, default: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(value, (str, Mapping)):
        raise ConfigurationError(
            f"{section}: expected a name, a mapping with a name and options, or an object, received {type(value).__name__}."
        )
    options = {} if isinstance(value, str) else {_key(str(k)): v for k, v in value.items()}
    name = value if isinstance(value, str) else options.pop("name", default)
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"{section}.name: expected a name, received {name!r}: see `clframe list {section}`.")
    if any(n.startswith("python:") for n in registry.split_names(name)):
        raise ConfigurationError(
            f"The {section} {name.replace('python:', '')!r} of this run was an object in Python: give it again, as in "
            f"clframe.resume(directory, {section}=...)."
        )
    if section == "strategy" and name.startswith("avalanche."):
        raise ConfigurationError(
            f"The strategy {name!r} of this run was trained in Avalanche's own loop, which keeps no model and can't be resumed: "
            "run it again with clframe.interop.avalanche.run_avalanche."
        )
    return name, options


def _key(key: str) -> str:
    """An option's name, in which `-` and `_` are the same; a path that names a part of a composition stays."""
    return key if ":" in key else key.replace("-", "_")


def _class(kind: Kind, name: str, options: dict[str, Any]) -> tuple[str, type[Configurable]]:
    """Load a class by name, which may end in `@version`, and return its full name; takes `version` from the options."""
    match = re.fullmatch(r"(.+)@(\d+)", name)
    plain, asked = (match[1], int(match[2])) if match else (name, None)
    full = registry.absolute(plain)
    cls = registry.load(kind, full)
    if not issubclass(cls, Configurable) or not issubclass(cls, _base(kind)):
        raise ConfigurationError(
            f"The {kind} {plain!r} must derive from clframe.{kind.title()}, but {cls.__name__} doesn't."
        )
    for version in (asked, options.pop("version", None)):
        _check_version(version, cls, kind, plain)
    return full, cls


def _base(kind: Kind) -> type:
    from clframe.scenario import Scenario
    from clframe.strategy import Strategy

    return Strategy if kind == "strategy" else Scenario


def _values(part: Configurable) -> dict[str, Any]:
    """Plain values for the record; paths of the user's files are made absolute."""
    found = to_dict(part)
    return {k: _absolute_file(k, v) for k, v in found.items()}


def _absolute_file(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if name == "weights" and Path(value).expanduser().is_file():
        return str(Path(value).expanduser().resolve())
    return registry.absolute(value)


def _transform_record(item: Any) -> Any:
    """One transform as plain values."""
    from clframe.data.augment import Augmentation, Pipeline

    if isinstance(item, Augmentation):
        return Pipeline((item,)).to_spec()[0]
    if isinstance(item, Mapping):
        return {str(k): registry.absolute(v) if k == "name" and isinstance(v, str) else v for k, v in item.items()}
    return registry.absolute(item) if isinstance(item, str) else item


def _refuse_unwritable(record: Mapping[str, Any], where: str = "") -> None:
    """Refuse an option whose value no YAML can hold.

    Raises:
        ConfigurationError: Names the option.
    """
    for key, value in record.items():
        name = f"{where}.{key}" if where else str(key)
        if isinstance(value, Mapping):
            _refuse_unwritable(value, name)
        elif isinstance(value, (list, tuple)):
            _refuse_unwritable({str(i): v for i, v in enumerate(value)}, name)
        elif not (value is None or type(value) in (bool, int, float, str)):
            raise ConfigurationError(
                f"{name}: expected numbers, text, or lists and mappings of them, which config.yaml can hold, received "
                f"{type(value).__name__}."
            )


def _share_options(classes: dict[str, type[Configurable]], options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Give every option of a composition to the part that has it; shared ones to all, `part: {…}` to that part."""
    from clframe.composite import SHARED_FIELDS

    shares: dict[str, dict[str, Any]] = {n: {} for n in classes}
    fields: dict[str, dict[str, FieldInfo]] = {n: {f.name: f for f in fields_of(c)} for n, c in classes.items()}
    called = {alias: n for n in classes for alias in (n, n.rpartition(":")[2], n.replace("-", "_"))}
    problems = []
    for key, value in options.items():
        holders = [n for n in classes if key in fields[n]]
        part = called.get(key) or called.get(registry.absolute(key))
        if part is not None and isinstance(value, Mapping):
            shares[part].update({str(k).replace("-", "_"): v for k, v in value.items()})
        elif key in SHARED_FIELDS or len(holders) == 1:
            for n in holders:
                shares[n].setdefault(key, value)
        elif holders:
            problems.append(
                f"strategy.{key} belongs to {' and '.join(holders)}: say which, as in --strategy.{holders[0]}.{key.replace('_', '-')}."
            )
        else:
            known = [*called, *(name for n in classes for name in fields[n])]
            problems.append(f"strategy.{key} is not an option of {'+'.join(classes)}.{did_you_mean(key, known)}")
    if problems:
        raise ConfigurationError("\n".join(problems))
    return shares


def _maker(value: Any) -> Any:
    """Return a class or factory as it is; of a module, a factory of copies, so that the user's own stays untrained."""
    from torch import nn

    if not isinstance(value, nn.Module):
        return value

    def copy_of_module() -> nn.Module:
        return copy.deepcopy(value)

    copy_of_module.copies_module = True  # type: ignore[attr-defined]
    return copy_of_module


def _python_name(kind: Kind, value: Any) -> str:
    """Return a name under which a resumed run finds a class again, or one that says that it must be given again."""
    own = getattr(value, "__qualname__", type(value).__name__)
    if not isinstance(value, type) and not hasattr(value, "__qualname__"):
        return f"python:{own}"
    name = registry.name_of(kind, value)
    if getattr(value, "__module__", "__main__") != "__main__":
        try:
            found = registry.load_object(name) if ":" in name else registry.load(kind, name)
        except ConfigurationError:
            found = None
        if found is value:
            return name
    return f"python:{own}"


def _version(cls: type) -> int:
    return int(getattr(cls, "version", 1))


def _check_version(asked: Any, cls: type, section: str, name: str) -> None:
    if asked is not None and str(asked) != str(_version(cls)):
        raise ConfigurationError(
            f"The configuration asks for {section} {name}@{asked}, but this clframe has {name}@{_version(cls)}: "
            "install the version that made it, or drop the version to run the current one."
        )
