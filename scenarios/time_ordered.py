"""Time-ordered images: the same classes at every step, seen through a change that grows with time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from clframe.data.corruptions import CORRUPTIONS
from clframe.data.domains import Rotation
from clframe.errors import ConfigurationError, did_you_mean
from clframe.scenarios._domains import DomainScenario
from clframe.scenarios.corrupted import corruption
from clframe.spec import field
from clframe.stream import InputTransform

__all__ = ["TimeOrdered"]


class TimeOrdered(DomainScenario):
    """Steps in time with drift (the protocol of TiC-CLIP, Garg et al. 2024, in small): step t has images of its own.

    The drift is a rotation, by equal angles from 0 to `degrees`, or one corruption whose severity at step t = 0, 1, … is t
    (0: clean). Every training image appears at one step only; test images appear at all of them.

    The protocol compares methods at one budget per step, and scores every model on all steps, the future ones too:
    `--steps-per-experience N --evaluate-future true`. Upper bounds train from scratch on all data so far with the budget
    of all steps so far: `--strategy joint --strategy.every experience --steps-per-experience N,2N,3N,…` (in numbers), or
    joint training alone with the sum. A step of replay that draws a memory batch beside the new one presents more samples.

    Version history:
        1: first version.
    """

    drift: str = field(default="rotation", help="rotation, or one of " + ", ".join(CORRUPTIONS) + ".")
    degrees: float = field(default=90.0, help="Angle of the last step, for the drift rotation.")
    images: Literal["all", "shares"] = field(
        default="shares",
        help="shares: each training image appears at one step only (equal shares, drawn by `domain_seed`); all: every step "
        "shows all of them. Test images appear at every step.",
    )

    def domains(self, shape: tuple[int, ...]) -> Sequence[InputTransform]:
        """Return the change of images of every step.

        Raises:
            ConfigurationError: There is no such drift, there are more steps than severities, or the source has no such
                images.
        """
        count = self.experiences
        if self.drift == "rotation":
            if len(shape) != 3:
                raise ConfigurationError(
                    f"scenario.source: a rotation expects images, received features of length {shape[0]}."
                )
            return [Rotation(self.degrees * t / max(1, count - 1)) for t in range(count)]
        if self.drift not in CORRUPTIONS:
            known = ["rotation", *CORRUPTIONS]
            raise ConfigurationError(
                f"scenario.drift: expected one of {', '.join(known)}, received {self.drift!r}."
                f"{did_you_mean(self.drift, known)}"
            )
        if count > 6:
            raise ConfigurationError(
                f"scenario.experiences: expected at most 6 for a corruption, whose severities are 0 to 5, received {count}: "
                "use fewer, or the drift rotation."
            )
        return [corruption(self.drift, t, shape, self.domain_seed, "scenario.drift") for t in range(count)]

    def title_prefix(self) -> str:
        """Return what the stream's name begins with."""
        return f"time_ordered_{self.drift}"
