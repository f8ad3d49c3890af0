"""Class means of frozen features: the nearest mean (NMC), and prototypes compared by their angle (SimpleCIL)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from clframe.models import Output
from clframe.strategies._exemplars import nearest_mean_scores
from clframe.strategy import Phase, Strategy, Tags
from clframe.stream import Experience

__all__ = ["NMC", "ClassMeans", "SimpleCIL"]


class ClassMeans(Strategy):
    """A frozen network, and of every class the running sum of its features; nothing is trained."""

    tags: ClassVar[Tags] = Tags(needs_pretrained=True)

    def setup(self) -> None:
        """Freeze the network for good, and start with no class."""
        for index in range(len(self.network.branches)):
            self.network.freeze_branch(index)
        self.sums_ = torch.zeros(0, self.network.feature_dim, dtype=torch.float64)
        self.counts_ = torch.zeros(0, dtype=torch.int64)

    def phases(self, experience: Experience) -> list[Phase]:
        """Train nothing."""
        return []

    def represent(self, features: Tensor) -> Tensor:
        """Map features (N, D) to those that are averaged, in double precision."""
        return features.double()

    def after_experience(self, experience: Experience) -> None:
        """Add the experience's samples to the sums and counts of their classes; a class that comes back goes on."""
        labels = self.run.targets(experience.train)
        new = experience.num_seen_classes - len(self.counts_)
        sums = functional.pad(self.sums_, (0, 0, 0, new))
        counts = functional.pad(self.counts_, (0, new))
        self.sums_ = sums.index_add(0, labels, self.represent(self.run.features(experience.train)))
        self.counts_ = counts.index_add(0, labels, torch.ones_like(labels))

    def means(self) -> Tensor:
        """Return the class means (K, D) in single precision, on the run's device; NaN for a class without samples."""
        return (self.sums_ / self.counts_[:, None]).float().to(self.run.device)


class NMC(ClassMeans):
    """Nearest mean of frozen features: a class is the mean of its unit features, an image belongs to the nearest.

    Janson, Zhang, Aljundi & Elhoseiny 2022, "A Simple Baseline that Questions the Use of Pretrained-Models in Continual
    Learning". With φ the frozen network and S_c, n_c a running sum and count of every class:

        f(x) = φ(x) / ‖φ(x)‖₂
        S_c ← S_c + Σ_{y=c} f(x),   n_c ← n_c + 1 for each,   μ_c = S_c / n_c     not normalised again
        ŷ(x) = argmin_c ‖f(x) − μ_c‖₂

    One pass over the data, no exemplars, no task boundaries. The sums don't depend on the order of samples, classes or
    experiences (up to rounding in double precision), so neither does the final accuracy.

    Report head: `nmc`, scores −‖f(x) − μ_c‖₂².

    Differs from the paper:
        Images are normalised as the weights expect (`backbone.input_mean`, `backbone.input_std`, or what the backbone
        states), where the official code feeds pixels in [0, 1]; a mean of 0 and a deviation of 1 repeat that. The paper
        has a ViT-B/16 at 224 pixels; any backbone with weights will do. `epochs` has no meaning here. The network keeps
        an unused linear classifier.
    """

    def represent(self, features: Tensor) -> Tensor:
        """Normalise features to length 1."""
        return functional.normalize(features.double(), dim=1)

    def report_heads(self, output: Output) -> dict[str, Tensor]:
        """Score by the distance to the class means."""
        return {"nmc": nearest_mean_scores(output.features, self.means())}


class SimpleCIL(ClassMeans):
    """Prototypes of frozen features, compared by their angle.

    Zhou, Cai, Ye, Zhan & Liu 2023, "Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and
    Adaptivity are All You Need", in its form without training. With φ the frozen network:

        p_c = mean of φ(x) over the samples of class c      not normalised
        ŷ(x) = argmax_c cos(φ(x), p_c)

    Report head: `cosine`, scores cos(φ(x), p_c).

    Differs from the paper:
        The scale of the cosine classifier, which changes confidences and no prediction, is 1. Prototypes are means over
        all samples of a class that were seen, where the code takes those of the latest experience that has the class.
        Images are normalised as the weights expect, where PILOT's code feeds pixels in [0, 1]. `epochs` has no meaning
        here, and the network's own classifier is unused. PyCIL's method of the same name, which trains the first
        experience, is another.
    """

    def report_heads(self, output: Output) -> dict[str, Tensor]:
        """Score by the cosine of features and prototypes."""
        directions = functional.normalize(self.means(), dim=1)
        # the cosine from the distance of unit vectors: no matrix product, which mixed precision would round
        return {"cosine": 1 + nearest_mean_scores(output.features, directions) / 2}
