"""Common corruptions of images, computed here: noise, blur, weather and digital damage in five severities.

The corruptions of CIFAR-10-C (Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations"), with the constants of its public code (`make_cifar_c.py`), for grey and colour images of any size.
Left out: `frost` needs photographs of frost, `glass_blur` swaps pixels one by one, `snow` and `spatter` need OpenCV's and
ImageMagick's own filters.

What is drawn for an image depends on its pixels, the corruption, the severity and a seed: an image looks the same each
time it is presented, in whatever batch, and equal images look equal.

**Differs from the public code:**

- Results are rounded to the nearest grey level; there they are cut off, which darkens by half a level on average.
- Lengths in pixels (`gaussian_blur`, `defocus_blur`, `motion_blur`) are those of the code up to 32 pixels, and grow with
  the shorter side above. Elastic displacements are parts of the image's size, as there.
- `motion_blur` follows ImageMagick's filter, which the code calls, from memory: a one-sided Gaussian along a line of whole
  pixels, edges repeated. `elastic_transform` interpolates exactly where OpenCV rounds places to 1/32 pixel.
- `fog` draws its map on the smallest power of two that holds the image (there 32).
- Grey images stay grey (there they become RGB); `saturate` has no meaning for them and is refused.
- `jpeg_compression` gives the bits of the installed libjpeg.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clframe.errors import ConfigurationError

__all__ = ["CORRUPTIONS", "Corruption", "colour_only"]

Bytes = NDArray[np.uint8]
Float = NDArray[np.float64]
Edge = Literal["repeat", "mirror", "mirror_inside"]

_CHUNK = 2**21
"""Values that are worked on at once; bounds the memory of a large batch."""

_TIE = 1e-7
"""Part of a grey level by which exact ties are lifted, so that the last bits of a sum decide no rounding."""

_REFERENCE_SIDE = 32


@dataclass(frozen=True)
class Corruption:
    """One common corruption of images; pure.

    Attributes:
        corruption: Its name, see `CORRUPTIONS`.
        severity: 1 to 5.
        seed: Of what is drawn for an image, together with the image's own pixels.
    """

    corruption: str
    severity: int
    seed: int = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Corrupt a batch (B, H, W, C) uint8.

        Raises:
            ConfigurationError: There is no such corruption or severity, or it can't be applied to such images.
        """
        if self.corruption not in CORRUPTIONS or not 1 <= self.severity <= 5:
            raise ConfigurationError(
                f"Expected a severity from 1 to 5 of {', '.join(CORRUPTIONS)}, received {self.severity} of "
                f"{self.corruption!r}."
            )
        if images.ndim != 4:
            raise ConfigurationError(
                f"The corruption {self.corruption} expects images (B, H, W, C), received {tuple(images.shape)}."
            )
        if colour_only(self.corruption) and images.shape[3] != 3:
            raise ConfigurationError(
                f"The corruption {self.corruption} expects colour images, received {images.shape[3]} channels: leave it out."
            )
        size = max(1, _CHUNK // max(1, images[:1].numel()))
        parts = (
            [self._chunk(np.ascontiguousarray(part.numpy())) for part in torch.split(images, size)]
            if len(images)
            else []
        )
        return torch.from_numpy(np.concatenate(parts)) if parts else images.clone()

    def _chunk(self, images: Bytes) -> Bytes:
        draws = _Draws(images, f"{self.corruption}/{self.severity}/{self.seed}")
        return CORRUPTIONS[self.corruption](images, self.severity - 1, draws)

    def spec(self) -> dict[str, Any]:
        """Return the name, the severity and the seed."""
        return {
            "name": "corruption",
            "corruption": self.corruption,
            "severity": self.severity,
            "seed": self.seed,
        }


def colour_only(corruption: str) -> bool:
    """Whether a corruption is defined for images of three channels only."""
    return corruption == "saturate"


# ---- draws that belong to an image


class _Draws:
    """Random numbers of a batch: each image's follow from its own pixels, by the mixer of SplitMix64 on a counter."""

    def __init__(self, images: Bytes, salt: str) -> None:
        flat = images.reshape(len(images), -1).astype(np.uint64)
        places = _mixed(np.arange(1, flat.shape[1] + 1, dtype=np.uint64))
        self._keys = _mixed(flat @ places ^ _number(salt))

    def uniform(self, purpose: str, *shape: int) -> Float:
        """Draw (B, *shape) numbers in (0, 1)."""
        keys = _mixed(self._keys ^ _number(purpose))
        counter = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = _mixed(keys[:, None] + counter) >> np.uint64(11)
        return ((bits.astype(np.float64) + 0.5) * 2.0**-53).reshape(-1, *shape)

    def normal(self, purpose: str, *shape: int) -> Float:
        """Draw (B, *shape) standard normal numbers, by the method of Box and Muller."""
        count = math.prod(shape)
        u = self.uniform(purpose, 2, (count + 1) // 2)
        radius, angle = np.sqrt(-2 * np.log(u[:, 0])), 2 * np.pi * u[:, 1]
        pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return pairs[:, :count].reshape(-1, *shape)


def _number(text: str) -> NDArray[np.uint64]:
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], dtype="<u8").astype(np.uint64)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble every value (the finaliser of SplitMix64, Steele et al. 2014); arithmetic is modulo 2^64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# ---- parts


