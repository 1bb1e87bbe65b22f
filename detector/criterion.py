"""What an ATSS model is trained on: targets from the assignment, and losses with global normalisers.

It works in two steps, so that any number of workers and micro-batches gives the losses of one global batch: ``targets``
assigns a micro-batch and counts; the counts are summed over all of the global batch; ``losses`` divides by those sums.

Legend: N images, G boxes in an image (padded), A anchors in all levels, S candidates in an image, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detector.anchors import grid_anchors
from detector.assigners import build_assigner
from detector.boxes import decode
from detector.config import ModelConfig
from detector.heads.outputs import HeadOutputs, flatten
from detector.losses import focal_loss, giou_loss, quality_focal_loss, varifocal_loss

CLASSIFICATION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "focal": focal_loss,
    "qfl": quality_focal_loss,
    "vfl": varifocal_loss,
}
BOX_LOSS_WEIGHT = 2.0


@dataclass(frozen=True)
class Totals:
    """Sums over a batch, as one vector, so that one all-reduce makes them global."""

    vector: Tensor
    """(4,) float32: positives, sum of the box loss's weights, boxes, sum of the positives' predicted IoUs."""

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.vector + other.vector)

    @property
    def positives(self) -> Tensor:
        """Normaliser of the classification and quality losses: the positives, at least 1."""
        return self.vector[0].clamp(min=1)

    @property
    def box_weight(self) -> Tensor:
        """Normaliser of the box loss: the sum of its weights, at least 1."""
        return self.vector[1].clamp(min=1)

    def statistics(self) -> dict[str, Tensor]:
        """Positives for each box, and their mean predicted IoU."""
        return {
            "positives_per_gt": self.vector[0] / self.vector[2].clamp(min=1),
            "positive_iou": self.vector[3] / self.positives,
        }


@dataclass(frozen=True)
class Targets:
    """What a micro-batch should have predicted, at its S candidates an image."""

    anchor_index: Tensor
    """(N, S) int64."""
    positive: Tensor
    """(N, S) bool: where the rest means something."""
    anchors: Tensor
    """(N, S, 4) xyxy."""
    boxes: Tensor
    """(N, S, 4) xyxy."""
    labels: Tensor
    """(N, S) int64."""
    iou: Tensor
    """(N, S): IoU of the predicted box with its box; 0 at negatives."""
    quality: Tensor
    """(N, S): target of the quality branch, and weight of the box loss; 0 at negatives."""
    totals: Totals


class Criterion:
    """Losses of the ATSS head. Holds no parameters."""

    def __init__(self, config: ModelConfig) -> None:
        self.assigner = build_assigner(config.assigner)
        self.classification_loss = CLASSIFICATION_LOSSES[config.head.classification_loss]
        self.soft_targets = config.head.classification_loss != "focal"
        self.quality_branch = config.head.quality_branch
        self._anchors = config.anchors
        self._cached: tuple[tuple, Tensor] | None = None

    def anchors(self, outputs: HeadOutputs) -> Tensor:
        """The anchors (A, 4) of ``outputs``' levels, kept from call to call."""
        key = (tuple(outputs.shapes()), outputs.class_logits[0].device)
        if self._cached is None or self._cached[0] != key:
            grid = grid_anchors(
                key[0], scale=self._anchors.scale, center_offset=self._anchors.center_offset, device=key[1]
            )
            self._cached = (key, grid)
        return self._cached[1]

    @torch.no_grad()
    def targets(
        self, outputs: HeadOutputs, gt_boxes: Sequence[Tensor], gt_labels: Sequence[Tensor], progress: float
    ) -> Targets:
        """Assigns each image's boxes, N tensors (G_i, 4) xyxy with labels (G_i,), given the current predictions."""
        anchors = self.anchors(outputs)
        predicted = decode(flatten(outputs.box_regression), anchors)
        assignment = self.assigner(anchors, outputs.shapes(), gt_boxes, predicted, progress)
        index, positive = assignment.candidate_anchor, assignment.candidate_positive
        rows = torch.arange(len(gt_boxes), device=index.device)[:, None]
        boxes = pad_sequence([b.to(anchors).reshape(-1, 4) for b in gt_boxes], batch_first=True)
        labels = pad_sequence([b.to(anchors.device).long() for b in gt_labels], batch_first=True)
        boxes, labels = boxes[rows, assignment.candidate_gt], labels[rows, assignment.candidate_gt]
        iou = assignment.predicted_iou.gather(1, index) * positive
        if self.quality_branch == "centerness":
            quality = _centerness(anchors[index], boxes) * positive
        elif self.quality_branch == "iou":
            quality = iou
        else:
            quality = positive.float()
        count = torch.full((), sum(len(b) for b in gt_boxes), device=index.device)
        totals = Totals(torch.stack((positive.sum(), quality.sum(), count, iou.sum())).float())
        return Targets(index, positive, anchors[index], boxes, labels, iou, quality, totals)

    def losses(self, outputs: HeadOutputs, targets: Targets, totals: Totals) -> dict[str, Tensor]:
        """Scalar losses as they enter the sum: this micro-batch's part, over the global ``totals``.

        Every output takes part, with gradient zero where there is no positive.
        """
        positive, index = targets.positive, targets.anchor_index
        losses = {"loss_cls": self._classification(flatten(outputs.class_logits), targets) / totals.positives}
        deltas = _at(flatten(outputs.box_regression), index)
        box_loss = giou_loss(decode(deltas, targets.anchors), targets.boxes)
        weighted = torch.where(positive, box_loss, 0.0) * targets.quality
        losses["loss_reg"] = BOX_LOSS_WEIGHT * weighted.sum() / totals.box_weight
        if outputs.quality_logits is not None:
            logits = _at(flatten(outputs.quality_logits), index)[..., 0]
            entropy = F.binary_cross_entropy_with_logits(logits, targets.quality, reduction="none")
            losses["loss_quality"] = torch.where(positive, entropy, 0.0).sum() / totals.positives
        return losses

    def _classification(self, logits: Tensor, targets: Targets) -> Tensor:
        # Everything as a negative, then the positives' own class put right: no (N, A, C) target is made.
        everything = self.classification_loss(logits, logits.new_zeros(())).sum()
        own = _at(logits, targets.anchor_index).gather(2, targets.labels[..., None])[..., 0]
        wanted = targets.iou if self.soft_targets else torch.ones_like(own)
        change = self.classification_loss(own, wanted) - self.classification_loss(own, torch.zeros_like(own))
        return everything + torch.where(targets.positive, change, 0.0).sum()


def _at(flat: Tensor, index: Tensor) -> Tensor:
    """Rows of ``flat`` (N, A, D) at ``index`` (N, S) -> (N, S, D)."""
    return flat.gather(1, index[..., None].expand(-1, -1, flat.shape[-1]))


def _centerness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) of the anchors' centres in ``boxes``, (..., 4) -> (...,).

    0 where the centre lies outside. Source: Tian et al., FCOS, ICCV 2019.
    """
    center = (anchors[..., :2] + anchors[..., 2:]) / 2
    before, after = center - boxes[..., :2], boxes[..., 2:] - center
    near = torch.minimum(before, after).clamp(min=0)
    far = torch.maximum(before, after).clamp(min=torch.finfo(near.dtype).tiny)
    return (near / far).prod(-1).sqrt()
