"""The heads of GFL and GFLV2: boxes as distributions of their four distances.

Source: Li et al., "Generalized Focal Loss", NeurIPS 2020; Li et al., "Generalized Focal Loss V2", CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detector.anchors import STRIDES, Grid
from detector.boxes import around, centers, distances
from detector.config import ModelConfig
from detector.criterion import Criterion, Targets, Totals, masked_sum
from detector.layers import initialise, initialise_prior, tower
from detector.losses import distribution_focal_loss, giou_loss
from detector.outputs import HeadOutputs, flatten, gather

# A distance is between 0 and 16 strides: 17 bins a side, channel side * 17 + bin, sides left, top, right, bottom.
LARGEST = 16
BINS = LARGEST + 1
# Targets stay this much below the last bin.
MARGIN = 0.1
BOX_LOSS_WEIGHT, DISTRIBUTION_LOSS_WEIGHT = 2.0, 0.25
# GFLV2's quality is read off each side's highest probabilities and their mean.
TOP_PROBABILITIES, QUALITY_CHANNELS = 4, 64


class GFLHead(nn.Module):
    """Class logits from one tower; four distributions, their logits scaled by a learned factor a level, the other."""

    def __init__(self, config: ModelConfig, *, num_classes: int) -> None:
        super().__init__()
        channels = config.neck.channels
        self.class_tower = tower(config.head, channels)
        self.box_tower = tower(config.head, channels)
        self.class_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box_distributions = nn.Conv2d(channels, 4 * BINS, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(STRIDES)))
        self.apply(initialise)
        initialise_prior(self.class_logits)

    def forward(self, pyramid: Sequence[Tensor]) -> HeadOutputs:
        """P3 to P7, (N, channels, H_l, W_l) each -> raw outputs."""
        distributions = [
            self.box_distributions(self.box_tower(feature)).float() * self.scales[level]
            for level, feature in enumerate(pyramid)
        ]
        classes = [self.class_logits(self.class_tower(feature)) for feature in pyramid]
        return HeadOutputs(classes, distributions, self.read_quality(distributions))

    def read_quality(self, distributions: list[Tensor]) -> list[Tensor] | None:
        """None: GFL has no quality of its own."""
        return None


class GFLV2Head(GFLHead):
    """GFL's head, and the quality that the sharpness of the four distributions tells: the logit of a factor on the
    class scores.
    """

    def __init__(self, config: ModelConfig, *, num_classes: int) -> None:
        super().__init__(config, num_classes=num_classes)
        self.quality = nn.Sequential(
            nn.Conv2d(4 * (TOP_PROBABILITIES + 1), QUALITY_CHANNELS, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(QUALITY_CHANNELS, 1, 1),
        )
        self.quality.apply(initialise)

    def read_quality(self, distributions: list[Tensor]) -> list[Tensor]:
        """(N, 1, H_l, W_l) of each level."""
        qualities = []
        for level in distributions:
            batch, _, height, width = level.shape
            probabilities = level.reshape(batch, 4, BINS, height, width).softmax(2)
            top = probabilities.topk(TOP_PROBABILITIES, dim=2).values
            statistics = torch.cat((top, top.mean(2, keepdim=True)), dim=2)
            qualities.append(self.quality(statistics.reshape(batch, -1, height, width)))
        return qualities


def decode_distributions(logits: Tensor, anchors: Tensor, stride: Tensor) -> Tensor:
    """Boxes (..., 4) whose sides are, from the anchors' centres, the means of the distributions (..., 4·17)."""
    bins = torch.arange(BINS, dtype=logits.dtype, device=logits.device)
    mean = logits.reshape(*logits.shape[:-1], 4, BINS).softmax(-1) @ bins
    return around(centers(anchors), mean * stride)


def joint_logits(class_logits: Tensor, quality_logits: Tensor) -> Tensor:
    """The logit of sigmoid(class) * sigmoid(quality), (..., C) and (..., 1) -> (..., C), finite for any logits.

    1 / p - 1 = e^-a + e^-b + e^-(a + b) for p = sigmoid(a) sigmoid(b).
    """
    return -torch.logaddexp(torch.logaddexp(-class_logits, -quality_logits), -class_logits - quality_logits)


class GFLCriterion(Criterion):
    """QFL, GIoU and DFL; the box losses are weighed by the highest class score of the positive."""

    def class_logits(self, outputs: HeadOutputs) -> Tensor:
        """(N, A, C): of the joint score where there is a quality."""
        logits = super().class_logits(outputs)
        if outputs.quality_logits is None:
            return logits
        return joint_logits(logits, flatten(outputs.quality_logits))

    def weights(self, outputs: HeadOutputs, grid: Grid, found: Targets) -> tuple[Tensor, Tensor | None]:
        """The highest class score at each candidate."""
        return gather(self.class_logits(outputs), found.anchor_index).sigmoid().amax(-1), None

    def losses(self, outputs: HeadOutputs, targets: Targets, totals: Totals) -> dict[str, Tensor]:
        """``loss_cls``, ``loss_reg`` and ``loss_dfl``."""
        raw = gather(flatten(outputs.box_regression), targets.anchor_index)  # (N, S, 4 * 17)
        box_loss = giou_loss(self.decode(raw, targets.anchors, targets.stride), targets.boxes)
        wanted = distances(centers(targets.anchors), targets.boxes) / targets.stride
        wanted = wanted.clamp(0, LARGEST - MARGIN)
        spread = distribution_focal_loss(raw.reshape(-1, BINS), wanted.reshape(-1)).view_as(wanted).mean(-1)
        sums = [masked_sum(loss, targets.positive, targets.weight) for loss in (box_loss, spread)]
        return {
            "loss_cls": self.classification(outputs, targets).sum() / totals.positives,
            "loss_reg": BOX_LOSS_WEIGHT * sums[0] / totals.box_weight,
            "loss_dfl": DISTRIBUTION_LOSS_WEIGHT * sums[1] / totals.box_weight,
        }
