"""The user's own data: arrays and tensors in memory, map-style data sets, and either by the path of a file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from clframe.data.decode import pixels
from clframe.data.reader import ContentHash, ImageData, ImageSet, MemoryReader, as_tensor, content_fingerprint
from clframe.data.root import DataRoot
from clframe.data.source import ImageSource
from clframe.data.store import Chunk, Decoded, ImageStore, channel_statistics
from clframe.errors import ClframeError, DataError
from clframe.registry import load_object
from clframe.spec import field

__all__ = ["Arrays", "MapDataset", "UserData"]

_CHUNK = 256
_Array = np.ndarray[Any, Any]


class _InMemory(ImageSource):
    """A source whose fields hold data: it is compared by identity, and doesn't print its contents."""

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={getattr(self, 'name', '')!r})"


class Arrays(_InMemory):
    """Arrays or tensors in memory: uint8 images, or float feature vectors.

    They are used where they lie, without a copy: don't change them while a run uses them. Pixels are normalised by
    `mean` and `std`, by default as measured on the training images; features are taken as they are.
    """

    x_train: Any = field(help="Images uint8 (N, H, W, C), (N, H, W) or by layout (N, C, H, W); features float (N, D).")
    y_train: Any = field(help="Class indices (N,), counted from 0.")
    x_test: Any = field(help="As x_train.")
    y_test: Any = field(help="As y_train.")
    layout: Literal["NHWC", "NCHW"] = field(default="NHWC", help="The order of the axes of four-dimensional images.")
    class_names: tuple[str, ...] | None = field(default=None, help="By class index; None takes the indices as names.")
    mean: tuple[float, ...] | None = field(default=None, help="Per channel, of pixels in [0, 1]; None measures it.")
    std: tuple[float, ...] | None = field(default=None, help="Per channel, of pixels in [0, 1]; None measures it.")
    name: str = field(default="arrays", help="A short name for folders and tables.")

    def open(self, root: DataRoot, download: bool = False) -> ImageData:
        """Check the arrays and wrap them.

        Raises:
            DataError: An array is of another type or shape than expected, or the lengths differ.
        """
        train = ImageSet(self._reader(self.x_train, "x_train"), _targets(self.y_train, "y_train"))
        test = ImageSet(self._reader(self.x_test, "x_test"), _targets(self.y_test, "y_test"))
        if train.images.shape != test.images.shape:
            raise DataError(
                f"Expected x_train and x_test of one shape per sample, received {train.images.shape} and "
                f"{test.images.shape} (channels first); resize one of them."
            )
        highest = max(int(train.targets.max()), int(test.targets.max()))
        names = _class_names(self.class_names, highest)
        mean, std = self._statistics(train)
        fingerprint = content_fingerprint(_hash(train), _hash(test))
        return ImageData(self.name, train, test, names, mean, std, fingerprint)

    def _reader(self, values: Any, name: str) -> MemoryReader:
        tensor = as_tensor(values)
        if tensor.ndim == 2 and tensor.is_floating_point():
            tensor = tensor.float()
        elif tensor.ndim == 4 and self.layout == "NCHW":
            tensor = tensor.permute(0, 2, 3, 1)
        elif tensor.ndim == 3:
            tensor = tensor.unsqueeze(-1)
        features = tensor.ndim == 2 and tensor.dtype == torch.float32
        if not features and (tensor.ndim != 4 or tensor.dtype != torch.uint8):
            raise DataError(
                f"Expected {name} as uint8 images (N, H, W), (N, H, W, C) or with layout NCHW, or as float features "
                f"(N, D), received {tensor.dtype} {tuple(as_tensor(values).shape)}; convert it (pixels in [0, 1] times 255)."
            )
        if len(tensor) == 0:
            raise DataError(f"Expected at least one sample in {name}, received none.")
        return MemoryReader(tensor.contiguous())

    def _statistics(self, train: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
        channels = train.images.shape[0] if len(train.images.shape) == 3 else 0
        for name in ("mean", "std"):
            given = getattr(self, name)
            if given is not None and len(given) != channels:
                raise DataError(f"Expected {name} with a value for each of {channels} channels, received {given}.")
        measured = channel_statistics(_pixel_counts(train)) if None in (self.mean, self.std) else ([], [])
        mean, std = (
            tuple(given if given is not None else found)
            for given, found in zip((self.mean, self.std), measured, strict=True)
        )
        return mean, std


class MapDataset(_InMemory):
    """A pair of map-style data sets whose items are `(image, target)`, walked once into the image store.

    An image is a PIL image, a uint8 array (H, W) or (H, W, C), a uint8 tensor (C, H, W), either of them as floats in
    [0, 1], or a one-dimensional float feature vector. Give data sets without random augmentation: clframe augments.
    """

    train: Any = field(help="Has __len__ and __getitem__ -> (image, target).")
    test: Any = field(help="As train.")
    size: int | None = field(default=None, ge=1, unit="pixels", help="Fit every image to this square.")
    cache_as: str | None = field(
        default=None,
        help="Keep the images in the store under this name and don't walk the data sets again; yours to keep true.",
    )
    name: str = field(default="dataset", help="A short name for folders and tables.")

    def open(self, root: DataRoot, download: bool = False) -> ImageData:
        """Walk both data sets, or open what an earlier walk kept under `cache_as`.

        Raises:
            DataError: An item isn't an image with its class, or images differ in size; says which.
        """
        store = ImageStore()
        if self.cache_as is not None:
            key = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"user-{self.cache_as}-size{self.size}")
            stored = store.open(key, self._walk)
        else:
            stored = store.open_by_content("walked", self._walk)
        return ImageData(
            self.name, stored.train, stored.test, stored.class_names, stored.mean, stored.std, stored.fingerprint
        )

    def _walk(self) -> Decoded:
        for split, dataset in (("train", self.train), ("test", self.test)):
            if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
                raise DataError(
                    f"Expected the {split} data set to have __len__ and __getitem__, received "
                    f"{type(dataset).__name__}; wrap it in a map-style data set."
                )
        decoded = Decoded((), (), ())
        named = getattr(self.train, "classes", None)
        walk = _Walk(decoded, named if isinstance(named, (list, tuple)) else None, self.size)
        decoded.train = walk.chunks(self.train, "train")
        decoded.test = walk.chunks(self.test, "test")
        return decoded


