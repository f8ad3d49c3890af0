"""Cumulative training: keep everything, go on from the previous weights."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from clframe.spec import field
from clframe.strategies._checks import refuse_local_softmax
from clframe.strategy import ANY_SCORE, DataView, RunContext, Strategy, Tags
from clframe.stream import Experience

__all__ = ["Cumulative"]


class Cumulative(Strategy):
    """Cumulative training: every experience trains on the union of all data so far.

    Differs from the paper:
        There is no single paper. `start=warm` goes on from the previous weights (TiC-CLIP's "cumulative", Garg et al.
        2024, whose equal budget per step is the run option `steps_per_experience`; without it, epochs per sample are equal);
        `start=scratch` begins anew and is joint training after every experience.
    """

    tags: ClassVar[Tags] = Tags(scores=ANY_SCORE, needs_all_data=True, online=False)

    start: Literal["warm", "scratch"] = field(default="warm", help="Weights that an experience starts from.")

    def check(self, run: RunContext) -> None:
        """Refuse a loss that leaves out the old classes."""
        refuse_local_softmax(self, run)

    def setup(self) -> None:
        """Start with an empty history."""
        self.ids_ = torch.empty(0, dtype=torch.int64)

    def before_experience(self, experience: Experience) -> None:
        """Begin from fresh weights where asked to; those of the first experience are fresh already."""
        if self.start == "scratch" and experience.index > 0:
            self.network = self.run.fresh_network()
        super().before_experience(experience)

    def training_data(self, experience: Experience) -> DataView:
        """Present everything seen so far."""
        return DataView(torch.cat([self.ids_, experience.train]))

    def after_experience(self, experience: Experience) -> None:
        """Keep the data."""
        self.ids_ = torch.cat([self.ids_, experience.train])

    def exemplars(self) -> Tensor:
        """Everything seen before."""
        return self.ids_
