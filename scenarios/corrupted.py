"""Corrupted images: every experience shows all classes through its own noise, blur, weather or digital damage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from clframe.data.corruptions import CORRUPTIONS, Corruption, colour_only
from clframe.data.domains import Identity
from clframe.errors import ConfigurationError, did_you_mean
from clframe.scenarios._domains import DomainScenario
from clframe.spec import field
from clframe.stream import InputTransform

__all__ = ["Corrupted", "corruption"]

T = TypeVar("T")


class Corrupted(DomainScenario):
    """Common corruptions (Hendrycks & Dietterich 2019, CIFAR-10-C), one per experience, computed from the clean images.

    Training and test images are corrupted alike. One corruption of rising severity: `--scenario.corruptions fog
    --scenario.severity 1,2,3,4,5`. How a model trained on clean images stands shifts is the first row of the accuracy matrix
    of `--scenario.severity 0,3,3,3,3` with `--evaluate-future true`. What is drawn for an image is fixed: it looks the
    same in every epoch. `clframe.data.corruptions` says how the images differ from those of the public code; frost, glass
    blur, snow and spatter are left out.

    Version history:
        1: first version.
    """

    corruptions: list[str] | None = field(
        default=None,
        help="One per experience, or one for all; none: the first of " + ", ".join(CORRUPTIONS) + ".",
    )
    severity: int | list[int] = field(
        default=3, ge=0, le=5, help="1 to 5, or 0 for clean images; one for all, or one per experience."
    )

    def domains(self, shape: tuple[int, ...]) -> Sequence[InputTransform]:
        """Return a corruption per experience.

        Raises:
            ConfigurationError: A list has another length, or a corruption can't be applied to these images.
        """
        severities = self.severity if isinstance(self.severity, list) else [self.severity]
        usable = [name for name in CORRUPTIONS if shape[0] == 3 or not colour_only(name)]
        names = usable[: self.experiences] if self.corruptions is None else self.corruptions
        each = zip(
            self._per_experience("corruptions", names), self._per_experience("severity", severities), strict=True
        )
        return [corruption(name, level, shape, self.domain_seed, "scenario.corruptions") for name, level in each]

    def _per_experience(self, name: str, values: list[T]) -> list[T]:
        if len(values) not in (1, self.experiences):
            raise ConfigurationError(
                f"scenario.{name}: expected one value, or one for each of {self.experiences} experiences, received "
                f"{len(values)}."
            )
        return values * self.experiences if len(values) == 1 else values


def corruption(name: str, severity: int, shape: tuple[int, ...], seed: int, where: str) -> InputTransform:
    """Return a corruption of images (C, H, W), of severity 0 the identity.

    Args:
        name: See `CORRUPTIONS`.
        severity: 0 to 5.
        shape: Of an image.
        seed: Of what is drawn.
        where: How the user addresses the option, for errors.

    Raises:
        ConfigurationError: There is no such corruption, or it can't be applied to these images.
    """
    if name not in CORRUPTIONS:
        raise ConfigurationError(
            f"{where}: expected some of {', '.join(CORRUPTIONS)}, received {name!r}.{did_you_mean(name, CORRUPTIONS)}"
        )
    if len(shape) != 3:
        raise ConfigurationError(f"scenario.source: corruptions expect images, received features of length {shape[0]}.")
    if shape[0] not in (1, 3) or (colour_only(name) and shape[0] != 3):
        raise ConfigurationError(
            f"{where}: {name} can't be applied to images of {shape[0]} channels: leave it out, or use another source."
        )
    return Corruption(name, severity, seed) if severity else Identity()
