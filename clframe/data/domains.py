"""Fixed changes of images that make domains: pixel permutations and rotations. Pure, and the same on every machine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Identity", "Permutation", "Rotation"]


@dataclass(frozen=True)
class Identity:
    """Images as they are."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return the batch (B, H, W, C) uint8 or (B, D) float32 itself."""
        return images

    def spec(self) -> dict[str, Any]:
        """Return the name."""
        return {"name": "identity"}


@dataclass(frozen=True, eq=False)
class Permutation:
    """Move every pixel (all channels together) or feature to a fixed other place.

    Attributes:
        order: (H·W,) or (D,) int64: place k of the result shows place `order[k]` of the image.
    """

    order: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Permute a batch (B, H, W, C) uint8 or (B, D) float32."""
        if images.ndim == 2:
            return images[:, self.order]
        return images.flatten(1, 2)[:, self.order].view(images.shape)

    def spec(self) -> dict[str, Any]:
        """Return the name, the size and a hash of the order."""
        digest = hashlib.sha256(self.order.contiguous().numpy().tobytes()).hexdigest()
        return {"name": "permutation", "size": len(self.order), "order": digest[:16]}


@dataclass(frozen=True)
class Rotation:
    """Rotate images counter-clockwise about their centre, by bilinear interpolation, with black corners.

    Attributes:
        degrees: The angle.
    """

    degrees: float

    def __call__(self, images: Tensor) -> Tensor:
        """Rotate a batch (B, H, W, C) uint8."""
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2.functional import rotate

        if self.degrees % 360 == 0:
            return images
        turned: Tensor = rotate(images.permute(0, 3, 1, 2), self.degrees, InterpolationMode.BILINEAR)
        return turned.permute(0, 2, 3, 1).contiguous(memory_format=torch.contiguous_format)

    def spec(self) -> dict[str, Any]:
        """Return the name and the angle."""
        return {"name": "rotation", "degrees": self.degrees}
