"""ER-ACE: replay with an asymmetric cross-entropy, so that new classes don't push the old ones away."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from clframe.losses import cross_entropy
from clframe.models import Output
from clframe.spec import field
from clframe.strategies._online import StepReplay, parts_of
from clframe.strategy import Batch

__all__ = ["ERACE"]


class ERACE(StepReplay):
    """Experience replay with asymmetric cross-entropy.

    Caccia, Aljundi, Asadi, Tuytelaars, Pineau & Belilovsky 2022, "New Insights on Reducing Abrupt Representation Change
    in Online Continual Learning", ICLR. At every step, with X_in the incoming batch and X_bf a draw from the reservoir:

        L = L_ce(X_in, C_curr) + L_ce(X_bf, C_old ∪ C_curr)      L_ce(X, C): mean cross-entropy with a softmax over C

    C_curr are the classes present in the incoming batch, C_old ∪ C_curr all seen; so what is new changes no logit of an
    absent class. In the task-incremental setting both are cut to the sample's own task.

    Report heads: `classifier`.

    Differs from the paper:
        The classifier grows with the stream, so classes still to come have no logit; the official code leaves theirs in
        both softmaxes. X_bf passes through the network with X_in and shares its BatchNorm statistics. A sample is
        offered to the memory once, in the first epoch (the paper's streams have only one). Where a class is not
        new, as in the domain-incremental setting, `incoming=experience` is plain replay.
    """

    incoming: Literal["batch", "experience"] = field(
        default="batch",
        help="C_curr: the classes present in the incoming batch (paper and code), or all of the experience.",
    )

    def main_loss(self, batch: Batch, output: Output) -> Tensor:
        """L_ce(X_in, C_curr)."""
        new = batch.num_new
        return cross_entropy(output.logits[:new], batch.y[:new], self.incoming_classes(batch))

    def incoming_classes(self, batch: Batch) -> Tensor:
        """Return the mask of C_curr, (K,), or (`num_new`, K) where every sample has its task's."""
        classes = torch.arange(self.network.num_classes, device=batch.y.device)
        if self.incoming == "batch":
            current = batch.y[: batch.num_new]
        else:
            current = torch.tensor(batch.experience.classes, device=batch.y.device)
        present = (current[:, None] == classes).any(dim=0)
        allowed = parts_of(self.allowed_classes(batch), batch.num_new)[0]
        return present if allowed is None else present & allowed

    def extra_losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """L_ce(X_bf, C_old ∪ C_curr), once there is a memory."""
        if not self.memory_size:
            return {}
        new = batch.num_new
        if len(batch.y) == new:
            return {"replay": output.logits.new_zeros(())}
        allowed = parts_of(self.allowed_classes(batch), new)[1]
        return {"replay": cross_entropy(output.logits[new:], batch.y[new:], allowed)}
