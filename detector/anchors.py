"""Anchors: on the levels P3 to P7, one square a location or RetinaNet's nine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detector.config import AnchorConfig

STRIDES = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Grid:
    """All anchors of an input: levels from fine to coarse, row by row within a level, a location's own side by side."""

    boxes: Tensor
    """(A, 4) xyxy in pixels of the input."""
    stride: Tensor
    """(A, 1): nominal stride of the anchor's level, in pixels."""


def level_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Height and width of the feature maps P3 to P7 for an input of that many pixels, multiples of 32."""
    shapes = [(height // stride, width // stride) for stride in STRIDES[:3]]
    for _ in STRIDES[3:]:  # stride-2 3x3 convolutions, padded by one, round up
        shapes.append(((shapes[-1][0] + 1) // 2, (shapes[-1][1] + 1) // 2))
    return shapes


def build_grid(config: AnchorConfig, shapes: Sequence[tuple[int, int]], device: torch.device | str = "cpu") -> Grid:
    """The anchors that ``config`` describes on levels of ``shapes``, (height, width) of P3 to P7."""
    boxes = grid_anchors(
        shapes,
        bases=BASES[config.name](config),
        center_offset=config.center_offset,
        rounded_strides=config.strides == "rounded",
        device=device,
    )
    count = anchors_per_location(config)
    stride = torch.cat([boxes.new_full((h * w * count, 1), s) for (h, w), s in zip(shapes, STRIDES, strict=True)])
    return Grid(boxes, stride)


def anchors_per_location(config: AnchorConfig) -> int:
    """Anchors that ``config`` places at each location."""
    return len(BASES[config.name](config)[0])


def grid_anchors(
    shapes: Sequence[tuple[int, int]],
    *,
    scale: float = 8.0,
    center_offset: float = 0.5,
    strides: Sequence[int] = STRIDES,
    bases: Sequence[Tensor] | None = None,
    rounded_strides: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """Anchors (A, 4) xyxy float32 in pixels of the input: levels from fine to coarse, row by row within a level.

    Those of row i and column j are ``bases``, one (K, 4) a level, about ((j, i) + ``center_offset``) strides; by
    default a square of ``scale`` strides. ``rounded_strides`` takes the input's size over the level's instead of the
    nominal strides.
    """
    if bases is None:
        bases = [_square(scale * stride) for stride in strides]
    height, width = (side * strides[0] for side in shapes[0])
    levels = []
    for (rows, columns), stride, base in zip(shapes, strides, bases, strict=True):
        vertical, horizontal = (height // rows, width // columns) if rounded_strides else (stride, stride)
        x = (torch.arange(columns, dtype=torch.float32, device=device) + center_offset) * horizontal
        y = (torch.arange(rows, dtype=torch.float32, device=device) + center_offset) * vertical
        center_y, center_x = torch.meshgrid(y, x, indexing="ij")
        center = torch.stack((center_x, center_y, center_x, center_y), -1)
        levels.append((center[:, :, None] + base.to(center.device, non_blocking=True)).view(-1, 4))
    return torch.cat(levels)


def _square(side: float) -> Tensor:
    return torch.tensor([[-side / 2, -side / 2, side / 2, side / 2]])


def _squares(config: AnchorConfig) -> list[Tensor]:
    return [_square(config.scale * stride) for stride in STRIDES]


def _retinanet(config: AnchorConfig) -> list[Tensor]:
    """Three ratios of height to width 0.5, 1, 2 times three sizes of 4, 4·2^(1/3), 4·2^(2/3) strides.

    Sizes and corners are rounded to whole pixels as torchvision does. Source: Lin et al., ICCV 2017, section 4.
    """
    levels = []
    for stride in STRIDES:
        size = 4 * stride
        sizes = torch.tensor([size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))], dtype=torch.float32)
        ratio = torch.tensor([0.5, 1.0, 2.0]).sqrt()
        height = (ratio[:, None] * sizes).flatten()
        width = ((1 / ratio)[:, None] * sizes).flatten()
        levels.append((torch.stack((-width, -height, width, height), dim=1) / 2).round())
    return levels


# Anchors about a location at the origin: (K, 4) for each level.
BASES: dict[str, Callable[[AnchorConfig], list[Tensor]]] = {"square": _squares, "retinanet": _retinanet}
