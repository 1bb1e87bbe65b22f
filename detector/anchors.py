"""Anchors: one square a location, on the levels P3 to P7."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STRIDES = (8, 16, 32, 64, 128)


def level_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Height and width of the feature maps P3 to P7 for an input of that many pixels, multiples of 32."""
    shapes = [(height // stride, width // stride) for stride in STRIDES[:3]]
    for _ in STRIDES[3:]:  # stride-2 3x3 convolutions, padded by one, round up
        shapes.append(((shapes[-1][0] + 1) // 2, (shapes[-1][1] + 1) // 2))
    return shapes


def grid_anchors(
    shapes: Sequence[tuple[int, int]],
    *,
    scale: float = 8.0,
    center_offset: float = 0.5,
    strides: Sequence[int] = STRIDES,
    device: torch.device | str | None = None,
) -> Tensor:
    """Anchors (A, 4) xyxy float32 in pixels of the input: levels from fine to coarse, row by row within a level.

    The anchor of row i and column j is a square of ``scale`` strides about ((j, i) + ``center_offset``) strides.
    """
    levels = []
    for (height, width), stride in zip(shapes, strides, strict=True):
        x = (torch.arange(width, dtype=torch.float32, device=device) + center_offset) * stride
        y = (torch.arange(height, dtype=torch.float32, device=device) + center_offset) * stride
        center_y, center_x = torch.meshgrid(y, x, indexing="ij")
        half = scale * stride / 2
        levels.append(torch.stack((center_x - half, center_y - half, center_x + half, center_y + half), -1).view(-1, 4))
    return torch.cat(levels)
