"""A strategy: one more loss term."""

from __future__ import annotations

from torch import Tensor

import clframe
from clframe.models import Output


class ConfidencePenalty(clframe.Strategy):
    """Confidence penalty: predictions are kept from being too sure.

    Pereyra et al. 2017, "Regularizing Neural Networks by Penalizing Confident Output Distributions", eq. 2:

        L = cross-entropy − strength · H(p),   H(p) = −Σ_c p_c log p_c

    Differs from the paper: the classes are those seen so far, whose number grows.

    Version history:
        1: first version.
    """

    strength: float = clframe.field(default=0.1, ge=0, help="β, weight of the entropy; 0 is plain fine-tuning.")

    def extra_losses(self, batch: clframe.Batch, output: Output) -> dict[str, Tensor]:
        """Return −β H(p), averaged over the batch."""
        log_p = output.logits.log_softmax(dim=1)
        return {"confidence": self.strength * (log_p.exp() * log_p).sum(dim=1).mean()}
