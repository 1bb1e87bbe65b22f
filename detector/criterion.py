"""What a detector is trained on: targets from the assignment, and losses with global normalisers.

It works in two steps, so that any number of workers and micro-batches gives the losses of one global batch: ``targets``
assigns a micro-batch and counts; the counts are summed over all of the global batch; ``losses`` divides by those sums.
Each head has a criterion of its own, beside it in ``detector/heads``; what they share is here.

Legend: N images, G boxes in an image (padded), A anchors in all levels, S candidates in an image, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detector.anchors import Grid, anchors_per_location, build_grid
from detector.assigners import Assigner, Assignment, build_assigner
from detector.assigners.assignment import padded
from detector.boxes import centers, distances, elementwise_iou
from detector.config import ModelConfig
from detector.errors import InputError
from detector.losses import focal_loss, quality_focal_loss, varifocal_loss
from detector.outputs import HeadOutputs, flatten, gather

ElementwiseLoss = Callable[[Tensor, Tensor], Tensor]
CLASSIFICATION_LOSSES: dict[str, ElementwiseLoss] = {
    "focal": focal_loss,
    "qfl": quality_focal_loss,
    "vfl": varifocal_loss,
}


@dataclass(frozen=True)
class Totals:
    """Sums over a batch, as one vector, so that one all-reduce makes them global."""

    vector: Tensor
    """(6,) float32: positives, sum of the box loss's weights, boxes, sum of the positives' predicted IoUs, sum of the
    weights of the initial box loss, images."""

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

    @property
    def initial_weight(self) -> Tensor:
        """Normaliser of the initial box loss: the sum of its weights, at least 1."""
        return self.vector[4].clamp(min=1)

    @property
    def images(self) -> Tensor:
        """Images of the batch."""
        return self.vector[5]

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
    stride: Tensor
    """(N, S, 1): of the anchor's level, in pixels."""
    boxes: Tensor
    """(N, S, 4) xyxy."""
    labels: Tensor
    """(N, S) int64."""
    iou: Tensor
    """(N, S): IoU of the predicted box with its box; 0 at negatives."""
    weight: Tensor
    """(N, S): weight of the box loss; 0 at negatives."""
    initial_weight: Tensor
    """(N, S): weight of the initial box loss (VFNet), else 0."""
    ignored: Tensor | None
    """(N, A) bool: anchors that are neither positive nor negative; None where the rule knows none."""
    totals: Totals


