"""What there is and what it takes: the texts of `clframe list` and `clframe describe`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from clframe import registry
from clframe.errors import ConfigurationError, did_you_mean
from clframe.metrics import CATALOGUE, Metric
from clframe.registry import Kind
from clframe.scenario import settings_of
from clframe.spec import Configurable, FieldInfo, fields_of

__all__ = ["describe", "kind_and_name", "listing", "needs_of", "prose_of", "scenario_example", "settings_line"]

_REGISTERED: tuple[Kind, ...] = ("strategy", "scenario", "backbone", "tracker")
_PLURALS = {
    "strategies": "strategy",
    "scenarios": "scenario",
    "backbones": "backbone",
    "trackers": "tracker",
    "metrics": "metric",
}
_PARTS = ("run", "optimizer", "head")
"""What has options but no other name."""
_WIDTH = 100


def listing(kind: str | None = None) -> list[dict[str, str]]:
    """Name what there is, with one line about each; a broken plugin becomes a warning.

    Args:
        kind: `strategy`, `scenario`, `backbone`, `tracker` or `metric`, or its plural; None means all.

    Returns:
        Mappings of `kind`, `name` and `what`.

    Raises:
        ConfigurationError: There is no such kind.
    """
    kinds = (*_REGISTERED, "metric")
    chosen = None if kind is None else _PLURALS.get(kind, kind)
    if chosen is not None and chosen not in kinds:
        raise ConfigurationError(
            f"Expected one of {', '.join(_PLURALS)}, received {kind!r}.{did_you_mean(chosen, _PLURALS)}"
        )
    rows = []
    for known in _REGISTERED:
        if chosen in (None, known):
            rows += [_row(known, name, _first_line(_doc(cls))) for name, cls in registry.load_all(known).items()]
    if chosen in (None, "metric"):
        rows += [_row("metric", name, metric.definition) for name, metric in CATALOGUE.items()]
    return rows


def describe(*what: str) -> str:
    """Describe one thing: its documentation, what it needs, its options and an example.

    Args:
        *what: A kind and a name, or a name alone; `run`, `optimizer` or `head`. A strategy may be a composition such
            as `replay+ewc`; classes may be given as `path/to/file.py:Class` or `package.module:Class`.

    Raises:
        ConfigurationError: Nothing is called that, or two kinds of things are.
    """
    kind, name = kind_and_name(*what)
    if kind in _PARTS:
        return _describe_part(name)
    if kind == "metric":
        return _describe_metric(name)
    if kind == "strategy":
        return _describe_strategy(name)
    if kind == "backbone":
        return _describe_backbone(name)
    if kind == "tracker":
        return _describe_tracker(name)
    cls = registry.load("scenario", name)
    example = f"Example:\n  {scenario_example(name)}"
    return _text(name, prose_of(cls), settings_line(cls), _version(cls), _options(cls, "scenario"), example)


def kind_and_name(*what: str) -> tuple[str, str]:
    """Return the kind and the name of what `describe` is asked for; `run`, `optimizer` and `head` are of their own kind.

    Raises:
        ConfigurationError: Nothing is called that, or two kinds of things are.
    """
    if len(what) == 1 and what[0] in _PARTS:
        return what[0], what[0]
    if len(what) not in (1, 2):
        raise ConfigurationError(
            f"Expected a kind and a name, as in `describe strategy replay`, received {' '.join(what)!r}."
        )
    kinds = (*_REGISTERED, "metric")
    kind = _PLURALS.get(what[0], what[0]) if len(what) == 2 else _kind_of(what[0])
    if kind not in kinds:
        raise ConfigurationError(f"Expected a kind ({', '.join(kinds)}), received {kind!r}.{did_you_mean(kind, kinds)}")
    if kind == "metric" and what[-1] not in CATALOGUE:
        hint = did_you_mean(what[-1], CATALOGUE) or " `clframe list metrics` names them."
        raise ConfigurationError(f"There is no metric named {what[-1]!r}.{hint}")
    return kind, what[-1]


def _row(kind: str, name: str, what: str) -> dict[str, str]:
    return {"kind": kind, "name": name, "what": what}


def _kind_of(name: str) -> str:
    """The kind of thing that has a name."""
    if ":" in name and "+" not in name:
        return _kind_of_object(name)
    names: dict[str, Iterable[str]] = {k: registry.available(k) for k in _REGISTERED}
    names["metric"] = CATALOGUE
    found = [kind for kind, known in names.items() if name in known]
    if len(found) > 1:
        ways = " or ".join(f"`clframe describe {kind} {name}`" for kind in found)
        raise ConfigurationError(f"{name!r} is the name of a {' and of a '.join(found)}: say which, as in {ways}.")
    if found:
        return found[0]
    if "+" in name:
        return "strategy"
    if name.startswith("timm/"):
        return "backbone"
    every = [*_PARTS, *(n for known in names.values() for n in known)]
    hint = did_you_mean(name, every) or " `clframe list` names what there is."
    raise ConfigurationError(f"Nothing is called {name!r}.{hint}")


def _kind_of_object(name: str) -> str:
    from torch import nn

    from clframe.models import BackboneConfig
    from clframe.scenario import Scenario
    from clframe.strategy import Strategy
    from clframe.tracking.rundir import Tracker

    found = registry.load_object(name)
    kinds: dict[str, tuple[type, ...]] = {
        "strategy": (Strategy,),
        "scenario": (Scenario,),
        "backbone": (BackboneConfig, nn.Module),
        "tracker": (Tracker,),
    }
    if isinstance(found, type):
        for kind, bases in kinds.items():
            if issubclass(found, bases):
                return kind
    raise ConfigurationError(
        f"Expected a strategy, scenario, backbone or tracker at {name!r}, received {found!r}: say which class."
    )


# -- one thing of a kind -----------------------------------------------------------------------------------------------


def _describe_strategy(name: str) -> str:
    from clframe.composite import SHARED_FIELDS, Composite

    names = registry.split_names(name)
    classes: list[Any] = [registry.load("strategy", n) for n in names]
    example = f"Example:\n  {_example('strategy', name, classes)}"
    if len(classes) == 1:
        cls = classes[0]
        return _text(name, _doc(cls), needs_of(cls.tags), _version(cls), _options(cls, "strategy"), example)
    doc = "Composition, trained together in this order:\n\n" + "\n".join(
        f"- {n}: {_first_line(_doc(c))}" for n, c in zip(names, classes, strict=True)
    )
    merged = Composite(parts=classes).merged_tags  # tags belong to classes, so that nothing need be made
    shared = [f for f in fields_of(classes[0]) if f.name in SHARED_FIELDS]
    sections = [_option_list("Options of all", shared, lambda f: _typed("strategy", f.name))]
    owned = [{f.name for f in fields_of(c)} - set(SHARED_FIELDS) for c in classes]
    for k, (n, cls) in enumerate(zip(names, classes, strict=True)):
        others: set[str] = set().union(*(o for j, o in enumerate(owned) if j != k))
        own = [f for f in fields_of(cls) if f.name in owned[k]]
        sections.append(_option_list(f"Options of {n}", own, _typed_of_part(n.rpartition(":")[2], others)))
    return _text(name, doc, needs_of(merged), *sections, example)


def _typed_of_part(part: str, others: set[str]) -> Callable[[FieldInfo], str]:
    """How options of one part of a composition are typed: with the part's name where another part has one such too."""
    return lambda f: _typed(f"strategy.{part}" if f.name in others else "strategy", f.name)


