"""How the classes of a source are cut into groups, one after the other: by number, increment, base or a list of sizes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from clframe.errors import ConfigurationError
from clframe.scenarios._parts import SourceScenario
from clframe.spec import field

__all__ = ["GroupedScenario"]


class GroupedScenario(SourceScenario):
    """Base of the scenarios whose experiences bring groups of classes."""

    usual_experiences: ClassVar[int | None] = None
    """Number of experiences when neither `experiences` nor `increment` nor `sizes` is given."""

    experiences: int | None = field(
        default=None,
        ge=1,
        help="Number of experiences, the base one included; it must divide the classes (less `base`).",
    )
    increment: int | None = field(
        default=None, ge=1, unit="classes", help="Classes of every experience; the last takes the remainder."
    )
    sizes: list[int] | None = field(default=None, ge=1, unit="classes", help="Classes of every experience, one by one.")
    base: int | None = field(
        default=None, ge=1, unit="classes", help="Classes of the first experience (50 for the B50 protocols)."
    )

    def groups(self, total: int) -> list[tuple[int, ...]]:
        """Return the stream labels of every group: consecutive, in the order of learning.

        Raises:
            ConfigurationError: The sizes don't fit the classes.
        """
        sizes = self.sizes_of(total)
        return [tuple(range(stop - size, stop)) for size, stop in zip(sizes, np.cumsum(sizes).tolist(), strict=True)]

    def sizes_of(self, total: int) -> list[int]:
        """Return the number of classes of every experience."""
        ways = [n for n in ("experiences", "increment", "sizes") if getattr(self, n) is not None]
        if len(ways) > 1 or not (ways or self.usual_experiences):
            given = " and ".join(ways) if ways else "none"
            raise ConfigurationError(f"scenario: expected one of experiences, increment or sizes, received {given}.")
        if self.increment is not None:
            sizes = self._by_increment(total, self.increment)
        elif self.sizes is not None:
            sizes = list(self.sizes)
            if sum(sizes) != total or min(sizes) < 1 or self.base is not None:
                raise ConfigurationError(
                    f"scenario.sizes: expected positive numbers that add up to the {total} classes, and no base, received "
                    f"{sizes}{'' if self.base is None else f' and base {self.base}'}."
                )
        else:
            sizes = self._by_number(total, self.experiences or self.usual_experiences or 1)
        return sizes

    def _first(self, total: int) -> list[int]:
        if self.base is not None and self.base > total:
            raise ConfigurationError(f"scenario.base: expected at most the {total} classes, received {self.base}.")
        return [] if self.base is None else [self.base]

    def _by_increment(self, total: int, increment: int) -> list[int]:
        first = self._first(total)
        whole, remainder = divmod(total - sum(first), increment)
        return first + [increment] * whole + ([remainder] if remainder else [])

    def _by_number(self, total: int, number: int) -> list[int]:
        first = self._first(total)
        rest, count = total - sum(first), number - len(first)
        if count > rest or (rest and count < 1):
            after = f" after a base of {self.base}" if first else ""
            least = len(first) + (rest > 0)
            raise ConfigurationError(
                f"scenario.experiences: expected {least} to {len(first) + rest} experiences for {total} classes{after}, "
                f"received {number}."
            )
        if rest and rest % count:
            example = [rest // count + (k < rest % count) for k in range(count)]
            raise ConfigurationError(
                f"scenario.experiences: {rest} classes don't divide into {count} experiences; give a list of sizes instead, "
                f"for instance --scenario.sizes {','.join(map(str, first + example))}, or an increment, whose last experience "
                "takes the remainder."
            )
        return first + [rest // count] * count if rest else first
