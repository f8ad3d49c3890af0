"""SLCA: a slow learner whose classifier is aligned on Gaussian features after every experience."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from clframe.errors import ConfigurationError
from clframe.models import CosineHead
from clframe.spec import field
from clframe.strategies.gauss_align import GaussAlign
from clframe.strategy import Batch, ParameterGroup, Phase, RunContext
from clframe.stream import Experience

__all__ = ["SLCA"]


class SLCA(GaussAlign):
    """Slow learner with classifier alignment.

    Zhang, Wang, Kang, Chen & Wei 2023, "SLCA: Slow Learner with Classifier Alignment for Continual Learning on a
    Pre-trained Model", ICCV. Two stages per experience t:

        slow learner: all weights of a pretrained backbone train at `backbone_lr_scale` times the
            rate of the classifier; every experience has a linear head W_t of its own, the heads of before are frozen;
            L = CE over the experience's classes alone
        alignment (after the first experience): all heads train on draws from the Gaussians of the classes
            seen, with L = CE(z / (n̄ τ), y); see `gauss_align`, whose options are these

    Scores are those of the aligned heads side by side. The next experience goes on from the heads before alignment.

    Official: ViT-B/16 of ImageNet-21k, `--optimizer.lr 0.01 --optimizer.weight-decay 5e-4 --batch-size 128`, the backbone
    at 1e-4, on CIFAR-100 `--strategy.epochs 20 --optimizer.schedule multistep --optimizer.milestones [18]`, on ImageNet-R
    and CUB-200 50 epochs with the drop after 40.

    Any backbone serves. Without pretrained weights the first experience trains the backbone at the full rate, as a base
    task, which should then be a large one (`--scenario.base 50`), and learning is slow from the second on.

    Report heads: `classifier`, the aligned heads; `unaligned`, the heads before alignment.

    Differs from the paper:
        The heads are the rows of one linear classifier: the rows of other experiences' classes are put back after every
        step, so that neither decay nor momentum moves them. New rows are drawn as `head.init` says (code: truncated
        normal of deviation 0.02). A class that comes again trains its old row. What `gauss_align` differs in.
    """

    before_name: ClassVar[str] = "unaligned"

    loss_over: Literal["auto", "seen", "experience"] = field(
        default="experience",
        help="Classes in the softmax of the classification loss; the paper's is the experience's own.",
    )
    backbone_lr_scale: float = field(
        default=0.01, ge=0, help="Rate of the backbone over that of the classifier (official: 0.01; 0 freezes it)."
    )
    first_lr_scale: float | None = field(
        default=None,
        ge=0,
        help="The same in the first experience; none: 1 for a backbone without pretrained weights, whose base task it is, "
        "else `backbone_lr_scale`.",
    )

    def check(self, run: RunContext) -> None:
        """Refuse a cosine head, whose scale all heads share."""
        super().check(run)
        if isinstance(run.network.classifier, CosineHead):
            raise ConfigurationError(
                "head.name: SLCA freezes the heads of earlier experiences, but a cosine head has one scale for all: set it "
                "to linear."
            )

    def setup(self) -> None:
        """Start without frozen rows."""
        super().setup()
        self.frozen_: dict[str, Tensor] = {}

    def before_experience(self, experience: Experience) -> None:
        """Give the new classes a head, and note the heads that stay."""
        super().before_experience(experience)
        head = self.network.classifier
        other = torch.ones(head.num_classes, dtype=torch.bool)
        other[list(experience.classes)] = False
        rows = {name: value.detach().clone() for name, value in head.named_parameters()}
        self.frozen_ = {"other": other.to(head.weight.device), **rows} if bool(other.any()) else {}

    def phases(self, experience: Experience) -> list[Phase]:
        """Learn slowly, then align; in a composition, which sees to the extra phases itself, learn slowly."""
        network, scale = self.network, self.lr_scale(experience)
        groups = [ParameterGroup(list(network.classifier.parameters()))]
        if scale:
            groups.append(ParameterGroup(list(network.branches.parameters()), lr_scale=scale))
        frozen = [] if scale else [network.branches]
        slow = replace(self.main_phase(experience), parameters=groups, eval_modules=frozen)
        return [slow, *(self.extra_phases(experience) if self.run.strategy is self else [])]

    def lr_scale(self, experience: Experience) -> float:
        """Rate of the backbone over that of the classifier."""
        if experience.index > 0:
            return self.backbone_lr_scale
        if self.first_lr_scale is not None:
            return self.first_lr_scale
        return self.backbone_lr_scale if self.run.pretrained else 1.0

    def after_step(self, batch: Batch) -> None:
        """Put back the rows of the other heads."""
        if batch.phase != "train" or not self.frozen_:
            return
        head, other = self.network.classifier, self.frozen_["other"]
        with torch.no_grad():
            for name, value in head.named_parameters():
                rows = other if value.dim() == 1 else other[:, None]
                value.copy_(torch.where(rows, self.frozen_[name], value))