def _describe_backbone(name: str) -> str:
    from clframe.models.backbone import config_class

    plain = "timm" if name.startswith("timm/") else name
    cls = config_class(plain)
    return _text(
        name,
        _doc(cls),
        _options(cls, "backbone"),
        f"Example:\n  {_example('backbone', name, [cls] if plain == name else [])}",
    )


def _describe_tracker(name: str) -> str:
    cls: Any = registry.load("tracker", name)
    options = _options(cls, f"track.{name}") if issubclass(cls, Configurable) else ""
    needs = f"Needs {' and '.join(cls.needs)}." if cls.needs else ""
    return _text(name, _doc(cls), needs, options, f"Example:\n  clframe run --track {name}")


def _describe_part(name: str) -> str:
    if name == "run":
        from clframe.config import SECTIONS, RunOptions
        from clframe.strategy import Strategy

        main = next(f for f in fields_of(Strategy) if f.name == "epochs")
        epochs = dataclasses.replace(
            main, default=dataclasses.MISSING, help=f"Short for --strategy.epochs. {main.help}"
        )
        fields = [epochs, *fields_of(RunOptions)]
        options = _option_list("Options", fields, lambda f: _typed("", f.name), required="the strategy's")
        parts = f"A run has the sections {', '.join(_typed('', s) for s in SECTIONS)}, each with options of its own."
        more = "Where it is kept and how it is watched: `clframe run --help`."
        return _text("run", _doc(RunOptions), parts, options, more, "Example:\n  clframe run --seed 1 --batch-size 32")
    if name == "optimizer":
        from clframe.training.recipe import Recipe

        first = "--first-optimizer takes the same options, for the first experience alone."
        example = "Example:\n  clframe run --optimizer adamw --optimizer.lr 0.001"
        return _text(name, _doc(Recipe), _options(Recipe, name), first, example)
    from clframe.models import HeadConfig

    return _text(name, _doc(HeadConfig), _options(HeadConfig, name), "Example:\n  clframe run --head cosine")


