"""PODNet: distil pooled stage maps, classify by several proxies per class."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from clframe.errors import ConfigurationError
from clframe.losses import nca, pod_flat, pod_spatial
from clframe.models import LocalSimilarityHead, Output
from clframe.spec import field
from clframe.strategies._exemplars import TaughtStrategy, balanced_subset
from clframe.strategy import Batch, DataView, ParameterGroup, Phase, RunContext, Tags
from clframe.stream import Experience

__all__ = ["PODNet"]


class PODNet(TaughtStrategy):
    """Pooled outputs distillation, with the local similarity classifier.

    Douillard, Cord, Ollion, Robert & Valle 2020, "PODNet: Pooled Outputs Distillation for Small-Tasks Incremental
    Learning", ECCV. The classifier has P proxies per class on unit vectors; η is learnt, and starts at `head.scale`:

        s_{c,k} = −‖f̂ − ŵ_{c,k}‖²,   ŝ_c = Σ_k softmax_k(s_c) s_{c,k},   logit_c = η ŝ_c

    On new data ∪ memory, with h_l the map of stage l before its ReLU and ⁻ marking the network of the experience before:

        L = NCA + √(K / |C_t|) (λ_c L_spatial + λ_f L_flat)
        NCA       = [−η (ŝ_y − δ) + log Σ_{i≠y} exp(η ŝ_i)]₊
        L_spatial = mean over stages and batch of ‖p(h_l) − p(h_l⁻)‖,   p(h): unit vector of [Σ_width h²; Σ_height h²]
        L_flat    = 1 − cos(f, f⁻)

    The first experience has NCA alone. From the second on, a new class's proxies start at the P centres that k-means
    finds among its normalised features, and old proxies stay as they are (`freeze_old`). Afterwards all proxies, and
    nothing else, train by NCA on equally many samples of every class. Gradients are cut at ±5 throughout.

    Official recipe, CIFAR-100: 160 epochs of cosine decay from 0.1, weight decay 5e-4, 20 exemplars per class,
    `--strategy.budget per_class --strategy.memory-size 20`, a ResNet-32 without its last ReLU: `--backbone.last-relu
    false`. λ_c is 3 for the classifier, 5 for NME; ImageNet-100: λ_c 8, λ_f 10, 90 epochs from 0.05, fine-tuning at 0.01.

    Report heads: `classifier`; `nme`, which the paper's headline numbers are.

    Differs from the paper:
        The features pass the backbone's last ReLU unless `backbone.last_relu` is off. The public ResNet-32 shows its
        last block as a fourth stage; here the last stage ends with it. The margin η δ sends no gradient to η: with one,
        η sinks below 0 before the classes part, and far counts as near. The published numbers come from another loss
        than the paper's, whose margin cancels and which is not cut at 0: `nca=public`. The balanced subset is drawn at
        random, once, among new data ∪ memory, instead of the herded exemplars. A class with fewer distinct samples than
        proxies repeats its centres; with a single class seen, NCA has no sum. Backbones without pixels: see
        `clframe.losses.pod_spatial`.
    """

    tags: ClassVar[Tags] = dataclasses.replace(
        TaughtStrategy.tags, head={"name": "local_similarity", "init": "kaiming_normal"}
    )

    spatial_weight: float = field(default=3.0, ge=0, help="λ_c of POD-spatial (3; 5 for NME; ImageNet-100: 8).")
    flat_weight: float = field(default=1.0, ge=0, help="λ_f of POD-flat (1; ImageNet-100: 10).")
    margin: float = field(default=0.6, ge=0, help="δ of NCA (0.6).")
    nca: Literal["margin", "public"] = field(
        default="margin",
        help="margin: the paper's loss; public: what the authors' code computes, where the margin cancels, the largest "
        "similarity stands in the positive's place, and nothing is cut at 0.",
    )
    imprint: bool = field(
        default=True, help="Start new classes' proxies at k-means centres of their features; off: at random."
    )
    freeze_old: bool = field(default=True, help="Leave old classes' proxies as they are in the main phase.")
    clip: float | None = field(default=5.0, gt=0, help="Largest absolute gradient entry (5); none: as the recipe says.")
    balanced_epochs: int = field(
        default=20, ge=0, unit="epochs", help="Length of the classifier's fine-tuning (20); 0 leaves it out."
    )
    balanced_lr: float = field(default=0.05, gt=0, help="Its constant rate (0.05; ImageNet-100: 0.01).")

    def check(self, run: RunContext) -> None:
        """Refuse a memory too small for the stream's classes, and another kind of classifier."""
        super().check(run)
        if not isinstance(run.network.classifier, LocalSimilarityHead):
            raise ConfigurationError(
                f"head.name: PODNet needs local_similarity, received a {type(run.network.classifier).__name__}: leave "
                "head.name out."
            )

    @property
    def head(self) -> LocalSimilarityHead:
        """The classifier.

        Raises:
            ConfigurationError: It is of another kind.
        """
        head = self.network.classifier
        if not isinstance(head, LocalSimilarityHead):
            raise ConfigurationError(f"PODNet needs a local_similarity head, received a {type(head).__name__}.")
        return head

    # -- new proxies -----------------------------------------------------------------------------------------------

    def before_experience(self, experience: Experience) -> None:
        """Grow the classifier; from the second experience on, imprint the new classes' proxies."""
        super().before_experience(experience)
        if self.imprint and experience.index > 0:
            self.imprint_proxies(experience)

    def imprint_proxies(self, experience: Experience) -> None:
        """Put new proxies at the centres of the class's normalised features, times the old proxies' mean norm."""
        head, num_old = self.head, experience.num_seen_classes - len(experience.new_classes)
        weight = head.weight.detach().clone()
        norm = weight[:num_old].view(-1, head.in_features).norm(dim=1).mean()
        labels = self.run.targets(experience.train)
        for label in experience.new_classes:
            ids = experience.train[labels == label]
            if len(ids):
                features = functional.normalize(self.run.features(ids), dim=1)
                centres = centres_of(features, head.proxies, self.run.rng("imprint"))
                has_direction = centres.any(1)
                weight[label].view(centres.shape)[has_direction] = centres[has_direction].to(weight) * norm
        head.write(weight)

    # -- the main phase --------------------------------------------------------------------------------------------

    def phases(self, experience: Experience) -> list[Phase]:
        """Train the network; after the first experience, fine-tune the classifier on balanced data."""
        clips: dict[str, object] = {} if self.clip is None else {"clip_value": self.clip}
        phases = [dataclasses.replace(self.main_phase(experience), optimizer=clips)]
        if experience.index > 0 and self.balanced_epochs:
            phases.append(
                Phase(
                    name="balanced",
                    data=DataView(balanced_subset(self.training_data(experience).ids, self.run)),
                    epochs=self.balanced_epochs,
                    loss=lambda batch: {"classification": self.main_loss(batch, self.network(batch.x))},
                    parameters=lambda: [ParameterGroup([self.head.weight])],
                    eval_modules=lambda: [self.network],
                    optimizer={
                        **clips,
                        "name": "sgd",
                        "lr": self.balanced_lr,
                        "momentum": 0.9,
                        "schedule": "constant",
                        "warmup": 0.0,
                    },
                )
            )
        return phases

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """NCA + √(K / |C_t|) (λ_c L_spatial + λ_f L_flat), from one forward pass that shows the stages."""
        output = self.network(batch.x, stages=True)
        if self.spatial_weight and not output.stages:
            raise ConfigurationError(
                "strategy.spatial_weight: POD-spatial needs a backbone that shows its stages, received one that doesn't: "
                "choose for instance resnet32, or set strategy.spatial_weight to 0."
            )
        return {"classification": self.main_loss(batch, output), **self.extra_losses(batch, output)}

    def main_loss(self, batch: Batch, output: Output) -> Tensor:
        """NCA; the margin is one of similarities, and so counts η-fold in the logits."""
        margin = self.margin * self.head.scale.detach()
        return nca(output.logits, batch.y, margin, public=self.nca == "public")

    def extra_losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """√(K / |C_t|) (λ_c L_spatial + λ_f L_flat) once there is an old network."""
        old = self.taught(batch, stages=True)
        if old is None:
            return {}
        factor = math.sqrt(batch.experience.num_seen_classes / len(batch.experience.classes))
        terms: dict[str, Tensor] = {}
        if self.spatial_weight:
            terms["pod_spatial"] = factor * self.spatial_weight * pod_spatial(output.stages, old.stages)
        if self.flat_weight:
            terms["pod_flat"] = factor * self.flat_weight * pod_flat(output.features, old.features)
        return terms

    def after_step(self, batch: Batch) -> None:
        """Put old proxies back, whatever momentum and weight decay made of them."""
        if self.freeze_old and self.teacher_ is not None and batch.phase == "train":
            old = self.teacher_.classifier.weight
            with torch.no_grad():
                self.head.weight[: len(old)] = old


def centres_of(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return the centres (count, D) of k-means on features (N, D); fewer than `count` clusters repeat in turn."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    clusters = min(count, len(torch.unique(features, dim=0)))
    # on one thread: several would add up in the order in which they happen to finish
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(clusters, n_init=10, random_state=seed).fit(features.double().numpy())
    centres = torch.from_numpy(fitted.cluster_centers_)
    return centres[torch.arange(count) % clusters]
