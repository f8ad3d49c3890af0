"""DER, dynamically expandable representation: one new extractor per experience, beside the frozen old ones."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, cast

from torch import Tensor

from clframe.errors import ConfigurationError
from clframe.losses import auxiliary_targets, cross_entropy
from clframe.models import Backbone, Output
from clframe.models.gates import annealed_scale, channel_sparsity, gates_of
from clframe.spec import field
from clframe.strategies._alignment import align_weights, refuse_directions
from clframe.strategies._checks import refuse_multi_head, refuse_without_channels
from clframe.strategies._exemplars import ExemplarStrategy, balanced_subset
from clframe.strategies._stages import stage_recipe
from clframe.strategy import Batch, DataView, ParameterGroup, Phase, RunContext, Tags
from clframe.stream import Experience

__all__ = ["DER"]


class DER(ExemplarStrategy):
    """Dynamically expandable representation, by default without channel masks (the paper's "w/o P" rows).

    Yan, Xie & He 2021, "DER: Dynamically Expandable Representation for Class Incremental Learning", CVPR. Not dark
    experience replay, which is `dark_er`. With F_t the extractor of experience t:

        Φ_t(x) = [F_0(x), …, F_t(x)]              super-feature; F_0 … F_{t−1} frozen, F_t starts as a copy of F_{t−1}
        L = CE(H(Φ_t(x)), y) + λ_a CE(H_a(F_t(x)), y_a)      eq. 4–6, on new data ∪ memory

    H scores all classes seen. The auxiliary head H_a has |C_t| + 1 outputs: y_a = 0 for any class that is not of this
    experience, 1 + k for its k-th class. The first experience has no auxiliary term.

    Then the classifier stage (section 3.5), after the first experience: `balanced` starts H afresh and trains it alone
    by CE(z/δ, y) on equally many samples of every class; `align` scales H's new rows to the old ones' mean norm instead
    (PyCIL, after Zhao et al. 2020). The memory is chosen by herding on the super-feature.

    With `masks` (section 3.4) channel masks m_l = sigmoid(s e_l) multiply what every layer l of the new extractor gives,
    after its BatchNorm, and learn with it, by the compensated gradient of `clframe.models.gates`:

        s = 1/s_max + (s_max − 1/s_max)(b − 1)/(B − 1)       in batch b of an epoch's B
        L_S = Σ_l K_l ‖m_{l−1}‖₁ ‖m_l‖₁ / Σ_l K_l c_{l−1} c_l     added to L times λ_s; K_l entries of a kernel, c_l channels

    At the end of this stage the masks become binary and F_t is cut to the open channels. Pruning belongs to learning the
    representation, so it comes before the classifier stage, which trains H on the features that are left; F_t is counted,
    kept and run in its pruned size. Sets of channels that a shortcut joins are masked where they are joined.

    Official recipe, CIFAR-100: `--strategy.epochs 170 --strategy.warmup-epochs 10 --strategy.memory-size 2000`, SGD 0.1,
    weight decay 5e-4, drops after epochs 110 and 130, `--head.bias false --head.init kaiming_normal`. PyCIL's DER:
    `--strategy.stage align --strategy.reuse-head true`, a head with bias and zero initial bias.

    Report heads: `classifier`; `stage1`, H before the balanced stage (pruned as well), where there is one; `nme`.

    Differs from the paper:
        Masks are off by default. The official code has none, so s_max, λ_s and where e starts were chosen here, on
        digits (a bigger network or fewer steps need a larger λ_s). A layer keeps at least one channel; e has no weight
        decay. The weights cut are not stored: after pruning, F_{t+1} is a fresh extractor of the whole width that takes
        the values of the channels kept (`clframe.models.prune.widen`), instead of a copy of all of F_t.
        Where classes come back, C_t is every class of the experience, and an extractor is added all the same.
        The balanced subset is drawn once. Exemplar means are of one view, without the average over the flipped image.
    """

    tags: ClassVar[Tags] = dataclasses.replace(ExemplarStrategy.tags, grows_features=True)

    aux_weight: float = field(
        default=1.0, ge=0, help="λ_a, the weight of the auxiliary loss (1 in the paper, official code and PyCIL)."
    )
    warmup_epochs: int = field(
        default=0,
        ge=0,
        unit="epochs",
        help="Linear warm-up of the rate, after which H and H_a start afresh (official: 10 of 170 on CIFAR-100, 20 of "
        "220 on ImageNet-100; PyCIL: 0). 0: neither.",
    )
    reuse_head: bool = field(
        default=False, help="Start H from the previous one's rows (PyCIL) instead of afresh (official code)."
    )
    stage: Literal["balanced", "align", "none"] = field(
        default="balanced", help="Classifier stage: balanced (paper), align (weight alignment, PyCIL) or none."
    )
    balanced_epochs: int = field(default=30, ge=1, unit="epochs", help="Length of the balanced stage (official: 30).")
    balanced_lr: float = field(
        default=0.1, gt=0, help="Learning rate of the balanced stage, a tenth in its second half (official: 0.1)."
    )
    balanced_weight_decay: float = field(default=5e-4, ge=0, help="Of the balanced stage (official: 5e-4).")
    temperature: float = field(
        default=5.0, gt=0, help="δ of the balanced stage (paper: 5 on CIFAR-100, 1 on ImageNet-100)."
    )
    masks: bool = field(default=False, help="Learn channel masks, and prune every extractor by them (section 3.4).")
    sparsity: float = field(
        default=4.0, ge=0, help="λ_s, the weight of the sparsity loss; the authors tune it per setting (ours: digits)."
    )
    mask_scale: float = field(default=50.0, gt=1, help="s_max, the scale of the masks at an epoch's end (ours).")
    mask_start: float = field(default=2.0, gt=0, help="The e of a layer start evenly spread between 0 and this (ours).")
    mask_lr: float = field(default=1.0, gt=0, help="Learning rate of e, as a multiple of the run's (ours).")

    def check(self, run: RunContext) -> None:
        """Refuse a memory too small for the stream's classes, a warm-up without end, and heads that don't fit."""
        super().check(run)
        refuse_multi_head(self, run)
        if self.masks:
            refuse_without_channels(self, run)
        shortest = min(self.epochs, self.first_epochs or self.epochs)
        if self.warmup_epochs and self.warmup_epochs >= shortest:
            raise ConfigurationError(
                f"strategy.warmup_epochs: expected fewer than the {shortest} epochs of the main phase, received "
                f"{self.warmup_epochs}: shorten the warm-up or set it to 0."
            )
        if self.stage == "align":
            refuse_directions(self, run, " with stage 'align'", ", or strategy.stage to balanced or none")

    # -- expansion -------------------------------------------------------------------------------------------------

    def before_experience(self, experience: Experience) -> None:
        """Freeze the extractors for good, add a copy of the last, grow H, and give the new one its masks and H_a."""
        network = self.network
        if experience.index > 0:
            if "stage1" in network.heads:
                network.remove_head("stage1")
            network.freeze_branch(-1)
            network.add_branch(copy_from=-1)
        if self.masks:
            network.add_gates(-1, self.mask_start)
        super().before_experience(experience)
        if experience.index > 0:
            if not self.reuse_head:
                network.classifier.reset_parameters()
            if self.aux_weight:
                network.add_head("auxiliary", len(experience.classes) + 1, inputs="last")

    # -- stage 1: representation -----------------------------------------------------------------------------------

    def phases(self, experience: Experience) -> list[Phase]:
        """Learn the representation; after the first experience, see to the classifier's bias towards new classes."""
        train = self.main_phase(experience)
        if self.warmup_epochs:
            train = dataclasses.replace(train, optimizer={"warmup": float(self.warmup_epochs)})
        if self.masks:
            train = dataclasses.replace(train, loss=self.masked_loss, parameters=self.masked_groups)
        train = dataclasses.replace(train, on_end=lambda: self.end_representation(experience))
        balanced = self.stage == "balanced" and experience.index > 0
        return [train, self.balanced_phase(experience)] if balanced else [train]

    def end_representation(self, experience: Experience) -> None:
        """Prune the new extractor and align H, where asked to."""
        if self.masks:
            self.network.prune_branch(-1)
        if self.stage == "align" and experience.index > 0:
            self.align(experience)

    def before_epoch(self, phase: Phase, epoch: int) -> None:
        """Start H and H_a afresh once the warm-up is over."""
        if phase.name == "train" and epoch == self.warmup_epochs > 0:
            self.network.classifier.reset_parameters()
            if "auxiliary" in self.network.heads:
                self.network.heads["auxiliary"].reset_parameters()  # type: ignore[operator]

    def extra_losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """λ_a CE(H_a(F_t(x)), y_a)."""
        if "auxiliary" not in self.network.heads:
            return {}
        logits = self.network.head_logits("auxiliary", output)
        targets = auxiliary_targets(batch.y, batch.experience.classes)
        return {"auxiliary": self.aux_weight * cross_entropy(logits, targets)}

    @property
    def extractor(self) -> Backbone:
        """F_t."""
        return cast(Backbone, self.network.branches[-1])

    def masked_loss(self, batch: Batch) -> dict[str, Tensor]:
        """L + λ_s L_S, under masks of the batch's scale s."""
        for gate in gates_of(self.extractor).values():
            gate.anneal(annealed_scale(batch.step, batch.num_steps, self.mask_scale))
        return {**self.loss_terms(batch), "sparsity": self.sparsity * channel_sparsity(self.extractor)}

    def masked_groups(self) -> list[ParameterGroup]:
        """Give the masks their own rate, and no weight decay, which would pull every m to one half."""
        masks = [gate.logits for gate in gates_of(self.extractor).values()]
        others = [p for p in self.network.parameters() if all(p is not e for e in masks)]
        return [ParameterGroup(others), ParameterGroup(masks, self.mask_lr, 0.0)]

    # -- stage 2: classifier ---------------------------------------------------------------------------------------

    def balanced_phase(self, experience: Experience) -> Phase:
        """Return the stage that trains H alone, from scratch, on a class-balanced subset; nothing else changes."""
        return Phase(
            name="balanced",
            data=DataView(balanced_subset(self.training_data(experience).ids, self.run)),
            epochs=self.balanced_epochs,
            loss=self.balanced_loss,
            parameters=lambda: [ParameterGroup(list(self.network.classifier.parameters()))],
            eval_modules=lambda: [self.network],
            optimizer=stage_recipe(self.balanced_lr, self.balanced_weight_decay, "multistep"),
            on_start=self.renew_head,
        )

    def renew_head(self) -> None:
        """Keep H as the report head `stage1`, and start it afresh."""
        network = self.network
        kept = network.add_head("stage1", network.num_classes)
        kept.load_state_dict(network.classifier.state_dict())
        network.classifier.reset_parameters()

    def balanced_loss(self, batch: Batch) -> dict[str, Tensor]:
        """CE(z/δ, y)."""
        logits = self.network(batch.x).logits / self.temperature
        return {"classification": cross_entropy(logits, batch.y)}

    def align(self, experience: Experience) -> None:
        """Scale H's new rows to the old ones' mean norm."""
        align_weights(self.network.classifier, len(experience.new_classes))

    def after_experience(self, experience: Experience) -> None:
        """Drop H_a and choose exemplars by herding on the super-feature."""
        if "auxiliary" in self.network.heads:
            self.network.remove_head("auxiliary")
        super().after_experience(experience)

    def report_heads(self, output: Output) -> dict[str, Tensor]:
        """Score by H, by H as it was after stage 1 (in the first experience the same), and by exemplar means."""
        heads = {"classifier": output.logits}
        if self.stage == "balanced":
            kept = "stage1" if "stage1" in self.network.heads else "classifier"
            heads["stage1"] = self.network.head_logits(kept, output)
        return heads | self.nme_head(output.features)