def _describe_metric(name: str) -> str:
    metric = CATALOGUE[name]
    rows = {
        "formula": metric.definition,
        "range": _range(metric),
        "unit": metric.unit,
        "better": {True: "higher", False: "lower", None: "neither"}[metric.higher_is_better],
        "of": ", ".join(metric.restrictions) + " predictions",
        "form": "a value after every experience" if metric.curve else "a single value",
        "reference": metric.reference or "–",
    }
    width = max(map(len, rows))
    return _text(name, "\n".join(f"{key:<{width}}  {value}" for key, value in rows.items()))


def _range(metric: Metric) -> str:
    if metric.lower is None and metric.upper is None:
        return "unbounded"
    lower = "-∞" if metric.lower is None else f"{metric.lower:g}"
    upper = "∞" if metric.upper is None else f"{metric.upper:g}"
    return f"{lower} to {upper}" + (" (for accuracies)" if metric.level else "")


# -- parts of a text ---------------------------------------------------------------------------------------------------


def _text(title: str, *parts: str) -> str:
    return "\n\n".join([f"{title}\n{'─' * len(title)}", *(p for p in parts if p)])


def _doc(cls: Any) -> str:
    """A class's own docstring; the signature that a dataclass gets for want of one doesn't count."""
    doc = vars(cls).get("__doc__") or ""
    return "" if doc.startswith(f"{cls.__name__}(") else inspect.cleandoc(doc)


def _first_line(doc: str) -> str:
    sentences = re.split(r"(?<!\bal)\. ", " ".join(doc.split("\n\n")[0].split()))
    return sentences[0].rstrip(".:") + "." if doc else "(no description)"


def prose_of(cls: Any) -> str:
    """A class's docstring without the history of its versions, which the class itself knows."""
    return re.split(r"\n\nVersion history:\n", _doc(cls))[0]


def settings_line(cls: Any) -> str:
    """What a scenario's streams may be, in a line."""
    found = settings_of(cls)
    if not found:
        return ""
    chosen = f" (--scenario.setting gives {' or '.join(found[1:])})" if len(found) > 1 else ""
    views = " Accuracy within every sample's own task is reported too." if found[0] == "class" else ""
    return f"Settings: {found[0]}-incremental{chosen}.{views}"


def scenario_example(name: str) -> str:
    """A command that runs a registered scenario on embedded data.

    A class may say it itself (`example`); else digits stand in for its source, and one of its options is shown.
    """
    cls: Any = registry.load("scenario", name)
    own = vars(cls).get("example", "")
    command = f"clframe run --scenario {name} {own}" if own else _example("scenario", name, [cls], {"source": "digits"})
    once = next((f.default for f in fields_of(cls) if f.name == "online"), False)
    return f"{command} --epochs 1" if once else command


def _version(cls: Any) -> str:
    history = getattr(cls, "history", ())
    return f"Version {getattr(cls, 'version', 1)}" + "".join(f"\n  {line}" for line in history)


