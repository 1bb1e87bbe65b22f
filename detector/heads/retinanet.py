"""RetinaNet's head, as torchvision builds it (v1): plain towers and nine anchors a location.

Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017; torchvision's retinanet_resnet50_fpn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detector.anchors import anchors_per_location
from detector.boxes import decode, encode
from detector.config import ModelConfig
from detector.criterion import Criterion, Targets, Totals
from detector.layers import initialise, initialise_prior
from detector.outputs import HeadOutputs, flatten, gather

UNIT_WEIGHTS = (1.0, 1.0)


class RetinaNetHead(nn.Module):
    """Class logits and box deltas of every anchor, from a tower each, shared over levels."""

    def __init__(self, config: ModelConfig, *, num_classes: int) -> None:
        super().__init__()
        channels, anchors = config.neck.channels, anchors_per_location(config.anchors)
        self.class_tower = _plain_tower(config.head.convolutions, channels)
        self.box_tower = _plain_tower(config.head.convolutions, channels)
        self.class_logits = nn.Conv2d(channels, anchors * num_classes, 3, padding=1)
        self.box_deltas = nn.Conv2d(channels, anchors * 4, 3, padding=1)
        self.apply(initialise)
        initialise_prior(self.class_logits)

    def forward(self, pyramid: Sequence[Tensor]) -> HeadOutputs:
        """P3 to P7, (N, channels, H_l, W_l) each -> raw outputs."""
        return HeadOutputs(
            [self.class_logits(self.class_tower(feature)) for feature in pyramid],
            [self.box_deltas(self.box_tower(feature)) for feature in pyramid],
            None,
        )


def _plain_tower(convolutions: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def decode_unit_deltas(deltas: Tensor, anchors: Tensor, stride: Tensor) -> Tensor:
    """Boxes (..., 4) of deltas (..., 4), not scaled, relative to the anchors (..., 4)."""
    return decode(deltas, anchors, UNIT_WEIGHTS)


class RetinaNetCriterion(Criterion):
    """Focal loss, and L1 on the deltas; each image over its own positives, then the mean over images (torchvision)."""

    def losses(self, outputs: HeadOutputs, targets: Targets, totals: Totals) -> dict[str, Tensor]:
        """``loss_cls`` and ``loss_reg``."""
        own_positives = targets.positive.sum(1).clamp(min=1)  # (N,)
        raw = gather(flatten(outputs.box_regression, self.anchors_per_location), targets.anchor_index)
        # Where there is no positive, the box may have no size and so no logarithm.
        boxes = torch.where(targets.positive[..., None], targets.boxes, targets.anchors)
        difference = (raw - encode(boxes, targets.anchors, UNIT_WEIGHTS)).abs().sum(-1)
        box_loss = torch.where(targets.positive, difference, 0.0).sum(1)
        return {
            "loss_cls": (self.classification(outputs, targets) / own_positives).sum() / totals.images,
            "loss_reg": (box_loss / own_positives).sum() / totals.images,
        }
