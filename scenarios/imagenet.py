"""Class-incremental subsets of ImageNet, and of other sets of photographs of many sizes."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from clframe.data import ImageData, find_source
from clframe.errors import ConfigurationError
from clframe.scenarios.split import SplitFolder
from clframe.spec import field, fields_of
from clframe.stream import Stream

__all__ = ["ImageNet100", "ImageNetSubset"]


class ImageNetSubset(SplitFolder):
    """Class-incremental learning of ImageNet or some of its classes, or of any images that are treated like it.

    Every image is once fitted to a square of `size` pixels: its shorter side resized, the centre cut out. In training a
    random area (8 to 100 %) of that square with a random aspect ratio is resized to `crop` pixels and mirrored at
    random; in testing the central `crop` pixels are taken. The literature's full resolution is 256 and 224;
    `--scenario.size 64 --scenario.crop 64` is the downsampled form, whose test images are used whole.

    `classes` chooses some, as a number (the first so many by folder name), by names, or by a text file with one on each line; only
    these are read, so that a subset of a complete ImageNet tree costs no more than a tree of its own. The usual
    protocols are B0 (`--scenario.increment 10`) and B50 (`--scenario.base 50 --scenario.increment 10`), with any
    increment.

    Version history:
        1: first version.
    """

    usual_experiences: ClassVar[int | None] = 10
    example: ClassVar[str] = "--scenario.source digits --scenario.size 8 --scenario.crop 8 --scenario.increment 2"

    source: str = field(
        default="imagenet",
        help="ImageNet, by its name or path (train/WNID/*.JPEG and val/WNID/*.JPEG), or other images in that layout.",
    )
    order: str | list[int] = field(default="seed:1993", help="Class order: natural, seed:N or a list of labels.")
    size: int | None = field(
        default=256, ge=1, unit="pixels", help="Fit every image to this square before it is kept; none: as it is."
    )
    crop: int = field(
        default=224,
        ge=1,
        unit="pixels",
        help="Side of the network's input: random crops in training, the centre in test.",
    )

    def source_options(self) -> dict[str, Any]:
        """Return the source's options, the classes to read among them; what is no folder is fitted later."""
        only = self.classes if isinstance(self.classes, int) else self.only_named()
        options = super().source_options() | ({} if only is None else {"classes": only})
        known = {info.name for info in fields_of(type(find_source(self.source)))}
        return {name: value for name, value in options.items() if name in known or name not in ("size", "classes")}

    def cut(self, data: ImageData) -> Stream:
        """Cut an opened source, and state what images pass through.

        Raises:
            ConfigurationError: The source has features, or smaller images than the crop.
        """
        if len(data.shape) != 3:
            raise ConfigurationError(f"scenario.source: expected images, received features of length {data.shape[0]}.")
        fitted = self.size is None or data.shape[1:] == (self.size, self.size)
        side = min(data.shape[1:]) if self.size is None else self.size
        if self.crop > side:
            raise ConfigurationError(
                f"scenario.crop: expected at most the {side} pixels that images are fitted to, received {self.crop}: raise size or "
                "lower crop."
            )
        resized = [] if fitted else [{"name": "resize", "size": self.size}]
        return dataclasses.replace(
            super().cut(data),
            augmentation=[{"name": "random_resized_crop", "size": self.crop}, "horizontal_flip"],
            test_transform=[*resized, {"name": "center_crop", "size": self.crop}],
        )


class ImageNet100(ImageNetSubset):
    """ImageNet-100: the first 100 classes of ILSVRC 2012 by WordNet id, ten experiences of ten in seed-1993 order (B0).

    The list is that of the PODNet and DER repositories, whose images are the complete ones of ILSVRC: about 128,900 to
    train on and 50 of each class to test on. Another hundred classes is a file of names (`--scenario.classes
    mine.txt`). B50 is `--scenario.base 50 --scenario.increment 10`. Decoded at 256 pixels it takes about 25 GB, above
    the 8 GiB that are stored without asking: worker processes decode at every use unless `--scenario.mode store` says
    otherwise. How images are fitted, cropped and mirrored is that of `imagenet_subset`.

    Version history:
        1: first version.
    """

    example: ClassVar[str] = (
        "--scenario.source digits --scenario.classes none --scenario.size 8 --scenario.crop 8 --scenario.increment 2"
    )

    classes: int | list[int | str] | str | None = field(
        default="imagenet100",
        ge=0,
        help="imagenet100 (the list above), the path of a text file with a class on each line, names or labels, or a number for "
        "the first so many.",
    )
