"""Image folders, as a directory or inside an archive: `train/CLASS/*` beside `test/` or `val/`, or in parquet files."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch

from clframe.data.decode import DECODE_VERSION, CorruptImage, decode_image
from clframe.data.layout import Layout, Targets, arrange, is_image_name
from clframe.data.parquet import ParquetChoice, ParquetTree, is_parquet_name
from clframe.data.reader import ImageData, ImageSet
from clframe.data.root import DataRoot
from clframe.data.source import IMAGENET_MEAN, IMAGENET_STD, ImageSource
from clframe.data.store import Chunk, Decoded, ImageStore, StoredImages
from clframe.data.stream_reader import StreamingReader, usable_cores
from clframe.data.tree import FileTree, Member, open_tree
from clframe.errors import ConfigurationError, DataError
from clframe.spec import field

__all__ = ["ImageFolder"]

_CHUNK = 128
"""Images per task of the decoding threads."""

T = TypeVar("T")
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class ImageFolder(ImageSource):
    """Images in folders named by class, in a directory or an archive of one (`.zip`, `.tar`, `.tar.gz`, …).

    The layout is `train/CLASS/*` beside `test/CLASS/*` or `val/CLASS/*`, possibly below one more folder; classes are
    the folder names, sorted. Tiny-ImageNet's own layout (`val/val_annotations.txt`) is understood as well, and so is a
    directory of parquet files in the form of the Hugging Face hub (needs pyarrow), whose classes keep their numbers.
    Every image becomes RGB; pixels are normalised by the ImageNet statistics.
    """

    path: str | Path = field(help="The directory or archive; a relative path is also searched in the data root.")
    size: int | None = field(
        default=None, ge=1, unit="pixels", help="Fit every image to this square; None requires images of one size."
    )
    skip_corrupt: bool = field(
        default=False, help="Leave out files that can't be decoded, with a warning, instead of failing."
    )
    mode: Literal["auto", "store", "stream"] = field(
        default="auto", help="Decode once into the store, or stream from the files; auto streams above max_store_bytes."
    )
    max_store_bytes: int = field(default=8 << 30, ge=0, unit="bytes", help="The largest decoded size that auto stores.")
    workers: int | None = field(
        default=None, ge=0, unit="processes", help="That decode ahead when streaming; None: one per core, at most 8."
    )

    classes: int | list[str] | None = field(
        default=None, ge=1, help="Read only these classes; a number means the first so many. None: all."
    )
    image_column: str | None = field(default=None, help="Of parquet files: the column of images; None: found by type.")
    label_column: str | None = field(default=None, help="Of parquet files: the column of labels; None: found by type.")
    train_files: str | None = field(
        default=None, help="Of parquet files: pattern of those to train on, such as data/train-*; None: by their names."
    )
    test_files: str | None = field(default=None, help="Of parquet files: likewise of those to test on.")

    def open(self, root: DataRoot, download: bool = False) -> ImageData:
        """Open the folder: from the store, decoding it first where that is new, or as a stream.

        Raises:
            DataError: It is missing, damaged, of another layout, or holds a corrupt file; the message says which.
        """
        path = self._locate(root)
        store = ImageStore()
        alias = self._alias(path)
        key = store.recall(alias) if alias and self.mode != "stream" else None
        stored = store.find(key) if key else None
        if stored is not None:
            return self._from_store(path, stored)
        return self._open_files(path, store, alias)

    def _open_files(self, path: Path, store: ImageStore, alias: str | None) -> ImageData:
        tree, members, layout = self._arranged(path)
        if self.mode == "stream":
            return self._stream(path, tree, layout)
        options = f"{tree.key(members)} size={self.size} decode={DECODE_VERSION}"
        options += self._chosen()
        key = f"{_slug(path)}-{hashlib.sha256(options.encode()).hexdigest()[:24]}"
        stored = store.find(key)
        if stored is None:
            if self.mode == "auto" and self._decoded_bytes(tree, layout) > self.max_store_bytes:
                return self._stream(path, tree, layout)
            stored = store.open(key, functools.partial(self._decode, tree, layout))
        if alias:
            store.remember(alias, key)
        return self._from_store(path, stored)

    def _arranged(self, path: Path) -> tuple[FileTree, list[Member], Layout]:
        """Return the files, or the rows of parquet files where a directory holds these and no image."""
        tree = open_tree(path)
        members = _listed(tree)
        tables = [m for m in members if is_parquet_name(m.name)] if path.is_dir() else []
        if not tables or any(is_image_name(m.name) for m in members):
            return tree, members, arrange(tree, members, self.classes)
        choice = ParquetChoice(self.image_column, self.label_column, self.train_files, self.test_files)
        rows = ParquetTree(path, tables, choice)
        return rows, tables, rows.arrange(self.classes)

    def _chosen(self) -> str:
        """Return the classes that are read, as part of a key; nothing for all."""
        named = sorted(self.classes) if isinstance(self.classes, list) else self.classes
        return "" if named is None else f" classes={named}"

    def _locate(self, root: DataRoot) -> Path:
        path = Path(self.path).expanduser()
        if path.exists():
            return path
        found = None if path.is_absolute() else root.find([str(path)])
        if found is None:
            where = "" if path.is_absolute() else f" here or in {root}"
            raise DataError(
                f"Expected a folder or archive of images, but {self.path} doesn't exist{where}; check the path."
            )
        return found

    def _alias(self, path: Path) -> str | None:
        """Identify an archive without reading it; None for a folder, whose files can change behind its back."""
        if not path.is_file():
            return None
        info = path.stat()
        parts = (path.resolve(), info.st_size, info.st_mtime_ns, info.st_ctime_ns, self.size, DECODE_VERSION)
        return "\0".join(map(str, parts)) + self._chosen()

    def _from_store(self, path: Path, stored: StoredImages) -> ImageData:
        _report_skipped(path, stored.skipped, len(stored.train) + len(stored.test), self.skip_corrupt)
        return self._described(path, stored.train, stored.test, stored.class_names, stored.fingerprint)

    def _described(
        self, path: Path, train: ImageSet, test: ImageSet, class_names: tuple[str, ...], fingerprint: str
    ) -> ImageData:
        return ImageData(_slug(path), train, test, class_names, IMAGENET_MEAN, IMAGENET_STD, fingerprint)

    def _decode(self, tree: FileTree, layout: Layout) -> Decoded:
        files = [*layout.train, *layout.test]
        tree.hold(files)
        skipped: list[str] = []
        decoder = _Decoder(tree, self.size, self.skip_corrupt, skipped, len(files))
        return Decoded(
            layout.class_names,
            decoder.chunks(layout.train, layout.train_targets),
            decoder.chunks(layout.test, layout.test_targets),
            skipped,
        )

    def _decoded_bytes(self, tree: FileTree, layout: Layout) -> int:
        if not tree.random_access:  # can't be streamed anyway
            return 0
        height, width = self._first_size(tree, layout)
        return (len(layout.train) + len(layout.test)) * height * width * 3

    def _first_size(self, tree: FileTree, layout: Layout) -> tuple[int, int]:
        """Return height and width that every image is expected to have."""
        if self.size is not None:
            return self.size, self.size
        for member in layout.train:
            try:
                height, width, _ = decode_image(tree.read(member)).shape
            except CorruptImage as error:
                if not self.skip_corrupt:
                    raise _corrupt(tree, member, error) from None
            else:
                return height, width
        raise DataError(f"None of the {len(layout.train)} training images of {tree.path} can be decoded.")

    def _stream(self, path: Path, tree: FileTree, layout: Layout) -> ImageData:
        if self.skip_corrupt:
            raise ConfigurationError(
                "skip_corrupt needs mode 'store', since a stream learns too late which files are corrupt; "
                "remove those files, or give mode 'store' or a larger max_store_bytes."
            )
        if not tree.random_access:
            raise DataError(
                f"A compressed tar or parquet files such as {path} can't be streamed; use mode 'store', or unpack the images to a "
                "folder, a zip or a plain tar."
            )
        height, width = self._first_size(tree, layout)
        workers = self.workers if self.workers is not None else min(8, usable_cores())
        splits = [
            ImageSet(StreamingReader(tree, files, height, width, self.size, workers), torch.from_numpy(targets))
            for files, targets in ((layout.train, layout.train_targets), (layout.test, layout.test_targets))
        ]
        return self._described(path, splits[0], splits[1], layout.class_names, layout.fingerprint(self.size))


@dataclasses.dataclass
class _Decoder:
    """Decodes files in threads, a few chunks ahead of whoever draws them, in order."""

    tree: FileTree
    size: int | None
    skip_corrupt: bool
    skipped: list[str]
    total: int
    _done: int = 0
    _first: tuple[str, tuple[int, ...]] | None = None

    def chunks(self, files: Sequence[Member], targets: Targets) -> Iterator[Chunk]:
        """Yield the images of the files with their targets.

        Raises:
            DataError: A file is corrupt and not to be skipped, or its size differs from the others'.
        """
        from tqdm import tqdm

        workers = min(8, usable_cores())
        starts = range(0, len(files), _CHUNK)
        bar = tqdm(
            total=self.total, initial=self._done, desc=f"decoding {self.tree.path.name}", unit=" images",
            delay=2, leave=False, disable=not sys.stderr.isatty(),
        )  # fmt: skip
        with bar, ThreadPoolExecutor(workers) as pool:
            tasks = (functools.partial(self._decode_some, files[start : start + _CHUNK]) for start in starts)
            for start, results in zip(starts, _ahead(pool, tasks, 2 * workers), strict=True):
                part = files[start : start + _CHUNK]
                kept = [i for i, result in enumerate(results) if not isinstance(result, CorruptImage)]
                images = [self._accept(part[i], result) for i, result in enumerate(results)]
                bar.update(len(part))
                self._done += len(part)
                if kept:
                    yield np.stack([image for image in images if image is not None]), targets[start:][kept]

    def _decode_some(self, files: Sequence[Member]) -> list[Pixels | CorruptImage]:
        found: list[Pixels | CorruptImage] = []
        for member in files:
            try:
                found.append(decode_image(self.tree.read(member), self.size))
            except CorruptImage as error:
                found.append(error)
        return found

    def _accept(self, member: Member, result: Pixels | CorruptImage) -> Pixels | None:
        """Return the image; None for a corrupt one that may be skipped."""
        if isinstance(result, CorruptImage):
            if not self.skip_corrupt:
                raise _corrupt(self.tree, member, result)
            self.skipped.append(member.name)
            return None
        if self._first is None:
            self._first = (member.name, result.shape)
        name, shape = self._first
        if result.shape != shape:
            raise DataError(
                f"Expected images of one size in {self.tree.path}, received {result.shape[1]}×{result.shape[0]} pixels "
                f"in {member.name} and {shape[1]}×{shape[0]} in {name}; give a size to resize all of them to."
            )
        return result


def _ahead(pool: ThreadPoolExecutor, tasks: Iterator[Callable[[], T]], depth: int) -> Iterator[T]:
    """Yield the tasks' results in order, with at most `depth` of them waiting to be drawn."""
    waiting: collections.deque[Future[T]] = collections.deque(pool.submit(t) for t in itertools.islice(tasks, depth))
    try:
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(task) for task in itertools.islice(tasks, 1))
            yield result
    finally:
        for future in waiting:
            future.cancel()


