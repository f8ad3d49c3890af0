"""BatchNorm tuning: LayerNorm tuning's strategy on a residual network, with the affine parameters of its BatchNorms."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from clframe.strategies._norm_tuning import NormTuning
from clframe.strategy import Tags
from clframe.stream import Setting

__all__ = ["BatchNormTuning"]


class BatchNormTuning(NormTuning):
    """BatchNorm tuning: per-experience scale and shift of a frozen residual network's BatchNorms, chosen by keys.

    The strategy of De Min et al. 2023, "On the Effectiveness of LayerNorm Tuning for Continual Learning in Vision
    Transformers", for networks without LayerNorm; see `layernorm_tuning` for the stages, equations, report heads and
    options. Every experience owns (w_t, b_t) of all BatchNorms; running means and variances are those of the pretrained
    network and stay, bit for bit, in training too (eval mode), so that no statistic of a batch enters anything.

    In `form=single_stage` a BatchNorm's keys are compared with the mean over all places of the map that enters it.

    Trained per experience, with C_l the channels of BatchNorm l: Σ_l 2 C_l, and D for the key (single-stage Σ_l C_l), and
    the classifier. ResNet-32 of width 16: 2,272 and 64.

    Report heads: `classifier`; `stage1`; `selected`.

    Differs from the paper:
        The paper tunes LayerNorms of vision transformers and has no such form: this is an analogue of ours, and its
        numbers aren't the paper's. For the rest, what `layernorm_tuning` says.
    """

    tags: ClassVar[Tags] = Tags(
        settings=frozenset[Setting]({"class", "task"}),
        needs_boundaries=True,
        needs_pretrained=True,
        needs_batchnorm=True,
        online=False,
    )
    kind: ClassVar[type[nn.Module]] = nn.modules.batchnorm._BatchNorm