def _to_bytes(values: Float) -> Bytes:
    """Round values in [0, 1] to grey levels; those outside are clipped."""
    return np.ascontiguousarray(np.floor(np.clip(values, 0, 1) * 255 + (0.5 + _TIE)).astype(np.uint8))


def _unit(images: Bytes) -> float:
    """Return what a length of one pixel in the public code is here."""
    side: int = min(images.shape[1:3])
    return max(1.0, side / _REFERENCE_SIDE)


def _inside(places: NDArray[np.int64], size: int, edge: Edge) -> NDArray[np.int64]:
    """Bring places into 0..size-1: the edge's pixel repeated, or mirrored with the edge's pixel twice or once."""
    if edge == "repeat" or size == 1:
        return np.clip(places, 0, size - 1)
    period = 2 * size if edge == "mirror" else 2 * size - 2
    folded = places % period
    return np.where(folded < size, folded, period - folded - (edge == "mirror"))


def _along_both(values: Float, pairs: Iterable[tuple[Float, Float]]) -> Float:
    """Return the sum, over pairs of matrices (H, H) and (W, W), of every image (B, H, W, C) multiplied from both sides.

    One image at a time goes through the matrix products, so that the others of the batch can't change its last bits.
    """
    planes = np.ascontiguousarray(np.moveaxis(values, 3, 1))
    total = np.zeros(planes.shape)
    for rows, columns in pairs:
        total += (rows @ planes) @ columns.T
    return np.moveaxis(total, 1, 3)


def _bell(radius: int, sigma: float) -> Float:
    """Return the weights of a Gaussian at -radius..radius, of sum 1."""
    places = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (places / sigma) ** 2) if sigma > 0 else (places == 0).astype(np.float64)
    bell: Float = weights / weights.sum()
    return bell


def _smoothing(size: int, sigma: float, truncate: float, edge: Edge) -> Float:
    """Return the matrix (size, size) of a Gaussian filter that is cut off after `truncate` deviations."""
    radius = int(truncate * sigma + 0.5)
    matrix = np.zeros((size, size))
    for offset, weight in zip(range(-radius, radius + 1), _bell(radius, sigma), strict=True):
        np.add.at(matrix, (np.arange(size), _inside(np.arange(size) + offset, size, edge)), weight)
    return matrix


def _sampled(values: Float, y: Float, x: Float, edge: Edge) -> Float:
    """Interpolate images (B, H, W, C) linearly at places y, x (B, H', W') of their own."""
    height, width = values.shape[1:3]
    top, left = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    down, right = (y - top)[..., None], (x - left)[..., None]
    image = np.arange(len(values))[:, None, None]
    above, below = (_inside(top + k, height, edge) for k in (0, 1))
    before, after = (_inside(left + k, width, edge) for k in (0, 1))
    upper = values[image, above, before] * (1 - right) + values[image, above, after] * right
    lower = values[image, below, before] * (1 - right) + values[image, below, after] * right
    found: Float = upper * (1 - down) + lower * down
    return found


# ---- noise


def _gaussian_noise(images: Bytes, level: int, draws: _Draws) -> Bytes:
    scale = (0.04, 0.06, 0.08, 0.09, 0.10)[level]
    return _to_bytes(images / 255 + scale * draws.normal("noise", *images.shape[1:]))


