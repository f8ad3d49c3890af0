"""The data sets that clframe knows by name: where they may lie, and by what statistics they are normalised."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from clframe.data.idx import idx_files
from clframe.data.root import DataRoot
from clframe.data.source import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["KNOWN", "KnownSet", "Located", "locate"]


@dataclasses.dataclass(frozen=True)
class KnownSet:
    """A data set known by name.

    Attributes:
        name: As in `find_source(name)`.
        title: What it is, with its size.
        mean: Per channel, of pixels in [0, 1], on the training images.
        std: Likewise.
        folders: Names of image folders or archives of one that hold it.
        torchvision: The class of `torchvision.datasets` that reads it, if one does.
        markers: Paths in torchvision's layout that must all exist below its root.
        idx_folders: Folders of the four idx files, as distributions install them.
        class_names: By class index; empty where the files name the classes.
        package: The distribution's package that holds it.
    """

    name: str
    title: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    folders: tuple[str, ...] = ()
    torchvision: str | None = None
    markers: tuple[str, ...] = ()
    idx_folders: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    package: str | None = None

    @property
    def how(self) -> str:
        """How to get it, as the rest of a sentence that starts with "to get it,"."""
        ways = []
        if self.torchvision:
            ways.append("allow the download with --download")
        if self.package:
            ways.append(f"install the Debian package {self.package}")
        places = [*self.folders[:2], *self.markers[:1]]
        if places:
            ways.append(f"put {' or '.join(places)} into the data root")
        return ", or ".join(ways) or "nothing is to be done: it is embedded"


def _zips(*stems: str) -> tuple[str, ...]:
    return tuple(f"{stem}{suffix}" for stem in stems for suffix in (".zip", "", ".tar", ".tar.gz"))


_DIGIT_NAMES = tuple(str(i) for i in range(10))
_FASHION_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

# Means and deviations are those in common use in the literature's code; digits' are measured on the training split
# that `Digits` makes.
KNOWN: dict[str, KnownSet] = {
    known.name: known
    for known in (
        KnownSet(
            name="digits",
            title="scikit-learn's handwritten digits, 1,438 + 359 images of 8×8, 10 classes (embedded)",
            mean=(0.3046,),
            std=(0.3757,),
            class_names=_DIGIT_NAMES,
        ),
        KnownSet(
            name="mnist",
            title="MNIST, 60,000 + 10,000 images of 28×28, 10 classes",
            mean=(0.1307,),
            std=(0.3081,),
            torchvision="MNIST",
            markers=("MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/t10k-images-idx3-ubyte"),
            idx_folders=("mnist", "MNIST", "MNIST/raw"),
            class_names=_DIGIT_NAMES,
        ),
        KnownSet(
            name="fashion_mnist",
            title="Fashion-MNIST, 60,000 + 10,000 images of 28×28, 10 classes",
            mean=(0.2860,),
            std=(0.3530,),
            torchvision="FashionMNIST",
            markers=("FashionMNIST/raw/train-images-idx3-ubyte", "FashionMNIST/raw/t10k-images-idx3-ubyte"),
            idx_folders=("fashion-mnist", "fashion_mnist", "FashionMNIST", "FashionMNIST/raw"),
            class_names=_FASHION_NAMES,
            package="dataset-fashion-mnist",
        ),
        KnownSet(
            name="kmnist",
            title="Kuzushiji-MNIST, 60,000 + 10,000 images of 28×28, 10 classes",
            mean=(0.1918,),
            std=(0.3483,),
            torchvision="KMNIST",
            markers=("KMNIST/raw/train-images-idx3-ubyte", "KMNIST/raw/t10k-images-idx3-ubyte"),
            idx_folders=("kmnist", "KMNIST", "KMNIST/raw"),
            class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        ),
        KnownSet(
            name="cifar10",
            title="CIFAR-10, 50,000 + 10,000 images of 32×32, 10 classes",
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            folders=_zips("cifar10"),
            torchvision="CIFAR10",
            markers=("cifar-10-batches-py",),
        ),
        KnownSet(
            name="cifar100",
            title="CIFAR-100, 50,000 + 10,000 images of 32×32, 100 classes",
            mean=(0.5071, 0.4867, 0.4408),
            std=(0.2675, 0.2565, 0.2761),
            folders=_zips("cifar100"),
            torchvision="CIFAR100",
            markers=("cifar-100-python",),
        ),
        KnownSet(
            name="svhn",
            title="SVHN, 73,257 + 26,032 images of 32×32, 10 classes",
            mean=(0.4377, 0.4438, 0.4728),
            std=(0.1980, 0.2010, 0.1970),
            torchvision="SVHN",
            markers=("train_32x32.mat", "test_32x32.mat"),
            class_names=_DIGIT_NAMES,
        ),
        KnownSet(
            name="tiny_imagenet",
            title="Tiny-ImageNet, 64×64, 200 classes, or an image folder of its first 100",
            mean=(0.4802, 0.4481, 0.3975),
            std=(0.2770, 0.2691, 0.2821),
            folders=_zips("tiny-imagenet-200", "tinyimagenet100"),
        ),
        KnownSet(
            name="imagenet",
            title="ImageNet (ILSVRC 2012), 1,281,167 + 50,000 images of many sizes, 1000 classes, or a folder of some",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            folders=_zips("imagenet", "ILSVRC2012", "imagenet100"),
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Located:
    """Where a known set was found.

    Attributes:
        kind: How it lies there: `folder` (an image folder or an archive of one), `torchvision` or `idx`.
        path: The folder or archive; for `torchvision` the root that its classes take.
    """

    kind: str
    path: Path


def locate(known: KnownSet, root: DataRoot) -> Located | None:
    """Find a known set: as an image folder, then in torchvision's layout, then as a system package."""
    for name in known.folders:
        if not name.endswith((".zip", ".tar", ".gz")):  # a plain folder must have splits: others share its name
            found = root.find([f"{name}/train"])
            if found is not None:
                return Located("folder", found.parent)
        elif (found := root.find([name])) is not None:
            return Located("folder", found)
    return locate_torchvision(known, root) or _locate_idx(known, root)


def locate_torchvision(known: KnownSet, root: DataRoot) -> Located | None:
    """Find a known set in torchvision's layout: in a folder of the data root, or one below it of the set's name."""
    if not known.markers:
        return None
    for folder in root.folders:
        for below in (folder, folder / known.name, folder / known.name.upper()):
            if all((below / marker).exists() for marker in known.markers):
                return Located("torchvision", below)
    return None


def _locate_idx(known: KnownSet, root: DataRoot) -> Located | None:
    for folder in root.folders:
        for name in known.idx_folders:
            if idx_files(folder / name) is not None:
                return Located("idx", folder / name)
    return None
