"""Several readers behind one: rows one after the other, images brought to one size and number of channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clframe.data.reader import ImageReader
from clframe.errors import DataError

__all__ = ["JoinedReader"]


class JoinedReader:
    """The images of several readers, one reader's rows after the other's.

    Images of another size are resized by bilinear interpolation with antialiasing, grey ones repeated to `channels`, when
    they are gathered: what fits already is copied as it is.

    Args:
        readers: Of uint8 images.
        shape: (C, H, W) that all images leave with.

    Raises:
        DataError: A reader has features, or colours where grey images are asked for.
    """

    def __init__(self, readers: Sequence[ImageReader], shape: tuple[int, int, int]) -> None:
        """Check the readers; nothing is read."""
        for reader in readers:
            if len(reader.shape) != 3 or reader.shape[0] not in (1, shape[0]):
                raise DataError(
                    f"Expected images of 1 or {shape[0]} channels to join, received inputs of shape {tuple(reader.shape)}; "
                    "leave that data set out, or ask for 3 channels."
                )
        self.readers, self._shape = tuple(readers), shape
        self._ends = torch.tensor([len(r) for r in readers]).cumsum(0)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        """Always uint8."""
        return torch.uint8

    def __len__(self) -> int:
        return int(self._ends[-1])

    def gather(self, indices: Tensor) -> Tensor:
        """Return a copy of some images, (B, H, W, C) uint8."""
        channels, height, width = self._shape
        out = torch.empty(len(indices), height, width, channels, dtype=torch.uint8)
        owner = torch.searchsorted(self._ends, indices, right=True)
        starts = torch.cat([self._ends.new_zeros(1), self._ends])
        for k, reader in enumerate(self.readers):
            chosen = (owner == k).nonzero().flatten()
            if len(chosen):
                out[chosen] = self._fitted(reader.gather(indices[chosen] - starts[k]))
        return out

    def batches(self, index_batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield `gather(indices)` for each index batch, in order."""
        for indices in index_batches:
            yield self.gather(indices)

    def _fitted(self, images: Tensor) -> Tensor:
        """Bring images (B, h, w, c) to the common shape."""
        channels, height, width = self._shape
        if images.shape[1:3] != (height, width):
            small = F.interpolate(
                images.permute(0, 3, 1, 2).float(),
                (height, width),
                mode="bilinear",
                antialias=True,
                align_corners=False,
            )
            images = small.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        return images.expand(-1, -1, -1, channels)
