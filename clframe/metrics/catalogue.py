"""Every metric by its full name, in the order of the result file: clframe's own, and those of installed packages."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from clframe import registry
from clframe.errors import ConfigurationError
from clframe.metrics.families import accuracy, confidence, cost, decomposition, plasticity
from clframe.metrics.metric import Family, Metric
from clframe.metrics.scores import Absent

__all__ = ["CATALOGUE"]

_OWN = Family()
for _family in (accuracy, decomposition, confidence, cost, plasticity):
    _OWN.update(_family.METRICS)


class _Catalogue(Mapping[str, Metric]):
    """clframe's own metrics, followed by those of installed packages, which are loaded when the catalogue is first read."""

    def __init__(self) -> None:
        self._joined: dict[str, Metric | None] = {}  # None: broken, and said so

    def __getitem__(self, name: str) -> Metric:
        return _OWN[name] if name in _OWN else self._plugins()[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**_OWN, **self._plugins()})

    def __len__(self) -> int:
        return len({**_OWN, **self._plugins()})

    def _plugins(self) -> dict[str, Metric]:
        for name in registry.available("metric"):
            if name not in self._joined:
                try:
                    self._joined[name] = _plugin(name)
                except ConfigurationError as error:
                    self._joined[name] = None
                    warnings.warn(str(error), stacklevel=3)
        return {name: metric for name, metric in self._joined.items() if metric is not None}


CATALOGUE: Mapping[str, Metric] = _Catalogue()
"""Every metric by name, in the order of the result file."""


def _plugin(name: str) -> Metric:
    """Load a package's metric.

    Raises:
        ConfigurationError: It can't be imported, is no metric, or has a name that doesn't fit.
    """
    metric = registry.load("metric", name)
    if not isinstance(metric, Metric):
        raise ConfigurationError(
            f"Expected the metric {name!r} of a package to be a clframe.metrics.Metric, received {type(metric).__name__}: "
            "register the object itself."
        )
    if name in _OWN or metric.name != name:
        why = "clframe has a metric of that name" if name in _OWN else f"it calls itself {metric.name!r}"
        raise ConfigurationError(f"The metric {name!r} of a package is left out, because {why}: rename it there.")
    return replace(metric, function=_guarded(name, metric.function))


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a package's metric fail without taking the run's other metrics with it; numbers of NumPy become Python's."""

    @functools.wraps(function)
    def value(*args: Any) -> Any:
        try:
            found = function(*args)
        except Absent:
            raise
        except Exception as error:
            raise Absent(f"The metric {name!r} of a package failed ({type(error).__name__}: {error}).") from error
        return found.tolist() if hasattr(found, "tolist") else found

    return value
