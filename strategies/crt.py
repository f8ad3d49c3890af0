"""cRT: learn the classifier again, from scratch, on class-balanced data."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from clframe.spec import field
from clframe.strategies._exemplars import balanced_subset
from clframe.strategies._stages import RehearsedStage
from clframe.strategy import Batch, DataView, Phase
from clframe.stream import Experience

__all__ = ["CRT"]


class CRT(RehearsedStage):
    """Classifier re-training after every experience, behind any strategy that keeps exemplars: `replay+crt`.

    Kang et al. 2020, "Decoupling Representation and Classifier for Long-Tailed Recognition", section 4: the
    representation stays as it is, the classifier H starts afresh and is trained alone by CE(H(φ(x)), y) on new data ∪
    exemplars, drawn so that every class is equally likely. With `--strategy.temperature 5 --strategy.balance
    subset` it is DER's second stage, CE(z/δ, y) (Yan, Xie & He 2021, section 3.5); with `--strategy.start before` a
    balanced fine-tuning of the classifier.

    Report heads: `classifier`, after the stage; `before_stage`.

    Differs from the paper:
        There it comes once, after training on a long-tailed set; here after every experience but the first, on what is
        left of the old classes.
    """

    start: Literal["fresh", "before"] = field(
        default="fresh", help="Draw the classifier anew (paper), or go on from what it is."
    )
    balance: Literal["sampling", "subset"] = field(
        default="sampling",
        help="sampling: every class equally likely, with replacement (paper); subset: as many samples of each class as "
        "the smallest has, drawn once (DER).",
    )
    temperature: float = field(default=1.0, gt=0, help="δ, by which the logits are divided (DER: 5 on CIFAR-100).")

    def begin(self, experience: Experience) -> None:
        """Draw the classifier anew, or copy it."""
        self.copy_head(fresh=self.start == "fresh")

    def stage_phase(self, experience: Experience) -> Phase:
        """Return the stage."""
        return self.rehearsal("crt", lambda: self.balanced_data(experience), self.head_parameters)

    def balanced_data(self, experience: Experience) -> DataView:
        """Present every class as often as the others."""
        ids = self.stage_data(experience)
        if self.balance == "subset":
            return DataView(balanced_subset(ids, self.run))
        return DataView(ids, balanced=True)

    def stage_logits(self, batch: Batch) -> Tensor:
        """Divide by δ."""
        return super().stage_logits(batch) / self.temperature
