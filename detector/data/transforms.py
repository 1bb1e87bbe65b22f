"""Carries out image plans on pixels and boxes. G boxes, xyxy in pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from detector.config import DataConfig
from detector.data.plans import ImagePlan, padded_size, plan_image, resized_size

__all__ = ["ImagePlan", "apply", "move_boxes", "padded_size", "plan_image", "prepare", "resized_size"]


def apply(
    plan: ImagePlan, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """image (H, W, 3) uint8, decoded as ``plan.reduction`` says, boxes (G, 4) in pixels of the file, labels (G,)
    -> (3, H', W') uint8 (float32 of 0 to 255 with "torchvision" resizing), as a rule with the colours of a pixel side
    by side in memory, boxes (G', 4) float32 in the new pixels and inside them, labels (G',) int64.
    """
    top, left, height, width = plan.window
    window = torch.from_numpy(image[top : top + height, left : left + width]).permute(2, 0, 1)
    pixels = _resized(window, plan)
    if plan.flip:
        pixels = F.horizontal_flip(pixels)
    if plan.colour is not None:
        pixels = F.adjust_brightness(pixels, plan.colour.brightness)
        pixels = F.adjust_contrast(pixels, plan.colour.contrast)
        pixels = F.adjust_saturation(pixels, plan.colour.saturation)
        pixels = F.adjust_hue(pixels, plan.colour.hue)
    moved, kept = move_boxes(plan, boxes)
    return pixels, torch.from_numpy(moved), torch.from_numpy(labels[kept].astype(np.int64))


def _resized(window: torch.Tensor, plan: ImagePlan) -> torch.Tensor:
    if plan.resize != "torchvision":
        antialias = plan.resize == "antialias"
        return F.resize(window, list(plan.output_size), InterpolationMode.BILINEAR, antialias=antialias)
    size = plan.output_size
    pixels = interpolate(window[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    # Colours are changed on whole numbers.
    return pixels if plan.colour is None else pixels.round().to(torch.uint8)


def move_boxes(plan: ImagePlan, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (G, 4) in pixels of the file -> (G', 4) float32 in pixels of the output, and which were kept (G,) bool.

    Where the plan cuts, boxes whose centre is outside the window are dropped and the others clipped to it.
    """
    top, left, height, width = plan.window
    vertical, horizontal = plan.scale
    moved = boxes.astype(np.float64) - [left, top, left, top]
    kept = np.full(len(boxes), True)
    if plan.cuts:
        centres = (moved[:, :2] + moved[:, 2:]) / 2
        kept &= ((centres > 0) & (centres < [width, height])).all(1)
        moved = np.clip(moved, 0, [width, height, width, height])
    moved = (moved * [horizontal, vertical, horizontal, vertical]).astype(np.float32)
    if plan.flip:
        moved[:, [0, 2]] = plan.output_size[1] - moved[:, [2, 0]]
    kept &= (moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])
    return moved[kept], kept


def prepare(image: np.ndarray, config: DataConfig) -> tuple[torch.Tensor, tuple[float, float]]:
    """An image (H, W, 3) uint8 as evaluation and prediction see it.

    -> (3, H', W') as ``apply`` gives it, and the factors (vertical, horizontal) from its pixels to the new ones.
    """
    plan = plan_image(config, image.shape[:2], seed=0, step=0, index=0, training=False)
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    return apply(plan, image, *nothing)[0], plan.scale
