"""Rotated images: every experience shows all classes at its own angle."""

from __future__ import annotations

from collections.abc import Sequence

from clframe.data.domains import Rotation
from clframe.errors import ConfigurationError
from clframe.scenarios._domains import DomainScenario
from clframe.scenarios._parts import seeded
from clframe.spec import field
from clframe.stream import InputTransform

__all__ = ["Rotated"]


class Rotated(DomainScenario):
    """Rotated images: every experience shows all classes, turned by a fixed angle of its own.

    Lopez-Paz & Ranzato 2017, "Gradient Episodic Memory for Continual Learning", NeurIPS. The angles are equally spaced,
    drawn, or a list. Images are turned counter-clockwise about their centre, with bilinear interpolation and black
    corners.

    Version history:
        1: first version.
    """

    degrees: float | list[float] | None = field(
        default=180.0,
        help="The range: angles 0, 180/T, … below it; or one angle per experience; none: drawn uniformly in [0, 180) "
        "by `domain_seed`.",
    )

    def domains(self, shape: tuple[int, ...]) -> Sequence[InputTransform]:
        """Return a rotation per experience.

        Raises:
            ConfigurationError: The list has another length, or the source has features.
        """
        if len(shape) != 3:
            raise ConfigurationError(
                f"scenario.source: rotated expects images, received features of length {shape[0]}."
            )
        return [Rotation(angle) for angle in self.angles()]

    def angles(self) -> list[float]:
        """Return the angle of every experience, in degrees."""
        count = self.experiences
        if isinstance(self.degrees, list):
            if len(self.degrees) != count:
                raise ConfigurationError(
                    f"scenario.degrees: expected one angle for each of {count} experiences, received {len(self.degrees)}."
                )
            return list(self.degrees)
        if self.degrees is None:
            return [float(a) for a in seeded(self.domain_seed, "rotation").uniform(0, 180, count)]
        return [self.degrees * i / count for i in range(count)]
