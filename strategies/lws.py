"""LWS: learn one scale per class, on class-balanced data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clframe.strategies._stages import RehearsedStage, refuse_cosine_head
from clframe.strategy import Batch, DataView, ParameterGroup, Phase, RunContext
from clframe.stream import Experience

__all__ = ["LWS"]


class LWS(RehearsedStage):
    """Learnable weight scaling after every experience, behind any strategy that keeps exemplars: `replay+lws`.

    Kang et al. 2020, "Decoupling Representation and Classifier for Long-Tailed Recognition", section 4: everything
    stays as it is but one scale per class, which starts at 1 and is learnt on new data ∪ exemplars, drawn so that every
    class is equally likely:

        z_c = f_c · (w_c · φ(x) + b_c),   L = CE(z, y)

    It is τ-normalisation whose factor of every class is learnt. Afterwards w_c ← f_c w_c and b_c ← f_c b_c.

    Report heads: `classifier`, after the stage; `before_stage`.

    Differs from the paper:
        There it comes once, after training on a long-tailed set; here after every experience but the first. The bias is
        scaled with its row, as in the authors' code as far as we remember it; the paper leaves the bias out.
    """

    def check(self, run: RunContext) -> None:
        """Refuse a cosine head too."""
        super().check(run)
        refuse_cosine_head(self, run)

    def setup(self) -> None:
        """Start without scales."""
        super().setup()
        self.scales_: Tensor | None = None

    def begin(self, experience: Experience) -> None:
        """Copy the classifier; every scale starts at 1."""
        super().begin(experience)
        self.scales_ = nn.Parameter(torch.ones_like(self.head_["weight"][:, 0]))

    def stage_phase(self, experience: Experience) -> Phase:
        """Return the stage, which trains the scales alone."""
        return self.rehearsal(
            "lws", lambda: DataView(self.stage_data(experience), balanced=True), self.scale_parameters
        )

    def scale_parameters(self) -> list[ParameterGroup]:
        """The scales, which no weight decay pulls to zero."""
        scales = self.scales_
        return [ParameterGroup([scales], weight_decay=0.0)] if isinstance(scales, nn.Parameter) else []

    def stage_logits(self, batch: Batch) -> Tensor:
        """Scale every class's logit."""
        logits = super().stage_logits(batch)
        return logits if self.scales_ is None else logits * self.scales_

    def end(self) -> None:
        """Multiply the copy's rows by their scales."""
        if self.scales_ is not None:
            scales, self.scales_ = self.scales_.detach(), None
            self.head_ = {n: v.detach() * (scales if v.dim() == 1 else scales[:, None]) for n, v in self.head_.items()}
        super().end()
