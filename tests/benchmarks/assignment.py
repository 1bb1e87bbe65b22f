"""Label assignment by combined IoUs against an implementation that takes image after image and looks at every anchor.

The peer stands below, written straight from the paper's Eq. (1)-(4): vectorised over anchors and boxes, in float32. Its
tensors are large enough for several threads to share them, ours aren't, so each number of threads has its own rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detector.anchors import grid_anchors, level_shapes
from detector.assigners import ATSSAssigner
from tests.benchmarks.alternating import Figure, alternate, threads

HEIGHT, WIDTH, IMAGES, TOPK, PAIRS = 800, 1344, 8, 9, 15
GOALS = {20: 15.0, 100: 25.0}


def measure() -> list[Figure]:
    """Times faster than the peer with 20 and 100 boxes an image, and the time with four times the anchors: with one
    thread, and with all that torch has here.
    """
    figures = []
    for count in sorted({1, torch.get_num_threads()}):
        with threads(count):
            figures += _with_threads(f"{count} thread{'s' * (count > 1)}")
    return figures


def _with_threads(words: str) -> list[Figure]:
    figures = []
    for boxes, goal in GOALS.items():
        case, larger = _Case(boxes, 1), _Case(boxes, 2)
        agree = (case.ours().gt_index == case.peer()).double().mean().item()
        pairs = alternate(case.ours, case.peer, pairs=PAIRS)
        figures.append(
            pairs.figure(
                f"assignment, {len(case.anchors):,} anchors, {IMAGES} images of {boxes} boxes, {words}, s",
                at_least=goal,
                peer="image by image",
                equal_anchors=agree,
            )
        )
        pairs = alternate(larger.ours, case.ours, pairs=PAIRS, repeats=5)
        figures.append(
            pairs.figure(
                f"the same, {boxes} boxes, {len(larger.anchors):,} anchors, {words}, s",
                at_most=1.3,
                peer="a quarter of them",
            )
        )
    return figures


class _Case:
    """Boxes of up to 400 px on images of 800x1344, and predictions near the anchors; ``factor`` times as fine a grid:
    four times the anchors for a factor of 2, about the same boxes.
    """

    def __init__(self, boxes: int, factor: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shapes = level_shapes(HEIGHT * factor, WIDTH * factor)
        self.anchors = grid_anchors(self.shapes)
        center = torch.rand(IMAGES, boxes, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
        half = (8 + 392 * torch.rand(IMAGES, boxes, 2, generator=generator) ** 2) / 2
        self.boxes = list(torch.cat((center - half, center + half), -1) * factor)
        noise = torch.randn(IMAGES, len(self.anchors), 4, generator=generator) * 0.15
        self.predicted = self.anchors + noise * (self.anchors[:, 2:] - self.anchors[:, :2]).repeat(1, 2)
        self.assigner = ATSSAssigner(TOPK, 1.0, 1.0)

    def ours(self):
        return self.assigner(self.anchors, self.shapes, self.boxes, self.predicted)

    def peer(self) -> Tensor:
        images = zip(self.boxes, self.predicted, strict=True)
        return torch.stack([assign_image(self.anchors, self.shapes, boxes, each) for boxes, each in images])


def assign_image(anchors: Tensor, shapes: Sequence[tuple[int, int]], boxes: Tensor, predicted: Tensor) -> Tensor:
    """(A,): the box of each anchor (A, 4) of one image, or -1. Weights 1 and 1; at least one box (G, 4)."""
    anchor_iou, predicted_iou = iou(boxes, anchors), iou(boxes, predicted)  # (G, A)
    center, middle = (anchors[:, :2] + anchors[:, 2:]) / 2, (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = torch.cdist(middle, center, compute_mode="donot_use_mm_for_euclid_dist")
    candidates, start = [], 0
    for height, width in shapes:
        level = distance[:, start : start + height * width]
        candidates.append(level.topk(min(TOPK, height * width), largest=False, sorted=False).indices + start)
        start += height * width
    candidate = torch.cat(candidates, 1)  # (G, K)
    p, a = predicted_iou.gather(1, candidate), anchor_iou.gather(1, candidate)
    combined = p + a
    threshold = p.mean(1) + p.std(1) + a.mean(1) + a.std(1)
    sides = torch.cat((center[candidate] - boxes[:, None, :2], boxes[:, None, 2:] - center[candidate]), -1)
    positive = (combined >= threshold[:, None]) & (sides.amin(-1) > 0.01)
    score = torch.full_like(anchor_iou, -1.0)
    score.scatter_(1, candidate, torch.where(positive, combined, -1.0))
    best, owner = score.max(0)
    return torch.where(best >= 0, owner, -1)


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """(G, A): IoU of all with all, one coordinate after the other, in a third of the time of torchvision's box_iou."""
    (x1, y1, x2, y2), (u1, v1, u2, v2) = boxes.t()[..., None].unbind(0), others.t().contiguous().unbind(0)
    width = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp_(min=0)
    intersection = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp_(min=0).mul_(width)
    union = ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1)).sub_(intersection)
    return intersection.div_(union)
