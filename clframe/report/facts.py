"""What `clframe describe` says, for programs: plain values that JSON can hold."""

from __future__ import annotations

import dataclasses
from typing import Any

from clframe import registry
from clframe.metrics import CATALOGUE
from clframe.report.describe import kind_and_name, prose_of
from clframe.scenario import settings_of
from clframe.spec import Configurable, FieldInfo, fields_of

__all__ = ["facts"]


def facts(*what: str) -> dict[str, Any]:
    """Return what is known of one thing.

    Args:
        *what: As `describe` takes it.

    Returns:
        `kind`, `name`, `text` and what its kind has: `options` (each with `name`, `type`, `default`, `required`, `unit`,
        `bounds` and `help`), `version` and `history`, `settings` of a scenario, `tags` of a strategy, `parts` of a
        composition; of a metric its unit, range, direction, formula and source.

    Raises:
        ConfigurationError: Nothing is called that, or two kinds of things are.
    """
    kind, name = kind_and_name(*what)
    if kind == "metric":
        metric = CATALOGUE[name]
        known = {f.name: getattr(metric, f.name) for f in dataclasses.fields(metric) if f.name != "function"}
        return {"kind": kind, **known, "restrictions": list(metric.restrictions)}
    if kind == "strategy" and len(names := registry.split_names(name)) > 1:
        return {"kind": kind, "name": name, "parts": [_of_class(kind, n, registry.load("strategy", n)) for n in names]}
    return _of_class(kind, name, _class(kind, name))


def _class(kind: str, name: str) -> Any:
    if kind == "run":
        from clframe.config import RunOptions

        return RunOptions
    if kind == "optimizer":
        from clframe.training.recipe import Recipe

        return Recipe
    if kind == "head":
        from clframe.models import HeadConfig

        return HeadConfig
    if kind == "backbone":
        from clframe.models.backbone import config_class

        return config_class("timm" if name.startswith("timm/") else name)
    return registry.load(kind, name)  # type: ignore[arg-type]


def _of_class(kind: str, name: str, cls: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": kind, "name": name, "text": prose_of(cls)}
    if kind in ("strategy", "scenario"):
        found |= {"version": cls.version, "history": list(cls.history)}
    if kind == "scenario":
        found["settings"] = list(settings_of(cls))
    if kind == "strategy":
        tags = dataclasses.asdict(cls.tags)
        found["tags"] = {k: sorted(v) if isinstance(v, (set, frozenset, tuple)) else v for k, v in tags.items()}
    found["options"] = [_option(f) for f in fields_of(cls)] if issubclass(cls, Configurable) else []
    return found


def _option(info: FieldInfo) -> dict[str, Any]:
    about = {"type": info.type_name, "unit": info.unit, "bounds": dict(info.bounds), "help": info.help}
    return {
        "name": info.name,
        "required": not info.has_default,
        "default": info.default if info.has_default else None,
        **about,
    }
