"""What to try next: every combination of a grid, or what Optuna draws; always the same for the same seed and scores."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Protocol

from clframe.errors import ConfigurationError
from clframe.spec import Configurable, build, field, to_dict

__all__ = ["Dimension", "Proposer", "dimension", "proposer"]

Dimension = list[Any] | dict[str, Any]
"""Values to choose among, or a range: `low`, `high`, `log`, `step`."""


class Range(Configurable):
    """Numbers between two bounds, both included; whole ones where both bounds are."""

    low: int | float = field(help="Smallest value.")
    high: int | float = field(help="Largest value.")
    log: bool = field(default=False, help="Draw evenly on a logarithmic scale.")
    step: int | float | None = field(default=None, gt=0, help="Distance of the values; none: every number.")


def dimension(option: str, values: Any) -> Dimension:
    """Return an option's values or range, checked.

    Raises:
        ConfigurationError: They are neither a list nor a range, or the range is empty.
    """
    if isinstance(values, list) and values:
        return list(values)
    where = f"search.space.{option}"
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{where}: expected a list of values, or {{low: …, high: …}}, received {values!r}.")
    found = build(Range, values, where)
    if found.low >= found.high:
        raise ConfigurationError(f"{where}: expected low < high, received {found.low} and {found.high}.")
    if found.log and (found.low <= 0 or found.step is not None):
        raise ConfigurationError(f"{where}: expected low > 0 and no step with log: true, received {dict(values)!r}.")
    return to_dict(found)


class Proposer(Protocol):
    """Proposes values, and is told how good they were."""

    def ask(self, count: int) -> list[dict[str, Any]]:
        """Return up to so many combinations of values to try; none when there are no more."""
        ...

    def tell(self, values: Mapping[str, Any], score: float | None) -> None:
        """Take note of the score of the next combination that was asked for; None where it has none."""
        ...


def proposer(method: str, space: Mapping[str, Dimension], trials: int, seed: int) -> Proposer:
    """Return what proposes.

    Args:
        method: `grid`, `tpe` or `random`.
        space: Values or ranges by option.
        trials: How many to propose; a grid proposes all.
        seed: Of the drawing.

    Raises:
        ConfigurationError: Optuna is needed and isn't installed.
    """
    return _Grid(space) if method == "grid" else _Optuna(method, space, trials, seed)


class _Grid:
    """Every combination, the last option changing fastest."""

    def __init__(self, space: Mapping[str, Dimension]) -> None:
        each = [values if isinstance(values, list) else [] for values in space.values()]
        self._rest = [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*each)]

    def ask(self, count: int) -> list[dict[str, Any]]:
        """Return all combinations at once: none depends on another's score."""
        rest, self._rest = self._rest, []
        return rest

    def tell(self, values: Mapping[str, Any], score: float | None) -> None:
        """Ignore."""


class _Optuna:
    """What Optuna's samplers draw: asked in batches and told in the order of asking, so that nothing depends on time."""

    def __init__(self, method: str, space: Mapping[str, Dimension], trials: int, seed: int) -> None:
        try:
            import optuna
        except ImportError:
            raise ConfigurationError(
                f"search.method: {method} needs Optuna, which isn't installed: run `pip install 'clframe[search]'`, or choose "
                "method: grid."
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        samplers: dict[str, Any] = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        self._study = optuna.create_study(direction="maximize", sampler=samplers[method](seed=seed))
        self._worst = optuna.trial.TrialState.PRUNED  # below every score; failed trials would teach nothing
        self._space = dict(space)
        self._distributions = {option: _distribution(values) for option, values in space.items()}
        self._left = trials
        self._asked: list[Any] = []

    def ask(self, count: int) -> list[dict[str, Any]]:
        """Draw."""
        drawn = [self._study.ask(self._distributions) for _ in range(min(count, self._left))]
        self._left -= len(drawn)
        self._asked += drawn
        return [{option: self._value(option, trial.params[option]) for option in self._space} for trial in drawn]

    def _value(self, option: str, drawn: Any) -> Any:
        values = self._space[option]
        if isinstance(values, list):
            return values[drawn]
        if isinstance(drawn, int):
            return drawn
        return min(max(float(f"{drawn:.4g}"), values["low"]), values["high"])  # nobody means more digits than that

    def tell(self, values: Mapping[str, Any], score: float | None) -> None:
        """Pass the score of the oldest open trial on."""
        trial = self._asked.pop(0)
        if score is None:
            self._study.tell(trial, state=self._worst)
        else:
            self._study.tell(trial, score)


def _distribution(values: Dimension) -> Any:
    """Return Optuna's distribution; of listed values it knows the positions, since it takes no lists as values."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, list):
        return CategoricalDistribution(list(range(len(values))))
    low, high, log, step = (values[name] for name in ("low", "high", "log", "step"))
    if all(isinstance(v, int) for v in (low, high, step or 1)):
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step)
