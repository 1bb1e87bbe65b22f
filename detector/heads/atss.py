"""The head of ATSS and Dynamic ATSS: two towers shared over levels, and up to three outputs.

Source: Zhang et al., CVPR 2020; the IoU branch of Zhang, Luo, Sharda, Wang, J. Imaging 2022, takes centerness' place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detector.anchors import STRIDES, Grid
from detector.boxes import decode
from detector.config import ModelConfig
from detector.criterion import Criterion, Targets, Totals, centerness, masked_sum
from detector.layers import initialise, initialise_prior, tower
from detector.losses import giou_loss
from detector.outputs import HeadOutputs

BOX_LOSS_WEIGHT = 2.0


class ATSSHead(nn.Module):
    """Class logits from one tower; box deltas, scaled by a learned factor a level, and the quality from the other."""

    def __init__(self, config: ModelConfig, *, num_classes: int) -> None:
        super().__init__()
        channels = config.neck.channels
        self.class_tower = tower(config.head, channels)
        self.box_tower = tower(config.head, channels)
        self.class_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box_deltas = nn.Conv2d(channels, 4, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(STRIDES)))
        self.apply(initialise)
        initialise_prior(self.class_logits)
        # Last, so that heads which differ only here draw equal weights everywhere else.
        self.quality = nn.Conv2d(channels, 1, 3, padding=1) if config.head.quality_branch != "none" else None
        if self.quality is not None:
            initialise(self.quality)

    def forward(self, pyramid: Sequence[Tensor]) -> HeadOutputs:
        """P3 to P7, (N, channels, H_l, W_l) each -> raw outputs."""
        class_logits, box_regression, quality_logits = [], [], []
        for level, feature in enumerate(pyramid):
            box_feature = self.box_tower(feature)
            class_logits.append(self.class_logits(self.class_tower(feature)))
            box_regression.append(self.box_deltas(box_feature) * self.scales[level])
            if self.quality is not None:
                quality_logits.append(self.quality(box_feature))
        return HeadOutputs(class_logits, box_regression, quality_logits if self.quality is not None else None)


def decode_deltas(deltas: Tensor, anchors: Tensor, stride: Tensor) -> Tensor:
    """Boxes (..., 4) of deltas (..., 4) relative to the anchors (..., 4)."""
    return decode(deltas, anchors)


class ATSSCriterion(Criterion):
    """Focal loss, QFL or VFL; GIoU weighed by centerness or predicted IoU; the quality branch learns that weight."""

    def weights(self, outputs: HeadOutputs, grid: Grid, found: Targets) -> tuple[Tensor, Tensor | None]:
        """The target of the quality branch; 1 without one."""
        if self.config.head.quality_branch == "centerness":
            return centerness(found.anchors, found.boxes), None
        if self.config.head.quality_branch == "iou":
            return found.iou, None
        return super().weights(outputs, grid, found)

    def losses(self, outputs: HeadOutputs, targets: Targets, totals: Totals) -> dict[str, Tensor]:
        """``loss_cls``, ``loss_reg`` and, with a quality branch, ``loss_quality``."""
        box_loss = giou_loss(self.predicted(outputs.box_regression, targets), targets.boxes)
        losses = {
            "loss_cls": self.classification(outputs, targets).sum() / totals.positives,
            "loss_reg": BOX_LOSS_WEIGHT * masked_sum(box_loss, targets.positive, targets.weight) / totals.box_weight,
        }
        if outputs.quality_logits is not None:
            losses["loss_quality"] = self.quality_entropy(outputs, targets, targets.weight) / totals.positives
        return losses
