"""τ-normalisation: shorten the classifier's long rows, without any training."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from clframe.spec import field
from clframe.strategies._stages import ClassifierStage, refuse_cosine_head
from clframe.strategy import DataView, Phase, RunContext, Tags
from clframe.stream import Experience, no_samples

__all__ = ["TauNorm", "tau_normalised"]


class TauNorm(ClassifierStage):
    """τ-normalisation of the classifier after every experience, behind any strategy: `replay+tau_norm`, `lwf+tau_norm`.

    Kang et al. 2020, "Decoupling Representation and Classifier for Long-Tailed Recognition", section 4:

        w_c ← w_c / ‖w_c‖^τ,   without bias

    so that classes with many samples, whose rows are longer, lose their advantage. τ = 0 changes nothing, τ = 1 gives all
    rows one length. Nothing is trained and no sample is needed. The paper chooses τ in [0, 1] by validation.

    Report heads: `classifier`, after the stage; `before_stage`.

    Differs from the paper:
        There it comes once, after training on a long-tailed set; here after every experience but the first. τ is given,
        not searched for.
    """

    tags: ClassVar[Tags] = replace(ClassifierStage.tags, online=True, can_unlearn=True)

    tau: float = field(default=1.0, ge=0, help="τ: 0 leaves the rows as they are, 1 gives all the same length.")
    drop_bias: bool = field(default=True, help="Set the bias to zero (paper), or keep it as it is.")

    def check(self, run: RunContext) -> None:
        """Refuse a cosine head too."""
        super().check(run)
        refuse_cosine_head(self, run)

    def stage_phase(self, experience: Experience) -> Phase:
        """Return a stage without epochs: all is done where it begins."""
        return Phase(name="tau_norm", data=DataView(no_samples()), epochs=0)

    def begin(self, experience: Experience) -> None:
        """Divide the copy's rows."""
        super().begin(experience)
        self.head_["weight"] = tau_normalised(self.head_["weight"].detach(), self.tau)
        if self.drop_bias and "bias" in self.head_:
            self.head_["bias"] = torch.zeros_like(self.head_["bias"])


def tau_normalised(weight: Tensor, tau: float) -> Tensor:
    """Return w_c / ‖w_c‖^τ for every row of (K, D); a row of zeros stays."""
    norms = weight.norm(dim=1, keepdim=True)
    return weight / torch.where(norms > 0, norms, torch.ones_like(norms)) ** tau