def _listed(tree: FileTree) -> list[Member]:
    try:
        return tree.members()
    except OSError as error:
        raise DataError(f"{tree.path} could not be read ({error.strerror or error}); check its permissions.") from error


def _report_skipped(path: Path, skipped: Sequence[str], kept: int, allowed: bool) -> None:
    """Warn of files that a store lacks, or refuse it where they weren't to be skipped."""
    if not skipped:
        return
    names = ", ".join(skipped[:5]) + (", …" if len(skipped) > 5 else "")
    if not allowed:
        raise DataError(
            f"{len(skipped)} of {len(skipped) + kept} images of {path} are corrupt: {names}; "
            "repair or remove them, or set skip_corrupt."
        )
    message = f"{len(skipped)} of {len(skipped) + kept} images of {path} are corrupt and were left out: {names}."
    warnings.warn(message, UserWarning, stacklevel=4)


def _corrupt(tree: FileTree, member: Member, error: CorruptImage) -> DataError:
    return DataError(
        f"The image {member.name} of {tree.path} is corrupt ({error}); "
        "repair or remove it, or set skip_corrupt to leave such files out."
    )


def _slug(path: Path) -> str:
    """Return a short name for a data set from its path."""
    stem = re.sub(r"(\.zip|\.tgz|\.tar(\.\w+)?)$", "", path.resolve().name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9_.]+", "-", stem).strip("-.")[:40] or "images"