class Criterion(ABC):
    """Losses of a head. Holds no parameters.

    A head's own criterion overrides ``weights`` and ``losses``, and what else differs.
    """

    def __init__(self, config: ModelConfig, decode: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        """``decode`` turns raw regression (..., D), anchors (..., 4) and strides (..., 1) into boxes (..., 4)."""
        self.config = config
        self.decode = decode
        self.classification_loss = CLASSIFICATION_LOSSES[config.head.classification_loss]
        self.soft_targets = config.head.classification_loss != "focal"
        self.anchors_per_location = anchors_per_location(config.anchors)
        self._cached: tuple[tuple, Grid] | None = None

    @cached_property
    def assigner(self) -> Assigner:
        """Built at the first targets: a trained model needs none, and a plug-in's may not be at hand."""
        return build_assigner(self.config.assigner)

    def grid(self, outputs: HeadOutputs) -> Grid:
        """The anchors of ``outputs``' levels, kept from call to call."""
        key = (tuple(outputs.shapes()), outputs.class_logits[0].device)
        if self._cached is None or self._cached[0] != key:
            self._cached = (key, build_grid(self.config.anchors, *key))
        return self._cached[1]

    def class_logits(self, outputs: HeadOutputs) -> Tensor:
        """(N, A, C): logits of what the classification loss compares."""
        return flatten(outputs.class_logits, self.anchors_per_location)

    def regression(self, outputs: HeadOutputs) -> Tensor:
        """(N, A, D): raw regression."""
        return flatten(outputs.box_regression, self.anchors_per_location)

    def assigned_boxes(self, outputs: HeadOutputs, predicted: Tensor, grid: Grid) -> Tensor:
        """(N, A, 4): the predicted boxes that the assignment sees; here those of the last stage, ``predicted``."""
        return predicted

    def weights(self, outputs: HeadOutputs, grid: Grid, found: Targets) -> tuple[Tensor, Tensor | None]:
        """Weights of the box loss and of the initial box loss, (N, S) each; values at negatives don't matter."""
        return found.positive.float(), None

    @torch.no_grad()
    def targets(
        self, outputs: HeadOutputs, gt_boxes: Sequence[Tensor], gt_labels: Sequence[Tensor], progress: float
    ) -> Targets:
        """Assigns each image's boxes, N tensors (G_i, 4) xyxy with labels (G_i,), given the current predictions."""
        grid = self.grid(outputs)
        predicted = self.decode(self.regression(outputs), grid.boxes, grid.stride)
        seen = self.assigned_boxes(outputs, predicted, grid)
        assignment = self.assigner(grid.boxes, outputs.shapes(), gt_boxes, seen, progress)
        if not isinstance(assignment, Assignment):
            raise InputError(
                f"the assigner {self.config.assigner.name} gave a {type(assignment).__name__}; it must return a "
                "detector.assigners.Assignment, such as dense_assignment makes"
            )
        if assignment.gt_index.shape != predicted.shape[:2]:
            raise InputError(
                f"the assigner {self.config.assigner.name} gave a gt_index of shape "
                f"{tuple(assignment.gt_index.shape)}, but here (N, A) is {tuple(predicted.shape[:2])}"
            )
        index, positive = assignment.candidate_anchor, assignment.candidate_positive
        rows = torch.arange(len(gt_boxes), device=index.device)[:, None]
        boxes, _ = padded(gt_boxes, grid.boxes)
        # One column more than there are labels, so that there is one at all where no image has a box.
        labels = pad_sequence([F.pad(each.to(index), (0, 1)) for each in gt_labels], batch_first=True)
        boxes, labels = boxes[rows, assignment.candidate_gt], labels[rows, assignment.candidate_gt]
        iou = elementwise_iou(gather(predicted, index), boxes) * positive
        count = torch.full((), sum(len(b) for b in gt_boxes), device=index.device)
        images = torch.full((), len(gt_boxes), device=index.device)
        zero = torch.zeros_like(iou)
        found = Targets(
            anchor_index=index,
            positive=positive,
            anchors=grid.boxes[index],
            stride=grid.stride[index],
            boxes=boxes,
            labels=labels,
            iou=iou,
            weight=zero,
            initial_weight=zero,
            ignored=assignment.ignored,
            totals=Totals(zero),
        )
        weight, initial = self.weights(outputs, grid, found)
        weight, initial = weight * positive, zero if initial is None else initial * positive
        sums = (positive.sum(), weight.sum(), count, iou.sum(), initial.sum(), images)
        totals = Totals(torch.stack([value.float() for value in sums]))
        return replace(found, weight=weight, initial_weight=initial, totals=totals)

    @abstractmethod
    def losses(self, outputs: HeadOutputs, targets: Targets, totals: Totals) -> dict[str, Tensor]:
        """Scalar losses as they enter the sum: this micro-batch's part, over the global ``totals``.

        Every output takes part, with gradient zero where there is no positive.
        """

    def classification(self, outputs: HeadOutputs, targets: Targets) -> Tensor:
        """(N,): the classification loss of each image, summed over its anchors and classes."""
        logits = self.class_logits(outputs)
        # Everything as a negative, then the positives' own class put right: no (N, A, C) target is made.
        everything = self.classification_loss(logits, logits.new_zeros(()))
        if targets.ignored is not None:
            everything = everything.masked_fill(targets.ignored[..., None], 0.0)
        own = logits.flatten(1).gather(1, targets.anchor_index * logits.shape[-1] + targets.labels)
        wanted = targets.iou if self.soft_targets else torch.ones_like(own)
        change = self.classification_loss(own, wanted) - self.classification_loss(own, torch.zeros_like(own))
        return everything.flatten(1).sum(1) + torch.where(targets.positive, change, 0.0).sum(1)

    def predicted(self, regression: list[Tensor], targets: Targets) -> Tensor:
        """(N, S, 4): boxes that the raw ``regression`` of all levels gives at the candidates, with gradient."""
        raw = gather(flatten(regression, self.anchors_per_location), targets.anchor_index)
        return self.decode(raw, targets.anchors, targets.stride)

    def quality_entropy(self, outputs: HeadOutputs, targets: Targets, wanted: Tensor) -> Tensor:
        """Scalar: cross-entropy of the quality branch with ``wanted`` (N, S), summed over the positives."""
        assert outputs.quality_logits is not None
        logits = gather(flatten(outputs.quality_logits), targets.anchor_index)[..., 0]
        entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return masked_sum(entropy, targets.positive)


def masked_sum(values: Tensor, positive: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sum of ``values`` (N, S), weighed if a weight is given, where ``positive``; elsewhere gradients are zero."""
    values = torch.where(positive, values, 0.0)
    return values.sum() if weight is None else (values * weight).sum()


def centerness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) of the anchors' centres in ``boxes``, (..., 4) -> (...,).

    0 where the centre lies outside. Source: Tian et al., FCOS, ICCV 2019.
    """
    to_sides = distances(centers(anchors), boxes)
    before, after = to_sides[..., :2], to_sides[..., 2:]
    near = torch.minimum(before, after).clamp(min=0)
    far = torch.maximum(before, after).clamp(min=torch.finfo(near.dtype).tiny)
    return (near / far).prod(-1).sqrt()
