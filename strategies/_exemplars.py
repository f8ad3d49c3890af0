"""What methods with exemplars share: new data ∪ memory, herding, nearest means, balanced subsets, the last teacher."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from clframe.memory import Budget, ExemplarMemory
from clframe.models import Output
from clframe.spec import field
from clframe.strategies._checks import refuse_local_softmax
from clframe.strategies._teacher import TeacherStrategy
from clframe.strategy import DataView, RunContext, Strategy, Tags
from clframe.stream import Experience, Setting

__all__ = [
    "ExemplarStrategy",
    "TaughtStrategy",
    "balanced_subset",
    "exemplar_means",
    "nearest_mean_scores",
    "take_exemplars",
]


class ExemplarStrategy(Strategy):
    """The frame of class-incremental methods with exemplars: train on new data ∪ memory, herd afterwards, report NME too.

    `choose_exemplars` is the one place where the memory changes; a method whose exemplars or means come from another
    network than the run's overrides it.
    """

    tags: ClassVar[Tags] = Tags(
        settings=frozenset[Setting]({"class"}), needs_boundaries=True, stores_samples=True, online=False
    )

    memory_size: int = field(
        default=200,
        ge=1,
        unit="samples",
        help="Exemplars: in all (budget total; 2000 in most papers) or of every class.",
    )
    budget: Budget = field(
        default="total",
        help="total: ⌊memory_size / classes seen⌋ per class (the papers' B0); per_class: fixed (their B50, 20 each).",
    )
    nme: bool = field(default=True, help="Report the nearest mean of exemplars too, as PyCIL does.")

    def check(self, run: RunContext) -> None:
        """Refuse a memory too small for the stream's classes, and a softmax that leaves out the old ones."""
        self._new_memory(run).check(run.num_classes)
        refuse_local_softmax(self, run)

    def setup(self) -> None:
        """Start with an empty memory."""
        super().setup()
        self.memory_ = self._new_memory(self.run)
        self.means_: Tensor | None = None

    def _new_memory(self, run: RunContext) -> ExemplarMemory:
        return ExemplarMemory(self.memory_size, budget=self.budget, sample_bytes=run.sample_bytes)

    def training_data(self, experience: Experience) -> DataView:
        """New data ∪ memory."""
        return DataView(torch.cat([experience.train, self.memory_.ids]))

    def after_experience(self, experience: Experience) -> None:
        """Choose exemplars."""
        self.choose_exemplars(experience)
        super().after_experience(experience)

    def choose_exemplars(self, experience: Experience) -> None:
        """Herd exemplars on the network's features, and compute the class means."""
        take_exemplars(self.memory_, experience, self.run)
        self.means_ = exemplar_means(self.memory_, self.run) if self.nme else None

    def report_heads(self, output: Output) -> dict[str, Tensor]:
        """Score by the classifier, and by the distance to the exemplar means."""
        return {"classifier": output.logits, **self.nme_head(output.features)}

    def nme_head(self, features: Tensor) -> dict[str, Tensor]:
        """Score features (B, D) by the exemplar means; nothing while there are none, or none of that length."""
        if self.means_ is None or self.means_.shape[1] != features.shape[1]:
            return {}
        return {"nme": nearest_mean_scores(features, self.means_)}


class TaughtStrategy(ExemplarStrategy, TeacherStrategy):
    """The frame of exemplar methods that also learn from a frozen copy of the network of the experience before."""

    def old_share(self, experience: Experience) -> float:
        """Return λ: 0 while there is no teacher, then the share of the classes seen that this experience has no data of.

        Where no class comes back that is K_old / K.
        """
        seen = experience.num_seen_classes
        return 0.0 if self.teacher_ is None else (seen - len(experience.classes)) / seen


def balanced_subset(ids: Tensor, run: RunContext) -> Tensor:
    """Draw as many samples of every class as the smallest class among them has."""
    order = ids[torch.randperm(len(ids), generator=run.rng("balanced"))]
    labels = run.targets(order)
    classes, counts = torch.unique(labels, return_counts=True)
    return torch.cat([order[:0], *(order[labels == c][: int(counts.min())] for c in classes)])


def take_exemplars(memory: ExemplarMemory, experience: Experience, run: RunContext) -> None:
    """Choose exemplars of an experience by herding on the run's network, or by random draws, as the memory's policy says."""
    memory.add_classes(
        experience.train,
        run.targets(experience.train),
        experience.num_seen_classes,
        generator=run.rng("memory"),
        features=run.features,
    )


def exemplar_means(memory: ExemplarMemory, run: RunContext) -> Tensor:
    """Return the re-normalised means of normalised exemplar features (Rebuffi et al. 2017, eq. 2).

    Returns:
        (K, D) on the run's device; NaN for a class without exemplars.
    """
    features = functional.normalize(run.features(memory.ids), dim=1)
    means = torch.full((run.network.num_classes, features.shape[1]), torch.nan)
    for label in torch.unique(memory.targets).tolist():
        means[label] = functional.normalize(features[memory.targets == label].mean(dim=0), dim=0)
    return means.to(run.device)


def nearest_mean_scores(features: Tensor, means: Tensor) -> Tensor:
    """Score by the negative squared distance of unit features (B, D) to means (K, D); −∞ where there is no mean.

    Returns:
        (B, K).
    """
    unit = functional.normalize(features.float(), dim=1)
    # without matrix products, which mixed precision would round and whose bits depend on the batch's size
    distances = torch.cdist(unit, means, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.nan_to_num(-distances.square(), nan=-torch.inf)
