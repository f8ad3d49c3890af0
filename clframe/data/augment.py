"""Augmentation of whole uint8 batches on any device; every image draws its own parameters.

torchvision's v2 transforms draw one parameter set for a whole batch; these don't. All draws are made on the CPU, a
few vectors per batch, from the generator that is given, so that every device sees the same ones. Nothing waits for
the device: whatever a decision needs is known on the CPU.

Legend: B images, H × W pixels, C channels. Batches are (B, H, W, C) until `ToInput` makes them (B, C, H, W).
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clframe.errors import ConfigurationError, did_you_mean
from clframe.registry import load_object, source_file
from clframe.spec import Configurable, build, field, to_dict, validate

__all__ = [
    "PRESETS",
    "Augmentation",
    "BrightnessJitter",
    "CenterCrop",
    "CutMix",
    "Cutout",
    "HorizontalFlip",
    "Mixed",
    "Pipeline",
    "RandomCrop",
    "RandomResizedCrop",
    "Resize",
    "ToInput",
    "build_augmentation",
    "standard",
    "to_device",
    "to_input",
    "to_uint8",
    "transforms",
]

PRESETS = ("none", "standard", "crop_flip", "crop_flip_jitter", "autoaugment_cutout", "imagenet")
"""The augmentations known by name to `standard`."""

_ATTEMPTS = 10  # of RandomResizedCrop, as in torchvision


class Augmentation(Configurable, ABC):
    """A transform of a uint8 batch (B, H, W, C) to a new uint8 batch (B, H', W', C) on the same device.

    A subclass never changes its input, draws on the CPU from `generator` only, and draws as much for every content
    of the images.
    """

    random: ClassVar[bool] = True
    """Whether it draws anything; one that doesn't may also serve as a test transform."""

    @abstractmethod
    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the transformed batch (B, H', W', C).

        Args:
            images: A uint8 batch (B, H, W, C) on any device.
            generator: A generator on the CPU; the only source of randomness.
        """


class RandomCrop(Augmentation):
    """Zero padding, then a crop at a uniformly drawn position."""

    padding: int = field(default=4, ge=0, unit="pixels", help="Zeros added on each side before the crop.")
    size: int | None = field(
        default=None, ge=1, unit="pixels", help="Side of the square crop; none keeps the image's size."
    )

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the top and left offsets in the padded images, each (B,), for a batch of `shape` (B, H, W, C)."""
        height, width = self._size(shape)
        rows, columns = shape[1] + 2 * self.padding - height, shape[2] + 2 * self.padding - width
        if min(rows, columns) < 0:
            raise ConfigurationError(
                f"Expected a crop no larger than the padded image, received size {self.size} for images of "
                f"{shape[1]} × {shape[2]} with padding {self.padding}; lower size or raise padding."
            )
        top = torch.randint(rows + 1, (shape[0],), generator=generator)
        return top, torch.randint(columns + 1, (shape[0],), generator=generator)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Crop every image at its own offset."""
        batch, _, _, channels = images.shape
        height, width = self._size(images.shape)
        top, left = self.draw(images.shape, generator)
        padded = F.pad(images, (0, 0, *[self.padding] * 4)).contiguous()
        rows, columns = padded.shape[1:3]
        first = (torch.arange(batch) * rows + top).unsqueeze(1) + torch.arange(height)  # (B, H'): lines of all images
        start = (first * columns + left.unsqueeze(1)).flatten()  # in pixels of the whole batch
        # Every run of W' pixels, wherever it starts, as a row of one overlapping view: a crop is then a choice of
        # rows, each copied as one block.
        runs = padded.as_strided((batch * rows * columns - width + 1, width * channels), (channels, 1))
        chosen = runs.index_select(0, to_device(start, images.device))
        return chosen.view(batch, height, width, channels)

    def _size(self, shape: Sequence[int]) -> tuple[int, int]:
        return (shape[1], shape[2]) if self.size is None else (self.size, self.size)


class HorizontalFlip(Augmentation):
    """Mirror an image left to right with probability p."""

    p: float = field(default=0.5, ge=0, le=1, help="Probability that an image is mirrored.")

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return which images are mirrored, (B,) bool."""
        return torch.rand(batch, generator=generator) < self.p

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Mirror the drawn images."""
        flipped = self.draw(len(images), generator)
        chosen = flipped.nonzero().squeeze(1)
        order = torch.arange(len(images))
        order[chosen] = len(images) + torch.arange(len(chosen))
        mirrored = images.index_select(0, to_device(chosen, images.device)).flip(2)
        return torch.cat([images, mirrored]).index_select(0, to_device(order, images.device))


class BrightnessJitter(Augmentation):
    """Multiply each image by its own factor, uniform in [1 - strength, 1 + strength].

    The product is clamped to [0, 255] and its fraction cut off, bit for bit as Pillow's `ImageEnhance.Brightness`
    and torchvision's `adjust_brightness` do for uint8.
    """

    strength: float = field(default=63 / 255, ge=0, le=1, help="Largest relative change of the brightness.")

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return the factors, (B,)."""
        return torch.rand(batch, generator=generator) * (2 * self.strength) + (1 - self.strength)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Scale every image by its own factor."""
        factor = to_device(self.draw(len(images), generator), images.device)
        return to_uint8(images.flatten(1).float().mul_(factor.unsqueeze(1))).view(images.shape)


class Cutout(Augmentation):
    """Set a square around a uniformly drawn pixel to zero, cut off at the border (DeVries & Taylor 2017)."""

    length: int = field(default=16, ge=1, unit="pixels", help="Side of the square.")

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Return the first row and the first column of the squares, (2, B), for a batch of `shape` (B, H, W, C)."""
        rows = torch.randint(shape[1], (shape[0],), generator=generator)
        columns = torch.randint(shape[2], (shape[0],), generator=generator)
        return torch.stack([rows, columns]) - self.length // 2

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Blank one square per image."""
        batch, height, width, channels = images.shape
        half = self.length // 2  # as in the authors' code, the side is twice the half, so an odd length loses one
        top, left = to_device(self.draw(images.shape, generator), images.device).unsqueeze(2)
        rows = torch.arange(height, device=images.device)
        columns = torch.arange(width * channels, device=images.device) // channels
        # 0 inside and 255 outside, for lines and columns; a bitwise AND with their union copies and blanks in one pass
        outside_rows = ((rows < top) | (rows >= top + 2 * half)).to(torch.uint8) * 255
        outside_columns = ((columns < left) | (columns >= left + 2 * half)).to(torch.uint8) * 255
        keep = outside_rows.unsqueeze(2) | outside_columns.unsqueeze(1)
        return torch.bitwise_and(images.reshape(batch, height, width * channels), keep).view(images.shape)


class RandomResizedCrop(Augmentation):
    """Crop a random area and aspect ratio and resize it to a square (torchvision's `RandomResizedCrop`).

    Bilinear, by two dense matrix products per image. With `antialias` the filter widens when it shrinks, as Pillow's
    does and within one grey level of torchvision's; without it, fine patterns alias as with `grid_sample`.
    """

    size: int = field(ge=1, unit="pixels", help="Side of the result.")
    scale: tuple[float, float] = field(default=(0.08, 1.0), help="Smallest and largest share of the image's area.")
    ratio: tuple[float, float] = field(default=(3 / 4, 4 / 3), help="Smallest and largest width divided by height.")
    antialias: bool = field(default=True, help="Whether shrinking averages over all pixels it covers.")

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Return top, left, height and width of the crops, (4, B) int64, for a batch of `shape` (B, H, W, C).

        Like torchvision, takes the first of ten drawn boxes that fits, else the largest central one of allowed ratio.
        """
        batch, height, width = shape[:3]
        if not (0 < self.scale[0] <= self.scale[1] and 0 < self.ratio[0] <= self.ratio[1]):
            raise ConfigurationError(
                f"Expected scale and ratio as (smallest, largest), both above 0, received scale {self.scale} and "
                f"ratio {self.ratio}; put them in order."
            )
        uniform = torch.rand(2 * _ATTEMPTS + 2, batch, generator=generator)
        area = height * width * _between(torch.tensor(self.scale), uniform[:_ATTEMPTS])
        aspect = _between(torch.tensor(self.ratio).log(), uniform[_ATTEMPTS:-2]).exp()
        fallback = torch.tensor(_central_box(height, width, self.ratio)).view(2, 1, 1).expand(2, 1, batch)
        boxes = torch.stack([(area / aspect).sqrt().round(), (area * aspect).sqrt().round()]).long()
        boxes = torch.cat([boxes, fallback], dim=1)  # (2, attempts + 1, B)
        fits = ((boxes > 0) & (boxes <= torch.tensor([height, width]).view(2, 1, 1))).all(0)
        chosen = fits.int().argmax(0)  # the first that fits; the fallback always does
        box = boxes.gather(1, chosen.expand(2, 1, batch)).squeeze(1)
        free = torch.tensor([[height], [width]]) - box
        start = torch.minimum((uniform[-2:] * (free + 1)).long(), free)
        return torch.cat([torch.where(chosen == _ATTEMPTS, free // 2, start), box])

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Crop and resize every image by its own box."""
        batch, height, width, channels = images.shape
        top, left, box_height, box_width = to_device(self.draw(images.shape, generator).float(), images.device)
        down = _resampling(top, box_height, self.size, height, self.antialias)  # (B, S, H)
        across = _resampling(left, box_width, self.size, width, self.antialias)  # (B, S, W)
        lines = torch.bmm(down, images.reshape(batch, height, width * channels).float())
        lines = lines.view(batch, self.size, width, channels).transpose(2, 3).reshape(batch, -1, width)
        resized = torch.bmm(lines, across.transpose(1, 2)).view(batch, self.size, channels, self.size)
        return to_uint8(resized.transpose(2, 3).round()).contiguous()


class Resize(Augmentation):
    """Resize so that the shorter side has `size` pixels, keeping the aspect ratio (bilinear, antialiased)."""

    random: ClassVar[bool] = False

    size: int = field(ge=1, unit="pixels", help="Length of the shorter side of the result.")

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Resize all images alike; draws nothing."""
        height, width = images.shape[1:3]
        short = min(height, width)
        target = [int(self.size * height / short), int(self.size * width / short)]
        planes = images.permute(0, 3, 1, 2).float()
        resized = F.interpolate(planes, size=target, mode="bilinear", antialias=True)
        return to_uint8(resized.round()).permute(0, 2, 3, 1).contiguous()


class CenterCrop(Augmentation):
    """Cut out the central square; an image smaller than that is padded with zeros."""

    random: ClassVar[bool] = False

    size: int = field(ge=1, unit="pixels", help="Side of the result.")

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Crop all images alike; draws nothing."""
        missing = [max(self.size - n, 0) for n in images.shape[1:3]]
        above, before = missing[0] // 2, missing[1] // 2
        padded = F.pad(images, (0, 0, before, missing[1] - before, above, missing[0] - above))
        # torchvision rounds half of an odd rest to even
        top, left = (round((n - self.size) / 2) for n in padded.shape[1:3])
        return padded[:, top : top + self.size, left : left + self.size].clone(memory_format=torch.contiguous_format)


@dataclasses.dataclass(frozen=True, eq=False)
class Mixed:
    """Inputs of which each shows two images.

    Attributes:
        x: (B, C, H, W).
        partner: (B,) int64 on the CPU: position of the image that the rest shows; its own where nothing was mixed.
        share: (B,) the image's own share of the pixels, 1 where nothing was mixed.
    """

    x: Tensor
    partner: Tensor
    share: Tensor


@dataclasses.dataclass(frozen=True)
class CutMix:
    """Paste a box of another image of the batch into an image (Yun et al. 2019, "CutMix").

    Unlike the transforms above it takes inputs (B, C, H, W), after normalisation, since labels mix with them: the loss
    is the sum of both labels' losses, weighted by `Mixed.share`. Every image draws a partner, and its own box: a
    share λ ~ Beta(alpha, alpha) stays, the box has sides √(1 − λ) of the image's around a uniform pixel, cut off at the
    border; `share` is what really stays.

    Attributes:
        alpha: Of the Beta distribution.
        p: Probability that an image is mixed.
    """

    alpha: float = 1.0
    p: float = 0.5

    def draw(
        self, shape: Sequence[int], generator: torch.Generator, groups: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return partners (B,), and top, bottom, left and right of the boxes (4, B), for inputs (B, C, H, W)."""
        batch, _, height, width = shape
        partner = torch.randperm(batch, generator=generator)
        if groups is not None:  # deal the permuted images out to the members of their own groups
            own, dealt = groups.argsort(stable=True), partner[groups[partner].argsort(stable=True)]
            partner = torch.empty_like(partner).scatter_(0, own, dealt)
        seed = int(torch.randint(2**62, (), generator=generator))
        kept = torch.from_numpy(np.random.default_rng(seed).beta(self.alpha, self.alpha, batch))
        mixed = torch.rand(batch, generator=generator) < self.p
        side = (1 - kept).sqrt()
        bounds = []
        for extent in (height, width):
            half = (extent * side).long() // 2
            centre = torch.randint(extent, (batch,), generator=generator)
            bounds += [(centre - half).clamp(min=0) * mixed, (centre + half).clamp(max=extent) * mixed]
        boxes = torch.stack(bounds)
        empty = (boxes[1] <= boxes[0]) | (boxes[3] <= boxes[2])
        return torch.where(empty, torch.arange(batch), partner), boxes

    def __call__(self, x: Tensor, generator: torch.Generator, groups: Tensor | None = None) -> Mixed:
        """Mix a batch of inputs.

        Args:
            x: (B, C, H, W) on any device.
            generator: On the CPU; the only source of randomness.
            groups: (B,) int64 on the CPU; partners are of one group, such as a task.
        """
        height, width = x.shape[2:]
        partner, boxes = self.draw(x.shape, generator, groups)
        area = (boxes[1] - boxes[0]).clamp(min=0) * (boxes[3] - boxes[2]).clamp(min=0)
        share = torch.where(partner == torch.arange(len(x)), 1.0, 1 - area / (height * width))
        top, bottom, left, right = to_device(boxes, x.device).view(4, -1, 1, 1, 1)
        rows = torch.arange(height, device=x.device).view(1, 1, -1, 1)
        columns = torch.arange(width, device=x.device).view(1, 1, 1, -1)
        inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        other = x.index_select(0, to_device(partner, x.device))
        return Mixed(torch.where(inside, other, x), partner, to_device(share.float(), x.device))


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Transforms, one after the other; with none of them the batch passes as it is, not copied."""

    transforms: Sequence[Augmentation] = ()

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Apply all transforms to a uint8 batch (B, H, W, C).

        Raises:
            ConfigurationError: The batch isn't uint8 (B, H, W, C) and there are transforms to apply.
        """
        if not self.transforms or not len(images):
            return images
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ConfigurationError(
                f"Expected uint8 images (B, H, W, C) to augment, received {images.dtype} of shape "
                f"{tuple(images.shape)}; use the augmentation 'none' for features."
            )
        for transform in self.transforms:
            images = transform(images, generator)
        return images

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the (C, H, W) that images of `shape` (C, H, W) leave with; computes no pixel.

        Raises:
            ConfigurationError: A transform can't be applied to such images.
        """
        if not self.transforms:
            return tuple(shape)
        order = (1, 2, 0) if len(shape) == 3 else range(len(shape))
        dtype = torch.uint8 if len(shape) == 3 else torch.float32
        batch = torch.empty(1, *(shape[i] for i in order), dtype=dtype, device="meta")
        _, height, width, channels = self(batch, torch.Generator()).shape
        return channels, height, width

    def to_spec(self) -> list[dict[str, Any]]:
        """Return the transforms as plain values for the run record; `build_augmentation` takes them back."""
        return [{"name": _name_of(type(t)), **to_dict(t)} for t in self.transforms]


class ToInput:
    """Turn uint8 batches (B, H, W, C) into normalised float inputs (B, C, H, W), channels-last in memory.

    Args:
        mean: Per channel, of pixel values in [0, 1].
        std: Likewise; all above 0.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Store the statistics; device tensors are made when first needed and kept here."""
        self.mean, self.std = tuple(mean), tuple(std)
        self._constants: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return `(images / 255 - mean) / std` as (B, C, H, W); float features (B, D) pass unchanged.

        Raises:
            ConfigurationError: The number of channels isn't that of `mean` and `std`.
        """
        if images.is_floating_point():
            return images
        batch, height, width, channels = images.shape
        if not channels == len(self.mean) == len(self.std):
            raise ConfigurationError(
                f"Expected a mean and a standard deviation for each of {channels} channels, received "
                f"{len(self.mean)} and {len(self.std)}; give one per channel."
            )
        scale, shift = self._lines(images.device, width)
        # Whole lines against whole lines vectorise; a broadcast over an innermost axis of 3 takes four times as long.
        lines = images.reshape(batch, height, width * channels).float()
        return torch.addcmul(shift, lines, scale).to(dtype).view(images.shape).permute(0, 3, 1, 2)

    def _lines(self, device: torch.device, width: int) -> tuple[Tensor, Tensor]:
        """The factor and the summand of every value of an image line, each (W * C,)."""
        if (device, width) not in self._constants:
            mean, std = (torch.tensor(v, dtype=torch.float64) for v in (self.mean, self.std))
            values = torch.stack([1 / (255 * std), -mean / std]).float().repeat(1, width)
            scale, shift = to_device(values, device)
            self._constants[device, width] = scale, shift
        return self._constants[device, width]


def to_input(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalise one batch as `ToInput` does; keep a `ToInput` for more than one."""
    return ToInput(mean, std)(images, dtype)


def standard(name: str, shape: Sequence[int]) -> Pipeline:
    """Return the augmentation of a preset for images of `shape` (C, H, W), or for features (D,).

    - `none`: nothing.
    - `standard`: nothing for greyscale images, images below 32 pixels, and features; `crop_flip` for colour images
      up to 64 pixels; `imagenet` above. For colour digits such as SVHN, which aren't alike when mirrored, choose
      the transforms yourself.
    - `crop_flip`: crop after padding by 4, mirror.
    - `crop_flip_jitter`: the same and brightness by up to 63/255 (PyCIL's line for CIFAR).
    - `autoaugment_cutout`: crop, mirror, AutoAugment for CIFAR, Cutout 16 (FOSTER's line).
    - `imagenet`: random resized crop to the images' size, mirror.

    Raises:
        ConfigurationError: There is no such preset.
    """
    from clframe.data.autoaugment import AutoAugmentCIFAR  # that module imports this one

    if name not in PRESETS:
        raise _unknown(name)
    if name == "standard":
        small = len(shape) != 3 or shape[0] != 3 or min(shape[1:]) < 32
        name = "none" if small else "crop_flip" if max(shape[1:]) <= 64 else "imagenet"
    if name == "none":
        return Pipeline()
    if name == "imagenet":
        return Pipeline((RandomResizedCrop(size=shape[-1]), HorizontalFlip()))
    more: dict[str, tuple[Augmentation, ...]] = {
        "crop_flip": (),
        "crop_flip_jitter": (BrightnessJitter(),),
        "autoaugment_cutout": (AutoAugmentCIFAR(), Cutout()),
    }
    return Pipeline((RandomCrop(), HorizontalFlip(), *more[name]))


def build_augmentation(spec: str | Sequence[str | Mapping[str, Any] | Augmentation], shape: Sequence[int]) -> Pipeline:
    """Make the augmentation that a user asked for and check that it can be applied to images of `shape`.

    Args:
        spec: The name of a preset, or a list of transforms: names (`random_crop`), mappings with a `name` and the
            transform's fields, `Augmentation` objects. A name may be `package.module:Class` or `path/to/file.py:Class`.
        shape: (C, H, W) of the images, or (D,) of features.

    Raises:
        ConfigurationError: An unknown name (with the closest one), a wrong value, or images that a transform can't
            be applied to.
    """
    pipeline = standard(spec, shape) if isinstance(spec, str) and spec in PRESETS else Pipeline(_parse(spec))
    pipeline.output_shape(shape)
    return pipeline


def transforms() -> dict[str, type[Augmentation]]:
    """Return the built-in transforms by name."""
    from clframe.data.autoaugment import AutoAugmentCIFAR

    return {
        "random_crop": RandomCrop,
        "horizontal_flip": HorizontalFlip,
        "brightness_jitter": BrightnessJitter,
        "random_resized_crop": RandomResizedCrop,
        "cutout": Cutout,
        "autoaugment_cifar": AutoAugmentCIFAR,
        "resize": Resize,
        "center_crop": CenterCrop,
    }


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Move drawn values to the images' device without waiting for it."""
    return values.to(device, non_blocking=device.type == "cuda")


def to_uint8(values: Tensor) -> Tensor:
    """Clamp to [0, 255] in place and cut off the fraction; through int16, which is three times as fast on a CPU."""
    return values.clamp_(0, 255).to(torch.int16).to(torch.uint8)


def _parse(spec: str | Sequence[str | Mapping[str, Any] | Augmentation]) -> tuple[Augmentation, ...]:
    return tuple(_parse_one(item) for item in ([spec] if isinstance(spec, (str, Mapping, Augmentation)) else spec))


def _parse_one(item: str | Mapping[str, Any] | Augmentation) -> Augmentation:
    if isinstance(item, Augmentation):
        validate(item, f"augmentation.{_name_of(type(item))}")
        return item
    values = {"name": item} if isinstance(item, str) else dict(item)
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise ConfigurationError(f"Expected a transform with a 'name', received {item!r}; add its name.")
    found = transforms().get(name) or (load_object(name) if ":" in name else None)
    if found is None:
        raise _unknown(name)
    if not (isinstance(found, type) and issubclass(found, Augmentation)):
        raise ConfigurationError(f"Expected a subclass of Augmentation at {name!r}, received {found!r}; derive it.")
    return build(found, values, f"augmentation.{name}")


def _unknown(name: str) -> ConfigurationError:
    choices = [*PRESETS, *transforms()]
    hint = did_you_mean(name, choices) or f" Known: {', '.join(choices)}."
    return ConfigurationError(f"There is no augmentation named {name!r}.{hint}")


def _name_of(cls: type[Augmentation]) -> str:
    built_in = {known: name for name, known in transforms().items()}
    return built_in.get(cls) or f"{source_file(cls) or cls.__module__}:{cls.__qualname__}"


def _between(limits: Tensor, share: Tensor) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * share


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    """Height and width of the largest box whose ratio is allowed."""
    if width / height < ratio[0]:
        return min(round(width / ratio[0]), height), width
    if width / height > ratio[1]:
        return height, min(round(height * ratio[1]), width)
    return height, width


def _resampling(start: Tensor, length: Tensor, size: int, available: int, antialias: bool) -> Tensor:
    """Weights (B, size, available) that resize `length` pixels from `start` (both (B,)) to `size`, bilinearly."""
    scale = (length / size).view(-1, 1, 1)
    reach = scale.clamp(min=1) if antialias else torch.ones_like(scale)
    centre = scale * (torch.arange(size, device=start.device).view(1, -1, 1) + 0.5)
    position = torch.arange(available, device=start.device).view(1, 1, -1) - start.view(-1, 1, 1)
    inside = (position >= 0) & (position < length.view(-1, 1, 1))
    weights = (1 - (position + 0.5 - centre).abs_() / reach).clamp_(min=0) * inside
    return weights / weights.sum(2, keepdim=True)
