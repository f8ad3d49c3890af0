"""Pre-activation residual networks: PreAct-ResNet-18 and wide residual networks.

Sources: He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016; Zagoruyko, Komodakis, "Wide
Residual Networks", BMVC 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clframe.models.backbone import Backbone, BackboneConfig, image_shape
from clframe.spec import field

__all__ = ["WRN16", "WRN28", "PreActBlock", "PreActNet", "PreActResNet18", "WideResNet"]


class PreActBlock(nn.Module):
    """BatchNorm, ReLU and a 3×3 convolution, twice, with a shortcut around them.

    Where the shape changes, the shortcut is a 1×1 convolution of the first activation; elsewhere it is the input.

    Args:
        channels_in: Channels of the input.
        channels: Channels of the output.
        stride: Step of the first convolution, in pixels.
        dropout: Probability of zeroing a value between the two convolutions.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.dropout = dropout
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block: (B, C_in, H, W) to (B, C, H', W'), without an activation at its end."""
        active = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(active)
        out = F.relu(self.bn2(self.conv1(active)), inplace=True)
        if self.dropout:
            out = F.dropout(out, self.dropout, self.training)
        return cast(Tensor, self.conv2(out).add_(shortcut))


class PreActNet(Backbone):
    """A first convolution, stages of `PreActBlock`s, a closing BatchNorm with ReLU, and global average pooling.

    Args:
        channels_in: Channels of the images.
        stem: Channels of the first convolution.
        widths: Channels of each stage; every stage but the first halves the resolution.
        blocks: Number of blocks of each stage.
        dropout: Probability of zeroing a value between a block's convolutions.
        pools: Whether the first convolution is 7×7 of step 2 with 3×3 max-pooling, instead of 3×3 of step 1.
    """

    def __init__(
        self,
        channels_in: int,
        stem: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        dropout: float = 0.0,
        pools: bool = False,
    ) -> None:
        super().__init__()
        kernel, stride = (7, 2) if pools else (3, 1)
        self.conv1 = nn.Conv2d(channels_in, stem, kernel, stride, kernel // 2, bias=False)
        self.pools = pools
        width = stem
        for k, (channels, count) in enumerate(zip(widths, blocks, strict=True)):
            stage = nn.Sequential()
            for i in range(count):
                stage.append(PreActBlock(width, channels, 2 if k and not i else 1, dropout))
                width = channels
            self.add_module(f"layer{k + 1}", stage)
        self.bn = nn.BatchNorm2d(width)
        self.feature_dim = width
        self._layers = tuple(f"layer{k + 1}" for k in range(len(widths)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stem(self, x: Tensor) -> Tensor:
        """Compute what the first stage receives."""
        x = self.conv1(x)
        return F.max_pool2d(x, 3, 2, 1) if self.pools else x

    def forward(self, x: Tensor) -> Tensor:
        """Compute features: (B, C, H, W) to (B, D)."""
        x = self.stem(x)
        for name in self._layers:
            x = self._modules[name](x)  # type: ignore[misc]
        return F.relu(self.bn(x), inplace=True).mean((2, 3))

    def forward_stages(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute the features and each stage's sum (B, C_k, H_k, W_k), the last one after the closing BatchNorm.

        A pre-activation stage has no ReLU at its end, so what it hands on is what is shown; the ReLU of the closing
        BatchNorm is left out of the last one, and so `relu(stages[-1])` averaged over pixels gives the features.
        """
        x = self.stem(x)
        stages: list[Tensor] = []
        for name in self._layers:
            x = self._modules[name](x)  # type: ignore[misc]
            stages.append(x)
        stages[-1] = self.bn(x)
        return torch.relu(stages[-1]).mean((2, 3)), tuple(stages)


class PreActResNet18(BackboneConfig):
    """PreAct-ResNet-18: four stages of two pre-activation blocks; 11.2 million parameters, D = 8·width."""

    width: int = field(default=64, ge=1, unit="channels", help="Channels of the first stage.")
    stem: Literal["cifar", "imagenet"] = field(
        default="cifar", help="cifar: 3×3 of step 1; imagenet: 7×7 of step 2 and max-pooling."
    )

    def make(self, input_shape: tuple[int, ...]) -> PreActNet:
        """Make the network for images (C, H, W) of at least 8×8 pixels."""
        channels, _, _ = image_shape(input_shape, type(self).__name__)
        widths = [self.width * factor for factor in (1, 2, 4, 8)]
        return PreActNet(channels, self.width, widths, [2, 2, 2, 2], pools=self.stem == "imagenet")


class WideResNet(BackboneConfig):
    """Wide residual network WRN-d-k: three stages of 16k, 32k and 64k channels; D = 64k."""

    free_options: ClassVar[frozenset[str]] = frozenset({"dropout"})

    widen: int = field(default=2, ge=1, help="Factor k by which every stage is wider than a CIFAR ResNet's.")
    dropout: float = field(
        default=0.0, ge=0, lt=1, help="Probability of zeroing a value between a block's convolutions."
    )

    blocks_per_stage: ClassVar[int]

    def make(self, input_shape: tuple[int, ...]) -> PreActNet:
        """Make the network for images (C, H, W) of at least 8×8 pixels."""
        channels, _, _ = image_shape(input_shape, type(self).__name__)
        widths = [16 * self.widen * factor for factor in (1, 2, 4)]
        return PreActNet(channels, 16, widths, [self.blocks_per_stage] * 3, self.dropout)


class WRN16(WideResNet):
    """WRN-16-k: two blocks per stage; 11.0 million parameters at k = 8."""

    blocks_per_stage = 2


class WRN28(WideResNet):
    """WRN-28-k: four blocks per stage; 36.5 million parameters at k = 10."""

    blocks_per_stage = 4
