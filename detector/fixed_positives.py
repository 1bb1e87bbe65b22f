"""The box loss on one fixed set of positives: what makes curves of different assignments comparable.

A training's own ``loss_reg`` is over the positives that its assignment chose, and combined IoUs choose anchors whose
predicted boxes already fit: a lower curve may be better boxes or easier positives. Here the positives follow from the
anchors and the annotations alone, by plain ATSS (Zhang et al., CVPR 2020), and every one weighs the same.

Legend: N images, A anchors in all levels, K of them a location, S candidates in an image.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from detector.anchors import build_grid
from detector.assigners import ATSSAssigner, padded
from detector.boxes import elementwise_iou
from detector.criterion import Criterion
from detector.data.loader import Batch
from detector.data.store import Store
from detector.losses import giou_loss
from detector.outputs import HeadOutputs, flatten, gather

IMAGES = 64
"""At most as many."""


def fixed_images(store: Store) -> frozenset[int]:
    """Positions in ``store`` of ``IMAGES`` images with boxes, or of all: fixed by the split's digest and their ids."""

    def draw(index: int) -> bytes:
        return hashlib.sha256(f"{store.digest} {int(store.image_ids[index])}".encode()).digest()

    return frozenset(sorted(store.training_indices(keep_empty=False).tolist(), key=draw)[:IMAGES])


@torch.no_grad()
def fixed_losses(
    criterion: Criterion, outputs: HeadOutputs, gt_boxes: Sequence[Tensor], images: Sequence[int]
) -> list[tuple[float, int]]:
    """Sum of 1 - GIoU over the fixed positives of each of ``images``, and how many these are.

    ``gt_boxes``: one (G, 4) xyxy for each of the N images of ``outputs``, in pixels of the input; ``images``: which of
    them are asked for. Positive are the locations that plain ATSS with its nine candidates a level takes among squares;
    of several anchors at a location (RetinaNet) the one that fits its box best.
    """
    squares = build_grid(
        criterion.config.anchors.model_copy(update={"name": "square"}), outputs.shapes(), gt_boxes[0].device
    )
    chosen = [gt_boxes[image] for image in images]
    found = ATSSAssigner(topk=9, predicted_weight=0, anchor_weight=1)(squares.boxes, outputs.shapes(), chosen)
    rows = torch.arange(len(chosen), device=squares.boxes.device)[:, None]
    wanted = padded(chosen, squares.boxes)[0][rows, found.candidate_gt]  # (N, S, 4)
    grid, per_location = criterion.grid(outputs), criterion.anchors_per_location
    anchor = found.candidate_anchor
    if per_location > 1:
        own = anchor[..., None] * per_location + torch.arange(per_location, device=anchor.device)  # (N, S, K)
        fit = elementwise_iou(grid.boxes[own], wanted[..., None, :])
        anchor = own.gather(-1, fit.argmax(-1, keepdim=True))[..., 0]
    raw = gather(flatten(outputs.box_regression, per_location)[list(images)], anchor)
    loss = giou_loss(criterion.decode(raw, grid.boxes[anchor], grid.stride[anchor]), wanted).double()
    positive = found.candidate_positive
    sums = torch.where(positive, loss, 0.0).sum(1).tolist()
    return list(zip(sums, positive.sum(1).tolist(), strict=True))


class FixedPositives:
    """Collects the loss over the batches of an evaluation. It only reads what the network said anyway."""

    def __init__(self, store: Store) -> None:
        self._wanted = fixed_images(store) if store.has_annotations else frozenset()
        self.found: dict[int, tuple[float, int]] = {}
        """By position in the store: sum of the losses, and number of positives."""

    def add(self, criterion: Criterion, outputs: HeadOutputs, batch: Batch) -> None:
        """Takes note of the images of ``batch`` that count."""
        positions = batch.indices.tolist()
        images = [place for place, position in enumerate(positions) if position in self._wanted]
        if images:
            losses = fixed_losses(criterion, outputs, batch.boxes, images)
            self.found.update(zip((positions[image] for image in images), losses, strict=True))


def mean_loss(parts: Iterable[dict[int, tuple[float, int]]]) -> float | None:
    """The mean over all positives of all processes, between 0 and 2; None without any.

    It doesn't depend on how the images were shared out.
    """
    found = [one for part in parts for one in part.values()]
    count = sum(number for _, number in found)
    return math.fsum(total for total, _ in found) / count if count else None
