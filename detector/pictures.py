"""Images as people hand them over, as RGB pixels: files, PIL images, arrays and tensors, and what isn't one."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image, JpegImagePlugin
from torch import Tensor

from detector.data.images import UNDECODABLE, to_rgb, why_undecodable
from detector.errors import InputError

if TYPE_CHECKING:
    from os import PathLike

    ImageLike: TypeAlias = "str | PathLike[str] | Image.Image | np.ndarray | Tensor | Picture"

# Images of more pixels are reduced by a whole factor while they are read. The network sees far fewer anyway.
LARGE = 2**25
# Files that would decode to more pixels than this, at up to four bytes each, are refused.
MOST = 2**28
# A large image is turned into RGB by strips of about this many pixels.
STRIP = 2**22

_ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING = (5, 6, 7, 8)  # orientations that swap width and height
_opening = threading.Lock()


class Picture(NamedTuple):
    """An image, upright and in RGB."""

    pixels: np.ndarray
    """(H, W, 3) uint8, contiguous."""
    size: tuple[int, int]
    """Height and width of the image itself: more than those of ``pixels`` where it is larger than ``LARGE``."""


def read_picture(image: ImageLike, name: str = "the image") -> Picture:
    """``image`` as a viewer shows it: the first frame, upright, transparency over white.

    ``name`` says which one it is where it has no path. Raises InputError, naming it, when it is no image.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, str | os.PathLike):
        return _read_file(Path(image).expanduser(), os.fspath(image))
    if isinstance(image, Image.Image):
        path = getattr(image, "filename", "")
        shown = f"{name} ({path})" if path else name
        try:
            if getattr(image, "tile", None) and image.width * image.height > MOST:  # nothing is decoded yet
                raise ValueError(_too_many(image.size))
            return _upright(image)
        except Exception as error:  # Pillow's plugins raise almost anything on damaged files
            raise InputError(f"{shown} can't be read: {_reason(error)}") from error
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
            raise InputError(
                f"{name} is a tensor of {str(image.dtype).removeprefix('torch.')} and shape {tuple(image.shape)}; "
                "a tensor must be uint8 of shape (3, H, W), RGB"
            )
        return _of_array(image.detach().permute(1, 2, 0).cpu().numpy(), name)
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(
                f"{name} is an array of {image.dtype} and shape {image.shape}; "
                "an array must be uint8 RGB of shape (H, W, 3)"
            )
        return _of_array(image, name)
    raise InputError(f"{name} must be a path, a PIL image, an array or a tensor, not {type(image).__name__}")


def _of_array(array: np.ndarray, name: str) -> Picture:
    if not array.size:
        raise InputError(f"{name} has no pixels: it is {array.shape[1]} wide and {array.shape[0]} high")
    pixels = np.ascontiguousarray(array)
    # PyTorch warns of arrays that can't be written.
    return Picture(pixels if pixels.flags.writeable else pixels.copy(), pixels.shape[:2])


def _read_file(path: Path, shown: str) -> Picture:
    try:
        with path.open("rb") as file:
            if path.is_file() and path.stat().st_size == 0:
                raise ValueError("it is empty")
            with _open(file) as image:
                return _upright(image, _bound(image))
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files
        raise InputError(f"the image {shown} can't be read: {_reason(error)}") from error


def _open(file: BinaryIO) -> Image.Image:
    """The opened image, whatever its size: ``_bound`` has the limit. Nothing is decoded yet."""
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _bound(image: Image.Image) -> tuple[int, int] | None:
    """Sees to it that decoding takes bounded memory, or raises ValueError.

    A large JPEG will be decoded at a half, a quarter or an eighth of its size; then its own height and width are given.
    """
    width, height = image.size
    decoded = width * height
    if isinstance(image, JpegImagePlugin.JpegImageFile) and decoded > LARGE:
        factor = next((factor for factor in (2, 4) if decoded <= LARGE * factor**2), 8)
        image.draft(None, (width // factor, height // factor))
        if "progressive" not in image.info:  # the decoder holds all of a progressive one, whatever is asked for
            decoded = image.width * image.height
    if decoded > MOST:
        raise ValueError(_too_many((width, height)))
    return (height, width) if image.size != (width, height) else None


def _too_many(size: tuple[int, int]) -> str:
    most = MOST // 10**6
    return f"it says that it is {size[0]} x {size[1]} pixels, and more than {most} million are not decoded; reduce it"


def _upright(image: Image.Image, stored: tuple[int, int] | None = None) -> Picture:
    """An opened image; ``stored`` is its height and width where it is decoded at a lower resolution."""
    image.load()
    rgb = _reduced(image, math.ceil(math.sqrt(image.width * image.height / LARGE)))
    height, width = stored or (image.height, image.width)
    orientation = _orientation(image)  # only now: TIFF files are turned as they are loaded
    if orientation not in _TURNS:
        return Picture(np.array(rgb), (height, width))
    size = (width, height) if orientation in _SWAPPING else (height, width)
    return Picture(np.array(rgb.transpose(_TURNS[orientation])), size)


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # EXIF that can't be read says nothing
        return None


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    """A loaded image in RGB, each side divided by ``factor`` and rounded up; by strips, to hold no copy of it whole."""
    if factor <= 1:
        return to_rgb(image)
    small = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    rows = factor * max(1, STRIP // (image.width * factor))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        small.paste(to_rgb(strip).reduce(factor), (0, top // factor))
    return small


def _reason(error: Exception) -> str:
    """``error`` in a few words and on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = why_undecodable(error) if isinstance(error, UNDECODABLE) else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
