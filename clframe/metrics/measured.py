"""What instruments have measured while a run trained, put together over its experiences: the metrics of the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clframe.metrics.catalogue import CATALOGUE
from clframe.metrics.scores import Absent

__all__ = ["Measured", "compute_run"]


@dataclass(frozen=True)
class Measured:
    """What was measured after every experience.

    Attributes:
        experiences: How many the stream has.
        values: `{name: {experience i: value}}`, i from 1; a value is a number, or numbers by the name of a layer, phase or
            purpose.
    """

    experiences: int
    values: Mapping[str, Mapping[int, Any]]

    @classmethod
    def from_events(cls, events: Iterable[Mapping[str, Any]], experiences: int) -> Measured:
        """Collect the events `measured` of a run; of an experience that was measured twice the last one counts."""
        values: dict[str, dict[int, Any]] = {}
        for event in events:
            if event["event"] == "measured":
                for name, value in event["values"].items():
                    values.setdefault(name, {})[int(event["experience"])] = value
        return cls(experiences, values)

    def curve(self, name: str) -> list[Any]:
        """One value per experience, None where there is none.

        Raises:
            Absent: Nothing of that name was measured.
        """
        found = self.values.get(name)
        if not found:
            raise Absent(f"The run didn't measure {name}: run it with `measure` naming it.")
        return [found.get(i) for i in range(1, self.experiences + 1)]

    def layers(self, name: str) -> dict[str, list[Any]]:
        """One such curve per layer, phase or purpose.

        Raises:
            Absent: Nothing of that name was measured.
        """
        curve = self.curve(name)
        keys = dict.fromkeys(key for value in curve if value is not None for key in value)
        return {key: [None if value is None else value.get(key) for value in curve] for key in keys}


def compute_run(measured: Measured) -> tuple[dict[str, Any], dict[str, str]]:
    """Return every metric of a run as a whole by its name, and the reason for each that can't be given."""
    values: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for name, metric in CATALOGUE.items():
        if metric.of_run:
            try:
                values[name] = metric.function(measured)
            except Absent as why:
                absent[name] = str(why)
    return values, absent
