"""L2 towards the previous checkpoint: hold all weights back alike."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from clframe.models import Output
from clframe.spec import field
from clframe.strategies._anchors import quadratic, weights_of
from clframe.strategy import Batch, Strategy, Tags
from clframe.stream import Experience

__all__ = ["L2Anchor"]


class L2Anchor(Strategy):
    """L2 regularisation towards the previous checkpoint.

    One of the terms that Smith et al. 2023, "A Closer Look at Rehearsal-Free Continual Learning", combine:

        L = CE + λ Σ_i (θ_i − θ*_i)²     θ* the weights after the last experience

    It is EWC with equal importances. The paper adds it to a classification loss per class and to PredKD, as
    `bce+predkd+l2_anchor` does, and finds it the best of its regularisers on pretrained networks, where θ* may hold
    from the start: `from_start` anchors the first experience at the weights that the run starts from.

    Differs from the paper:
        The weight λ was tuned there on the first tasks; the default here is none of theirs. On a ViT the paper trains and
        anchors the QKV projections alone; here everything that trains. Classifier rows added later are not held back.
    """

    tags: ClassVar[Tags] = Tags(scores=frozenset({"accuracy", "squared_error"}), needs_boundaries=True)

    strength: float = field(default=0.01, ge=0, help="λ, the weight of the penalty (tuned per data set in the paper).")
    from_start: bool = field(
        default=False, help="Anchor the first experience too, at the weights that the run starts from."
    )

    def setup(self) -> None:
        """Start without an anchor, or with the initial weights."""
        self.anchor_: dict[str, Tensor] = weights_of(self.network) if self.from_start else {}

    def extra_losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the penalty once there is an anchor."""
        return {"l2_anchor": self.penalty()} if self.anchor_ and self.strength else {}

    def penalty(self) -> Tensor:
        """Return λ Σ_i (θ_i − θ*_i)²."""
        return self.strength * quadratic(self.network, self.anchor_)

    def after_experience(self, experience: Experience) -> None:
        """The weights as they are now become the anchor."""
        self.anchor_ = weights_of(self.network)
