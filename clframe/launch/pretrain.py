"""Pretraining: plain training on one experience by the engine's own loop, and where the weights came from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clframe import registry
from clframe._version import __version__
from clframe.config import merged
from clframe.errors import ConfigurationError
from clframe.models.weights import file_digest, read_provenance
from clframe.results import Run
from clframe.scenario import Scenario
from clframe.spec import fields_of
from clframe.tracking.files import read_json

__all__ = ["pretraining", "provenance_of", "shared_classes", "weights_record"]

_CUTS = ("experiences", "increment", "sizes", "base")
"""Options by which a scenario cuts its classes into experiences."""


def pretraining(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a pretraining run: everything at once, unless the scenario is told to cut.

    Args:
        config: As `clframe.run` takes it, without a strategy.

    Raises:
        ConfigurationError: A strategy is given.
    """
    given = {str(k).replace("-", "_"): v for k, v in config.items() if v is not None}
    if "strategy" in given:
        raise ConfigurationError(
            "strategy: pretraining is plain training on all classes at once, so expected none: leave it out, or use "
            "`clframe run`."
        )
    scenario = given.get("scenario", "split_digits")
    if isinstance(scenario, Scenario):
        names = {f.name for f in fields_of(type(scenario))}
        if "experiences" in names and all(getattr(scenario, n, None) is None for n in _CUTS):
            scenario = scenario.replace(experiences=1)
    elif isinstance(scenario, (str, Mapping)):
        scenario = _in_one(merged({}, {"scenario": scenario})["scenario"])
    return {**given, "scenario": scenario, "strategy": "joint"}


def _in_one(value: str | Mapping[str, Any]) -> str | dict[str, Any]:
    """Ask a scenario named in a configuration for one experience, where it can be asked and isn't told otherwise."""
    options = {"name": value} if isinstance(value, str) else {str(k).replace("-", "_"): v for k, v in value.items()}
    name = options.setdefault("name", "split_digits")
    if not isinstance(name, str) or any(options.get(n) is not None for n in _CUTS):
        return options
    cls = registry.load("scenario", name.partition("@")[0])
    takes = issubclass(cls, Scenario) and "experiences" in {f.name for f in fields_of(cls)}
    return {**options, "experiences": 1} if takes else options


def provenance_of(run: Run) -> dict[str, Any]:
    """Return what a checkpoint says of itself: what it was trained on, how, and how well it did on the test images."""
    record, stream = run.config, run.directory.stream
    decided = read_json(run.path / "environment.json")["resolved"]  # what was left to `auto`
    recipe = {n: record[n] for n in ("optimizer", "head", "batch_size")}
    recipe |= {n: decided[n] for n in ("augmentation", "precision")}
    return {
        "clframe": __version__,
        "backbone": {k: v for k, v in record["backbone"].items() if k != "weights"},
        "input": {"shape": stream["shape"], "mean": stream["mean"], "std": stream["std"]},
        "data": {
            "name": stream["name"],
            "fingerprint": stream["data_fingerprint"],
            "train": sum(e["train"] for e in stream["experiences"]),
            "test": sum(e["test"] for e in stream["experiences"]),
        },
        "classes": stream["class_names"],
        "recipe": {"epochs": record["strategy"]["epochs"], **recipe},
        "seed": record["seed"],
        "accuracy": run.metric("final_accuracy"),
        "config": record,
    }


def weights_record(backbone: Any) -> dict[str, Any]:
    """Return what `environment.json` says of a backbone's weights file; nothing where it has none."""
    if not backbone.weights:
        return {}
    file = Path(backbone.weights).expanduser()
    return {
        "weights": {"file": str(file.resolve()), "sha256": file_digest(file), "provenance": read_provenance(file)},
    }


def shared_classes(weights: Mapping[str, Any], data_fingerprint: str, class_names: Any) -> list[str]:
    """Return the stream's classes that the weights were pretrained on, where both were cut from the same data."""
    provenance = weights.get("weights", {}).get("provenance") or {}
    if provenance.get("data", {}).get("fingerprint") != data_fingerprint:
        return []
    return sorted(set(provenance.get("classes", ())) & set(class_names))
