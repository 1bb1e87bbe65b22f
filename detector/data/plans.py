"""What happens to an image before the network sees it, decided from its size alone.

A plan is a pure function of the configuration and of (seed, step, image), so that order, pixels and padding never
depend on who reads the image. Sizes are (height, width); windows are (top, left, height, width) in pixels of the file.
Nothing heavy is imported: ``check`` and planning work out sizes without torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from detector.config import DataConfig, Resize

ORDER_STREAM, AUGMENTATION_STREAM = 0, 1
"""Second entry of a generator's seed: order and augmentation never share random numbers."""
PAD_MULTIPLE = 32
_SMALLEST_CROP = 0.6


class Colour(NamedTuple):
    """Factors on brightness, contrast and saturation, and a shift of the hue in turns."""

    brightness: float
    contrast: float
    saturation: float
    hue: float


@dataclass(frozen=True)
class ImagePlan:
    """Cut ``window`` out of the image, resize it to ``output_size``, mirror it, change its colours."""

    source_size: tuple[int, int]
    window: tuple[int, int, int, int]
    output_size: tuple[int, int]
    flip: bool = False
    colour: Colour | None = None
    resize: Resize = "antialias"
    reduction: int = 1
    """Pixels of the file, along each axis, that are decoded as one: 1, 2, 4 or 8. Only of whole images."""

    @property
    def scale(self) -> tuple[float, float]:
        """Output pixels per pixel of the file, vertically and horizontally: the true ratio of each axis."""
        # The last pixel of a reduced image may reach beyond the file's.
        height, width = (-(-side // self.reduction) * self.reduction for side in self.window[2:])
        return self.output_size[0] / height, self.output_size[1] / width

    @property
    def cuts(self) -> bool:
        """Whether the window leaves anything of the image out."""
        return self.window != (0, 0, *self.source_size)


def resized_size(
    size: tuple[int, int], short_side: int, long_side: int, resize: Resize = "antialias"
) -> tuple[int, int]:
    """Size after bringing the shorter side to ``short_side``, or the longer one to ``long_side`` if that is smaller.

    ``resize``, as in DataConfig, says how the other side is rounded.

    >>> resized_size((480, 640), 800, 1333), resized_size((480, 1000), 800, 1333)
    ((800, 1066), (639, 1333))
    >>> resized_size((480, 640), 800, 1333, "opencv")
    (800, 1067)
    """
    shorter, longer = min(size), max(size)
    if resize == "torchvision":
        factor = min(short_side / shorter, long_side / longer)  # rounding may cost a pixel even of the shorter side
        return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))
    if resize == "opencv":
        factor = min(short_side / shorter, long_side / longer)
        return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))
    new_short, new_long = short_side, int(short_side * longer / shorter)
    if new_long > long_side:
        new_short, new_long = max(1, int(long_side * shorter / longer)), long_side
    return (new_short, new_long) if size[0] <= size[1] else (new_long, new_short)


def padded_size(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The smallest size that holds all ``sizes`` and whose sides are multiples of 32."""
    height, width = (max(side) for side in zip(*sizes, strict=True))
    return -height % PAD_MULTIPLE + height, -width % PAD_MULTIPLE + width


def plan_image(
    config: DataConfig, size: tuple[int, int], *, seed: int, step: int, index: int, training: bool
) -> ImagePlan:
    """The plan of image ``index`` at ``step``; with ``training`` False the plain resize of evaluation.

    Training takes any short side of the configured range, then the scale jitter. Of an image that would grow beyond
    ``long_side`` by the jitter a random window is taken that just fits, so that memory stays bounded.
    """
    sides = config.short_side if isinstance(config.short_side, tuple) else (config.short_side, config.short_side)
    height, width = (int(side) for side in size)
    if not training:
        resized = resized_size((height, width), config.evaluated_short_side, config.long_side, config.resize)
        return ImagePlan((height, width), (0, 0, height, width), resized, resize=config.resize)
    augmentation = config.augmentation
    # All numbers are drawn whether used or not, so that switching one augmentation on leaves the others as they are.
    draws = np.random.default_rng([seed, AUGMENTATION_STREAM, step, index]).random(12).tolist()
    short_side = min(sides) + int(draws[0] * (max(sides) - min(sides) + 1))
    resized = resized_size((height, width), short_side, config.long_side, config.resize)
    factor = 1.0
    if augmentation.scale_jitter is not None:
        low, high = (math.log(bound) for bound in augmentation.scale_jitter)
        factor = math.exp(low + draws[1] * (high - low))
    kept = (1.0, 1.0)
    if draws[2] < augmentation.crop:
        kept = tuple(_SMALLEST_CROP + (1 - _SMALLEST_CROP) * draw for draw in draws[3:5])
    spans = [
        _span(length, new, factor, part, draw, config.long_side)
        for length, new, part, draw in zip((height, width), resized, kept, draws[5:7], strict=True)
    ]
    (top, window_height, new_height), (left, window_width, new_width) = spans
    colour = None
    if augmentation.colour:
        brightness, contrast, saturation, hue = (augmentation.colour * (2 * draw - 1) for draw in draws[8:12])
        colour = Colour(1 + brightness, 1 + contrast, 1 + saturation, 0.1 * hue)
    plan = ImagePlan(
        source_size=(height, width),
        window=(top, left, window_height, window_width),
        output_size=(new_height, new_width),
        flip=draws[7] < augmentation.flip,
        colour=colour,
        resize=config.resize,
    )
    return replace(plan, reduction=_reduction(plan)) if config.scaled_decoding else plan


def _reduction(plan: ImagePlan) -> int:
    """The largest reduction after which the image is still no smaller than the output; 1 where it is cut."""
    if plan.cuts:
        return 1  # a window need not begin where a reduced pixel does
    factors = (length // new for length, new in zip(plan.source_size, plan.output_size, strict=True))
    smallest = min(factors)
    return next(factor for factor in (8, 4, 2, 1) if factor <= max(1, smallest))


def _span(length: int, resized: int, factor: float, kept: float, draw: float, limit: int) -> tuple[int, int, int]:
    """Along one axis: where the window starts, how long it is in the file, and in the output."""
    scale = resized * factor / length
    window = max(1, min(round(length * kept), int(limit / scale), length))
    if window == length and factor == 1.0:
        return 0, length, resized  # exactly the rule's size, without rounding twice
    return int(draw * (length - window + 1)), window, max(1, min(round(window * scale), limit))
