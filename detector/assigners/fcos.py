"""FCOS's assignment: locations near a box's centre, on the level that fits its size.

Source: Tian et al., "FCOS", ICCV 2019, with centre sampling; torchvision's ``FCOS.compute_loss``.
Legend: N images, G boxes in an image (padded), A locations in all levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detector.anchors import STRIDES
from detector.assigners.assignment import BACKGROUND, Assignment, dense_assignment, padded
from detector.boxes import areas, centers, distances

# A level of stride s learns boxes whose farthest side is 4 s to 8 s away; the first and the last have no bound there.
NEAREST, FARTHEST = 4.0, 8.0


class FCOSAssigner:
    """A location is positive for the smallest box in which it lies near the centre, if its level fits the box.

    Near is less than ``center_radius`` strides off the box's centre along either axis. Raises ValueError for a radius
    that is not positive.
    """

    def __init__(self, center_radius: float = 1.5) -> None:
        if not center_radius > 0:
            raise ValueError(f"center_radius is {center_radius}; it must be above 0")
        self.center_radius = center_radius

    @torch.no_grad()
    def __call__(
        self,
        anchors: Tensor,
        level_shapes: Sequence[tuple[int, int]],
        gt_boxes: Sequence[Tensor],
        predicted_boxes: Tensor | None = None,
        progress: float = 0.0,
    ) -> Assignment:
        """Assigns the centres of ``anchors`` (A, 4), one a location, to the boxes of each image, N tensors (G_i, 4).

        ``level_shapes``: (height, width) of the levels of strides 8, 16, …. ``predicted_boxes`` (N, A, 4) give the
        IoUs of the result alone. Raises ValueError when the shapes don't agree.
        """
        counts = [height * width for height, width in level_shapes]
        if sum(counts) != len(anchors) or len(counts) > len(STRIDES):
            raise ValueError(f"{len(anchors)} anchors don't fill the levels {list(level_shapes)}, one a location")
        strides = STRIDES[: len(counts)]
        nearest = [0.0, *(NEAREST * stride for stride in strides[1:])]
        farthest_of = [*(FARTHEST * stride for stride in strides[:-1]), float("inf")]
        stride, lower, upper = (
            torch.cat([anchors.new_full((count,), value) for count, value in zip(counts, values, strict=True)])
            for values in (strides, nearest, farthest_of)
        )

        boxes, real = padded(gt_boxes, anchors)
        points = centers(anchors)
        to_sides = distances(points, boxes[:, :, None])  # (N, G, A, 4)
        farthest = to_sides.amax(-1)
        off_center = (points - centers(boxes)[:, :, None]).abs().amax(-1)
        fits = (off_center < self.center_radius * stride) & (to_sides.amin(-1) > 0)
        fits &= (farthest > lower) & (farthest < upper) & real[..., None]
        area = torch.where(fits, areas(boxes)[..., None], float("inf"))
        smallest, owner = area.min(1)  # the lowest index on ties
        index = torch.where(smallest < float("inf"), owner, BACKGROUND)
        return dense_assignment(index, boxes, predicted_boxes)
