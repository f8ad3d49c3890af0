"""Sources of images by name, and how to find one: embedded digits, torchvision's sets, distributions' packages."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from clframe.data.arrays import Arrays, MapDataset, UserData
from clframe.data.folders import ImageFolder
from clframe.data.idx import idx_files, read_idx
from clframe.data.known import KNOWN, KnownSet, Located, locate, locate_torchvision
from clframe.data.reader import ContentHash, ImageData, ImageSet, MemoryReader, content_fingerprint
from clframe.data.root import DataRoot
from clframe.data.source import ImageSource
from clframe.data.store import Decoded, ImageStore, StoredImages
from clframe.data.tree import is_archive_name
from clframe.errors import ConfigurationError, DataError, did_you_mean
from clframe.spec import build, field

__all__ = [
    "Arrays",
    "DataRow",
    "Digits",
    "ImageFolder",
    "ImageSource",
    "MapDataset",
    "NamedSet",
    "TorchvisionSet",
    "UserData",
    "describe_data",
    "find_source",
]

TorchvisionName = Literal["mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn"]
KnownName = Literal[
    "digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn", "tiny_imagenet", "imagenet"
]

_DIGITS_SEED = 1797
_DIGITS_TEST_SHARE = 5


class Digits(ImageSource):
    """scikit-learn's `load_digits`: 1,797 images of 8×8, embedded in that package; the default of clframe.

    The set has no split of its own. A fifth of each class (rounded), drawn with a fixed seed, is the test split: 1,438
    training and 359 test images. The values 0 … 16 become 0 … 255 (times 255/16, rounded). Source: E. Alpaydin and
    C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """

    def open(self, root: DataRoot, download: bool = False) -> ImageData:
        """Open the digits; nothing is searched or downloaded."""
        known = KNOWN["digits"]
        store = ImageStore()
        stored = store.find("digits-1")
        if stored is None:
            try:
                stored = store.open("digits-1", _decode_digits)
            except DataError:  # 115 kB: a cache that can't be written is no reason to fail
                return _in_memory(known, _decode_digits())
        return _named(known, stored)


class TorchvisionSet(ImageSource):
    """A data set in the folder layout of `torchvision.datasets`, below the data root or a folder in it of its name."""

    dataset: TorchvisionName = field(help="Which data set.")

    def open(self, root: DataRoot, download: bool = False) -> ImageData:
        """Open the data set, from the store after the first time.

        Raises:
            DataError: It isn't there and no download was allowed, the download failed, or its files are damaged.
        """
        known = _known(self.dataset)
        found = locate_torchvision(known, root)
        if found is None:
            if not download:
                raise _missing(known, root)
            found = _download(known, root)
        return _from_torchvision(known, found.path)


class NamedSet(ImageSource):
    """A data set by its name, wherever it lies.

    Tried in this order: an image folder or an archive of one in the data root (`cifar100.zip`), torchvision's layout,
    a distribution's package (Debian's `dataset-fashion-mnist`), and a download where it is allowed.
    """

    name: KnownName = field(help="Which data set; `clframe data` lists what is found.")
    size: int | None = field(
        default=None, ge=1, unit="pixels", help="Resize the images of a folder or archive to this square."
    )
    skip_corrupt: bool = field(default=False, help="Leave out files of a folder or archive that can't be read.")
    mode: Literal["auto", "store", "stream"] = field(default="auto", help="As of an image folder.")
    classes: int | list[str] | None = field(default=None, ge=1, help="As of an image folder.")

    def open(self, root: DataRoot, download: bool = False) -> ImageData:
        """Open the data set, from the store after the first time.

        Raises:
            DataError: It is nowhere, or damaged; says where was searched and what to do.
        """
        known = _known(self.name)
        if known.name == "digits":
            return Digits().open(root, download)
        found = locate(known, root)
        if found is None and download and known.torchvision:
            found = _download(known, root)
        if found is None:
            raise _missing(known, root)
        if found.kind == "folder":
            folder = ImageFolder(
                path=found.path, mode=self.mode, size=self.size, skip_corrupt=self.skip_corrupt, classes=self.classes
            )
            data = folder.open(root)
            return dataclasses.replace(data, name=known.name, mean=known.mean, std=known.std)
        if self.size is not None:
            raise ConfigurationError(
                f"source.size: {self.name} was found at {found.path}, whose images have one size; only the images of a folder or "
                "archive can be resized: leave the size out."
            )
        if self.classes is not None:
            raise ConfigurationError(
                f"source.classes: {self.name} was found at {found.path}; only of a folder or archive can some classes alone be "
                "read: leave the classes out."
            )
        return _from_torchvision(known, found.path) if found.kind == "torchvision" else _from_idx(known, found.path)


def find_source(what: str | Path | ImageSource, **options: Any) -> ImageSource:
    """Return the source that a name, a path or a user's class means. Nothing is read.

    Args:
        what: A known name (`cifar100`), a folder or archive, `path/to/file.py:Name`, `package.module:Name`, or a
            source, which is returned as it is.
        **options: Fields of the source, such as `size` and `skip_corrupt` of an image folder.

    Raises:
        ConfigurationError: Nothing of that name is known, or an option isn't one of that source.
    """
    if isinstance(what, ImageSource):
        return what.replace(**options) if options else what
    text = str(what)
    kind: type[ImageSource]
    if text == "digits":
        kind, values = Digits, {}
    elif text in KNOWN:
        kind, values = NamedSet, {"name": text}
    elif ":" in text and not Path(text).expanduser().exists():
        kind, values = UserData, {"path": text}
    elif isinstance(what, Path) or "/" in text or is_archive_name(Path(text)) or Path(text).expanduser().exists():
        kind, values = ImageFolder, {"path": text}
    else:
        hint = did_you_mean(text, KNOWN) or f" Known: {', '.join(KNOWN)}; or give a folder, an archive or file.py:Name."
        raise ConfigurationError(f"There is no data set named {text!r}.{hint}")
    return build(kind, {**values, **options}, "source")


@dataclasses.dataclass(frozen=True)
class DataRow:
    """A line of `clframe data`.

    Attributes:
        name: As in `find_source(name)`.
        title: What it is, with its size.
        found: Where it lies (`embedded` for what needs no file), or None.
        how: How to get it.
    """

    name: str
    title: str
    found: str | None
    how: str


def describe_data(root: DataRoot) -> list[DataRow]:
    """Say of every known data set where it was found, and how to get it; reads no images."""
    rows = []
    for known in KNOWN.values():
        located = locate(known, root)
        found = "embedded" if known.name == "digits" else str(located.path) if located else None
        rows.append(DataRow(known.name, known.title, found, known.how))
    return rows


def _known(name: str) -> KnownSet:
    if name not in KNOWN:
        hint = did_you_mean(name, KNOWN) or f" Known: {', '.join(KNOWN)}."
        raise ConfigurationError(f"There is no data set named {name!r}.{hint}")
    return KNOWN[name]


def _missing(known: KnownSet, root: DataRoot) -> DataError:
    return DataError(
        f"The data set {known.name!r} was not found in {root}; to get it, {known.how} "
        "(--data-root or CLFRAME_DATA name the data root, `clframe data` lists what is found where)."
    )


def _named(known: KnownSet, stored: StoredImages) -> ImageData:
    names = stored.class_names
    return ImageData(known.name, stored.train, stored.test, names, known.mean, known.std, stored.fingerprint)


def _in_memory(known: KnownSet, decoded: Decoded) -> ImageData:
    sets, hashes = [], []
    for chunks in (decoded.train, decoded.test):
        images, targets = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
        content = ContentHash()
        content.update(images, targets)
        hashes.append(content.hexdigest())
        sets.append(ImageSet(MemoryReader(torch.from_numpy(images)), torch.from_numpy(targets)))
    fingerprint = content_fingerprint(*hashes)
    return ImageData(known.name, sets[0], sets[1], decoded.class_names, known.mean, known.std, fingerprint)


def _decode_digits() -> Decoded:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8)[:, :, :, None]
    targets = bunch.target.astype(np.int64)
    draws = np.random.RandomState(_DIGITS_SEED)
    is_test = np.zeros(len(targets), dtype=bool)
    for digit in range(10):
        own = np.flatnonzero(targets == digit)
        is_test[draws.permutation(own)[: round(len(own) / _DIGITS_TEST_SHARE)]] = True
    return Decoded(
        KNOWN["digits"].class_names,
        [(images[~is_test], targets[~is_test])],
        [(images[is_test], targets[is_test])],
    )


def _from_idx(known: KnownSet, folder: Path) -> ImageData:
    files = idx_files(folder) or []

    def decode() -> Decoded:
        x_train, y_train, x_test, y_test = (read_idx(file) for file in files)
        for images, labels in ((x_train, y_train), (x_test, y_test)):
            if images.ndim != 3 or labels.shape != images.shape[:1]:
                raise DataError(
                    f"Expected as many labels as images in {folder}, received {labels.shape} and {images.shape}; "
                    "install or download the files again."
                )
        return _arrays(known.class_names, x_train[..., None], y_train, x_test[..., None], y_test)

    return _named(known, ImageStore().open(_file_key(known, folder, files), decode))


def _from_torchvision(known: KnownSet, folder: Path) -> ImageData:
    tops = [folder / Path(marker).parent if "/" in marker else folder / marker for marker in known.markers]
    files = sorted({file for top in tops for file in (top.rglob("*") if top.is_dir() else [top]) if file.is_file()})
    stored = ImageStore().open(_file_key(known, folder, files), functools.partial(_decode_torchvision, known, folder))
    return _named(known, stored)


def _decode_torchvision(known: KnownSet, folder: Path) -> Decoded:
    train, test = (_torchvision_split(known, folder, split, download=False) for split in ("train", "test"))
    names = known.class_names or tuple(str(name) for name in train.classes)
    return _arrays(names, *_pixels_and_labels(train), *_pixels_and_labels(test))


def _torchvision_split(known: KnownSet, folder: Path, split: str, download: bool) -> Any:
    from torchvision import datasets

    make: Callable[..., Any] = getattr(datasets, str(known.torchvision))
    which = {"split": split} if known.name == "svhn" else {"train": split == "train"}
    try:
        return make(folder, download=download, **which)
    except Exception as error:  # torchvision raises RuntimeError, unpickling and reading raise anything
        action = "downloaded" if download else "read"
        raise DataError(
            f"The data set {known.name!r} could not be {action} in {folder} ({error}); "
            f"remove what is damaged there, then {known.how}."
        ) from error


def _pixels_and_labels(dataset: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return `(N, H, W, C)` uint8 and `(N,)` int64 from the arrays that a torchvision data set holds."""
    images = np.asarray(dataset.data)
    if images.ndim == 3:
        images = images[..., None]
    elif images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):  # SVHN keeps channels first
        images = images.transpose(0, 2, 3, 1)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return np.ascontiguousarray(images), np.asarray(labels, dtype=np.int64)


def _arrays(names: tuple[str, ...], x_train: Any, y_train: Any, x_test: Any, y_test: Any) -> Decoded:
    return Decoded(names, [(x_train, y_train)], [(x_test, y_test)])


def _file_key(known: KnownSet, folder: Path, files: Sequence[Path]) -> str:
    """Return a store key that changes when any of the files does."""
    stats = [(file.relative_to(folder).as_posix(), file.stat()) for file in files]
    lines = (f"{name}\0{info.st_size}\0{info.st_mtime_ns}" for name, info in stats)
    return f"{known.name}-{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:24]}"


def _download(known: KnownSet, root: DataRoot) -> Located:
    """Have torchvision fetch a data set into the data root."""
    folder = root.download_folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"The data root {folder} could not be made ({error}); name another one.") from error
    for split in ("train", "test"):
        _torchvision_split(known, folder, split, download=True)
    return Located("torchvision", folder)
