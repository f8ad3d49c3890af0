"""What a source opens to: images by index, their targets, and what is known about them."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from clframe.errors import DataError

__all__ = ["ContentHash", "ImageData", "ImageReader", "ImageSet", "MemoryReader", "as_tensor", "content_fingerprint"]


@runtime_checkable
class ImageReader(Protocol):
    """Images by index, behind one interface whether they lie in memory or stream from files.

    Attributes:
        shape: `(C, H, W)` of an image; `(D,)` of a feature vector.
        dtype: `torch.uint8` for images, `torch.float32` for features.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102 - documented above

    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102 - documented above

    def __len__(self) -> int: ...

    def gather(self, indices: Tensor) -> Tensor:
        """Return a copy of some images.

        Args:
            indices: `(B,)` int64, each in `[0, len)`, in any order, repeated or not.

        Returns:
            `(B, H, W, C)` uint8, or `(B, D)` float32.
        """
        ...

    def batches(self, index_batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield `gather(indices)` for each index batch, in order; a streaming reader works ahead."""
        ...


class MemoryReader:
    """Images that are one tensor, in memory or mapped from a file.

    Args:
        tensor: `(N, H, W, C)` uint8 images or `(N, D)` float32 features. Shared with the caller, not copied.
        path: The `.npy` file that the tensor is mapped from; lets the reader travel to worker processes as a name.
    """

    def __init__(self, tensor: Tensor, path: Path | None = None) -> None:
        """Check type and shape; nothing is read."""
        if (tensor.ndim, tensor.dtype) not in {(4, torch.uint8), (2, torch.float32)}:
            raise DataError(
                "Expected uint8 images (N, H, W, C) or float32 features (N, D), received "
                f"{tensor.dtype} of shape {tuple(tensor.shape)}; convert the array."
            )
        self.tensor = tensor
        """The whole set, `(N, H, W, C)` uint8 or `(N, D)` float32; to be read, never written."""
        self._path = path

    @classmethod
    def from_npy(cls, path: Path) -> MemoryReader:
        """Map a `.npy` file; nothing is read before it is gathered."""
        # Copy-on-write: torch asks for a writable array, and no write can reach the file.
        return cls(torch.from_numpy(np.load(path, mmap_mode="c")), path)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(C, H, W)` of an image, `(D,)` of a feature vector."""
        if self.tensor.ndim == 2:
            return (self.tensor.shape[1],)
        _, height, width, channels = self.tensor.shape
        return (channels, height, width)

    @property
    def dtype(self) -> torch.dtype:
        """`torch.uint8` for images, `torch.float32` for features."""
        return self.tensor.dtype

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def gather(self, indices: Tensor) -> Tensor:
        """Return a copy of some images, `(B, H, W, C)` uint8 or `(B, D)` float32."""
        return self.tensor.index_select(0, indices)

    def batches(self, index_batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield `gather(indices)` for each index batch, in order."""
        for indices in index_batches:
            yield self.gather(indices)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._path is not None:
            return MemoryReader.from_npy, (self._path,)
        return MemoryReader, (self.tensor,)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """One split of a data set.

    Attributes:
        images: The images by index.
        targets: `(N,)` int64 class indices in `[0, number of classes)`.
    """

    images: ImageReader
    targets: Tensor

    def __post_init__(self) -> None:
        """Refuse targets that don't belong to the images.

        Raises:
            DataError: The lengths differ.
        """
        if len(self.images) != len(self.targets):
            raise DataError(
                f"Expected one target per image, received {len(self.targets)} targets for {len(self.images)} images."
            )

    def __len__(self) -> int:
        return len(self.images)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageData:
    """What a source opens to.

    Attributes:
        name: A short name for folders and tables.
        train: The training split.
        test: The test split.
        class_names: By class index.
        mean: Per channel, of pixels in [0, 1]; empty for features.
        std: Likewise the standard deviation.
        fingerprint: Of the content (not of names or containers), the same on every machine.
    """

    name: str
    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str

    @property
    def shape(self) -> tuple[int, ...]:
        """`(C, H, W)` of an image, `(D,)` of a feature vector."""
        return self.train.images.shape

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


class ContentHash:
    """The fingerprint of one split, fed piece by piece; how it is cut into pieces doesn't matter."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._images = hashlib.sha256()
        self._targets = hashlib.sha256()
        self._head = ""
        self._count = 0

    def update(self, images: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> None:
        """Add images `(n, ...)` and their targets `(n,)`."""
        little = images.astype(images.dtype.newbyteorder("<"), copy=False)
        self._images.update(np.ascontiguousarray(little).data)
        self._targets.update(targets.astype("<i8").tobytes())
        self._head = f"{little.dtype.str} {images.shape[1:]}"
        self._count += len(images)

    def hexdigest(self) -> str:
        """Return the fingerprint of everything added so far."""
        parts = f"{self._count} {self._head} {self._images.hexdigest()} {self._targets.hexdigest()}"
        return hashlib.sha256(parts.encode()).hexdigest()


def content_fingerprint(train: str, test: str) -> str:
    """Join the fingerprints of both splits into that of the data set."""
    return hashlib.sha256(f"{train} {test}".encode()).hexdigest()


def as_tensor(values: Any) -> Tensor:
    """Make a CPU tensor of an array-like without a copy where that is possible."""
    if isinstance(values, Tensor):
        return values.detach().cpu()
    with warnings.catch_warnings():
        # A read-only array is fine: readers copy what they give away and write nothing.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(values))
