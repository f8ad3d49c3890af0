"""BiC: distil the old classes, then learn two numbers that correct the bias towards the new ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clframe.errors import ConfigurationError
from clframe.losses import cross_entropy, distillation
from clframe.memory import ExemplarMemory
from clframe.models import Output
from clframe.spec import field
from clframe.strategies._checks import refuse_multi_head
from clframe.strategies._exemplars import TaughtStrategy, balanced_subset, exemplar_means
from clframe.strategy import Batch, DataView, ParameterGroup, Phase, RunContext, TensorView
from clframe.stream import Experience

__all__ = ["BiC"]


class BiC(TaughtStrategy):
    """Bias correction.

    Wu, Chen, Wang, Ye, Liu, Guo & Fu 2019, "Large Scale Incremental Learning", CVPR. The classes of every experience but
    the first have a bias layer of two numbers on their logits z, and q are the corrected logits:

        q_c = α_j z_c + β_j     for a class c new in experience j;  α = 1, β = 0 until they are learnt

    Stage 1, on the training part of new data ∪ memory, with q⁻ of the network of the experience before and its layers:

        L = (1 − λ) CE(q, y) + λ KD_T(q_{1:K_old} ‖ q⁻),   λ = K_old / K                        eq. 1–3

    Stage 2, on the validation part, everything but (α, β) of the newest layer fixed:

        L = CE(q, y)                                                                            eq. 5

    The validation part is held out of training for good: of every new class as many samples as old classes have
    validation exemplars, at most `valid_share`; of the memory the share `valid_share`, chosen from what was held out
    before. Stage 2 sees equally many of every class.

    Published recipe (PyCIL, after the paper): 250 epochs, rate 0.1, a tenth after 100, 150 and 200, weight decay 2e-4,
    2000 exemplars.

    Report heads: `classifier`, the corrected logits; `nme`, by the means of the training exemplars.

    Differs from the paper:
        Stage 2 takes the whole validation part in every step, without augmentation, by Adam without weight decay; the
        paper states no optimiser of its own for it. The distillation carries no factor T². Validation exemplars are
        drawn at random among those held out, training exemplars herded. K_old counts the classes without data in the
        experience, which matters only where classes come back; an experience without new classes gets no bias layer. A
        class of a single sample trains on it and has no part in stage 2.
    """

    temperature: float = field(default=2.0, gt=0, help="T of the distillation, without a factor T² (paper: 2).")
    valid_share: float = field(
        default=0.1, gt=0, lt=0.5, help="Part of new data and memory that stage 2 learns from (paper: 0.1)."
    )
    bias_epochs: int = field(
        default=200, ge=1, unit="epochs", help="Length of stage 2, one step an epoch (ours; the paper states none)."
    )
    bias_lr: float = field(default=0.01, gt=0, help="Rate of stage 2's Adam (ours; the paper states none).")

    def check(self, run: RunContext) -> None:
        """Refuse a memory that can't give every class an exemplar for either stage, and a classifier of several layers."""
        super().check(run)
        refuse_multi_head(self, run)
        if self._new_memory(run).quota(run.num_classes) < 2:
            raise ConfigurationError(
                f"strategy.memory_size: expected two exemplars or more for each of {run.num_classes} classes, one to train "
                f"and one to correct the bias, received {self.memory_size} ({self.budget}): raise it."
            )

    def setup(self) -> None:
        """Start with two empty memories, without teacher and bias layers."""
        super().setup()
        self.valid_memory_ = ExemplarMemory(0, budget=self.budget, policy="random", sample_bytes=self.run.sample_bytes)
        self.held_out_ = torch.empty(0, dtype=torch.int64)
        self.scale_ = torch.empty(0, device=self.run.device)  # α and β of every class, once learnt
        self.shift_ = torch.empty(0, device=self.run.device)
        self.layer_: nn.Parameter | None = None  # (α, β) of the newest layer while it learns

    def before_experience(self, experience: Experience) -> None:
        """Grow the classifier, hold out the validation part of the new data, and begin a bias layer."""
        num_old, num_seen = self.network.num_classes, experience.num_seen_classes
        super().before_experience(experience)
        self.held_out_ = self.hold_out(experience.train, self.quotas(num_old or num_seen)[1])
        new = torch.ones(num_seen - num_old, device=self.run.device)
        self.scale_, self.shift_ = torch.cat([self.scale_, new]), torch.cat([self.shift_, 0 * new])
        corrects = num_old and experience.new_classes
        self.layer_ = nn.Parameter(torch.tensor([1.0, 0.0], device=self.run.device)) if corrects else None

    def quotas(self, num_seen: int) -> tuple[int, int]:
        """Return the training and the validation exemplars of every class."""
        whole = self._new_memory(self.run).quota(num_seen)
        valid = max(1, int(whole * self.valid_share + 1e-9))
        return whole - valid, valid

    def hold_out(self, ids: Tensor, most: int) -> Tensor:
        """Draw the validation samples of every class: `most`, but only `valid_share` of it, one at least if it has two."""
        order = ids[torch.randperm(len(ids), generator=self.run.rng("validation"))]
        labels, found = self.run.targets(order), [ids[:0]]
        for label in torch.unique(labels).tolist():
            own = order[labels == label]
            found.append(own[: min(most, max(1, int(len(own) * self.valid_share)), len(own) - 1)])
        return torch.cat(found)

    # -- stage 1: the network --------------------------------------------------------------------------------------

    def training_data(self, experience: Experience) -> DataView:
        """The training part of new data ∪ memory."""
        return DataView(torch.cat([self.kept_in(experience), self.memory_.ids]))

    def kept_in(self, experience: Experience) -> Tensor:
        """Return the new samples that are not held out."""
        return experience.train[~torch.isin(experience.train, self.held_out_)]

    def corrected(self, logits: Tensor) -> Tensor:
        """Pass logits (B, K) or those of the first classes through the bias layers learnt so far."""
        known = logits.shape[1]
        return logits * self.scale_[:known] + self.shift_[:known]

    def main_loss(self, batch: Batch, output: Output) -> Tensor:
        """(1 − λ) CE(q, y)."""
        return (1 - self.old_share(batch.experience)) * cross_entropy(self.corrected(output.logits), batch.y)

    def extra_losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """λ KD_T(q_{1:K_old} ‖ q⁻) once there is an old network."""
        taught, share = self.taught(batch), self.old_share(batch.experience)
        if taught is None:
            return {}
        old, target = (self.corrected(z[:, : taught.logits.shape[1]]) for z in (output.logits, taught.logits))
        return {"distillation": share * distillation(old, target, self.temperature)}

    # -- stage 2: the newest bias layer ----------------------------------------------------------------------------

    def extra_phases(self, experience: Experience) -> list[Phase]:
        """Learn the newest bias layer, where both old and new classes have samples held out."""
        if self.layer_ is None:
            return []
        ids = balanced_subset(torch.cat([self.held_out_, self.valid_memory_.ids]), self.run)
        new = torch.isin(self.run.targets(ids), torch.tensor(experience.new_classes))
        if new.all() or not new.any():
            return []
        layer = self.layer_
        return [
            Phase(
                name="bias",
                data=lambda: TensorView(self.run.features(ids), self.run.targets(ids), batch_size=len(ids)),
                epochs=self.bias_epochs,
                loss=self.bias_loss,
                parameters=[ParameterGroup([layer], weight_decay=0.0)],
                eval_modules=lambda: [self.network],
                optimizer={"name": "adam", "lr": self.bias_lr, "schedule": "constant", "warmup": 0.0},
                on_end=lambda: self.keep_layer(experience),
            )
        ]

    def bias_loss(self, batch: Batch) -> dict[str, Tensor]:
        """CE(q, y) on features (B, D), with the newest layer on the new classes."""
        logits = self.corrected(self.network.classifier(batch.x))
        num_old = logits.shape[1] - len(batch.experience.new_classes)
        new = logits[:, num_old:]
        if self.layer_ is not None:
            new = self.layer_[0] * new + self.layer_[1]
        return {"classification": cross_entropy(torch.cat([logits[:, :num_old], new], 1), batch.y)}

    def keep_layer(self, experience: Experience) -> None:
        """Fix the newest layer."""
        num_old = len(self.scale_) - len(experience.new_classes)
        if self.layer_ is not None:
            alpha, beta = self.layer_.detach()
            self.scale_ = torch.cat([self.scale_[:num_old], self.scale_[num_old:] * alpha])
            self.shift_ = torch.cat([self.shift_[:num_old], self.shift_[num_old:] + beta])

    # -- afterwards ------------------------------------------------------------------------------------------------

    def choose_exemplars(self, experience: Experience) -> None:
        """Herd training exemplars among what was trained on, and draw validation exemplars among what was held out."""
        num_seen = experience.num_seen_classes
        memories = (self.memory_, self.kept_in(experience)), (self.valid_memory_, self.held_out_)
        for (memory, ids), quota in zip(memories, self.quotas(num_seen), strict=True):
            memory.size = quota * num_seen if memory.budget == "total" else quota
            for part in (ids[:0], ids):  # shrink before anything is read
                memory.add_classes(
                    part, self.run.targets(part), num_seen, generator=self.run.rng("memory"), features=self.run.features
                )
        self.means_ = exemplar_means(self.memory_, self.run) if self.nme else None

    def report_heads(self, output: Output) -> dict[str, Tensor]:
        """Score by the corrected logits, and by the exemplar means."""
        return {"classifier": self.corrected(output.logits), **self.nme_head(output.features)}
