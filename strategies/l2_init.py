"""L2 towards the initial values: hold all weights near where a fresh network would start."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from clframe.models import Output
from clframe.spec import field
from clframe.strategies._anchors import prefix, quadratic, weights_of
from clframe.strategy import ANY_SCORE, Batch, Phase, Strategy, Tags

__all__ = ["L2Init"]


class L2Init(Strategy):
    """L2 regularisation towards the initial weights, which keeps a network able to learn.

    Kumar, Marklund & Van Roy 2023, "Maintaining Plasticity in Continual Learning via Regenerative Regularization":

        L = CE + λ Σ_i (θ_i − θ_{0,i})²     θ_0 the initial values, which never change

    θ_0 of a parameter, or of the part by which one has grown such as new classifier rows, is the value with which its first
    epoch begins: so the penalty starts at zero, and nothing needs to know where tasks end.

    Differs from the paper:
        The weight λ was tuned there for every problem and optimiser; the default here is none of theirs. With pretrained
        weights θ_0 are these. The recipe's weight decay, which pulls towards zero, goes on beside it: set it to 0 for the
        paper's loss. Composed with a method that starts afresh (`joint`), θ_0 stays that of the run's first network.
    """

    tags: ClassVar[Tags] = Tags(scores=ANY_SCORE)

    strength: float = field(default=0.001, ge=0, help="λ, the weight of the penalty (tuned per problem in the paper).")

    def setup(self) -> None:
        """Start with the values that are there."""
        self.anchor_: dict[str, Tensor] = weights_of(self.network)

    def before_epoch(self, phase: Phase, epoch: int) -> None:
        """Add what is new since the last epoch, by whatever part of a composition it was made, at its present values."""
        for name, present in weights_of(self.network).items():
            known = self.anchor_.get(name)
            if known is None:
                self.anchor_[name] = present
            elif known.shape != present.shape:
                prefix(present, known).copy_(known)
                self.anchor_[name] = present

    def extra_losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the penalty."""
        return {"l2_init": self.penalty()} if self.strength else {}

    def penalty(self) -> Tensor:
        """Return λ Σ_i (θ_i − θ_{0,i})²."""
        return self.strength * quadratic(self.network, self.anchor_)
