"""Classifier alignment: train the classifier on features drawn from one Gaussian per class."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from clframe.class_statistics import ClassStatistics, Covariance
from clframe.composite import tags_of
from clframe.errors import ConfigurationError
from clframe.losses import cross_entropy, normalised_cross_entropy
from clframe.spec import field
from clframe.strategies._stages import ClassifierStage, stage_recipe
from clframe.strategy import Batch, Phase, RunContext, Tags, TensorView
from clframe.stream import Experience

__all__ = ["GaussAlign"]


class GaussAlign(ClassifierStage):
    """Gaussian alignment of the classifier after every experience, behind any strategy: `finetune+gauss_align`.

    The second stage of SLCA (Zhang, Wang, Kang, Chen & Wei 2023, "SLCA: Slow Learner with Classifier Alignment for
    Continual Learning on a Pre-trained Model", ICCV), without exemplars. After an experience t, mean μ_c and covariance
    Σ_c of the test-transform features of its classes are kept for good. Then a copy of the classifier is trained alone on
    `samples_per_class` draws of every class seen,

        φ ~ N(s_c μ_c, Σ_c + ε I),   s_c = 1 − d + d (t_c + 1)/(t + 1)         t_c the experience that brought class c
        L = CE(z / (n̄ τ), y),   n̄ = mean over experiences i of ‖z_{C_i}‖₂       by sample; C_i the classes i brought

    Official (d = 0.1, τ = 0.1, ε = 1e-4): 256 draws, 5 epochs of batches of 256, SGD 0.01, cosine to zero.

    Report heads: `classifier`, after the stage; `before_stage`.

    Differs from the paper:
        Features are drawn once per stage, not anew in every epoch. Batches mix classes; the code's hold one or few. What
        the features drift after an experience is not made up for, in the paper neither: the less the representation
        moves, the better. A class that comes again has one Gaussian of all its features, and counts as its latest
        experience's.
    """

    tags: ClassVar[Tags] = replace(ClassifierStage.tags)

    samples_per_class: int = field(default=256, ge=1, unit="samples", help="Draws of every class (official: 256).")
    stage_epochs: int = field(default=5, ge=1, unit="epochs", help="Length of the stage (official: 5; PILOT: 3).")
    stage_batch_size: int = field(default=256, ge=1, unit="samples", help="Of the stage (official: 256).")
    stage_lr: float = field(default=0.01, gt=0, help="Learning rate of the stage, cosine to zero (official: 0.01).")
    stage_weight_decay: float = field(default=5e-4, ge=0, help="Weight decay of the stage (official: 5e-4).")
    covariance: Covariance = field(
        default="full",
        help="full: D² values per class (official); shared: D² in all; diagonal: D per class; low_rank: `rank` leading "
        "directions per class and the mean variance across the others; none: means alone, with the variance ε.",
    )
    rank: int = field(default=10, ge=1, help="Directions kept of every class by the low-rank covariance.")
    ridge: float = field(default=1e-4, ge=0, help="ε, added to every variance (official: 1e-4).")
    mean_decay: float = field(
        default=0.1, ge=0, le=1, help="d, by which the means of old classes are drawn to zero (official: 0.1)."
    )
    temperature: float | None = field(
        default=0.1,
        gt=0,
        help="τ of the normalised logits (official: 0.1; Cars 0.05); none: plain cross-entropy.",
    )

    def check(self, run: RunContext) -> None:
        """Refuse what keeps all data anyway or changes the features' length, and draws without any variance."""
        super().check(run)
        tags = tags_of(run.strategy)
        if tags.grows_features:
            raise ConfigurationError(
                f"{type(self).__name__} keeps Gaussians of old features, but this composition's features grow longer with "
                "every experience: use crt, lws or tau_norm."
            )
        if tags.needs_all_data:
            raise ConfigurationError(
                f"{type(self).__name__} replaces samples that are gone, but this composition keeps all data: use crt."
            )
        if self.covariance == "none" and self.ridge == 0:
            raise ConfigurationError(
                "ridge: without a covariance all draws of a class are its mean: expected a ridge above 0, received 0."
            )

    def setup(self) -> None:
        """Start without statistics."""
        super().setup()
        self.statistics_ = ClassStatistics(self.covariance, self.rank)
        self.task_of_: dict[int, int] = {}

    def begin(self, experience: Experience) -> None:
        """Measure the experience's classes, and copy the classifier."""
        self.measure(experience)
        super().begin(experience)

    def after_experience(self, experience: Experience) -> None:
        """Measure the classes of an experience without the stage."""
        if not self.has_stage(experience):
            self.measure(experience)

    def measure(self, experience: Experience) -> None:
        """Add the experience's features to the statistics of its classes."""
        self.statistics_.update(self.run.features(experience.train), self.run.targets(experience.train))
        self.task_of_.update(dict.fromkeys(experience.classes, experience.index))

    def stage_phase(self, experience: Experience) -> Phase:
        """Return the stage."""
        return Phase(
            name="align",
            data=lambda: self.drawn_features(experience),
            epochs=self.stage_epochs,
            loss=self.align_loss,
            parameters=self.head_parameters,
            eval_modules=lambda: [self.network],
            optimizer=stage_recipe(self.stage_lr, self.stage_weight_decay, "cosine"),
        )

    def drawn_features(self, experience: Experience) -> TensorView:
        """Draw from every class's Gaussian, the means of older classes scaled."""
        labels = self.statistics_.labels
        ages = [(self.task_of_[c] + 1) / (experience.index + 1) for c in labels]
        x, y = self.statistics_.sample(
            labels,
            self.samples_per_class,
            generator=self.run.rng("gaussians"),
            mean_scales=[1 - self.mean_decay + self.mean_decay * age for age in ages],
            ridge=self.ridge,
        )
        return TensorView(x, y, batch_size=self.stage_batch_size)

    def align_loss(self, batch: Batch) -> dict[str, Tensor]:
        """CE(z / (n̄ τ), y)."""
        logits = self.head_logits(batch.x)
        if self.temperature is None:
            return {"alignment": cross_entropy(logits, batch.y)}
        return {"alignment": normalised_cross_entropy(logits, batch.y, self.tasks(), self.temperature)}

    def tasks(self) -> list[list[int]]:
        """The classes that every experience brought."""
        found: dict[int, list[int]] = {}
        for label in sorted(self.task_of_):
            found.setdefault(self.task_of_[label], []).append(label)
        return list(found.values())
