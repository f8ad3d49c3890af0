"""FOSTER, feature boosting and compression: a second branch fits what the old one misses, then one student learns both."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from clframe.errors import ConfigurationError
from clframe.losses import balanced_distillation, class_weights, cross_entropy, distillation
from clframe.models import Network, Output
from clframe.spec import field
from clframe.strategies._checks import refuse_multi_head
from clframe.strategies._exemplars import ExemplarStrategy
from clframe.strategy import Batch, ParameterGroup, Phase, RunContext
from clframe.stream import Experience

__all__ = ["FOSTER"]


class FOSTER(ExemplarStrategy):
    """Feature boosting and compression.

    Wang, Zhou, Ye & Zhan 2022, "FOSTER: Feature Boosting and Compression for Class-Incremental Learning", ECCV. The
    first experience trains plainly. In every later one, with φ_o, W_o the student of the experience before:

    Boosting (section 4.2), φ_o and W_o frozen, φ_n starting as a copy of φ_o:

        z = W [φ_o(x), φ_n(x)] + b,   z_e = W_e φ_n(x),   z_o = W_o φ_o(x)
        L = CE(z ⊘ w(β₁), y) + CE(z_e, y) + λ KD_T(z_{1:K_old} ‖ z_o)
            logits alignment   feature enhancement   distillation

    with w_c(β) ∝ (1 − β) / (1 − β^{n_c}), of mean 1, and n_c the samples of class c among new data ∪ memory. W starts
    with the old rows W_o on the old features, everything else afresh.

    Compression (section 4.3), a student of one branch starting from φ_o and W_o:

        L = −Σ_c q_c log σ(z_student / T)_c,   q_c ∝ w_c(β₂) σ(z / T)_c          balanced distillation, nothing else

    The next experience starts from the student. Exemplars are herded on the teacher's features.

    Official recipe, CIFAR-100: 170 epochs of boosting (200 in the first experience), 130 of compression, 2000 exemplars,
    SGD 0.1, weight decay 5e-4, cosine to zero in every stage (`--optimizer.schedule cosine`), AutoAugment and Cutout.
    β₁ per protocol (official; β₂ .97 unless said): B0-10 [.98, .975, …, .94], B0-5 [.97, .96, .95, .94], B0-20 .96,
    B50-Inc10 and -Inc5 .94, B50-Inc2 .95, B50-Inc1 .95/.98, ImageNet-100 B50 .97. PyCIL: .96 and .97.

    Report heads: `student` (primary), `teacher` (the two branches, "FOSTER B4"), in the first experience the same
    network; `nme`, on the teacher's features.

    Differs from the paper:
        n_c is counted, where the code sets 500 for every new class. The optional weight alignment of teacher and
        student, off in the official configurations, is left out. Where an experience brings no new class, both stages
        run as usual.
    """

    compression_epochs: int | None = field(
        default=None, ge=1, unit="epochs", help="Length of compression; none means `epochs` (official: 130 to 170)."
    )
    beta1: float | list[float] = field(
        default=0.96,
        ge=0,
        lt=1,
        help="β of the logits alignment, or a list of one per experience after the first (PyCIL: 0.96).",
    )
    beta2: float | list[float] = field(
        default=0.97, ge=0, lt=1, help="β of the balanced distillation, in the same form (official and PyCIL: 0.97)."
    )
    distill_weight: float = field(
        default=1.0, ge=0, help="λ, the weight of the distillation while boosting (official and PyCIL: 1)."
    )
    temperature: float = field(default=2.0, gt=0, help="T of both distillations (official and PyCIL: 2).")
    new_on_old: Literal["train", "zero"] = field(
        default="train",
        help="Weights of new classes on old features: trained (the code's oofc=ft, its default) or pinned to zero (az).",
    )
    compression_weight_decay: float = field(
        default=0.0, ge=0, help="Weight decay of compression (official and PyCIL: 0)."
    )

    def check(self, run: RunContext) -> None:
        """Refuse a memory too small for the stream's classes, too few β, and a classifier of several layers."""
        super().check(run)
        refuse_multi_head(self, run)
        for name, given in (("beta1", self.beta1), ("beta2", self.beta2)):
            if isinstance(given, list) and len(given) < run.num_experiences - 1:
                raise ConfigurationError(
                    f"strategy.{name}: expected one value for each of {run.num_experiences - 1} experiences after the "
                    f"first, received {len(given)}: give more, or one number for all."
                )

    def setup(self) -> None:
        """Start with an empty memory, without teacher and student."""
        super().setup()
        self.student_: Network | None = None
        self.teacher_: Network | None = None

    def before_experience(self, experience: Experience) -> None:
        """Freeze the last student as φ_o with its head W_o; put φ_n beside it, with W over both and W_e."""
        if experience.index == 0:
            super().before_experience(experience)
            return
        network, num_old, num_seen = self.network, self.network.num_classes, experience.num_seen_classes
        self.student_, self.teacher_, self.means_ = self.next_student(num_seen), None, None
        old = network.add_head("old", num_old, inputs=0)
        old.load_state_dict(network.classifier.state_dict())
        old.requires_grad_(False)
        network.freeze_branch(0)
        network.add_branch(copy_from=0)
        network.grow(num_seen)
        network.add_head("enhancement", num_seen, inputs="last")
        if self.new_on_old == "zero":
            weight = network.classifier.weight.detach().clone()
            weight[num_old:, : network.branch_dims[0]] = 0
            network.classifier.write(weight)

    def next_student(self, num_classes: int) -> Network:
        """Copy the last student, φ_o and W_o, into a network of its own, with fresh rows for the new classes."""
        student = self.run.fresh_network()
        student.grow(self.network.num_classes)
        student.load_state_dict(self.network.state_dict())
        student.grow(num_classes)
        return student

    def phases(self, experience: Experience) -> list[Phase]:
        """Boost, then compress; the first experience trains plainly."""
        if experience.index == 0:
            return [self.main_phase(experience)]
        data = self.training_data(experience)
        counts = torch.bincount(self.run.targets(data.ids), minlength=experience.num_seen_classes)
        beta1, beta2 = (_of_experience(beta, experience) for beta in (self.beta1, self.beta2))
        device = self.run.device
        student = self._student()
        boost = Phase(
            name="boost",
            data=data,
            epochs=self.epochs,
            loss=partial(self.boosting_loss, weights=class_weights(counts, beta1).to(device)),
        )
        compress = Phase(
            name="compress",
            data=data,
            epochs=self.compression_epochs or self.epochs,
            loss=partial(self.compression_loss, weights=class_weights(counts, beta2).to(device)),
            parameters=[ParameterGroup(list(student.parameters()))],
            train_modules=[student],
            eval_modules=[self.network],
            optimizer={"weight_decay": self.compression_weight_decay},
        )
        return [boost, compress]

    # -- boosting --------------------------------------------------------------------------------------------------

    def boosting_loss(self, batch: Batch, weights: Tensor) -> dict[str, Tensor]:
        """CE(z ⊘ w, y) + CE(z_e, y) + λ KD_T(z_{1:K_old} ‖ z_o)."""
        output = self.network(batch.x)
        enhanced = self.network.head_logits("enhancement", output)
        old = self.network.head_logits("old", output)
        kept = distillation(output.logits[:, : old.shape[1]], old, self.temperature)
        return {
            "classification": cross_entropy(output.logits / weights, batch.y),
            "enhancement": cross_entropy(enhanced, batch.y),
            "distillation": self.distill_weight * kept,
        }

    def after_backward(self, batch: Batch) -> None:
        """Keep the new classes' weights on old features at zero, when asked to."""
        if self.new_on_old == "zero" and batch.phase == "boost":
            num_old = batch.experience.num_seen_classes - len(batch.experience.new_classes)
            gradient = self.network.classifier.weight.grad
            if gradient is not None:
                gradient[num_old:, : self.network.branch_dims[0]] = 0

    # -- compression -----------------------------------------------------------------------------------------------

    def compression_loss(self, batch: Batch, weights: Tensor) -> dict[str, Tensor]:
        """Balanced distillation alone, from the boosted network to the student."""
        with torch.no_grad():
            teacher = self.network(batch.x).logits
        student = self._student()(batch.x).logits
        return {"compression": balanced_distillation(student, teacher, weights, self.temperature)}

    def _student(self) -> Network:
        """Return the student in training; the first experience has none apart from the network itself."""
        return self.network if self.student_ is None else self.student_

    # -- afterwards ------------------------------------------------------------------------------------------------

    def after_experience(self, experience: Experience) -> None:
        """Choose exemplars by herding on the teacher's features; from here the network is the student."""
        super().after_experience(experience)
        if self.student_ is not None:
            self.teacher_, self.network, self.student_ = self.network.frozen_copy(), self.student_, None

    def report_heads(self, output: Output) -> dict[str, Tensor]:
        """Score by the network: after compression, the student."""
        return {"student": output.logits}

    def predict(self, x: Tensor, task_ids: Tensor | None = None) -> dict[str, Tensor]:
        """Score by the student, by the teacher, and by the exemplar means of the teacher's features."""
        output = self.network(x)
        heads = self.report_heads(output)
        if self.teacher_ is not None:
            output = self.teacher_(x)
        heads["teacher"] = output.logits
        return heads | self.nme_head(output.features)


def _of_experience(beta: float | list[float], experience: Experience) -> float:
    """Return an experience's β: the list's first value belongs to the second experience."""
    return beta[experience.index - 1] if isinstance(beta, list) else beta