class UserData(ImageSource):
    """The user's own data set, by `path/to/file.py:Name` or `package.module:Name`.

    The name is a class or function that is called with `train=True` and `train=False` and returns a map-style data
    set (see `MapDataset`), or an `ImageSource`.
    """

    path: str = field(help="path/to/file.py:Name or package.module:Name.")
    size: int | None = field(default=None, ge=1, unit="pixels", help="Fit every image to this square.")
    cache_as: str | None = field(
        default=None,
        help="Keep the images in the store under this name and don't walk the data sets again; yours to keep true.",
    )

    def open(self, root: DataRoot, download: bool = False) -> ImageData:
        """Import the name, call it for both splits and open what it returns.

        Raises:
            ConfigurationError: Nothing of that name can be imported.
            DataError: What it names or returns isn't a data set.
        """
        found = load_object(self.path)
        source = self._called(found) if isinstance(found, type) and issubclass(found, ImageSource) else found
        if isinstance(source, ImageSource):
            return source.open(root, download)
        if not callable(found):
            raise DataError(
                f"Expected {self.path} to be a class or function that takes train=True or train=False, "
                f"received {type(found).__name__}."
            )
        train, test = self._called(found, train=True), self._called(found, train=False)
        name = self.path.rpartition(":")[2]
        return MapDataset(train=train, test=test, size=self.size, cache_as=self.cache_as, name=name).open(
            root, download
        )

    def _called(self, found: Any, **keywords: bool) -> Any:
        try:
            return found(**keywords)
        except ClframeError:
            raise
        except Exception as error:
            given = ", ".join(f"{k}={v}" for k, v in keywords.items())
            raise DataError(
                f"Expected {self.path} to return a data set when called with ({given}), but it raised "
                f"{type(error).__name__}: {error}"
            ) from error


