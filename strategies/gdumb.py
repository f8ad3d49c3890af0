"""GDumb: keep a balanced memory, learn nothing on the way, and train from scratch on the memory when asked."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from clframe.data.augment import CutMix
from clframe.errors import ConfigurationError
from clframe.losses import mixed_cross_entropy
from clframe.memory import ExemplarMemory
from clframe.spec import field
from clframe.strategies._checks import refuse_local_softmax
from clframe.strategy import Batch, DataView, Phase, RunContext, Strategy, Tags
from clframe.stream import Experience

__all__ = ["GDumb"]


class GDumb(Strategy):
    """Greedy sampler and dumb learner.

    Prabhu, Torr & Dokania 2020, "GDumb: A Simple Approach that Questions Our Progress in Continual Learning", ECCV. A
    question to other methods more than a method: the stream is never trained on.

    Sampler (Alg. 1): a sample enters the memory while its class has less than memory_size / classes seen, in a full
    memory in place of a random sample of the largest class. Learner: before every evaluation, that is after every
    experience, a fresh network is trained on the memory alone, so that what it says depends on nothing but the memory.

    Official recipe, the default here: batch 16, SGD with momentum 0.9 and weight decay 1e-6, gradients clipped to a norm of
    10; one epoch at a tenth of the rate, then cosine from 0.05 to 0.0005 in cycles of 1, 2, 4, 8, … epochs, so a power of two
    ends at the lowest rate; CutMix with α = 1 on half of the images (CIFAR, SVHN; none on MNIST). 256 epochs (128 on
    MNIST). The run's own optimizer is not used.

    Report heads: `classifier`.

    Differs from the paper:
        A network for the classes seen after every experience, where the paper trains once, at the end, for all of the
        stream. CutMix draws for every image, where the code draws once for a batch; in the task-incremental setting it
        pairs images of one task, and the softmax is over the task's classes (`loss_over`), where the paper trains over
        all and masks when testing. Momentum starts anew after the first epoch. The official code
        takes every class's first samples; here an experience's samples pass the sampler once, in random order.
    """

    tags: ClassVar[Tags] = Tags(stores_samples=True, can_unlearn=True)

    memory_size: int = field(default=200, ge=1, unit="samples", help="Exemplars in all.")
    epochs: int = field(default=256, ge=1, unit="epochs", help="Length of every training on the memory (paper: 256).")
    fit_batch: int | None = field(
        default=16, ge=1, unit="samples", help="Batch size of that training (official: 16); none: the run's."
    )
    lr: float = field(default=0.05, gt=0, help="Highest learning rate (official: 0.05).")
    lowest: float = field(
        default=0.01, gt=0, le=1, help="Part of it that every cycle falls to (official: 0.0005 / 0.05)."
    )
    weight_decay: float = field(default=1e-6, ge=0, help="L2 decay (official: 1e-6).")
    clip_norm: float | None = field(default=10.0, gt=0, help="Largest gradient norm (official: 10).")
    cutmix: float = field(
        default=0.5, ge=0, le=1, help="Probability of CutMix for an image, 0 for none (official: 0.5)."
    )
    cutmix_alpha: float = field(default=1.0, gt=0, help="α of CutMix's Beta distribution (official: 1).")

    def check(self, run: RunContext) -> None:
        """Refuse a memory too small for the stream's classes, a local softmax, and CutMix of what is no image."""
        self._new_memory(run).check(run.num_classes)
        refuse_local_softmax(self, run)
        if self.cutmix and len(run.input_shape) != 3:
            raise ConfigurationError(
                f"strategy.cutmix: expected images to mix, received a stream of features {run.input_shape}: set it to 0."
            )

    def setup(self) -> None:
        """Start with an empty memory."""
        self.memory_ = self._new_memory(self.run)

    def _new_memory(self, run: RunContext) -> ExemplarMemory:
        return ExemplarMemory(self.memory_size, policy="greedy_balanced", sample_bytes=run.sample_bytes)

    def phases(self, experience: Experience) -> list[Phase]:
        """One epoch at a tenth of the rate, and cosine with warm restarts, both on the memory alone."""
        length = (self.first_epochs if experience.index == 0 else None) or self.epochs
        restarts = [float(2**k - 1) for k in range(1, (length - 1).bit_length() + 1)]
        optimizer: dict[str, object] = {
            "name": "sgd",
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": self.weight_decay,
            "per": "epoch",
            "warmup": 0.0,
            "clip_norm": self.clip_norm,
            "clip_value": None,
        }
        slow = {**optimizer, "lr": self.lr / 10, "schedule": "constant"}
        fast = {**optimizer, "lr": self.lr, "schedule": "cosine_restarts", "milestones": restarts, "gamma": self.lowest}
        phases = [
            Phase(name="warm_up", data=self.stored, epochs=1, optimizer=slow, on_start=partial(self.begin, experience))
        ]
        if length > 1:
            phases.append(Phase(name="fit", data=self.stored, epochs=length - 1, optimizer=fast))
        return phases

    def begin(self, experience: Experience) -> None:
        """Let the experience pass the sampler, and start with a fresh network."""
        ids, generator = experience.train, self.run.rng("memory")
        ids = ids[torch.randperm(len(ids), generator=generator)]
        self.memory_.observe(ids, self.run.targets(ids), generator=generator)
        layout = self.network.classifier.layout()
        self.network = self.run.fresh_network()
        self.network.classifier.restore(layout)

    def stored(self) -> DataView:
        """Return the memory's samples; in the order of their ids, so that the order of arrival tells nothing."""
        return DataView(self.memory_.ids.sort().values, batch_size=self.fit_batch)

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy, of both labels where two images are mixed."""
        if not self.cutmix:
            return super().loss_terms(batch)
        tasks = None if batch.task_ids is None else batch.task_ids.cpu()
        mixed = CutMix(self.cutmix_alpha, self.cutmix)(batch.x, self.run.rng("cutmix"), tasks)
        logits = self.network(mixed.x, batch.task_ids).logits
        loss = mixed_cross_entropy(logits, batch.y, batch.y[mixed.partner], mixed.share, self.allowed_classes(batch))
        return {"classification": loss}
