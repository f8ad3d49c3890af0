"""What LayerNorm and BatchNorm tuning share: a set of affine parameters per experience, chosen per sample by keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from clframe.errors import ConfigurationError
from clframe.losses import cross_entropy
from clframe.models import Backbone
from clframe.spec import field
from clframe.strategies._checks import refuse_multi_head
from clframe.strategies._per_sample import cosines, seen, under, under_each
from clframe.strategy import Batch, ParameterGroup, Phase, RunContext, Strategy
from clframe.stream import Experience

__all__ = ["NormTuning"]

NormSet = dict[str, nn.Parameter]
"""The affine parameters of every norm layer, by their name in the backbone."""


class NormTuning(Strategy):
    """The frame: the network keeps its pretrained values, bit for bit; sets, keys and heads are all that trains."""

    kind: ClassVar[type[nn.Module]]
    """The norm layers that are tuned."""

    epochs: int = field(
        default=5, ge=1, unit="epochs", help="Length of every stage that has no length of its own (official: 5)."
    )
    form: Literal["two_stage", "single_stage"] = field(
        default="two_stage",
        help="two_stage: keys of the pretrained network's features, then the norms, then the classifier; single_stage: "
        "keys at every norm layer, everything at once.",
    )
    key_epochs: int | None = field(
        default=None,
        ge=0,
        unit="epochs",
        help="Length of the key stage; none means `epochs`, 0 takes its optimum in closed form, the mean direction.",
    )
    head_epochs: int | None = field(
        default=None, ge=1, unit="epochs", help="Length of the rectification; none means `epochs`."
    )
    head_lr: float | None = field(
        default=None, gt=0, help="Learning rate of the rectification; none means the run's (official: 1e-3, Adam)."
    )
    loss_over: Literal["auto", "seen", "experience"] = field(
        default="experience",
        help="Classes in the softmax while training; official: the experience's own, all others masked.",
    )

    def check(self, run: RunContext) -> None:
        """Refuse a classifier of several layers, norms without parameters, and lengths of stages that aren't there."""
        refuse_multi_head(self, run)
        if not self.names_in(run.network.branches[0]):
            raise ConfigurationError(
                f"{type(self).__name__} tunes the scale and shift of {self.kind.__name__.strip('_')} layers, but the "
                "backbone's have none: choose another backbone."
            )
        if self.form == "single_stage":
            given = [n for n in ("key_epochs", "head_epochs", "head_lr") if getattr(self, n) is not None]
            if given:
                raise ConfigurationError(
                    f"strategy.{given[0]}: the form single_stage has no such stage, so expected none, received "
                    f"{getattr(self, given[0])}: leave it out, or choose the form two_stage."
                )

    def setup(self) -> None:
        """Start without sets; the throw-away head begins as a copy of the classifier."""
        self.sets_: list[NormSet] = []
        self.keys_: list[list[nn.Parameter]] = []
        self.classes_: list[list[int]] = []
        self.set_of_task_: dict[int, int] = {}
        if self.form == "two_stage":
            self.network.add_head("stage1", 0)

    # -- what there is to tune -------------------------------------------------------------------------------------

    @property
    def backbone(self) -> Backbone:
        """The pretrained network, which never changes."""
        return cast(Backbone, self.network.branches[0])

    @classmethod
    def names_in(cls, backbone: nn.Module) -> list[str]:
        """Return the names of the affine parameters of a backbone's norm layers."""
        layers = (n for n, m in backbone.named_modules() if isinstance(m, cls.kind))
        return [
            f"{layer}.{p}" if layer else p
            for layer in layers
            for p, _ in backbone.get_submodule(layer).named_parameters(recurse=False)
        ]

    def layers(self) -> list[str]:
        """Return the names of the norm layers that have parameters, in the order of the modules."""
        return list(dict.fromkeys(name.rpartition(".")[0] for name in self.names_in(self.backbone)))

    def parameter_counts(self) -> dict[str, int]:
        """Return how many parameters an experience adds: `norms` Σ_l 2 D_l, `keys` D or Σ_l D_l."""
        norms = {n: self.backbone.get_parameter(n).numel() for n in self.names_in(self.backbone)}
        return {"norms": sum(norms.values()), "keys": sum(self._key_lengths())}

    def _key_lengths(self) -> list[int]:
        return [self.network.feature_dim] if self.form == "two_stage" else list(self._widths().values())

    def _widths(self) -> dict[str, int]:
        """Length of a key at every norm layer."""
        names = self.names_in(self.backbone)
        return {name.rpartition(".")[0]: self.backbone.get_parameter(name).numel() for name in names}

    def before_experience(self, experience: Experience) -> None:
        """Grow the heads alike; add a set that starts from the last one, and keys of random direction."""
        old = self.network.num_classes
        super().before_experience(experience)
        if self.form == "two_stage":
            self._grow_like_the_classifier(old)
        names = self.names_in(self.backbone)
        last: Mapping[str, Tensor] = (
            self.sets_[-1] if self.sets_ else {n: self.backbone.get_parameter(n) for n in names}
        )
        self.sets_.append({n: nn.Parameter(last[n].detach().clone()) for n in names})
        generator = self.run.rng("keys")
        draws = [torch.randn(width, generator=generator) for width in self._key_lengths()]
        self.keys_.append([nn.Parameter(functional.normalize(k, dim=0).to(self.run.device)) for k in draws])
        self.classes_.append(list(experience.classes))
        if experience.task_id is not None:
            self.set_of_task_[experience.task_id] = len(self.sets_) - 1

    def _grow_like_the_classifier(self, old: int) -> None:
        """Give the throw-away head the classifier's own rows for the new classes."""
        head, classifier = self.network.heads["stage1"], self.network.classifier
        self.network.grow(classifier.num_classes, head="stage1")
        with torch.no_grad():
            for name, values in head.named_parameters():
                if values.ndim:
                    values[old:] = classifier.get_parameter(name)[old:]

    # -- training --------------------------------------------------------------------------------------------------

    def phases(self, experience: Experience) -> list[Phase]:
        """Keys, norms and rectification, or all at once; the pretrained network stays in eval mode."""
        network = self.network
        main = dataclasses.replace(self.main_phase(experience), eval_modules=[network])
        norms = ParameterGroup(list(self.sets_[-1].values()), weight_decay=0.0)
        keys = ParameterGroup(self.keys_[-1], weight_decay=0.0)
        classifier = ParameterGroup(list(network.classifier.parameters()))
        if self.form == "single_stage":
            everything = [norms, keys, classifier]
            return [dataclasses.replace(main, name="norms", loss=self.single_stage_loss, parameters=everything)]
        key_epochs = self.epochs if self.key_epochs is None else self.key_epochs
        throw_away = ParameterGroup(list(network.heads["stage1"].parameters()))
        stages = [
            dataclasses.replace(main, name="keys", epochs=key_epochs, loss=self.key_loss, parameters=[keys]),
            dataclasses.replace(
                main,
                name="norms",
                loss=self.norm_loss,
                parameters=[norms, throw_away],
                on_start=None if key_epochs else lambda: self.place_key(experience),
            ),
            dataclasses.replace(
                main,
                name="rectify",
                epochs=self.head_epochs or self.epochs,
                loss=self.rectification_loss,
                parameters=[classifier],
                optimizer=None if self.head_lr is None else {"lr": self.head_lr},
            ),
        ]
        return stages if key_epochs else stages[1:]

    def key_loss(self, batch: Batch) -> dict[str, Tensor]:
        """−mean cos(φ(x), k_t), φ of the untouched network."""
        with torch.no_grad():
            features = self.backbone(batch.x)
        return {"keys": -cosines(features, self.keys_[-1][0][None]).mean()}

    def place_key(self, experience: Experience) -> None:
        """Set the key to where mean cos(φ(x), k) is largest: the direction of the mean of unit features."""
        features = functional.normalize(self.run.features(experience.train), dim=1)
        if len(features):
            with torch.no_grad():
                self.keys_[-1][0].copy_(functional.normalize(features.mean(dim=0), dim=0))

    def norm_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Masked CE of the throw-away head on features under set t."""
        features = under(self.backbone, self.sets_[-1], batch.x)
        return {"classification": self._masked(self.network.heads["stage1"](features), batch)}

    def rectification_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Masked CE of the classifier on features under the set that inference would choose."""
        with torch.no_grad():
            features, _ = self.features_of(batch.x, batch.task_ids)
        return {"classification": self._masked(self.network.classifier(features), batch)}

    def single_stage_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Masked CE under set t, and −mean over the layers of cos(q_l(x), k_t^l)."""
        queries: dict[str, Tensor] = {}

        def keep(layer: str, x: Tensor) -> None:
            queries[layer] = self._query(layer, x.detach())

        with seen(self.backbone, self.layers(), keep):
            features = under(self.backbone, self.sets_[-1], batch.x)
        alike = [
            cosines(queries[layer], key[None]).mean()
            for layer, key in zip(self.layers(), self.keys_[-1], strict=True)
            if layer in queries
        ]
        classification = self._masked(self.network.classifier(features), batch)
        return {"classification": classification, "keys": -torch.stack(alike).mean()}

    def _masked(self, logits: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(logits, batch.y, self.allowed_classes(batch))

    # -- choosing and predicting -----------------------------------------------------------------------------------

    def features_of(self, x: Tensor, task_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return features (B, D), each under its own sample's set, and the sets (B,).

        A task id decides where there is one; an id without a set takes the latest.
        """
        if task_ids is not None:
            table = torch.full((2 + max(self.set_of_task_, default=-1),), len(self.sets_) - 1)
            for task, index in self.set_of_task_.items():
                table[task] = index
            chosen = table.to(x.device)[task_ids.clamp(-1, len(table) - 1)]
        elif self.form == "two_stage":
            chosen = self._nearest(self.backbone(x), 0)
        else:
            return self._choosing_at_every_layer(x)
        return under_each(self.backbone, self.sets_, x, chosen), chosen

    def _choosing_at_every_layer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        chosen: dict[str, Tensor] = {}
        layers = self.layers()

        def instead(layer: str, x: Tensor) -> Tensor:
            chosen[layer] = self._nearest(self._query(layer, x), layers.index(layer))
            own = [{n.rpartition(".")[2]: s[n] for n in s if n.rpartition(".")[0] == layer} for s in self.sets_]
            return under_each(self.backbone.get_submodule(layer), own, x, chosen[layer])

        with seen(self.backbone, layers, instead):
            features = self.backbone(x)
        return features, next(reversed(chosen.values()))

    def _nearest(self, queries: Tensor, place: int) -> Tensor:
        """Return the set (B,) whose key at a place has the largest cosine."""
        return cosines(queries, torch.stack([keys[place] for keys in self.keys_])).argmax(dim=1)

    def _query(self, layer: str, x: Tensor) -> Tensor:
        """Return what a layer's keys are compared with (B, D_l): the class token, or the mean over a map's places."""
        tokens = issubclass(self.kind, nn.LayerNorm) and x.shape[-1] == self._widths()[layer]
        if tokens and x.ndim == 3:
            return x[:, 0]
        x = x if tokens else x.movedim(1, -1)
        return x.flatten(1, -2).mean(dim=1) if x.ndim > 2 else x

    def predict(self, x: Tensor, task_ids: Tensor | None = None) -> dict[str, Tensor]:
        """Score by the classifier, by the throw-away head, and by the classifier within the chosen set's classes."""
        features, chosen = self.features_of(x, task_ids)
        heads = {"classifier": self.network.classifier(features)}
        if self.form == "two_stage":
            heads["stage1"] = self.network.heads["stage1"](features)
        if task_ids is None:
            own = torch.zeros(len(self.classes_), self.network.num_classes, dtype=torch.bool)
            for i, classes in enumerate(self.classes_):
                own[i, classes] = True
            heads["selected"] = heads["classifier"].masked_fill(~own.to(x.device)[chosen], -torch.inf)
        return heads
