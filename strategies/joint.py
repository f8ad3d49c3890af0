"""Joint training: the upper bound."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from clframe.spec import field
from clframe.strategies._checks import refuse_local_softmax
from clframe.strategy import ANY_SCORE, DataView, Phase, RunContext, Strategy, Tags
from clframe.stream import Experience

__all__ = ["Joint"]


class Joint(Strategy):
    """Joint training: one model from scratch on all data of the experiences so far.

    The same architecture, augmentation and epochs per sample as the incremental runs that it bounds; on a stream of one
    experience it is fine-tuning, bit for bit.

    Differs from the paper:
        There is no single paper. `every=last` trains once, on the whole stream, so that only the last row of the
        accuracy matrix exists; `every=experience` trains from scratch after each, as deficit metrics need.
    """

    tags: ClassVar[Tags] = Tags(scores=ANY_SCORE, needs_all_data=True, online=False, can_unlearn=True)

    every: Literal["last", "experience"] = field(
        default="last", help="When to train: once at the end, or after each experience."
    )

    def check(self, run: RunContext) -> None:
        """Refuse a loss that leaves out the old classes."""
        refuse_local_softmax(self, run)

    def setup(self) -> None:
        """Start with an empty history."""
        self.ids_ = torch.empty(0, dtype=torch.int64)

    def before_experience(self, experience: Experience) -> None:
        """Begin from fresh weights where training follows; those of the first experience are fresh already."""
        if experience.index > 0 and self.evaluates_after(experience):
            self.network = self.run.fresh_network()
        super().before_experience(experience)

    def phases(self, experience: Experience) -> list[Phase]:
        """Train where a model is due."""
        return [self.main_phase(experience)] if self.evaluates_after(experience) else []

    def training_data(self, experience: Experience) -> DataView:
        """Present everything seen so far."""
        return DataView(torch.cat([self.ids_, experience.train]))

    def after_experience(self, experience: Experience) -> None:
        """Keep the data."""
        self.ids_ = torch.cat([self.ids_, experience.train])

    def evaluates_after(self, experience: Experience) -> bool:
        """Score only what has been trained."""
        return self.every == "experience" or experience.is_last

    def forget(self, experience: Experience) -> None:
        """Drop the samples from the history; the next model never sees them."""
        self.ids_ = self.ids_[~torch.isin(self.ids_, experience.forget)]
