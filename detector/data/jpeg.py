"""The quick way from a plain JPEG to the pixels that ``detector.data.images`` gives: they are written once, where they
stay. Anything else goes the other way."""

from __future__ import annotations

import io
import logging
from functools import cache

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from detector.data.images import decode_image

log = logging.getLogger(__name__)

_FRAMES = (0xC0, 0xC1, 0xC2)
"""Markers that begin a baseline, an extended and a progressive image."""


def decode(content: bytes | memoryview, *, size: tuple[int, int], reduction: int = 1) -> np.ndarray:
    """As ``decode_image``, and with the same pixels."""
    if reduction == 1 and _is_plain(content) and _same_pixels():
        try:
            pixels = _decoded(content)
        except RuntimeError:
            pass  # the other way says what is wrong
        else:
            if pixels.shape[:2] == size:
                return pixels
    return decode_image(content, size=size, reduction=reduction)


def _decoded(content: bytes | memoryview) -> np.ndarray:
    """(H, W, 3) uint8 RGB as stored."""
    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)  # a copy: what the store maps can't be written
    return decode_jpeg(encoded, mode=ImageReadMode.RGB).permute(1, 2, 0).contiguous().numpy()


def _is_plain(content: bytes | memoryview) -> bool:
    """Whether it is a JPEG of 8 bits in grey or three colours, so that all decoders agree on its colours."""
    content, place = memoryview(content).cast("B"), 2
    if content[:2] != b"\xff\xd8":
        return False
    while place + 10 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker in _FRAMES:
            return content[place + 4] == 8 and content[place + 9] in (1, 3)
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return False


@cache
def _same_pixels() -> bool:
    """Whether torchvision's decoder and Pillow's give the same pixels here. They are two builds of one library as a
    rule; with another library the last bit may differ, and pixels must not depend on who decodes them."""
    random = np.random.default_rng(0)
    drawn = np.cumsum(random.integers(-20, 21, (45, 75, 3)), axis=1).clip(-128, 127).astype(np.int16) + 128
    file = io.BytesIO()
    Image.fromarray(drawn.astype(np.uint8)).save(file, "JPEG", quality=80)
    try:
        same = np.array_equal(_decoded(file.getvalue()), decode_image(file.getvalue()))
    except RuntimeError:
        same = False
    if not same:
        log.warning("torchvision decodes JPEGs otherwise than Pillow here; Pillow decodes, which takes longer")
    return same
