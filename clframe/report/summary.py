"""What a comparison knows of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["RunSummary"]


@dataclass(frozen=True)
class RunSummary:
    """What a comparison needs to know about one run.

    Attributes:
        directory: Run directory.
        scenario: Name of the scenario.
        scenario_hash: Hash of its full specification; runs are ranked together only where it is the same.
        strategy: Name of the strategy.
        backbone: Name of the backbone.
        seed: Seed of the run.
        metrics: `{head: {restriction: {metric: value}}}` as in `MetricReport.values`, primary head first.
        finished: Whether the run came to its end.
        settings: Everything else that was configured, nested or with dotted names, without seed and directory.
        label: Name that the user gave the run's strategy; empty for the strategy's own.
        progress: How far an unfinished run came, in words, for instance `3 of 10 experiences`.
        score: Name of the scenario's score.
        higher_is_better: Whether a larger score is a better one.
        restriction: The primary restriction: `local` where the setting gives task ids, else `global`.
        measured: Metrics of the run as a whole, `{metric: value, list over experiences, or {layer: list}}`.
        counters: Steps, presented samples and seconds of training.
        absent: Reasons of the metrics that the run can't give, by name.
        environment: Versions, machine and state of git.
        representation: Content of `representation.json`; None where the run has no such file.
        read_matrix: Reads the accuracy matrix (T + 1, J) of a head (None for the primary one) and a restriction; None
            where nothing was kept.
    """

    directory: str | Path
    scenario: str
    scenario_hash: str
    strategy: str
    backbone: str
    seed: int
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    finished: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    progress: str = ""
    score: str = "accuracy"
    higher_is_better: bool = True
    restriction: str = "global"
    measured: Mapping[str, Any] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    representation: Mapping[str, Any] | None = None
    read_matrix: Callable[[str | None, str], NDArray[np.float64]] | None = None

    @property
    def name(self) -> str:
        """The label, or the strategy's name."""
        return self.label or self.strategy

    def head(self, asked: str | None = None) -> str:
        """The head asked for, or the primary one; empty when there is none."""
        return asked or next(iter(self.metrics), "")

    def named(self, metric: str) -> str:
        """The name of a metric in result files, in which that of the score takes the place of the word `accuracy`."""
        return metric.replace("accuracy", self.score)

    def value(self, metric: str, head: str | None = None, restriction: str | None = None) -> Any:
        """A metric of the run as a whole or of a head, by its full name; None when the run doesn't have it."""
        if metric in self.measured:
            return self.measured[metric]
        found = self.metrics.get(self.head(head), {}).get(restriction or self.restriction, {})
        return found.get(self.named(metric))

    def number(self, metric: str, head: str | None = None, restriction: str | None = None) -> float | None:
        """One scalar metric, or None when the run doesn't have it."""
        value = self.value(metric, head, restriction)
        return float(value) if isinstance(value, (int, float)) else None

    def flat_settings(self) -> dict[str, Any]:
        """The settings with dotted names."""
        return dict(_flatten(self.settings))

    def flat_environment(self) -> dict[str, Any]:
        """What the run ran on, with dotted names; what follows from settings and data is left out."""
        return dict(_flatten({k: v for k, v in self.environment.items() if k in _ENVIRONMENT}))


_ENVIRONMENT = ("python", "packages", "platform", "processor", "cores", "threads", "device", "gpu", "git")


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
