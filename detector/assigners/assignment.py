"""What an assigner returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detector.boxes import elementwise_iou

BACKGROUND = -1
IGNORED = -2


@dataclass(frozen=True)
class Assignment:
    """Assignment of A anchors in N images.

    Beside the two dense tensors it lists S candidates an image, as many in each: among them every positive anchor is
    marked exactly once. Losses over positives gather there, so they need neither a mask over all anchors nor a wait
    for the device to count.
    """

    gt_index: Tensor
    """(N, A) int64: index into that image's boxes, -1 background, -2 ignored."""
    predicted_iou: Tensor
    """(N, A): IoU of the anchor's predicted box with the box it is assigned, 0 elsewhere."""
    candidate_anchor: Tensor
    """(N, S) int64: anchor of each candidate."""
    candidate_gt: Tensor
    """(N, S) int64: box of each candidate."""
    candidate_positive: Tensor
    """(N, S) bool: whether that anchor is positive for that box."""
    ignored: Tensor | None = None
    """(N, A) bool: anchors that are neither positive nor negative; None where the rule knows none."""


def padded(gt_boxes: Sequence[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """N tensors (G_i, 4) -> (N, G, 4) of the type and on the device of ``like``, G at least 1, and which of them are
    real (N, G).
    """
    boxes = pad_sequence([b.detach().to(like).reshape(-1, 4) for b in gt_boxes], batch_first=True)
    if boxes.shape[1] == 0:
        boxes = boxes.new_zeros(len(gt_boxes), 1, 4)
    counts = torch.tensor([len(b) for b in gt_boxes])
    real = torch.arange(boxes.shape[1])[None] < counts[:, None]
    return boxes, real.to(like.device, non_blocking=True)


def dense_assignment(gt_index: Tensor, boxes: Tensor, predicted_boxes: Tensor | None) -> Assignment:
    """The Assignment of a rule that looks at all anchors: ``gt_index`` (N, A) of padded ``boxes`` (N, G, 4)."""
    positive = gt_index >= 0
    owner = gt_index.clamp(min=0)
    if predicted_boxes is None:
        iou = torch.zeros(gt_index.shape, dtype=boxes.dtype, device=boxes.device)
    else:
        own = boxes.gather(1, owner[..., None].expand(-1, -1, 4))
        iou = elementwise_iou(predicted_boxes.detach().to(boxes), own) * positive
    return Assignment(
        gt_index=gt_index,
        predicted_iou=iou,
        candidate_anchor=torch.arange(gt_index.shape[1], device=gt_index.device).expand_as(gt_index),
        candidate_gt=owner,
        candidate_positive=positive,
        ignored=gt_index == IGNORED,
    )
