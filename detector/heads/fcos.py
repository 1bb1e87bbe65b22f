"""FCOS's head, as torchvision builds it: distances from locations, and centerness beside them.

Source: Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019; torchvision's
fcos_resnet50_fpn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from detector.boxes import around, centers
from detector.config import ModelConfig
from detector.criterion import Criterion, Targets, Totals, centerness, masked_sum
from detector.layers import initialise, initialise_prior, tower
from detector.losses import giou_loss
from detector.outputs import HeadOutputs


class FCOSHead(nn.Module):
    """Class logits from one tower; distances in strides, never negative, and centerness from the other."""

    def __init__(self, config: ModelConfig, *, num_classes: int) -> None:
        super().__init__()
        channels = config.neck.channels
        self.class_tower = tower(config.head, channels)
        self.box_tower = tower(config.head, channels)
        self.class_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box_distances = nn.Conv2d(channels, 4, 3, padding=1)
        self.quality = nn.Conv2d(channels, 1, 3, padding=1)
        self.apply(initialise)
        initialise_prior(self.class_logits)

    def forward(self, pyramid: Sequence[Tensor]) -> HeadOutputs:
        """P3 to P7, (N, channels, H_l, W_l) each -> raw outputs."""
        box_features = [self.box_tower(feature) for feature in pyramid]
        return HeadOutputs(
            [self.class_logits(self.class_tower(feature)) for feature in pyramid],
            [F.relu(self.box_distances(feature)) for feature in box_features],
            [self.quality(feature) for feature in box_features],
        )


def decode_strides(distances: Tensor, anchors: Tensor, stride: Tensor) -> Tensor:
    """Boxes (..., 4) of distances (..., 4), in strides, from the anchors' centres."""
    return around(centers(anchors), distances * stride)


class FCOSCriterion(Criterion):
    """Focal loss, GIoU and centerness, each over the number of positives."""

    def losses(self, outputs: HeadOutputs, targets: Targets, totals: Totals) -> dict[str, Tensor]:
        """``loss_cls``, ``loss_reg`` and ``loss_quality``."""
        box_loss = giou_loss(self.predicted(outputs.box_regression, targets), targets.boxes)
        wanted = centerness(targets.anchors, targets.boxes)
        return {
            "loss_cls": self.classification(outputs, targets).sum() / totals.positives,
            "loss_reg": masked_sum(box_loss, targets.positive) / totals.positives,
            "loss_quality": self.quality_entropy(outputs, targets, wanted) / totals.positives,
        }
