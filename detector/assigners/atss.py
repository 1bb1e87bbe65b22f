"""ATSS and Dynamic ATSS: an adaptive threshold on combined predicted and anchor IoUs.

Source: Zhang, Luo, Sharda, Wang, "Dynamic Label Assignment for Object Detection by Combining Predicted IoUs and Anchor
IoUs", J. Imaging 2022, 8(7), 193, Eq. (1)-(4); with weight 0 for the predictions it is ATSS (Zhang et al., CVPR 2020).

Legend: N images, G boxes in an image (padded to the batch's largest count), A anchors in all levels, L levels,
K candidates of a box over all levels. Boxes are xyxy in pixels of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

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
        candidate_boxes = _rows(anchors, candidates).to(exact)  # (N, G, K, 4)
        # IoUs are rounded to float32 and averaged in float64: then equal ones have exactly their mean, and >= holds.
        anchor_iou = elementwise_iou(candidate_boxes, boxes[:, :, None]).float().to(exact)
        if predicted_boxes is None:
            predicted_iou = torch.zeros_like(anchor_iou)
        else:
            first = torch.arange(images, device=device)[:, None, None] * len(anchors)
            found = _rows(predicted_boxes.detach().flatten(0, 1), candidates + first).to(exact)
            predicted_iou = elementwise_iou(found, boxes[:, :, None]).float().to(exact)

        wp = scheduled_weight(self.predicted_weight, progress)
        wa = scheduled_weight(self.anchor_weight, progress)
        combined = wp * predicted_iou + wa * anchor_iou  # Eq. (4)
        # Eq. (3): the deviations are taken separately and added, not recomputed on the sum.
        threshold = wp * _mean_plus_std(predicted_iou) + wa * _mean_plus_std(anchor_iou)  # (N, G)
        center = (candidate_boxes[..., :2] + candidate_boxes[..., 2:]) / 2
        to_edges = torch.minimum(center - boxes[:, :, None, :2], boxes[:, :, None, 2:] - center)
        inside = torch.minimum(to_edges[..., 0], to_edges[..., 1]) > INSIDE_MARGIN
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


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of ``table`` (A, 4) at ``index`` (...,) -> (..., 4)."""
    return table.index_select(0, index.flatten()).view(*index.shape, table.shape[-1])