@dataclasses.dataclass
class _Walk:
    """Draws the items of the user's data sets and turns them into chunks."""

    decoded: Decoded
    named: Sequence[Any] | None
    size: int | None
    highest: int = -1
    shape: tuple[int, ...] | None = None

    def chunks(self, dataset: Any, split: str) -> Iterator[Chunk]:
        """Yield the data set's items in order; afterwards the class names are known."""
        for start in range(0, len(dataset), _CHUNK):
            items = [self._item(dataset, split, i) for i in range(start, min(start + _CHUNK, len(dataset)))]
            yield np.stack([image for image, _ in items]), np.array([target for _, target in items], np.int64)
        self.decoded.class_names = _class_names(self.named, self.highest)

    def _item(self, dataset: Any, split: str, index: int) -> tuple[_Array, int]:
        where = f"item {index} of the {split} data set {type(dataset).__name__}"
        try:
            item = dataset[index]
        except Exception as error:
            raise DataError(f"Expected an image at {where}, but it raised {type(error).__name__}: {error}") from error
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(f"Expected (image, target) as {where}, received {type(item).__name__}.")
        image, target = _pixels_of(item[0], self.size, where), _target_of(item[1], where)
        if self.shape is None:
            self.shape = image.shape
        if image.shape != self.shape:
            raise DataError(
                f"Expected images of one shape, received {image.shape} as {where} after {self.shape}; "
                "give a size to resize all of them to."
            )
        self.highest = max(self.highest, target)
        return image, target


def _pixels_of(image: Any, size: int | None, where: str) -> _Array:
    """Turn any of the accepted forms into `(H, W, C)` uint8 or `(D,)` float32."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return pixels(image if image.mode in ("L", "RGB") else image.convert("RGB"), size)
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        array: _Array = image.movedim(0, -1).numpy() if image.ndim == 3 else image.numpy()
    else:
        array = np.asarray(image)
    if array.ndim == 1 and array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.dtype.kind == "f" and array.size and array.min() >= 0.0 and array.max() <= 1.0:
        array = np.rint(array * 255.0).astype(np.uint8)
    if array.ndim != 3 or array.dtype != np.uint8:
        raise DataError(
            f"Expected a PIL image, uint8 pixels or floats in [0, 1] as {where}, received {array.dtype} {array.shape}; "
            "leave normalisation to clframe."
        )
    if size is None or array.shape[:2] == (size, size):
        return array
    planes = [pixels(Image.fromarray(np.ascontiguousarray(array[:, :, c])), size) for c in range(array.shape[2])]
    return np.concatenate(planes, axis=2)


def _target_of(target: Any, where: str) -> int:
    try:
        number = target.item() if hasattr(target, "item") else target
        if int(number) == number and number >= 0:
            return int(number)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise DataError(f"Expected a class index ≥ 0 as the target of {where}, received {target!r}.")


def _targets(values: Any, name: str) -> Tensor:
    tensor = as_tensor(values)
    whole = tensor.ndim == 1 and not tensor.is_complex() and bool((tensor == tensor.long()).all())
    if not whole or (len(tensor) and int(tensor.min()) < 0):
        raise DataError(
            f"Expected {name} as class indices (N,) counted from 0, received {tensor.dtype} {tuple(tensor.shape)}."
        )
    return tensor.long()


def _class_names(named: Sequence[Any] | None, highest: int) -> tuple[str, ...]:
    if named is None:
        return tuple(str(i) for i in range(highest + 1))
    if highest >= len(named):
        raise DataError(f"Expected targets below the {len(named)} class names, received {highest}; correct either.")
    return tuple(str(name) for name in named)


def _hash(split: ImageSet) -> str:
    content = ContentHash()
    content.update(_memory(split).numpy(), split.targets.numpy())
    return content.hexdigest()


def _pixel_counts(split: ImageSet) -> _Array | None:
    images = _memory(split)
    if images.dtype != torch.uint8:
        return None
    flat = images.reshape(-1, images.shape[-1])
    return np.stack([torch.bincount(flat[:, c], minlength=256).numpy() for c in range(flat.shape[1])])


def _memory(split: ImageSet) -> Tensor:
    if not isinstance(split.images, MemoryReader):  # pragma: no cover - Arrays makes no other
        raise DataError("Expected images in memory.")
    return split.images.tensor
