"""AutoAugment with the CIFAR-10 policy, on whole batches: each image draws its own sub-policy.

Cubuk, Zoph, Mané, Vasudevan & Le 2019, "AutoAugment: Learning Augmentation Strategies from Data", table 7. The 25
sub-policies, magnitudes and operations are those of torchvision's `AutoAugment(AutoAugmentPolicy.CIFAR10)` on Pillow
images, which published results rest on, and equal them bit for bit, AutoContrast within one grey level.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clframe.data.augment import Augmentation, to_device, to_uint8
from clframe.errors import ConfigurationError, did_you_mean

__all__ = ["CIFAR10_POLICY", "OPERATIONS", "AutoAugmentCIFAR", "Draws", "magnitude_of", "operate"]

Step = tuple[str, float, int]  # operation, probability, magnitude index in 0..9 (0 where the operation has none)

CIFAR10_POLICY: tuple[tuple[Step, Step], ...] = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)
"""The sub-policies: two steps each, applied in order."""

_SIGNED = frozenset({"ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"})


class Draws(NamedTuple):
    """What a batch of B images draws."""

    policy: Tensor
    """(B,) index of the sub-policy."""
    chance: Tensor
    """(2, B) uniform in [0, 1); a step is taken where this is below its probability."""
    negative: Tensor
    """(2, B) bool: whether the step's magnitude has the negative sign, where the operation has signs."""


