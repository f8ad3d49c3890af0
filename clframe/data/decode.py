"""One image file to one RGB array. The store and the streaming reader both come here, so they agree bit for bit."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DECODE_VERSION", "CorruptImage", "decode_image", "fit_square", "pixels"]

DECODE_VERSION = 1
"""Part of every store's key: raise it when the same file would decode to other pixels."""

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class CorruptImage(Exception):
    """A file that isn't the image it claims to be; the message is the reason."""


def decode_image(data: bytes, size: int | None = None) -> Pixels:
    """Decode an image file to RGB.

    Greyscale, palette, CMYK and RGBA files are converted (alpha is dropped); of an animation the first frame counts;
    EXIF rotation is left alone.

    Args:
        data: The file's bytes.
        size: Height and width of the result in pixels: the shorter side is resized to it (bilinear with antialias)
            and the centre is cut out. None keeps the file's own size.

    Returns:
        `(H, W, 3)` uint8.

    Raises:
        CorruptImage: The bytes can't be decoded completely.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return pixels(_to_rgb(image), size)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise CorruptImage(str(error) or type(error).__name__) from None


def pixels(image: Image, size: int | None = None) -> Pixels:
    """Return an image's pixels, `(H, W, C)` uint8, fitted to a square where a size is given."""
    if size is not None:
        image = fit_square(image, size)
    array: Pixels = np.array(image, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def fit_square(image: Image, size: int) -> Image:
    """Resize the shorter side to `size` pixels (bilinear with antialias) and cut out the centre square.

    The same pixels as torchvision's `Resize(size)` and `CenterCrop(size)` on a PIL image.
    """
    from PIL import Image

    width, height = image.size
    if (width, height) == (size, size):
        return image
    short = min(width, height)
    # Rounded as torchvision's Resize and CenterCrop round, whose pixels users compare with.
    resized = image.resize((size * width // short, size * height // short), Image.Resampling.BILINEAR)
    left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
    return resized.crop((left, top, left + size, top + size))


def _to_rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit greyscale: Pillow's own conversion would clip it to white
        deep = np.asarray(image).astype(np.int64)
        return Image.fromarray((deep >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:  # straight to RGB, Pillow warns about some of these
        image = image.convert("RGBA")
    return image.convert("RGB")