def _shot_noise(images: Bytes, level: int, draws: _Draws) -> Bytes:
    photons = (500, 250, 100, 75, 50)[level]
    table = _poisson_tables(photons)
    drawn = np.minimum(images + draws.uniform("noise", *images.shape[1:]), images + (1 - 1e-12))
    counts = np.searchsorted(table, drawn, side="right") - images.astype(np.int64) * (len(table) // 256)
    return _to_bytes(counts / photons)


@functools.cache
def _poisson_tables(photons: int) -> Float:
    """Return, one after the other, the distribution function of Poisson(photons · v / 255) plus v for v = 0..255."""
    mean = np.arange(256)[:, None] * (photons / 255)
    counts = np.arange(photons + 12 * math.isqrt(photons) + 24)
    logs = np.array([math.lgamma(k + 1) for k in counts.tolist()])
    with np.errstate(divide="ignore", invalid="ignore"):
        mass = np.exp(counts * np.log(mean) - mean - logs)
    mass[0] = counts == 0
    below = np.minimum(np.cumsum(mass, axis=1), 1)
    below[:, -1] = 1
    table: Float = (below + np.arange(256)[:, None]).ravel()
    return table


def _impulse_noise(images: Bytes, level: int, draws: _Draws) -> Bytes:
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[level]
    drawn = draws.uniform("noise", *images.shape[1:])
    salted = np.where(drawn < share / 2, np.uint8(255), np.uint8(0))
    return np.where(drawn < share, salted, images)


def _speckle_noise(images: Bytes, level: int, draws: _Draws) -> Bytes:
    scale = (0.06, 0.10, 0.12, 0.16, 0.20)[level]
    values = images / 255
    return _to_bytes(values + values * scale * draws.normal("noise", *images.shape[1:]))


# ---- blur


def _gaussian_blur(images: Bytes, level: int, draws: _Draws) -> Bytes:
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[level] * _unit(images)
    height, width = images.shape[1:3]
    pair = _smoothing(height, sigma, 4.0, "repeat"), _smoothing(width, sigma, 4.0, "repeat")
    return _to_bytes(_along_both(images / 255, [pair]))


def _defocus_blur(images: Bytes, level: int, draws: _Draws) -> Bytes:
    radius, soft = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[level]
    kernel = _disc(radius, soft, _unit(images))
    reach = len(kernel) // 2
    height, width = images.shape[1:3]
    rows, columns = (_inside(np.arange(-reach, n + reach), n, "mirror_inside") for n in (height, width))
    padded = images[:, rows][:, :, columns] / 255
    total = np.zeros(images.shape)
    for (i, j), weight in np.ndenumerate(kernel):
        if weight > 0:
            total += weight * padded[:, i : i + height, j : j + width]
    return _to_bytes(total)


def _disc(radius: float, soft: float, unit: float) -> Float:
    """Return the kernel of a disc with soft edges, of sum 1; the Gaussian of its edges is three pixels wide at unit 1."""
    edge = round(unit)
    reach = int(radius * unit) + edge
    places = np.arange(-reach, reach + 1)
    disc = (places[:, None] ** 2 + places**2 <= (radius * unit) ** 2).astype(np.float64)
    bell = _bell(edge, soft * unit)
    soften = np.zeros((len(places), len(places)))
    for offset, weight in zip(range(-edge, edge + 1), bell, strict=True):
        soften += weight * np.eye(len(places), k=offset)
    kernel: Float = soften @ disc @ soften.T / disc.sum()
    return kernel


def _motion_blur(images: Bytes, level: int, draws: _Draws) -> Bytes:
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[level]
    unit = _unit(images)
    steps = np.arange(2 * math.ceil(radius * unit) + 1)
    weights = np.exp(-0.5 * (steps / (sigma * unit)) ** 2)
    weights /= weights.sum()
    angle = np.deg2rad(90 * draws.uniform("angle") - 45)
    height, width = images.shape[1:3]
    image, y, x = np.arange(len(images))[:, None, None], np.arange(height)[None, :, None], np.arange(width)
    values, total = images / 255, np.zeros(images.shape)
    for step, weight in zip(steps.tolist(), weights.tolist(), strict=True):
        if weight < 1e-7:  # less than a ten-thousandth of a grey level
            break
        right = np.ceil(step * np.cos(angle) - 0.5).astype(np.int64)[:, None, None]
        down = np.ceil(step * np.sin(angle) - 0.5).astype(np.int64)[:, None, None]
        total += weight * values[image, _inside(y + down, height, "repeat"), _inside(x + right, width, "repeat")]
    return _to_bytes(total)


def _zoom_blur(images: Bytes, level: int, draws: _Draws) -> Bytes:
    factors = np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[level], 0.01)
    values, (height, width) = images / 255, images.shape[1:3]
    zoomed = _along_both(values, ((_zoom(height, f), _zoom(width, f)) for f in factors.tolist()))
    return _to_bytes((values + zoomed) / (len(factors) + 1))


