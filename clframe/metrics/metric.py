"""What a metric is: its function with its name, bounds, unit, formula and source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clframe.metrics.cube import RESTRICTIONS

__all__ = ["BOTH", "RUN", "UNIT", "Family", "Metric"]

UNIT: tuple[float, float] = (0.0, 1.0)
"""Bounds of a fraction."""
BOTH: tuple[float, float] = (-1.0, 1.0)
"""Bounds of a difference of fractions."""
RUN = ("run",)
"""The restrictions of a metric of the run as a whole."""


@dataclass(frozen=True)
class Metric:
    """A metric's function with what a reader must know about its numbers.

    Attributes:
        name: Full name, as in result files; for another score its name
            replaces the word `accuracy`.
        function: Of the inputs, or of the inputs and the experience i for a curve; raises `Absent` with the reason.
        higher_is_better: Whether a larger value is the better one; None where neither is. For metrics of level it
            follows the score.
        lower: Smallest possible value for accuracies, None if unbounded.
        upper: Largest possible value for accuracies, None if unbounded.
        unit: `fraction`, `fraction per task`, `percent`, `points`, `classes`, `ratio`, `samples`, `dimensions`, `steps`,
            `magnitude` (of weights or gradients), `curvature` (loss per squared weight), `FLOP`, `bytes`, `seconds` or `joules`.
        definition: The formula.
        reference: Where it comes from.
        restrictions: Restrictions of the prediction that it is defined for; `run` alone for a metric of the run as a
            whole, which reads what was measured (`clframe.metrics.measured`).
        curve: Whether it has a value after every experience.
        level: Whether it keeps the score's own value and direction, unlike a loss or a gain.
    """

    name: str
    function: Callable[..., Any]
    higher_is_better: bool | None
    lower: float | None
    upper: float | None
    unit: str
    definition: str
    reference: str
    restrictions: tuple[str, ...] = RESTRICTIONS
    curve: bool = False
    level: bool = False

    @property
    def of_run(self) -> bool:
        """Whether it belongs to the run as a whole, not to a report head."""
        return self.restrictions == RUN

    def named(self, score: str) -> str:
        """The name in result files, for the name of a score."""
        return self.name.replace("accuracy", score)


class Family(dict[str, Metric]):
    """The metrics of one theme by name, in the order of the result file."""

    def add(
        self,
        name: str,
        function: Callable[..., Any],
        better: bool | None,
        bounds: tuple[float | None, float | None],
        definition: str,
        reference: str = "",
        *,
        unit: str = "fraction",
        restrictions: tuple[str, ...] = RESTRICTIONS,
        curve: bool = False,
        level: bool = False,
    ) -> None:
        """Add a metric; see `Metric` for what the arguments mean."""
        lower, upper = bounds
        self[name] = Metric(
            name, function, better, lower, upper, unit, definition, reference, restrictions, curve=curve, level=level
        )