class AutoAugmentCIFAR(Augmentation):
    """The AutoAugment policy found on CIFAR-10; pixels from outside the image are black.

    Takes greyscale and colour images. Differs from the paper: the range of the magnitudes, and the black, are
    torchvision's.
    """

    def draw(self, batch: int, generator: torch.Generator) -> Draws:
        """Return what `batch` images draw."""
        policy = torch.randint(len(CIFAR10_POLICY), (batch,), generator=generator)
        chance = torch.rand(2, batch, generator=generator)
        return Draws(policy, chance, torch.randint(2, (2, batch), generator=generator) == 0)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Apply to each image the two steps of its own sub-policy.

        Raises:
            ConfigurationError: The images have neither one nor three channels.
        """
        if images.shape[3] not in (1, 3):
            raise ConfigurationError(
                f"Expected images of 1 or 3 channels for AutoAugment, received {images.shape[3]}; choose another."
            )
        batch, height, width, _ = images.shape
        kernels, probabilities, values = _policy_tables(height, width)
        draws = self.draw(batch, generator)
        place = torch.arange(batch)  # where each image stands in `images`, which the steps sort by operation
        for step in range(2):
            taken = draws.chance[step] < probabilities[draws.policy, step]
            kernel = kernels[draws.policy, step] * taken  # kernel 0 leaves the image as it is
            value = values[draws.policy, step, draws.negative[step].long()]
            order = torch.argsort(kernel, stable=True)
            sizes = torch.bincount(kernel, minlength=len(_KERNELS)).tolist()
            images = _step(images, place[order], value[order], sizes)
            place = torch.argsort(order)
        return images.index_select(0, to_device(place, images.device))


def magnitude_of(operation: str, index: int, height: int, width: int) -> float:
    """Return the magnitude, without sign, that stands for index 0 to 9 in the policy (torchvision's table)."""
    largest = {"ShearY": 0.3, "TranslateX": 150 / 331 * width, "TranslateY": 150 / 331 * height, "Rotate": 30.0}
    if operation in _SIGNED:  # the rounding of torchvision's table decides ties, so it is made in the same way
        return float(torch.linspace(0, largest.get(operation, 0.9), 10)[index])
    if operation == "Posterize":
        return float(8 - round(index * 4 / 9))
    return float(torch.linspace(255, 0, 10)[index]) if operation == "Solarize" else 0.0


def operate(images: Tensor, operation: str, magnitude: float) -> Tensor:
    """Apply one operation at one magnitude to all images (B, H, W, C), uint8, and return the new batch.

    Args:
        images: The batch.
        operation: A name of `OPERATIONS`.
        magnitude: A relative slope (ShearY), pixels (TranslateX, TranslateY), degrees counter-clockwise (Rotate), the
            factor minus 1 (Brightness, Color, Contrast, Sharpness), bits kept (Posterize), the first grey level that
            is inverted (Solarize); ignored by the others.

    Raises:
        ConfigurationError: There is no such operation.
    """
    if operation not in OPERATIONS:
        hint = did_you_mean(operation, OPERATIONS) or f" Known: {', '.join(OPERATIONS)}."
        raise ConfigurationError(f"There is no AutoAugment operation named {operation!r}.{hint}")
    values = torch.tensor(_values(operation, magnitude, *images.shape[1:3])).expand(len(images), -1)
    return OPERATIONS[operation](images, to_device(values, images.device))


def _step(images: Tensor, order: Tensor, values: Tensor, sizes: list[int]) -> Tensor:
    """Sort the images by operation (`order` and `sizes`, known on the CPU) and let each operation do its share."""
    shares = images.index_select(0, to_device(order, images.device)).split_with_sizes(sizes)
    value_shares = to_device(values, images.device).split_with_sizes(sizes)
    work = zip(_KERNELS, shares, value_shares, strict=True)
    return torch.cat([kernel(share, value) for kernel, share, value in work if len(share)])


@functools.lru_cache(maxsize=8)
def _policy_tables(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The policy as CPU tensors: kernel (25, 2), probability (25, 2), values (25, 2, signs, 6)."""
    kernels = torch.tensor([[_KERNELS.index(OPERATIONS[name]) for name, _, _ in pair] for pair in CIFAR10_POLICY])
    probabilities = torch.tensor([[p for _, p, _ in pair] for pair in CIFAR10_POLICY])
    values = torch.tensor([[_both_signs(name, i, height, width) for name, _, i in pair] for pair in CIFAR10_POLICY])
    return kernels, probabilities, values


def _both_signs(operation: str, index: int, height: int, width: int) -> list[list[float]]:
    magnitude = magnitude_of(operation, index, height, width)
    signs = (1, -1) if operation in _SIGNED else (1, 1)
    return [_values(operation, sign * magnitude, height, width) for sign in signs]


def _values(operation: str, magnitude: float, height: int, width: int) -> list[float]:
    """The six numbers that an operation's kernel reads: a map from target to source pixels, or one and padding."""
    if operation == "Rotate":
        cos, sin = math.cos(math.radians(magnitude)), math.sin(math.radians(magnitude))
        x, y = width / 2, height / 2
        return [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y]
    if operation == "ShearY":
        return [1, 0, 0, magnitude, 1, 0]
    if operation == "TranslateX":
        return [1, 0, -int(magnitude), 0, 1, 0]
    if operation == "TranslateY":
        return [1, 0, 0, 0, 1, -int(magnitude)]
    if operation in _SIGNED:  # the enhancements
        return [1 + magnitude, 0, 0, 0, 0, 0]
    if operation == "Posterize":
        return [256 - 2 ** (8 - int(magnitude)), 0, 0, 0, 0, 0]
    return [math.ceil(magnitude), 0, 0, 0, 0, 0]  # Solarize; Invert is Solarize from 0


# Every kernel takes images (n, H, W, C) uint8 and values (n, 6) float, and returns new images.


def _leave(images: Tensor, values: Tensor) -> Tensor:
    return images


def _affine(images: Tensor, values: Tensor) -> Tensor:
    """Nearest pixel under x' = a x + b y + c, y' = d x + e y + f, with pixel centres at .5; black outside."""
    count, height, width, channels = images.shape
    x = torch.arange(width, device=images.device) + 0.5
    y = torch.arange(height, device=images.device) + 0.5
    a, b, c, d, e, f = values.t().unsqueeze(2)  # (n, 1) each
    source_x = ((a * x).unsqueeze(1) + (b * y + c).unsqueeze(2)).floor_().clamp_(-1, width)
    source_y = ((d * x).unsqueeze(1) + (e * y + f).unsqueeze(2)).floor_().clamp_(-1, height)
    padded = F.pad(images, (0, 0, 1, 1, 1, 1))  # one black pixel around stands for all of the outside
    image = torch.arange(count, device=images.device).view(-1, 1, 1) * ((height + 2) * (width + 2))
    index = image + (source_y.long() + 1) * (width + 2) + (source_x.long() + 1)
    return padded.view(-1, channels).index_select(0, index.flatten()).view(images.shape)


def _blend(images: Tensor, other: Tensor, values: Tensor) -> Tensor:
    """`other + factor * (images - other)`, cut to whole grey levels, as Pillow's `Image.blend`."""
    factor = values[:, :1].unsqueeze(2)  # (n, 1, 1)
    return to_uint8((images.flatten(2).float() - other).mul_(factor).add_(other)).view(images.shape)


def _brightness(images: Tensor, values: Tensor) -> Tensor:
    return to_uint8(images.flatten(1).float().mul_(values[:, :1])).view(images.shape)


def _grey(images: Tensor) -> Tensor:
    """Luminance (n, H, W, 1), int32, by Pillow's fixed-point weights."""
    if images.shape[3] == 1:
        return images.int()
    red, green, blue = images.int().unbind(3)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).unsqueeze(3)


def _colour(images: Tensor, values: Tensor) -> Tensor:
    return _blend(images, _grey(images).expand(images.shape).flatten(2), values)


def _contrast(images: Tensor, values: Tensor) -> Tensor:
    pixels = images.shape[1] * images.shape[2]
    mean = (2 * _grey(images).sum((1, 2)) + pixels) // (2 * pixels)  # rounded half up, without a float's order of sums
    return _blend(images, mean.unsqueeze(2), values)


def _sharpness(images: Tensor, values: Tensor) -> Tensor:
    """Blend with the image smoothed by ((1, 1, 1), (1, 5, 1), (1, 1, 1)) / 13; the border isn't smoothed."""
    if min(images.shape[1:3]) < 3:
        return images
    smooth = images.float()
    lines = smooth[:, :-2] + smooth[:, 1:-1] + smooth[:, 2:]
    inner = lines[:, :, :-2] + lines[:, :, 1:-1] + lines[:, :, 2:] + 4 * smooth[:, 1:-1, 1:-1]
    smooth[:, 1:-1, 1:-1] = inner.div_(13).round_()
    return _blend(images, smooth.flatten(2), values)


def _posterize(images: Tensor, values: Tensor) -> Tensor:
    return (images.flatten(1) & values[:, :1].to(torch.uint8)).view(images.shape)


def _solarize(images: Tensor, values: Tensor) -> Tensor:
    flat = images.flatten(1)
    return torch.where(flat >= values[:, :1].to(torch.uint8), 255 - flat, flat).view(images.shape)


def _autocontrast(images: Tensor, values: Tensor) -> Tensor:
    """Stretch each channel to 0..255; a channel of one colour stays."""
    width = images.shape[2]
    lowest, highest = images.amin((1, 2)).float(), images.amax((1, 2)).float()  # (n, C)
    flat = highest == lowest
    scale = torch.where(flat, 1.0, 255 / (highest - lowest)).repeat(1, width).unsqueeze(1)  # for a line, (n, 1, W * C)
    shift = torch.where(flat, 0.0, lowest).repeat(1, width).unsqueeze(1)
    return to_uint8((images.flatten(2) - shift).mul_(scale)).view(images.shape)


def _equalize(images: Tensor, values: Tensor) -> Tensor:
    """Spread the grey levels of each channel evenly, by Pillow's integer rule."""
    count, height, width, channels = images.shape
    level = (torch.arange(channels, device=images.device) * 256).repeat(width)
    bins = (images.flatten(2).long() + level).flatten(1)  # channel and grey level of every value
    ones = torch.ones((), dtype=torch.int32, device=images.device).expand(bins.shape)
    histogram = torch.zeros(count, channels * 256, dtype=torch.int32, device=images.device).scatter_add_(1, bins, ones)
    histogram = histogram.view(count, channels, 256)
    brightest = images.amax((1, 2)).long().unsqueeze(2)
    step = (height * width - histogram.gather(2, brightest)) // 255
    below = histogram.cumsum(2) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    table = torch.where(step == 0, torch.arange(256, device=images.device), table).to(torch.uint8)
    return table.flatten(1).gather(1, bins).view(images.shape)


Kernel = Callable[[Tensor, Tensor], Tensor]

_KERNELS: tuple[Kernel, ...] = (
    _leave, _affine, _brightness, _colour, _contrast, _sharpness, _posterize, _solarize, _autocontrast, _equalize,
)  # fmt: skip

OPERATIONS: Mapping[str, Kernel] = MappingProxyType(
    {
        "ShearY": _affine,
        "TranslateX": _affine,
        "TranslateY": _affine,
        "Rotate": _affine,
        "Brightness": _brightness,
        "Color": _colour,
        "Contrast": _contrast,
        "Sharpness": _sharpness,
        "Posterize": _posterize,
        "Solarize": _solarize,
        "AutoContrast": _autocontrast,
        "Equalize": _equalize,
        "Invert": _solarize,
    }
)
"""The operations of the policy by name; operations that share a kernel run together."""
