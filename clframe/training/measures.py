"""What a run can measure of itself while it trains, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clframe.errors import ConfigurationError, did_you_mean
from clframe.training.cost import Cost
from clframe.training.instruments import Instrument
from clframe.training.plasticity import LearningPace, Probe

__all__ = ["DEFAULT", "MEASURES", "instruments_for"]

MEASURES: dict[str, Callable[[Sequence[str]], Instrument]] = {
    "cost": lambda _: Cost(),
    **dict.fromkeys(("dormant_units", "effective_rank", "srank", "stable_rank"), Probe),
    **dict.fromkeys(("weight_magnitude", "weight_distance", "curvature"), Probe),
    **dict.fromkeys(("online_accuracy", "steps_to_threshold", "gradient_norm"), LearningPace),
}
"""What makes the instrument that measures something, from the names asked of it."""

DEFAULT: tuple[str, ...] = ("cost", "dormant_units", "effective_rank", "weight_magnitude")
"""What every run measures."""


def instruments_for(measure: str | Sequence[str]) -> list[Instrument]:
    """Return the instruments that measure what is asked for, each once.

    Args:
        measure: `default`, `all`, `none`, or names; `default` may stand among the names.

    Raises:
        ConfigurationError: There is no such measure.
    """
    asked = [measure] if isinstance(measure, str) else list(measure)
    groups = {"default": DEFAULT, "all": tuple(MEASURES), "none": ()}
    names = dict.fromkeys(name for given in asked for name in groups.get(given, (given,)))
    for name in names:
        if name not in MEASURES:
            known = [*groups, *MEASURES]
            raise ConfigurationError(
                f"measure: expected some of {', '.join(known)}, received {name!r}.{did_you_mean(name, known)}"
            )
    by_factory: dict[Callable[[Sequence[str]], Instrument], list[str]] = {}
    for name in names:
        by_factory.setdefault(MEASURES[name], []).append(name)
    return [factory(chosen) for factory, chosen in by_factory.items()]
