"""The image store: every image decoded once ever, into memory-mapped uint8 arrays in the cache.

A store is a folder `CACHE/stores/KEY` of `train.npy`, `test.npy`, their targets, and `meta.json`. It is written under
another name and renamed when complete, so whatever can be read is whole. The key belongs to the source (see
`clframe.data.tree`); the fingerprint kept in `meta.json` belongs to the decoded content.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from clframe.data.reader import ContentHash, ImageSet, MemoryReader, content_fingerprint
from clframe.data.root import cache_dir
from clframe.errors import DataError

__all__ = ["Chunk", "Decoded", "ImageStore", "StoredImages"]

STORE_VERSION = 1
_HEADER_BYTES = 128
_SPLITS = ("train", "test")

Chunk = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
"""Images `(n, H, W, C)` uint8, or features `(n, D)` float32, and their int64 targets `(n,)`."""


@dataclasses.dataclass
class Decoded:
    """What a source hands to the store: both splits, piece by piece.

    Attributes:
        class_names: By class index.
        train: Chunks of the training split, decoded as they are drawn.
        test: Likewise of the test split.
        skipped: Files left out as corrupt; may grow while the chunks are drawn.
    """

    class_names: tuple[str, ...]
    train: Iterable[Chunk]
    test: Iterable[Chunk]
    skipped: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class StoredImages:
    """An opened store.

    Attributes:
        train: The training split, mapped from its file.
        test: The test split.
        class_names: By class index.
        mean: Measured on the training split, per channel, in [0, 1]; empty for features.
        std: Likewise.
        fingerprint: Of the decoded content.
        skipped: Files that were left out as corrupt when the store was made.
        folder: Where it lies.
    """

    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    skipped: tuple[str, ...]
    folder: Path


class ImageStore:
    """The stores below a cache folder.

    Args:
        cache: The cache folder; by default `CLFRAME_CACHE` or `~/.cache/clframe`. Made when first written to.
    """

    def __init__(self, cache: Path | None = None) -> None:
        """Touch no file."""
        self.cache = cache if cache is not None else cache_dir()
        self.folder = self.cache / "stores"

    def open(self, key: str, produce: Callable[[], Decoded]) -> StoredImages:
        """Open the store of that key, making it first where there is none or it is damaged.

        Several processes may ask for the same store at once: one makes it, the others wait.

        Raises:
            DataError: The cache can't be written, or `produce` raised it; nothing half-written stays.
        """
        found = self.find(key)
        if found is not None:
            return found
        with _reporting(self.folder), self._lock(key) as locked:
            found = self.find(key)  # another process may have made it meanwhile
            if found is not None:
                return found
            if locked:
                self._remove_leftovers(key)
            return self._make(key, produce)

    def open_by_content(self, name: str, produce: Callable[[], Decoded]) -> StoredImages:
        """Write a store whose key comes from its content, for sources that can't be recognised unread."""
        with _reporting(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            return self._make(None, produce, prefix=name)

    def find(self, key: str) -> StoredImages | None:
        """Return the store of that key if there is a complete one; a file of the wrong length means there is none."""
        folder = self.folder / key
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            if meta["version"] != STORE_VERSION or any(
                (folder / name).stat().st_size != size for name, size in meta["bytes"].items()
            ):
                return None
            return _opened(folder, meta)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remember(self, alias: str, key: str) -> None:
        """Note under which key an unchanged file was stored, so that it needn't be looked into again."""
        with contextlib.suppress(OSError):  # only a shortcut
            note = self._note(alias)
            note.parent.mkdir(parents=True, exist_ok=True)
            temporary = note.with_name(f"{note.name}.{secrets.token_hex(4)}")
            temporary.write_text(key, encoding="utf-8")
            temporary.replace(note)

    def recall(self, alias: str) -> str | None:
        """Return the key that `remember` noted."""
        try:
            return self._note(alias).read_text(encoding="utf-8") or None
        except (OSError, ValueError):
            return None

    def _note(self, alias: str) -> Path:
        return self.cache / "memo" / hashlib.sha256(alias.encode(errors="surrogateescape")).hexdigest()

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[bool]:
        """Hold the key's lock; yields False where the file system has none (the final rename decides then)."""
        locks = self.folder / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / key).open("w") as file:
            yield _flock(file.fileno())

    def _remove_leftovers(self, key: str) -> None:
        """Remove what killed writers of this key left; the lock says that none of them is alive."""
        for leftover in self.folder.glob(f".{key}.*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _make(self, key: str | None, produce: Callable[[], Decoded], prefix: str = "content") -> StoredImages:
        temporary = self.folder / f".{key or prefix}.{secrets.token_hex(6)}.tmp"
        temporary.mkdir()
        try:
            meta = _write(temporary, produce())
            content = json.dumps([meta["fingerprint"], meta["class_names"]])
            return self._publish(temporary, key or f"{prefix}-{hashlib.sha256(content.encode()).hexdigest()[:24]}")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _publish(self, temporary: Path, key: str) -> StoredImages:
        """Give a complete store its name; where another process was faster, take that one."""
        for _ in range(3):
            with contextlib.suppress(OSError):  # the name is taken
                temporary.rename(self.folder / key)
            found = self.find(key)
            if found is not None:
                return found
            if (self.folder / key).exists():  # damaged or of an older version: out of the way
                aside = self.folder / f".{key}.{secrets.token_hex(6)}.tmp"
                with contextlib.suppress(OSError):
                    (self.folder / key).rename(aside)
                shutil.rmtree(aside, ignore_errors=True)
        raise OSError(f"the store {key} could not be given its name")


class _SplitWriter:
    """Appends chunks to a `.npy` file whose length is known only at the end.

    Plain writes, not a mapping: on a full disk a mapping would kill the process instead of raising an error.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.split = split
        self.hash = ContentHash()
        self.pixel_counts: np.ndarray[Any, Any] | None = None
        self._path = folder / f"{split}.npy"
        self._targets: list[np.ndarray[Any, Any]] = []
        self._shape: tuple[int, ...] = ()
        self._descr = ""

    def write(self, chunks: Iterable[Chunk]) -> None:
        """Write all chunks and the targets; afterwards the files are complete on disk.

        Raises:
            DataError: There is no image, or images differ in shape.
        """
        count = 0
        with self._path.open("wb") as file:
            file.write(b"\0" * _HEADER_BYTES)
            for images, targets in chunks:
                self._check(images)
                self.hash.update(images, targets)
                self._count_pixels(images)
                file.write(np.ascontiguousarray(images).data)
                self._targets.append(targets.astype(np.int64))
                count += len(images)
            if count == 0:
                raise DataError(
                    f"Expected at least one image in the {self.split} split, received none that can be used."
                )
            file.seek(0)
            file.write(_npy_header(self._descr, (count, *self._shape)))
            _flush(file)
        with self._path.with_name(f"{self.split}_targets.npy").open("wb") as file:
            np.save(file, np.concatenate(self._targets))
            _flush(file)

    def _check(self, images: np.ndarray[Any, Any]) -> None:
        if not self._descr:
            self._descr, self._shape = images.dtype.str, images.shape[1:]
        if (images.dtype.str, images.shape[1:]) != (self._descr, self._shape):
            raise DataError(
                f"Expected every image of one shape and type, received {images.shape[1:]} after {self._shape}; "
                "give a size to resize them to."
            )

    def _count_pixels(self, images: np.ndarray[Any, Any]) -> None:
        if images.dtype != np.uint8:
            return
        flat = images.reshape(-1, images.shape[-1])
        counts = np.stack([np.bincount(flat[:, c], minlength=256) for c in range(flat.shape[1])])
        self.pixel_counts = counts if self.pixel_counts is None else self.pixel_counts + counts


def _write(folder: Path, decoded: Decoded) -> dict[str, Any]:
    """Write both splits and, last of all, `meta.json`."""
    writers = {split: _SplitWriter(folder, split) for split in _SPLITS}
    writers["train"].write(decoded.train)
    writers["test"].write(decoded.test)
    mean, std = channel_statistics(writers["train"].pixel_counts)
    meta = {
        "version": STORE_VERSION,
        "fingerprint": content_fingerprint(*(writers[split].hash.hexdigest() for split in _SPLITS)),
        "class_names": list(decoded.class_names),
        "mean": mean,
        "std": std,
        "skipped": decoded.skipped,
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.glob("*.npy"))},
    }
    with (folder / "meta.json").open("wb") as file:
        file.write(json.dumps(meta, indent=1).encode())
        _flush(file)
    return meta


def channel_statistics(counts: np.ndarray[Any, Any] | None) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel, in [0, 1], from how often each value occurs `(C, 256)`."""
    if counts is None:
        return [], []
    values = np.arange(256) / 255.0
    totals = counts.sum(axis=1)
    mean = counts @ values / totals
    variance = counts @ values**2 / totals - mean**2
    std = np.sqrt(np.maximum(variance, 0.0))
    return [round(float(v), 6) for v in mean], [round(float(v), 6) or 1.0 for v in std]


def _opened(folder: Path, meta: dict[str, Any]) -> StoredImages:
    sets = {}
    for split in _SPLITS:
        targets = torch.from_numpy(np.load(folder / f"{split}_targets.npy"))
        sets[split] = ImageSet(MemoryReader.from_npy(folder / f"{split}.npy"), targets)
    return StoredImages(
        train=sets["train"],
        test=sets["test"],
        class_names=tuple(meta["class_names"]),
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        fingerprint=meta["fingerprint"],
        skipped=tuple(meta["skipped"]),
        folder=folder,
    )


def _npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    """Return a version 1.0 `.npy` header of a fixed length."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    body = text.ljust(_HEADER_BYTES - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body


def _flush(file: BinaryIO) -> None:
    """Have the bytes on disk before the rename, so that even a power cut can't leave a named, empty store."""
    file.flush()
    os.fsync(file.fileno())


def _flock(descriptor: int) -> bool:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except (ImportError, OSError):  # Windows, or a network file system without locks
        return False
    return True


@contextlib.contextmanager
def _reporting(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into one sentence."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"Decoded images could not be written to {folder} ({error.strerror or error}); "
            "free space there or set CLFRAME_CACHE to a folder with room."
        ) from error
