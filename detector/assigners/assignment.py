"""What an assigner returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

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
