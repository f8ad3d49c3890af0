"""The idx format of MNIST and its successors, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from clframe.errors import DataError

__all__ = ["IDX_FILES", "idx_files", "read_idx"]

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""The four files of such a data set, without `.gz`: training images and labels, test images and labels."""


def idx_files(folder: Path) -> list[Path] | None:
    """Return the four files in a folder, plain or with `.gz`; None where one is missing."""
    found = []
    for name in IDX_FILES:
        file = next((f for f in (folder / name, folder / f"{name}.gz") if f.is_file()), None)
        if file is None:
            return None
        found.append(file)
    return found


def read_idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read an idx file of unsigned bytes.

    Returns:
        The array in the shape that the file states, for images `(N, H, W)`.

    Raises:
        DataError: The file is damaged or holds another type.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} could not be read ({error}); install or download it again.") from None
    dims = data[3] if len(data) > 3 else 0
    start = 4 + 4 * dims
    if data[:3] != b"\x00\x00\x08" or not dims or len(data) < start:
        raise DataError(f"Expected an idx file of unsigned bytes at {path}, received other content; download it again.")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", dims, offset=4))
    if len(data) - start != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{path} should hold {shape} bytes but has {len(data) - start}; download it again.")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
