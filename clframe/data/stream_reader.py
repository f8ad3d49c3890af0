"""Images too many for memory: decoded from their files by worker processes, behind the interface of a reader."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clframe.data.decode import CorruptImage, decode_image
from clframe.data.tree import FileTree, Member
from clframe.errors import DataError

__all__ = ["StreamingReader", "usable_cores"]


@dataclasses.dataclass(frozen=True, eq=False)
class StreamingReader:
    """Decodes images when they are asked for; the same bits as the image store would give.

    Attributes:
        tree: The folder or archive; one that allows random access.
        members: The image files by index.
        height: Of every image, in pixels.
        width: Likewise.
        size: Images are fitted to this square; None requires that each has `height` and `width` already.
        workers: Processes that work ahead in `batches`; 0 decodes in this process.
    """

    tree: FileTree
    members: tuple[Member, ...]
    height: int
    width: int
    size: int | None = None
    workers: int = 4

    @property
    def shape(self) -> tuple[int, ...]:
        """`(C, H, W)` of an image; streamed images are RGB."""
        return (3, self.height, self.width)

    @property
    def dtype(self) -> torch.dtype:
        """`torch.uint8`."""
        return torch.uint8

    def __len__(self) -> int:
        return len(self.members)

    def gather(self, indices: Tensor) -> Tensor:
        """Decode some images in this process, `(B, H, W, C)` uint8.

        Raises:
            DataError: A file is corrupt or of another size; names it.
            IndexError: An index lies outside of `[0, len)`.
        """
        out = torch.empty((len(indices), self.height, self.width, 3), dtype=torch.uint8)
        rows = out.numpy()
        for row, index in enumerate(indices.tolist()):
            if not 0 <= index < len(self.members):
                raise IndexError(f"Expected an index in [0, {len(self.members)}), received {index}.")
            rows[row] = self._decoded(self.members[index])
        return out

    def batches(self, index_batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield `gather(indices)` for each index batch, in order, decoded ahead by worker processes.

        The workers end when the iterator is exhausted or closed.

        Raises:
            DataError: As `gather`.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # the user said how many
            loader = DataLoader(
                _Batches(self, index_batches),
                batch_size=None,
                shuffle=False,
                num_workers=min(self.workers, len(index_batches)),
                generator=torch.Generator(),  # else the loader would draw from the global one
            )
        results = iter(loader)
        try:
            for result in results:
                if isinstance(result, str):
                    raise DataError(result)
                yield result
        finally:
            del results

    def _decoded(self, member: Member) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        try:
            image = decode_image(self.tree.read(member), self.size)
        except CorruptImage as error:
            raise DataError(
                f"The image {member.name} of {self.tree.path} is corrupt ({error}); repair or remove it."
            ) from None
        if image.shape[:2] != (self.height, self.width):
            raise DataError(
                f"The image {member.name} of {self.tree.path} has {image.shape[1]}×{image.shape[0]} pixels where "
                f"others have {self.width}×{self.height}; give a size to resize all of them to."
            )
        return image


class _Batches(Dataset[Tensor | str]):
    """Item i is batch i, so that a worker fills a whole batch at once."""

    def __init__(self, reader: StreamingReader, index_batches: Sequence[Tensor]) -> None:
        self.reader = reader
        self.index_batches = index_batches

    def __len__(self) -> int:
        return len(self.index_batches)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.reader.gather(self.index_batches[index])
        except DataError as error:  # as a value: an exception would come back wrapped in the worker's traceback
            return str(error)


def usable_cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