def _resolve(
    candidates: Tensor, positive: Tensor, combined: Tensor, predicted_iou: Tensor, anchors: Tensor
) -> Assignment:
    """Gives an anchor that is positive for several boxes to the highest combined IoU, the lowest index on a tie.

    What is dense are the two results alone, and all work goes through the candidates' places in them.
    """
    images, per_image, per_box = candidates.shape
    shape = (images, len(anchors))
    anchor = candidates.reshape(images, -1)  # (N, S), S = G * K
    gt = torch.arange(per_image, device=anchor.device).repeat_interleave(per_box).expand(images, -1)
    score = torch.where(positive, combined, -1.0).reshape(images, -1)
    owner = torch.full(shape, BACKGROUND, device=anchor.device)
    # The place of an anchor's owner serves for its best score first: as wide, but where there is no float64.
    best = owner.view(score.dtype) if score.element_size() == 8 else score.new_empty(shape)
    best.scatter_(1, anchor, -1.0).scatter_reduce_(1, anchor, score, "amax")
    wins = positive.reshape(images, -1) & (score == best.gather(1, anchor))
    owner.scatter_(1, anchor, per_image).scatter_reduce_(1, anchor, gt.where(wins, per_image), "amin")
    owned = owner.gather(1, anchor)
    owner.scatter_(1, anchor, owned.where(owned < per_image, BACKGROUND))
    wins = wins & (owned == gt)
    iou = torch.where(wins, predicted_iou.reshape(images, -1), 0.0).to(anchors.dtype)
    return Assignment(
        gt_index=owner,
        predicted_iou=torch.zeros(shape, dtype=anchors.dtype, device=anchor.device).scatter_add_(1, anchor, iou),
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
    images, per_image, _ = boxes.shape
    levels = len(level_shapes)
    lines = _lines(anchors, level_shapes, boxes.dtype)
    center = ((boxes[..., :2] + boxes[..., 2:]) / 2).view(-1, 2)  # (P, 2), P = N * G
    points = center.t()[:, None].expand(2, levels, -1).reshape(2 * levels, -1)
    first, place, distance = _nearest_on_lines(lines, points, topk)  # (2L, P), (topk, 2L, P), (topk, 2L, P)
    distance = distance.square()
    reach = list(enumerate(topk // (row + 1) for row in range(topk)))
    half = (topk - 1).bit_length()
    rows = place[:, levels:] << half
    spot = torch.cat([rows[row] | place[:far, :levels] for row, far in reach])  # (spots, L, P)
    away = torch.cat([distance[row, levels:] + distance[:far, :levels] for row, far in reach])
    # Bits of numbers that aren't negative are in their order. The last ones make way for the spot, so that distances
    # equal but for rounding are in the order of their indices, and sorting once is enough.
    bits = away.view(torch.int64) if away.element_size() == 8 else away.view(torch.int32).long() << 32
    low = (1 << 2 * half) - 1
    spot = (bits & ~low | spot).movedim(0, -1).topk(topk, largest=False).values & low  # (L, P, topk)
    row, column = first[levels:, :, None] + (spot >> half), first[:levels, :, None] + (spot & (low >> half))
    found, start = [], 0
    for level, (height, width) in enumerate(level_shapes):
        # Places that a small level doesn't have are infinitely far away, so they come last.
        kept = min(topk, height * width)
        found.append(row[level, :, :kept] * width + column[level, :, :kept] + start)
        start += height * width
    return torch.cat(found, -1).view(images, per_image, -1)


def _lines(anchors: Tensor, level_shapes: Sequence[tuple[int, int]], dtype: torch.dtype) -> Tensor:
    """Where the columns of each level's centres are, then its rows: (2L, W), ascending, minus infinity before them and
    infinity behind.
    """
    places, beyond = _line_places(tuple(map(tuple, level_shapes)), anchors.device, dtype)
    near, far = (anchors.reshape(-1)[side:].index_select(0, places.view(-1)).to(dtype) for side in (0, 2))
    return near.add_(far).div_(2).view_as(beyond).add_(beyond)


@lru_cache(maxsize=256)
def _line_places(
    level_shapes: tuple[tuple[int, ...], ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Where the anchors' coordinates are that the columns, then the rows, of each level have; and what is added there.

    (2L, W) both: places in the flattened anchors, any before and behind; and 0, there minus infinity and infinity. The
    same for all images of a size.
    """
    levels, longest = len(level_shapes), max(max(shape) for shape in level_shapes)
    places = torch.zeros(2, levels, longest + 2, dtype=torch.int64)
    beyond = torch.full((2, levels, longest + 2), torch.inf, dtype=dtype)
    beyond[..., 0] = -torch.inf
    start = 0
    for level, (height, width) in enumerate(level_shapes):
        for axis, count, step in ((0, width, 1), (1, height, width)):
            places[axis, level, 1 : count + 1] = 4 * (start + step * torch.arange(count)) + axis
            beyond[axis, level, 1 : count + 1] = 0.0
        start += height * width
    places, beyond = places.view(2 * levels, -1), beyond.view(2 * levels, -1)
    return places.to(device, non_blocking=True), beyond.to(device, non_blocking=True)


def _nearest_on_lines(lines: Tensor, points: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` places on each of ``lines`` (M, W), made by ``_lines``, nearest to its ``points`` (M, P).

    They lie side by side. Returns the index of the first in that order (M, P); and, nearest first and the lowest index
    on ties, how many after that first one each is, and its distance, (count, M, P) both. Where a line has no more
    places the distance is infinite.
    """
    right = torch.searchsorted(lines, points.contiguous())
    last, indices, distances = lines.shape[1] - 1, [], []
    for taken in range(count):  # outwards: the nearer of the two next places
        left = right - taken - 1
        to_left = points - lines.gather(1, left.clamp(min=0))
        to_right = lines.gather(1, right.clamp(max=last)) - points
        is_right = to_right < to_left
        indices.append(right.where(is_right, left))
        distances.append(torch.minimum(to_left, to_right))
        right = right + is_right
    first = right - count
    return first - 1, torch.stack(indices) - first, torch.stack(distances)  # a line begins with minus infinity
