"""Boxes: areas, overlaps and their coding relative to anchors.

Boxes are xyxy, continuous: width = x2 - x1. All functions broadcast over leading dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Scales of the deltas, (dx and dy, dw and dh), and the bound on log ratios before exp.
DELTA_WEIGHTS = (10.0, 5.0)
MAX_LOG_RATIO = math.log(1000 / 16)


def areas(boxes: Tensor) -> Tensor:
    """Areas (...,) of boxes (..., 4); 0 where a side is negative."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    return width * height


def elementwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU (...,) of boxes with their counterparts, (..., 4) each; 0 where the union is empty.

    Unlike torchvision's ``box_iou``, which compares all with all.
    """
    top_left = torch.maximum(first[..., :2], second[..., :2])
    bottom_right = torch.minimum(first[..., 2:], second[..., 2:])
    width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)
    intersection = width * height
    union = areas(first) + areas(second) - intersection
    return torch.where(union > 0, intersection / union.clamp(min=torch.finfo(union.dtype).tiny), 0.0)


def encode(boxes: Tensor, anchors: Tensor, weights: tuple[float, float] = DELTA_WEIGHTS) -> Tensor:
    """Deltas (..., 4) that ``decode`` turns back into ``boxes`` (..., 4) at ``anchors`` (..., 4)."""
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    size = boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2
    return torch.cat((shift / anchor_size * weights[0], torch.log(size / anchor_size) * weights[1]), dim=-1)


def decode(deltas: Tensor, anchors: Tensor, weights: tuple[float, float] = DELTA_WEIGHTS) -> Tensor:
    """Boxes (..., 4) xyxy for ``deltas`` (..., 4) at ``anchors`` (..., 4), in the anchors' pixels.

    Centre offsets over the anchor's size and log ratios, times ``weights``; log ratios are bounded by log(1000/16).
    """
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    center = (anchors[..., :2] + anchors[..., 2:]) / 2 + deltas[..., :2] / weights[0] * anchor_size
    half = anchor_size * torch.exp((deltas[..., 2:] / weights[1]).clamp(max=MAX_LOG_RATIO)) / 2
    return torch.cat((center - half, center + half), dim=-1)


def centers(boxes: Tensor) -> Tensor:
    """Centres (..., 2), x and y, of boxes (..., 4)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def distances(points: Tensor, boxes: Tensor) -> Tensor:
    """How far the left, top, right and bottom sides of ``boxes`` (..., 4) are from ``points`` (..., 2) -> (..., 4).

    Negative where the point lies beyond that side.
    """
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=-1)


def around(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes (..., 4) whose sides are ``distances`` (..., 4), left, top, right, bottom, from ``points`` (..., 2)."""
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (..., 4) cut at images of ``sizes`` (..., 2), (height, width) in the same pixels."""
    bound = sizes.to(boxes.dtype).flip(-1).repeat_interleave(2, dim=-1)[..., [0, 2, 1, 3]]
    return torch.minimum(boxes.clamp(min=0), bound)
