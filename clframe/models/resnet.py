"""Residual networks for images: He et al.'s CIFAR ResNets, and ResNet-18/34 with either stem.

Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clframe.models.backbone import Backbone, BackboneConfig, ChannelLayer, image_shape
from clframe.spec import field

__all__ = [
    "BasicBlock",
    "CifarResNet",
    "ResNet8",
    "ResNet18",
    "ResNet20",
    "ResNet32",
    "ResNet34",
    "ResNet44",
    "ResNet56",
    "ResidualNet",
    "Shortcut",
    "WideStemResNet",
    "subsample_and_pad",
]

Shortcut = Literal["A", "B"]
Stem = Literal["cifar", "imagenet", "imagenet_3x3"]


def subsample_and_pad(x: Tensor, channels: int, stride: int) -> Tensor:
    """Option-A shortcut: every `stride`-th pixel, and zeros for the new channels, half before and half after.

    Args:
        x: (B, C, H, W), contiguous or channels-last; the memory format stays.
        channels: Channels of the result, at least C.
        stride: Step in pixels.

    Returns:
        (B, channels, ceil(H / stride), ceil(W / stride)).
    """
    before = (channels - x.shape[1]) // 2
    after = channels - x.shape[1] - before
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, after))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut around them.

    Args:
        channels_in: Channels of the input.
        channels: Channels of the output.
        stride: Step of the first convolution, in pixels.
        shortcut: Where the shape changes: `A` pads with zeros, `B` projects by a 1×1 convolution with BatchNorm.
        last_relu: Whether the block ends with a ReLU.
    """

    taken: Tensor | None
    """Channels of the input that a shortcut between pruned ends takes, in the order of `joined`; else None."""
    joined: Tensor | None
    """Channels of the output to which it adds them."""

    def __init__(
        self, channels_in: int, channels: int, stride: int, shortcut: Shortcut, last_relu: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.channels, self.stride, self.last_relu = channels, stride, last_relu
        self.channels_in = channels_in
        self.changes_shape = stride != 1 or channels_in != channels
        self.downsample: nn.Module | None = None
        if self.changes_shape and shortcut == "B":
            projection = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels))
        self.inner_gate: nn.Module | None = None
        self.gate: nn.Module | None = None
        self.register_buffer("taken", None, persistent=False)
        self.register_buffer("joined", None, persistent=False)

    def before_relu(self, x: Tensor) -> Tensor:
        """Compute the block's output before its last ReLU."""
        out = self.bn1(self.conv1(x))
        if self.inner_gate is not None:
            out = self.inner_gate(out)
        out = self.bn2(self.conv2(F.relu(out, inplace=True)))
        out = self._add_shortcut(out, x)
        return out if self.gate is None else cast(Tensor, self.gate(out))

    def _add_shortcut(self, out: Tensor, x: Tensor) -> Tensor:
        if self.downsample is not None:
            return out.add_(self.downsample(x))
        if self.taken is not None and self.joined is not None:
            shortcut = x[:, :, :: self.stride, :: self.stride].index_select(1, self.taken)
            return out.index_add_(1, self.joined, shortcut.to(out.dtype))
        return out.add_(subsample_and_pad(x, self.channels, self.stride) if self.changes_shape else x)

    def rewire(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Let a shortcut without weights join the channels that are left on either side.

        Args:
            inputs: Numbers of the input's channels that are kept, of the `channels_in` there were.
            outputs: Likewise of the output, of `channels`.
        """
        self.taken = self.joined = None
        if self.downsample is not None or (len(inputs), len(outputs)) == (self.channels_in, self.channels):
            return
        shift = (self.channels - self.channels_in) // 2  # option A pads so many zeros before the first channel
        place = {c: k for k, c in enumerate(outputs)}
        pairs = [(k, place[c + shift]) for k, c in enumerate(inputs) if c + shift in place]
        found = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).to(self.conv1.weight.device)
        self.taken, self.joined = found[:, 0].contiguous(), found[:, 1].contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block: (B, C_in, H, W) to (B, C, H', W')."""
        out = self.before_relu(x)
        return F.relu(out, inplace=True) if self.last_relu else out


class ResidualNet(Backbone):
    """A stem, stages of `BasicBlock`s, and global average pooling.

    Tensor names are `conv1`, `bn1`, `layer{k}.{i}.{conv,bn}{1,2}` and, for option B, `layer{k}.0.downsample.{0,1}`:
    those of torchvision and of the public CIFAR ResNets, whose files therefore load.

    Args:
        channels_in: Channels of the images.
        widths: Channels of each stage; every stage but the first halves the resolution.
        blocks: Number of blocks of each stage.
        shortcut: Kind of the shortcuts where the shape changes.
        stem: `cifar` is a 3×3 convolution of step 1; `imagenet` is a 7×7 one of step 2 with 3×3 max-pooling;
            `imagenet_3x3` is a 3×3 one of step 1 with that pooling.
        last_relu: Whether the last stage's output passes a ReLU before it is pooled.
        zero_init_last: Whether every block starts as the identity (its last BatchNorm's scale is 0).
    """

    def __init__(
        self,
        channels_in: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        shortcut: Shortcut,
        stem: Stem = "cifar",
        last_relu: bool = True,
        zero_init_last: bool = False,
    ) -> None:
        super().__init__()
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(channels_in, widths[0], kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.pools = stem != "cifar"
        width = widths[0]
        for k, (channels, count) in enumerate(zip(widths, blocks, strict=True)):
            stage = nn.Sequential()
            for i in range(count):
                relu = last_relu or k < len(widths) - 1 or i < count - 1
                stage.append(BasicBlock(width, channels, 2 if k and not i else 1, shortcut, relu))
                width = channels
            self.add_module(f"layer{k + 1}", stage)
        self.feature_dim = width
        self.gate: nn.Module | None = None
        self._layers = tuple(f"layer{k + 1}" for k in range(len(widths)))
        self._initialise(zero_init_last)

    def _initialise(self, zero_init_last: bool) -> None:
        """Draw convolutions from N(0, 2 / (k² c_out)), as He et al. do; BatchNorm stays at scale 1 and shift 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock) and zero_init_last:
                nn.init.zeros_(module.bn2.weight)

    def stem(self, x: Tensor) -> Tensor:
        """Compute what the first stage receives."""
        x = self.bn1(self.conv1(x))
        if self.gate is not None:
            x = self.gate(x)
        x = F.relu(x, inplace=True)
        return F.max_pool2d(x, 3, 2, 1) if self.pools else x

    def forward(self, x: Tensor) -> Tensor:
        """Compute features: (B, C, H, W) to (B, D)."""
        x = self.stem(x)
        for name in self._layers:
            x = self._modules[name](x)  # type: ignore[misc]
        return x.mean((2, 3))

    def forward_stages(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute the features and each stage's map (B, C_k, H_k, W_k) before its last ReLU."""
        x = self.stem(x)
        stages: list[Tensor] = []
        for name in self._layers:
            *first, last = cast("nn.Sequential", self._modules[name])
            for block in first:
                x = block(x)
            stages.append(cast(BasicBlock, last).before_relu(x))
            x = torch.relu(stages[-1]) if last.last_relu else stages[-1]
        return x.mean((2, 3)), tuple(stages)

    def _blocks(self) -> Iterator[tuple[str, BasicBlock]]:
        for name in self._layers:
            for i, block in enumerate(cast("nn.Sequential", self._modules[name])):
                yield f"{name}.{i}", cast(BasicBlock, block)

    def channel_layers(self) -> tuple[ChannelLayer, ...]:
        """Gates stand after BatchNorm: within a block on its inner channels, and on its output, shortcut included."""
        found = [ChannelLayer("conv1", None, "gate", "bn1")]
        for name, block in self._blocks():
            reads, inner, output = found[-1].writes, f"{name}.inner_gate", f"{name}.gate"
            found.append(ChannelLayer(f"{name}.conv1", reads, inner, f"{name}.bn1", own=True))
            if block.downsample is not None:
                found.append(ChannelLayer(f"{name}.downsample.0", reads, output, f"{name}.downsample.1"))
            found.append(ChannelLayer(f"{name}.conv2", inner, output, f"{name}.bn2"))
        return tuple(found)

    def rewire(self, kept: Mapping[str, list[int]]) -> None:
        """Let every shortcut join the channels that are left on either side."""
        reads = "gate"
        for name, block in self._blocks():
            block.rewire(kept[reads], kept[f"{name}.gate"])
            reads = f"{name}.gate"


class CifarResNet(BackboneConfig):
    """CIFAR ResNet of He et al.: three stages of width, 2·width and 4·width channels; D = 4·width."""

    width: int = field(default=16, ge=1, unit="channels", help="Channels of the first stage.")
    shortcut: Shortcut = field(default="A", help="Where the shape changes: A pads with zeros (the paper), B projects.")
    last_relu: bool = field(default=True, help="ReLU before pooling; off gives the features of PODNet and UCIR.")

    blocks_per_stage: ClassVar[int]

    def make(self, input_shape: tuple[int, ...]) -> ResidualNet:
        """Make the network for images (C, H, W) of at least 8×8 pixels."""
        channels, _, _ = image_shape(input_shape, type(self).__name__)
        widths = [self.width, 2 * self.width, 4 * self.width]
        return ResidualNet(channels, widths, [self.blocks_per_stage] * 3, self.shortcut, last_relu=self.last_relu)


class ResNet8(CifarResNet):
    """CIFAR ResNet-8: one block per stage, 0.08 million parameters at width 16."""

    blocks_per_stage = 1


class ResNet20(CifarResNet):
    """CIFAR ResNet-20: three blocks per stage, 0.27 million parameters at width 16."""

    blocks_per_stage = 3


class ResNet32(CifarResNet):
    """CIFAR ResNet-32: five blocks per stage, 0.46 million parameters at width 16."""

    blocks_per_stage = 5


class ResNet44(CifarResNet):
    """CIFAR ResNet-44: seven blocks per stage, 0.66 million parameters at width 16."""

    blocks_per_stage = 7


class ResNet56(CifarResNet):
    """CIFAR ResNet-56: nine blocks per stage, 0.85 million parameters at width 16."""

    blocks_per_stage = 9


class WideStemResNet(BackboneConfig):
    """ResNet of four stages of width, 2·width, 4·width and 8·width channels; D = 8·width."""

    free_options: ClassVar[frozenset[str]] = frozenset({"zero_init_last"})

    stem: Stem = field(
        default="cifar",
        help="cifar: 3×3 of step 1; imagenet: 7×7 of step 2 and max-pooling; imagenet_3x3: 3×3 of step 1 and max-pooling "
        "(PODNet, DER and PyCIL on ImageNet-100 B50).",
    )
    width: int = field(default=64, ge=1, unit="channels", help="Channels of the first stage.")
    shortcut: Shortcut = field(default="B", help="Where the shape changes: A pads with zeros, B projects (the usual).")
    last_relu: bool = field(default=True, help="ReLU before pooling; off gives the features of PODNet and UCIR.")
    zero_init_last: bool = field(default=False, help="Start every block as the identity.")

    blocks: ClassVar[tuple[int, int, int, int]]

    def make(self, input_shape: tuple[int, ...]) -> ResidualNet:
        """Make the network for images (C, H, W) of at least 8×8 pixels."""
        channels, _, _ = image_shape(input_shape, type(self).__name__)
        widths = [self.width * factor for factor in (1, 2, 4, 8)]
        return ResidualNet(channels, widths, self.blocks, self.shortcut, self.stem, self.last_relu, self.zero_init_last)


class ResNet18(WideStemResNet):
    """ResNet-18: 11.2 million parameters at width 64."""

    blocks = (2, 2, 2, 2)


class ResNet34(WideStemResNet):
    """ResNet-34: 21.3 million parameters at width 64."""

    blocks = (3, 4, 6, 3)
