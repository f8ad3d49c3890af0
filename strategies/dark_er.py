"""Dark experience replay, DER and DER++: match the logits that a sample had when it was stored."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from clframe.losses import cross_entropy, logit_matching
from clframe.models import MultiHead, Output
from clframe.spec import field
from clframe.strategies._checks import refuse_local_softmax
from clframe.strategies._online import StepReplay, labelled_rows, parts_of
from clframe.strategy import Batch, DataView, RunContext
from clframe.stream import Experience

__all__ = ["DarkER"]


class DarkER(StepReplay):
    """Dark experience replay: DER++, and DER with `beta=0`.

    Buzzega, Boschini, Porrello, Abati & Calderara 2020, "Dark Experience for General Continual Learning: a Strong, Simple
    Baseline", NeurIPS. Not dynamically expandable representation, which is `der`. At every step, with (x', z') and
    (x'', y'') two draws of their own from the memory:

        L = CE(f(x), y) + α (1/K') ‖z' − f(x')‖² + β CE(f(x''), y'')      eq. 6; the code's mean over the K' classes

    The classifier has all classes of the stream from the start (`head_classes=all`), and all take part in the softmax
    unless `loss_over` says otherwise: so the logits of classes to come are pushed down, and z' keeps them there.

    Every sample (x, y) of the stream is offered to a reservoir together with z = f(x), its logits in the very step that
    trains on it. α = 0 and β = 1 is `replay` in its step form; α = β = 0 is fine-tuning, both with
    the same classifier.

    α and β depend on data and memory: 0.3 and 0.5 are Mammoth's for CIFAR-100 with 500 samples (SGD 0.03, batch 32). The
    logits of the memory count in its bytes.

    Report heads: `classifier`.

    Differs from the paper:
        Predictions are among the classes seen, where the paper's code allows all of the stream. With `head_classes=seen`,
        and in a multi-head always, the classifier grows; z' is then compared on the classes that were known when it was
        stored, in a multi-head on those of the sample's own task. Beware of it: nothing keeps the logits of later
        classes down on old samples then, and in the class-incremental setting DER becomes fine-tuning.
        A sample is offered once, in the first epoch, where the paper's code offers it in every one; so nothing is
        stored twice. For z' to come from an epoch drawn uniformly all the same (`logits_of=any`), a stored sample's logits
        are renewed in its epoch e with probability 1/e. x'' passes through the network with x and shares their
        BatchNorm statistics; x' passes alone, as both do in the code.
    """

    alpha: float = field(
        default=0.3, ge=0, help="α, the weight of the logits (Mammoth: 0.3 on CIFAR-100 with 500 samples)."
    )
    beta: float = field(
        default=0.5, ge=0, help="β, the weight of the labels, 0 for DER (Mammoth: 0.5 on CIFAR-100 with 500 samples)."
    )
    head_classes: Literal["all", "seen"] = field(
        default="all", help="Classes of the classifier: all of the stream from the start (paper), or those seen so far."
    )
    logits_of: Literal["any", "first", "last"] = field(
        default="any",
        help="Epoch whose logits a stored sample keeps: any of the experience's, drawn uniformly (paper), or one of its ends.",
    )

    def check(self, run: RunContext) -> None:
        """Refuse a memory too small for the stream's classes, and a loss on labels that leaves out the old ones."""
        self._new_memory(run).check(run.num_classes)
        if self.memory_size and self.beta:
            refuse_local_softmax(self, run)

    def setup(self) -> None:
        """Start with an empty memory."""
        super().setup()
        self.logits_: Tensor | None = None
        self.num_seen_ = 0

    def before_experience(self, experience: Experience) -> None:
        """Give the classifier all classes at once, or let it grow."""
        if self.head_classes == "all" and not isinstance(self.network.classifier, MultiHead):
            self.network.grow(self.run.num_classes)
        super().before_experience(experience)
        self.num_seen_ = experience.num_seen_classes

    def training_data(self, experience: Experience) -> DataView:
        """New data, and beside them the draw for the loss on labels."""
        return super().training_data(experience) if self.beta else DataView(experience.train)

    def allowed_classes(self, batch: Batch) -> Tensor | None:
        """Return the mask that `loss_over` asks for; `seen` leaves out the classes to come."""
        if self.loss_over == "seen" and self.network.num_classes > self.num_seen_:
            return torch.arange(self.network.num_classes, device=batch.x.device) < self.num_seen_
        return super().allowed_classes(batch)

    def main_loss(self, batch: Batch, output: Output) -> Tensor:
        """CE(f(x), y), over the new samples alone."""
        new = batch.num_new
        return cross_entropy(output.logits[:new], batch.y[:new], parts_of(self.allowed_classes(batch), new)[0])

    def extra_losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """β CE(f(x''), y'') and α (1/K') ‖z' − f(x')‖², once there is a memory; keeps z for `after_step`."""
        terms: dict[str, Tensor] = {}
        new, nothing = batch.num_new, output.logits.new_zeros(())
        if self.beta and self.memory_size:
            of_old = parts_of(self.allowed_classes(batch), new)[1]
            value = cross_entropy(output.logits[new:], batch.y[new:], of_old) if len(batch.y) > new else nothing
            terms["labels"] = self.beta * value
        if self.alpha and self.memory_size:
            self.logits_ = output.logits[:new].detach().float()
            terms["logits"] = self.alpha * self.matching() if len(self.memory_) else nothing
        return terms

    def matching(self) -> Tensor:
        """(1/K') ‖z' − f(x')‖² on a draw of its own, augmented anew."""
        rows = self.memory_.sample(self.replayed, generator=self.run.rng("dark"))
        drawn = self.run.training_batch(self.memory_.ids[rows], "dark")
        stored = self.memory_.extras["logits"][rows].to(drawn.x.device)
        return logit_matching(self.network(drawn.x, drawn.task_ids).logits, stored)

    def after_step(self, batch: Batch) -> None:
        """Offer new samples with their logits; in later epochs, renew some of those that were stored."""
        logits, self.logits_ = self.logits_, None
        self.offer(batch, None if logits is None else {"logits": logits})
        if logits is not None and batch.epoch > 0 and batch.phase == self.offering_ and self.logits_of != "first":
            ids, logits = self.run.gathered(batch.ids[: batch.num_new]), self.run.gathered(logits)
            rows = labelled_rows(ids, batch.experience)
            if self.logits_of == "any":
                draws = torch.rand(len(rows), generator=self.run.rng("renewal"))
                rows = rows[draws < 1 / (batch.epoch + 1)]
            self.memory_.renew(ids[rows], {"logits": logits[rows]})

    @property
    def scored_classes(self) -> int:
        """The classes seen."""
        return self.num_seen_

    def report_heads(self, output: Output) -> dict[str, Tensor]:
        """Score the classes seen."""
        return {"classifier": output.logits[:, : self.num_seen_]}
