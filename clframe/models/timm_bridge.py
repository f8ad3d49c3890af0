"""Any model of timm as a backbone; timm is imported when one is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from clframe.errors import ConfigurationError, did_you_mean
from clframe.models.backbone import Backbone, BackboneConfig, image_shape
from clframe.spec import field

__all__ = ["Timm", "TimmBackbone"]


class TimmBackbone(Backbone):
    """A timm model without its classifier.

    Args:
        model: Made with `num_classes=0`, so that its forward gives (B, D).
        channels: Channels of the images.
        resize: Height and width in pixels to which images are resized first; None leaves them.
    """

    def __init__(self, model: nn.Module, channels: int, resize: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.resize = resize
        config = _pretrained_config(model)
        self.input_mean = _per_channel(config.get("mean"), channels)
        self.input_std = _per_channel(config.get("std"), channels)
        size = config.get("input_size")
        self.input_size = (int(size[1]), int(size[2])) if size else None
        self.feature_dim = int(cast(Any, getattr(model, "head_hidden_size", None) or model.num_features))

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize is None or x.shape[2:] == (self.resize, self.resize):
            return x
        return F.interpolate(x, (self.resize, self.resize), mode="bilinear", antialias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Compute features as timm pools them: (B, C, H, W) to (B, D)."""
        return cast(Tensor, self.model(self._resized(x)))

    def forward_stages(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute the features and timm's intermediate maps (B, C_k, H_k, W_k).

        timm takes a stage's map where it ends, for most residual networks after the last ReLU. Models without
        `forward_intermediates` show no stages.
        """
        taps = getattr(self.model, "forward_intermediates", None)
        if taps is None:
            return self.forward(x), ()
        last, stages = taps(self._resized(x))
        return cast(Any, self.model).forward_head(last), tuple(stages)

    def weights_target(self) -> nn.Module:
        """The timm model: its files don't know of this wrapper."""
        return self.model


class Timm(BackboneConfig):
    """Any model of timm by its name, with or without pretrained weights."""

    free_options: ClassVar[frozenset[str]] = frozenset({"pretrained", "drop_rate", "drop_path_rate"})

    model: str = field(help="timm's name of the model, for instance vit_base_patch16_224.augreg2_in21k_ft_in1k.")
    pretrained: bool = field(default=False, help="Start from timm's weights, from its cache or a download.")
    resize: int | None = field(default=None, ge=8, unit="pixels", help="Resize images to this height and width first.")
    drop_rate: float = field(
        default=0.0, ge=0, lt=1, help="timm's drop_rate: dropout in front of the removed classifier."
    )
    drop_path_rate: float = field(default=0.0, ge=0, lt=1, help="timm's drop_path_rate: stochastic depth.")
    options: dict[str, Any] = field(default_factory=dict, help="Further keywords for timm.create_model.")

    def make(self, input_shape: tuple[int, ...]) -> TimmBackbone:
        """Make the model for images (C, H, W).

        Raises:
            ConfigurationError: timm has no such model, its weights are not at hand, or the images have another size
                than the model takes.
        """
        channels, height, width = image_shape(input_shape, f"timm/{self.model}")
        if self.pretrained and self.weights is not None:
            raise ConfigurationError(
                "Expected either backbone.weights or backbone.pretrained, received both; leave one out."
            )
        model = self._create(channels)
        self._check_size(model, (self.resize or height, self.resize or width))
        return TimmBackbone(model, channels, self.resize)

    def skeleton(self, input_shape: tuple[int, ...]) -> Backbone:
        """Make the same architecture without reading any weights."""
        return self.replace(pretrained=False, weights=None).make(tuple(input_shape))

    def _create(self, channels: int) -> nn.Module:
        import timm

        if not timm.is_model(self.model):
            hint = did_you_mean(self.model.split(".")[0], timm.list_models()) or " timm.list_models() shows them."
            raise ConfigurationError(f"timm has no model named {self.model!r}.{hint}")
        keywords = {k: v for k in ("drop_rate", "drop_path_rate") if (v := getattr(self, k))} | self.options
        try:
            made = timm.create_model(
                self.model, pretrained=self.pretrained, num_classes=0, in_chans=channels, **keywords
            )
        except Exception as error:
            raise ConfigurationError(self._complaint(error)) from error
        return cast(nn.Module, made)

    def _complaint(self, error: Exception) -> str:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if self.pretrained:
            return (
                f"The pretrained weights of timm's {self.model!r} are neither in the cache nor to be downloaded "
                f"({type(error).__name__}: {reason}); give a file with --backbone.weights, or fetch them once online."
            )
        return f"timm could not make {self.model!r} ({type(error).__name__}: {reason}); change backbone.options."

    def _check_size(self, model: nn.Module, size: tuple[int, int]) -> None:
        """Refuse images that a model of fixed input size would refuse in the middle of a run."""
        config = _pretrained_config(model)
        taken = self.options.get("img_size")
        expected = (taken, taken) if isinstance(taken, int) else taken or (config.get("input_size") or (0, 0, 0))[1:]
        if config.get("fixed_input_size") and tuple(expected) != size:
            raise ConfigurationError(
                f"timm's {self.model!r} takes images of {expected[0]}×{expected[1]} pixels, received "
                f"{size[0]}×{size[1]}; set --backbone.resize {expected[0]}, or the option img_size of the model."
            )


def _pretrained_config(model: nn.Module) -> Mapping[str, Any]:
    config = getattr(model, "pretrained_cfg", None)
    return cast("Mapping[str, Any]", config) if config else {}


def _per_channel(values: Any, channels: int) -> tuple[float, ...] | None:
    """Give timm's values for RGB; their average for grey images, which is how timm folds the first layer's weights."""
    if not values or channels not in (1, len(values)):
        return None
    return tuple(float(v) for v in values) if channels == len(values) else (sum(values) / len(values),)