def needs_of(tags: Any) -> str:
    """What a method needs and can do, in words."""
    needs = {
        "needs_boundaries": "to be told where tasks end",
        "needs_all_data": "the whole history of data",
        "needs_pretrained": "a backbone with weights (--backbone.weights FILE)",
        "needs_layernorm": "a backbone with LayerNorm",
        "needs_exemplars": "exemplars that a strategy in front of it keeps (replay+NAME)",
        "needs_batchnorm": "a backbone with BatchNorm",
        "needs_own_channels": "a backbone that describes its channels",
    }
    facts = {
        "stores_samples": "keeps exemplars",
        "online": "can learn from a single pass",
        "uses_unlabelled": "can use samples without labels",
        "can_unlearn": "can unlearn samples",
    }
    settings = " or ".join(f"{setting}-incremental" for setting in sorted(tags.settings))
    lines = [f"For {settings} streams, scored by {' or '.join(sorted(tags.scores))}."]
    needed = [text for name, text in needs.items() if getattr(tags, name)]
    given = [text for name, text in facts.items() if getattr(tags, name)]
    lines += [f"Needs {', and '.join(needed)}."] if needed else []
    lines += [f"It {', '.join(given)}."] if given else []
    if tags.head:
        chosen = ", ".join(f"head.{n} {str(v).lower()}" for n, v in tags.head.items())
        lines.append(f"Where the configuration names no other kind of classifier, it takes {chosen}.")
    return "\n".join(lines)


def _typed(section: str, name: str) -> str:
    """An option as it is typed; a section's `name` is the section itself."""
    if section and name == "name":
        return f"--{section}".replace("_", "-")
    return f"--{section}.{name.replace('_', '-')}" if section else f"--{name.replace('_', '-')}"


def _options(cls: type[Configurable], section: str) -> str:
    return _option_list("Options", fields_of(cls), lambda f: _typed(section, f.name))


def _option_list(
    title: str, fields: Sequence[FieldInfo], typed: Callable[[FieldInfo], str], required: str = "must be given"
) -> str:
    """A line per option with type, bounds, unit and default, and its help below."""
    if not fields:
        return f"{title}: none."
    width = max(len(typed(f)) for f in fields)
    lines = [f"{title}:"]
    for info in fields:
        default = f"default {_shown(info.default)}" if info.has_default else required
        lines.append(f"  {typed(info):<{width}}  {info.accepts}, {default}")
        if info.help:
            lines += textwrap.wrap(info.help, _WIDTH, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    """A default as it would be typed."""
    if isinstance(value, (list, tuple)) and all(isinstance(v, (int, float, str)) for v in value):
        return ",".join(map(str, value)) or "none at all"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


_USUAL = {"scenario": "split_digits", "backbone": "mlp"}
"""What stands in an example for a section inside another."""


def _example(
    section: str, name: str, classes: Sequence[Any], stand_ins: Mapping[str, str] = MappingProxyType({})
) -> str:
    """A command that runs the thing, with one of its options.

    Args:
        section: Of the configuration.
        name: Of the thing.
        classes: Whose options it has.
        stand_ins: Values, by option, for what the reader may not have.
    """
    command = f"clframe run --{section} {name}"
    common = {"epochs", "first_epochs", "loss_over", "source", "weights", "name", "valid_per_class"}
    fields = [f for cls in classes for f in fields_of(cls)]
    nested = {s for cls in classes for s in getattr(cls, "sections", ())}
    given = {f.name: stand_ins[f.name] for f in fields if f.name in stand_ins and f.default != stand_ins[f.name]}
    needed = [f.name for f in fields if not f.has_default and f.name not in given]
    given |= {n: _USUAL[n] if n in nested else n.upper() for n in needed}
    command += "".join(f" {_typed(section, option)} {value}" for option, value in given.items())
    simple = (f for f in fields if f.name not in common and type(f.default) in (int, float))
    option = next(simple, None)
    if option is not None:
        command += f" {_typed(section, option.name)} {option.default}"
    if section == "strategy":
        tags = [cls.tags for cls in classes]
        command += " --scenario.setting task" if all("class" not in t.settings for t in tags) else ""
        command += " --backbone.weights FILE" if any(t.needs_pretrained for t in tags) else ""
    return command
