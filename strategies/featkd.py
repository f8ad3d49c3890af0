"""Feature distillation: stay close to the previous model's features on new data."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from clframe.errors import ConfigurationError
from clframe.models import Backbone, Output
from clframe.spec import field
from clframe.strategies._teacher import TeacherStrategy
from clframe.strategy import Batch, RunContext, Tags

__all__ = ["FeatKD"]


class FeatKD(TeacherStrategy):
    """Feature distillation, FeatKD.

    A term of Smith et al. 2023, "A Closer Look at Rehearsal-Free Continual Learning", with h⁻ the previous model's
    features of the same augmented images:

        L = CE + λ (1/(B D)) Σ_b ‖h(x_b) − h⁻(x_b)‖²

    With `stages`, the mean of this over the backbone's stages and the final features, each divided by its own number of
    entries; stages are taken before their last ReLU.

    Differs from the paper:
        The mean over the entries stands for the squared norm, so that λ means the same at every width. λ was tuned there
        on the first tasks; the default here is none of theirs. Where branches have been added since, the old ones'
        features are held, and of the stages nothing, as those are the new branch's.
    """

    tags: ClassVar[Tags] = Tags(scores=frozenset({"accuracy", "squared_error"}), needs_boundaries=True, online=False)

    strength: float = field(
        default=1.0, ge=0, help="λ, the weight of the distillation (tuned per data set in the paper)."
    )
    stages: bool = field(default=False, help="Distil the stages of the backbone too, not only the final features.")

    def check(self, run: RunContext) -> None:
        """Refuse stages of a backbone that shows none."""
        branch = cast(Backbone, run.network.branches[-1])
        if self.stages and type(branch).forward_stages is Backbone.forward_stages:
            raise _no_stages(branch)

    def needs_stages(self) -> bool:
        """Whether the loss reads the stage maps."""
        return self.stages

    def extra_losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the distillation once there is a teacher."""
        if self.stages and not output.stages:  # a wrapped model says so only now
            raise _no_stages(self.network.branches[-1])
        taught = self.taught(batch, self.stages) if self.strength else None
        if taught is None:
            return {}
        pairs = [(output.features[:, : taught.features.shape[1]], taught.features)]
        if len(taught.branch_features) == len(output.branch_features):
            pairs += zip(output.stages, taught.stages, strict=True)
        terms = [functional.mse_loss(new, old) for new, old in pairs]
        return {"feature_distillation": self.strength * torch.stack(terms).mean()}


def _no_stages(branch: nn.Module) -> ConfigurationError:
    return ConfigurationError(
        f"strategy.stages: expected a backbone that shows its stages, received {type(branch).__name__}: choose another "
        "backbone, or leave stages false."
    )
