"""From the bytes of an image file to RGB pixels, as a viewer would show them."""

from __future__ import annotations

import io
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
UNDECODABLE = (OSError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for files that aren't whole images."""


class Decode(Protocol):
    """What turns the bytes of an image of that size into pixels, as ``decode_image`` does."""

    def __call__(self, content: bytes | memoryview, *, size: tuple[int, int], reduction: int) -> np.ndarray: ...


_ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
_TRANSPOSED = (5, 6, 7, 8)  # orientations that swap width and height


def decode_image(content: bytes | memoryview, *, size: tuple[int, int] | None = None, reduction: int = 1) -> np.ndarray:
    """Pixels (H, W, 3) uint8 RGB, contiguous, of an encoded image.

    ``size`` is the height and width that annotations were made in. Pixels that have it as stored are taken as stored,
    whatever the EXIF orientation says: COCO's boxes refer to them. Where only the upright image has it, the orientation
    is applied. Without ``size`` the orientation is always applied. Transparency is laid over white.

    With a ``reduction`` of 2, 4 or 8 each pixel is the mean of so many by so many, and sides are rounded up; a JPEG is
    decoded more quickly then.

    ValueError says in a few words what is wrong: it can't be decoded, is cut short, or has another size.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            stored = (image.height, image.width)
            if size is not None and size != stored and size != upright_size(image):
                raise ValueError(
                    f"it is {stored[1]}x{stored[0]} pixels, but its annotations say width {size[1]}, height {size[0]}"
                )
            if reduction > 1:
                image.draft(image.mode, (max(1, stored[1] // reduction), max(1, stored[0] // reduction)))
            image.load()
            pixels = to_rgb(ImageOps.exif_transpose(image) if size is None or size != stored else image)
            if reduction > 1 and sorted(pixels.size) == sorted(stored):  # no JPEG: decoded whole
                pixels = pixels.reduce(reduction)
            return np.array(pixels)
    except UNDECODABLE as error:
        raise ValueError(f"it can't be decoded ({why_undecodable(error)})") from error


def why_undecodable(error: Exception) -> str:
    """One of ``UNDECODABLE`` in a few words; Pillow's own would name an object in memory."""
    return "it is no image of a known format" if isinstance(error, UnidentifiedImageError) else str(error)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an opened image as a viewer shows it, without decoding its pixels."""
    turned = image.getexif().get(_ORIENTATION) in _TRANSPOSED
    return (image.width, image.height) if turned else (image.height, image.width)


def to_rgb(image: Image.Image) -> Image.Image:
    """``image`` in RGB as a viewer shows it: 16-bit grey scaled, transparency over white. ValueError if it can't be."""
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey: PIL would clip at 255 instead of scaling
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, which have no agreed range; save it with 8 bits")
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
