"""The base of every source of images, and the statistics by which known sets are normalised."""

from __future__ import annotations

from clframe.data.reader import ImageData
from clframe.data.root import DataRoot
from clframe.spec import Configurable

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "ImageSource"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageSource(Configurable):
    """Where images come from. A subclass implements `open`; constructing one reads nothing."""

    def open(self, root: DataRoot, download: bool = False) -> ImageData:
        """Find and open the images.

        Args:
            root: The folders to search.
            download: Whether what is missing may be fetched from the internet.

        Returns:
            Both splits as uint8 images (or float32 features) by index.

        Raises:
            DataError: The images are missing or damaged; says what to do.
        """
        raise NotImplementedError(f"{type(self).__name__} doesn't implement open(root, download).")
