"""ATSS and Dynamic ATSS: an adaptive threshold on combined predicted and anchor IoUs.

Source: Zhang, Luo, Sharda, Wang, "Dynamic Label Assignment for Object Detection by Combining Predicted IoUs and Anchor
IoUs", J. Imaging 2022, 8(7), 193, Eq. (1)-(4); with weight 0 for the predictions it is ATSS (Zhang et al., CVPR 2020).

Legend: N images, G boxes in an image (padded to the batch's largest count), A anchors in all levels, L levels,
K candidates of a box over all levels. Boxes are xyxy in pixels of the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detector.assigners.assignment import BACKGROUND, Assignment, padded
from detector.boxes import elementwise_iou

# The anchor's centre must lie inside the box by more than this, in pixels.
INSIDE_MARGIN = 0.01


def scheduled_weight(weight: float | str, progress: float) -> float:
    """``weight`` at ``progress`` = iteration / iterations: D_up grows from 0 to 1, D_down falls from 1 to 0."""
    if weight == "up":
        return progress
    if weight == "down":
        return 1.0 - progress
    return float(weight)


def _check_weight(name: str, weight: float | str) -> None:
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if weight not in ("up", "down") and not (number and 0 <= float(weight) < float("inf")):
        raise ValueError(f'{name} is {weight!r}; it must be a number >= 0, "up" or "down"')


class ATSSAssigner:
    """Positives are the candidates whose combined IoU reaches mean + deviation over the box's candidates.

    ``topk`` candidates a box and level; ``predicted_weight`` and ``anchor_weight`` are numbers >= 0, "up" or "down".
    Raises ValueError for weights outside that, or both 0.
    """

    def __init__(self, topk: int = 9, predicted_weight: float | str = 1.0, anchor_weight: float | str = 1.0) -> None:
        _check_weight("predicted_weight", predicted_weight)
        _check_weight("anchor_weight", anchor_weight)
        if predicted_weight == 0 and anchor_weight == 0:
            raise ValueError("predicted_weight and anchor_weight are both 0; give one a weight")
        if not isinstance(topk, int) or isinstance(topk, bool) or topk < 1:
            raise ValueError(f"topk is {topk!r}; it must be a whole number, at least 1")
        self.topk, self.predicted_weight, self.anchor_weight = topk, predicted_weight, anchor_weight

    @torch.no_grad()
    def __call__(
        self,
        anchors: Tensor,
        level_shapes: Sequence[tuple[int, int]],
        gt_boxes: Sequence[Tensor],
        predicted_boxes: Tensor | None = None,
        progress: float = 0.0,
    ) -> Assignment:
        """Assigns ``anchors`` (A, 4) to the boxes of each image.

        ``level_shapes``: (height, width) of each level's grid, one anchor a location, fine to coarse, row by row.
        ``gt_boxes``: N tensors (G_i, 4), possibly empty. ``predicted_boxes`` (N, A, 4): this step's decoded
        predictions; needed unless ``predicted_weight`` is 0. ``progress``: iteration / iterations.
        Raises ValueError when the shapes don't agree or the predictions are missing.
        """
        if predicted_boxes is None and self.predicted_weight != 0:
            raise ValueError(f"predicted_boxes are needed when predicted_weight is {self.predicted_weight!r}, not 0")
        if sum(height * width for height, width in level_shapes) != len(anchors):
            raise ValueError(f"{len(anchors)} anchors don't fill the levels {list(level_shapes)}, one a location")
        _check_shapes(anchors, gt_boxes, predicted_boxes)
        images, device = len(gt_boxes), anchors.device
        exact = torch.float32 if device.type == "mps" else torch.float64
        boxes, real = padded(gt_boxes, anchors.new_empty(0, dtype=exact))

        candidates = nearest_anchors(anchors, level_shapes, boxes, self.topk)  # (N, G, K)
        candidate_boxes = anchors.to(exact)[candidates]  # (N, G, K, 4)
        # IoUs are rounded to float32 and averaged in float64: then equal ones have exactly their mean, and >= holds.
        anchor_iou = elementwise_iou(candidate_boxes, boxes[:, :, None]).float().to(exact)
        if predicted_boxes is None:
            predicted_iou = torch.zeros_like(anchor_iou)
        else:
            rows = torch.arange(images, device=device)[:, None, None]
            predicted_iou = elementwise_iou(predicted_boxes.detach()[rows, candidates].to(exact), boxes[:, :, None])
            predicted_iou = predicted_iou.float().to(exact)

        wp = scheduled_weight(self.predicted_weight, progress)
        wa = scheduled_weight(self.anchor_weight, progress)
        combined = wp * predicted_iou + wa * anchor_iou  # Eq. (4)
        # Eq. (3): the deviations are taken separately and added, not recomputed on the sum.
        threshold = wp * _mean_plus_std(predicted_iou) + wa * _mean_plus_std(anchor_iou)  # (N, G)
        center = (candidate_boxes[..., :2] + candidate_boxes[..., 2:]) / 2
        to_edges = torch.cat((center - boxes[:, :, None, :2], boxes[:, :, None, 2:] - center), -1)
        inside = to_edges.amin(-1) > INSIDE_MARGIN
        positive = (combined >= threshold[..., None]) & inside & real[..., None]
        return _resolve(candidates, positive, combined, predicted_iou, anchors)


def _check_shapes(anchors: Tensor, gt_boxes: Sequence[Tensor], predicted_boxes: Tensor | None) -> None:
    if len(gt_boxes) == 0:
        raise ValueError("gt_boxes is empty; give a tensor (G, 4) for each image, (0, 4) where there are no boxes")
    for image, boxes in enumerate(gt_boxes):
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(
                f"gt_boxes[{image}] has shape {tuple(boxes.shape)}; (G, 4) is needed, (0, 4) without boxes"
            )
    expected = (len(gt_boxes), *anchors.shape)
    if predicted_boxes is not None and tuple(predicted_boxes.shape) != expected:
        raise ValueError(f"predicted_boxes have shape {tuple(predicted_boxes.shape)}; (N, A, 4) is {expected} here")


def _mean_plus_std(iou: Tensor) -> Tensor:
    """Mean plus unbiased standard deviation over the candidates: (N, G, K) -> (N, G); one candidate deviates by 0."""
    mean = iou.mean(-1, keepdim=True)
    variance = (iou - mean).square().sum(-1) / max(1, iou.shape[-1] - 1)
    return mean.squeeze(-1) + variance.sqrt()


def _resolve(candidates: Tensor, positive: Tensor, combined: Tensor, predicted_iou: Tensor, anchors: Tensor):
    """Gives an anchor that is positive for several boxes to the highest combined IoU, the lowest index on a tie."""
    images, per_image, per_box = candidates.shape
    shape = (images, len(anchors))
    anchor = candidates.reshape(images, -1)  # (N, S), S = G * K
    gt = torch.arange(per_image, device=anchor.device).repeat_interleave(per_box).expand(images, -1)
    score = torch.where(positive, combined, -1.0).reshape(images, -1)
    best = score.new_full(shape, -1.0).scatter_reduce(1, anchor, score, "amax")
    wins = positive.reshape(images, -1) & (score == best.gather(1, anchor))
    owner = gt.new_full(shape, per_image).scatter_reduce(1, anchor, gt.where(wins, per_image), "amin")
    wins = wins & (owner.gather(1, anchor) == gt)
    iou = torch.where(wins, predicted_iou.reshape(images, -1), 0.0).to(anchors.dtype)
    return Assignment(
        gt_index=owner.where(owner < per_image, BACKGROUND),
        predicted_iou=torch.zeros(shape, dtype=anchors.dtype, device=anchor.device).scatter_add(1, anchor, iou),
        candidate_anchor=anchor,
        candidate_gt=gt,
        candidate_positive=wins,
    )


def nearest_anchors(anchors: Tensor, level_shapes: Sequence[tuple[int, int]], boxes: Tensor, topk: int) -> Tensor:
    """From each level the ``topk`` anchors (all, if it has fewer) whose centres are nearest to each box's centre.

    ``anchors`` (A, 4), ``boxes`` (N, G, 4) -> (N, G, K) int64, levels fine to coarse, nearest first, the lowest index
    on ties. Centres form a grid, so the search never looks at all anchors: an anchor in the box's i-th nearest column
    and j-th nearest row has i * j - 1 others at least as near, and can't be among the k nearest if i * j > k.
    """
    center = (boxes[..., :2] + boxes[..., 2:]) / 2
    found, start = [], 0
    for height, width in level_shapes:
        level = anchors[start : start + height * width].to(boxes.dtype)
        columns, dx = _nearest_on_line((level[:width, 0] + level[:width, 2]) / 2, center[..., 0], topk)
        rows, dy = _nearest_on_line((level[::width, 1] + level[::width, 3]) / 2, center[..., 1], topk)
        pairs = [(i, j) for i in range(dx.shape[-1]) for j in range(dy.shape[-1]) if (i + 1) * (j + 1) <= topk]
        i, j = torch.tensor(pairs, device=boxes.device).unbind(-1)
        index, order = (rows[..., j] * width + columns[..., i]).sort(-1)
        distance = (dx[..., i] ** 2 + dy[..., j] ** 2).gather(-1, order)
        nearest = distance.argsort(dim=-1, stable=True)[..., : min(topk, height * width)]
        found.append(index.gather(-1, nearest) + start)
        start += height * width
    return torch.cat(found, -1)


def _nearest_on_line(line: Tensor, points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` values of the ascending ``line`` (W,) nearest to ``points`` (N, G), the lowest index on ties.

    Returns their indices and absolute distances, (N, G, min(count, W)) each, nearest first.
    """
    window = min(2 * count, len(line))
    first = (torch.searchsorted(line.contiguous(), points.contiguous()) - count).clamp(0, len(line) - window)
    index = first[..., None] + torch.arange(window, device=line.device)
    distance, order = (line[index] - points[..., None]).abs().sort(dim=-1, stable=True)
    kept = min(count, len(line))
    return index.gather(-1, order)[..., :kept], distance[..., :kept]