@functools.lru_cache(256)
def _zoom(size: int, factor: float) -> Float:
    """Return the matrix (size, size) that enlarges the middle by linear interpolation, ends on ends."""
    cut = math.ceil(size / factor)
    large = round(cut * factor)
    top, trim = (size - cut) // 2, (large - size) // 2
    places = (np.arange(size) + trim) * ((cut - 1) / max(1, large - 1))
    low = np.minimum(np.floor(places).astype(np.int64), cut - 1)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size), top + low), 1 - (places - low))
    np.add.at(matrix, (np.arange(size), top + np.minimum(low + 1, cut - 1)), places - low)
    return matrix


# ---- weather


def _fog(images: Bytes, level: int, draws: _Draws) -> Bytes:
    strength, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[level]
    values = images / 255
    height, width = images.shape[1:3]
    brightest = values.max(axis=(1, 2, 3), keepdims=True)
    fog = _plasma(max(height, width), decay, draws)[:, :height, :width, None]
    return _to_bytes((values + strength * fog) * brightest / (brightest + strength))


def _plasma(side: int, decay: float, draws: _Draws) -> Float:
    """Draw height maps (B, S, S) in [0, 1] by the diamond-square algorithm on a torus; S is a power of two, at least `side`.

    Every pass sets the middles of the squares, then the middles of their sides, to the mean of four neighbours plus a
    number drawn from ±wibble², and the wibble shrinks by `decay`.
    """
    size = 1 << max(1, math.ceil(math.log2(max(side, 2))))
    heights = np.zeros((len(draws.uniform("count")), size, size))
    step, wibble = size, 100.0
    while step >= 2:
        half, count = step // 2, size // step
        noise = wibble**2 * (2 * draws.uniform(f"plasma {step}", 3, count, count) - 1)
        corners = heights[:, ::step, ::step]
        beside = corners + np.roll(corners, -1, axis=1)
        middles = (beside + np.roll(beside, -1, axis=2)) / 4 + noise[:, 0]
        heights[:, half::step, half::step] = middles
        across = middles + np.roll(middles, 1, axis=1) + corners + np.roll(corners, -1, axis=2)
        heights[:, ::step, half::step] = across / 4 + noise[:, 1]
        along = middles + np.roll(middles, 1, axis=2) + corners + np.roll(corners, -1, axis=1)
        heights[:, half::step, ::step] = along / 4 + noise[:, 2]
        step, wibble = half, wibble / decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    scaled: Float = heights / heights.max(axis=(1, 2), keepdims=True)
    return scaled


def _brightness(images: Bytes, level: int, draws: _Draws) -> Bytes:
    """Raise V of HSV, the largest channel: hue and saturation stay when all channels grow by one factor."""
    added = (0.05, 0.10, 0.15, 0.20, 0.30)[level]
    values = images / 255
    largest = values.max(axis=3, keepdims=True)
    raised = np.minimum(largest + added, 1)
    ratio = np.divide(values, largest, out=np.ones_like(values), where=largest > 0)  # black becomes grey
    return _to_bytes(ratio * raised)


def _contrast(images: Bytes, level: int, draws: _Draws) -> Bytes:
    factor = (0.75, 0.5, 0.4, 0.3, 0.15)[level]
    pixels = images.shape[1] * images.shape[2]
    means = images.sum(axis=(1, 2), keepdims=True, dtype=np.int64) / (255 * pixels)
    return _to_bytes((images / 255 - means) * factor + means)


