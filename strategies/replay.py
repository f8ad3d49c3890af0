"""Experience replay: keep a few past samples and train on them again."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from clframe.losses import cross_entropy
from clframe.memory import OBSERVING, Budget, ExemplarMemory, Policy
from clframe.models import Output
from clframe.spec import field
from clframe.strategies._checks import refuse_local_softmax
from clframe.strategies._exemplars import exemplar_means, nearest_mean_scores, take_exemplars
from clframe.strategies._online import OfferingStrategy, parts_of
from clframe.strategy import Batch, DataView, RunContext, Tags
from clframe.stream import Experience

__all__ = ["Replay"]


class Replay(OfferingStrategy):
    """Experience replay, in its two forms.

    `form=union` (class-incremental code such as PyCIL's "replay"): train on new data ∪ memory, shuffled uniformly; the
    memory is chosen after the experience, whatever the policy.

    `form=step` (Chaudhry et al. 2019, "On Tiny Episodic Memories"; Mammoth's "er"): every step draws `memory_batch`
    samples from the memory beside the new batch, and new samples are offered to the memory as they go by.

    Loss: union, the mean cross-entropy over the whole batch; step, CE(new) + CE(memory), both with weight 1.

    Report heads: `classifier`, and `nme`, the nearest mean of exemplars (Rebuffi et al. 2017, eq. 2) in the spirit of
    PyCIL, which reports it for every method that keeps exemplars.

    Differs from the paper:
        In the step form a sample is offered to the memory once, in the first epoch of its experience, where Mammoth
        offers it again in every epoch; so the reservoir stays a uniform sample of the stream without repetitions.
        Exemplar means are those of one view, without iCaRL's average over the flipped image.
    """

    tags: ClassVar[Tags] = Tags(stores_samples=True, can_unlearn=True)

    memory_size: int = field(
        default=200, ge=0, unit="samples", help="Exemplars: in all (budget total) or of every class (per_class)."
    )
    budget: Budget = field(
        default="total",
        help="total: ⌊memory_size / classes seen⌋ per class, or in all for a reservoir; per_class: fixed.",
    )
    policy: Literal["auto", "herding", "random", "reservoir", "ring", "class_balanced", "greedy_balanced"] = field(
        default="auto", help="How exemplars are chosen; auto: herding for the union form, reservoir for the step form."
    )
    form: Literal["union", "step"] = field(
        default="union", help="Whether the memory joins the data of the experience, or every step."
    )
    memory_batch: int | None = field(
        default=None, ge=1, unit="samples", help="Step form: replayed beside each batch; none: the batch size."
    )
    nme: bool = field(default=True, help="Report the nearest mean of exemplars too.")

    def resolved_policy(self) -> Policy:
        """The policy that `auto` stands for."""
        if self.policy != "auto":
            return self.policy
        return "herding" if self.form == "union" else "reservoir"

    def _new_memory(self, sample_bytes: int) -> ExemplarMemory:
        return ExemplarMemory(
            self.memory_size, budget=self.budget, policy=self.resolved_policy(), sample_bytes=sample_bytes
        )

    def check(self, run: RunContext) -> None:
        """Refuse a memory too small for the stream's classes, and a loss that leaves out the old ones."""
        self._new_memory(run.sample_bytes).check(run.num_classes)
        if self.memory_size:
            refuse_local_softmax(self, run)

    def setup(self) -> None:
        """Start with an empty memory."""
        super().setup()
        self.memory_ = self._new_memory(self.run.sample_bytes)
        self.means_: Tensor | None = None

    def training_data(self, experience: Experience) -> DataView:
        """Mix memory and new data as the form says."""
        if self.form == "union":
            return DataView(torch.cat([experience.train, self.memory_.ids]))
        return DataView(experience.train, memory=self.memory_, memory_batch=self.memory_batch or self.run.batch_size)

    def main_loss(self, batch: Batch, output: Output) -> Tensor:
        """Cross-entropy; in the step form new and replayed samples count one whole each."""
        new = batch.num_new
        if new == len(batch.y):
            return super().main_loss(batch, output)
        logits, (of_new, of_old) = output.logits, parts_of(self.allowed_classes(batch), new)
        return cross_entropy(logits[:new], batch.y[:new], of_new) + cross_entropy(logits[new:], batch.y[new:], of_old)

    def after_step(self, batch: Batch) -> None:
        """Step form: offer new samples to the memory."""
        if self.form == "step" and self._takes_offers:
            self.offer(batch)

    @property
    def _takes_offers(self) -> bool:
        return self.resolved_policy() in OBSERVING

    def after_experience(self, experience: Experience) -> None:
        """Choose exemplars and compute the class means."""
        if not self._takes_offers:
            take_exemplars(self.memory_, experience, self.run)
        elif self.form == "union":
            ids, generator = experience.train, self.run.rng("memory")
            ids = ids[torch.randperm(len(ids), generator=generator)]
            self.memory_.observe(ids, self.run.targets(ids), generator=generator)
        self.means_ = exemplar_means(self.memory_, self.run) if self.nme and len(self.memory_) else None

    def report_heads(self, output: Output) -> dict[str, Tensor]:
        """Score by the classifier, and by the distance to the exemplar means."""
        heads = super().report_heads(output)
        if self.means_ is not None:
            heads["nme"] = nearest_mean_scores(output.features, self.means_)
        return heads
