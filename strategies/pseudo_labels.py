"""Pseudo-labels: what the network is sure of teaches it, on samples whose label is withheld."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from clframe.losses import cross_entropy
from clframe.models import Output
from clframe.spec import field
from clframe.strategy import Batch, Strategy, Tags

__all__ = ["PseudoLabels"]


class PseudoLabels(Strategy):
    """Self-training on samples without labels, alone or composed: `replay+pseudo_labels`, `icarl+pseudo_labels`.

    Lee 2013, "Pseudo-Label", with the threshold and the two views of Sohn et al. 2020, "FixMatch", eq. 4. Beside every
    batch, μ · batch size samples without a label are drawn; with q(x) = softmax of the logits z(x),

        L_u = λ · 1/n Σ_b [max q(u_b) ≥ τ] CE(z(u'_b), argmax q(u_b)),

    where u_b and u'_b are two augmented views of a sample, and no gradient flows through q.

    Differs from the paper:
        Both views have the run's augmentation; FixMatch's second one is stronger, and its steps are counted in passes over
        the samples without labels, not over those with one. q runs over the classes of the experience, to which the
        samples without labels belong in the streams of this protocol; `candidates=seen` doesn't take that as known.
        The network's weights are not averaged over time for scoring.
    """

    tags: ClassVar[Tags] = Tags(uses_unlabelled=True)

    strength: float = field(default=1.0, ge=0, help="λ, the weight of the loss on pseudo-labels.")
    threshold: float = field(default=0.95, ge=0, le=1, help="τ, the least probability that makes a pseudo-label.")
    ratio: int = field(default=4, ge=1, unit="samples", help="μ, samples without label for each of the batch size.")
    candidates: Literal["experience", "seen"] = field(
        default="experience", help="Classes that pseudo-labels are of: the experience's, or all seen so far."
    )

    def extra_losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the loss on samples without labels, where the experience has some."""
        hidden = batch.experience.unlabelled
        if not len(hidden) or not self.strength:
            return {}
        order = torch.randperm(len(hidden), generator=self.run.rng("unlabelled"))
        ids = hidden[order[: self.ratio * self.run.batch_size]]
        taught = self.pseudo_labels(self.run.training_batch(ids, "unlabelled"))
        again = self.run.training_batch(ids, "unlabelled_again")
        logits = self.network(again.x, again.task_ids).logits
        loss = cross_entropy(logits, taught, self.candidate_classes(again))
        return {"pseudo_labels": self.strength * loss * (taught >= 0).float().mean()}

    @torch.no_grad()
    def pseudo_labels(self, batch: Batch) -> Tensor:
        """Return (B,) the likeliest class of every sample, -1 where the network isn't sure; the labels are not read."""
        logits = self.network(batch.x, batch.task_ids).logits
        candidates = self.candidate_classes(batch)
        if candidates is not None:
            logits = logits.masked_fill(~candidates, -torch.inf)
        sure, likeliest = logits.softmax(dim=1).max(dim=1)
        return torch.where(sure >= self.threshold, likeliest, -1)

    def candidate_classes(self, batch: Batch) -> Tensor | None:
        """Return the mask (K,) or (B, K) of the classes that are told apart, None for all seen."""
        if self.candidates == "seen" and batch.task_ids is None:
            return None
        return self.experience_classes(batch)