def _saturate(images: Bytes, level: int, draws: _Draws) -> Bytes:
    """Change S of HSV; the distance of every channel from the largest is proportional to it. Hue 0 of grey is red."""
    factor, added = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))[level]
    values = images / 255
    largest = values.max(axis=3, keepdims=True)
    gap = largest - values
    spread = gap.max(axis=3, keepdims=True)
    saturation = np.divide(spread, largest, out=np.zeros_like(spread), where=largest > 0)
    wanted = np.clip(saturation * factor + added, 0, 1)
    share = np.divide(gap, spread, out=np.broadcast_to([0.0, 1.0, 1.0], gap.shape).copy(), where=spread > 0)
    return _to_bytes(largest * (1 - wanted * share))


# ---- digital


def _elastic_transform(images: Bytes, level: int, draws: _Draws) -> Bytes:
    """Move three points of the image at random (an affine change), then every pixel by a smooth random field."""
    shift, smooth, corner = ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))[
        level
    ]
    height, width = images.shape[1:3]
    side, count = min(height, width), len(images)
    middle, reach = np.array([width // 2, height // 2], dtype=np.float64), max(1, side // 3)
    points = middle + reach * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    moved = points + corner * side * (2 * draws.uniform("corners", 3, 2) - 1)
    back = np.linalg.solve(
        np.concatenate([moved, np.ones((count, 3, 1))], axis=2), np.broadcast_to(points, moved.shape)
    )
    y, x = np.meshgrid(np.arange(height, dtype=np.float64), np.arange(width, dtype=np.float64), indexing="ij")
    from_x, from_y = (x * b[:, 0] + y * b[:, 1] + b[:, 2] for b in np.moveaxis(back, 2, 0)[..., None, None])
    values = _sampled(images / 255, from_y, from_x, "mirror_inside")
    if shift:
        pair = _smoothing(height, smooth * side, 3.0, "mirror"), _smoothing(width, smooth * side, 3.0, "mirror")
        field = shift * side * _along_both(2 * draws.uniform("field", height, width, 2) - 1, [pair])
        values = _sampled(values, y + field[..., 1], x + field[..., 0], "mirror")
    return _to_bytes(values)


def _pixelate(images: Bytes, level: int, draws: _Draws) -> Bytes:
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[level]
    height, width = images.shape[1:3]
    small = _box_resized(images, max(1, int(height * share)), max(1, int(width * share)))
    return _box_resized(small, height, width)


def _box_resized(images: Bytes, height: int, width: int) -> Bytes:
    """Resize as Pillow's box filter does: along rows, then along columns, each rounded to grey levels."""
    planes = np.moveaxis(images, 3, 1).astype(np.float64)
    passed = np.floor((planes @ _box(images.shape[2], width).T + 2.0**21) / 2.0**22)  # whole numbers, hence exact
    found = np.floor((_box(images.shape[1], height) @ passed + 2.0**21) / 2.0**22)
    return np.ascontiguousarray(np.moveaxis(found, 1, 3)).astype(np.uint8)


@functools.lru_cache(64)
def _box(size: int, wanted: int) -> Float:
    """Return Pillow's weights (wanted, size) of the box filter, as whole numbers of 2^-22."""
    scale = size / wanted
    stretch = max(scale, 1.0)
    matrix = np.zeros((wanted, size))
    for row in range(wanted):
        centre = (row + 0.5) * scale
        low, high = max(0, int(centre - stretch / 2 + 0.5)), min(size, int(centre + stretch / 2 + 0.5))
        places = (np.arange(low, high) - centre + 0.5) / stretch
        chosen = ((places > -0.5) & (places <= 0.5)).astype(np.float64)
        matrix[row, low:high] = np.floor(chosen / chosen.sum() * 2**22 + 0.5)
    return matrix


def _jpeg_compression(images: Bytes, level: int, draws: _Draws) -> Bytes:
    from PIL import Image

    quality = (80, 65, 58, 50, 40)[level]
    found = np.empty_like(images)
    for image, out in zip(images, found, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "JPEG", quality=quality)
        out[...] = np.asarray(Image.open(buffer)).reshape(image.shape)
    return found


CORRUPTIONS: dict[str, Callable[[Bytes, int, _Draws], Bytes]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
    "speckle_noise": _speckle_noise,
    "gaussian_blur": _gaussian_blur,
    "saturate": _saturate,
}
"""The corruptions by name, in the order of CIFAR-10-C: each takes images (B, H, W, C), the severity less one, and draws."""
