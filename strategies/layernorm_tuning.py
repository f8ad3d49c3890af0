"""LayerNorm tuning: a frozen pretrained transformer whose LayerNorms have a set of values per experience."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from clframe.strategies._norm_tuning import NormTuning
from clframe.strategy import Tags
from clframe.stream import Setting

__all__ = ["LayerNormTuning"]


class LayerNormTuning(NormTuning):
    """LayerNorm tuning of a pretrained transformer, with keys that choose the LayerNorms of every sample.

    De Min, Mancini, Alahari, Alameda-Pineda & Ricci 2023, "On the Effectiveness of LayerNorm Tuning for Continual
    Learning in Vision Transformers", ICCV workshops. The network is frozen; every experience t owns scale and shift
    (w_t, b_t) of all LayerNorms, starting from those of t − 1. With φ the features of the untouched network and φ_t
    those under set t, `form=two_stage` has three stages:

        keys      L = −mean cos(φ(x), k_t)                                 trains k_t
        norms     L = CE over C_t of H'(φ_t(x)), y                         trains w_t, b_t and a throw-away head H'
        rectify   L = CE over C_t of H(φ_s(x)), y,  s = argmax_i≤t cos(φ(x), k_i)     trains the classifier H

    so that H sees the sets that inference will choose, wrong ones too. H' starts as a copy of H and is kept. Inference:
    s per sample by a pass of the untouched network, features under set s by a second one, then H over all classes.

    `form=single_stage` has no first pass: every LayerNorm l has keys k_t^l of its own, compared with the class token
    q_l(x) that enters it, and chooses its own set: L = CE over C_t of H(φ_t(x)), y − mean_l cos(q_l(x), k_t^l), one stage.

    Trained per experience, with D_l the length of LayerNorm l: Σ_l 2 D_l, and D for the key (single-stage Σ_l D_l), and
    the classifier (two-stage: two of them, one after the other). ViT-B: 38,400 and 768. `parameter_counts` says it.

    Where the scenario gives task ids, they choose the set instead of the keys, in rectification too.

    Official recipe, CIFAR-100: `--optimizer adam --optimizer.lr 0.0025 --optimizer.weight-decay 0 --batch-size 128
    --strategy.head-lr 0.001`, 5 epochs per stage, constant rates; ImageNet-R: rate 0.005.

    Report heads: `classifier`; `stage1`, the throw-away head on the same features (two-stage); `selected`, the classifier
    within the classes of the chosen set's experience, where no task id is given: its `task_identification` is the
    task-selection accuracy (single-stage: of the last LayerNorm's choice).

    Differs from the paper:
        Keys start in random directions rather than as rows of an orthogonal matrix of known height. They and the sets
        have no weight decay. The network stays in eval mode, so that it has no dropout. In the single-stage form the
        key term trains the keys alone (no gradient into the tokens), and the optional gates are left out. Heads grow
        with the classes seen. `key_epochs=0` is our addition.
    """

    tags: ClassVar[Tags] = Tags(
        settings=frozenset[Setting]({"class", "task"}),
        needs_boundaries=True,
        needs_pretrained=True,
        needs_layernorm=True,
        online=False,
    )
    kind: ClassVar[type[nn.Module]] = nn.LayerNorm
