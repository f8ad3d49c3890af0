"""Linear probing: a frozen pretrained network and a classifier on its features."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from clframe.spec import field
from clframe.strategy import ParameterGroup, Phase, Strategy, Tags
from clframe.stream import Experience

__all__ = ["LinearProbe"]


class LinearProbe(Strategy):
    """Linear probing: fine-tuning of the classifier alone, on features of the untouched pretrained network.

    What methods with pretrained networks have to beat: whatever they gain beyond it, tuning the features gained. Loss:
    cross-entropy over the experience's own classes, as these methods train (`loss_over=seen`: over all classes seen).
    BatchNorm statistics stay as well. Trained per experience: K (D + 1).

    Differs from the paper:
        There is no single paper.
    """

    tags: ClassVar[Tags] = Tags(needs_pretrained=True)

    loss_over: Literal["auto", "seen", "experience"] = field(
        default="experience",
        help="Classes in the softmax: those of the experience, as methods with frozen networks train, or all seen.",
    )

    def phases(self, experience: Experience) -> list[Phase]:
        """Train the classifier; the network stays in eval mode."""
        classifier = ParameterGroup(list(self.network.classifier.parameters()))
        main = self.main_phase(experience)
        return [dataclasses.replace(main, parameters=[classifier], eval_modules=[self.network.branches])]
