"""VFNet's head: boxes refined, and scored, by a deformable convolution that looks at nine points of the first box.

Source: Zhang et al., "VarifocalNet: An IoU-aware Dense Object Detector", CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.anchors import STRIDES, Grid
from detector.boxes import around, centers, elementwise_iou
from detector.config import ModelConfig
from detector.criterion import Criterion, Targets, Totals, masked_sum
from detector.layers import initialise, initialise_prior, sample_convolved, tower
from detector.losses import giou_loss
from detector.outputs import HeadOutputs, RefinedOutputs, flatten, gather

# Initial distances are exp(...) times this many pixels, by level.
DENOMINATORS = (64.0, 128.0, 256.0, 512.0, 1024.0)
# Share of the gradient that reaches the first box through the sampling points.
POINT_GRADIENT = 0.1
INITIAL_LOSS_WEIGHT, REFINED_LOSS_WEIGHT = 1.5, 2.0


class StarConv(nn.Module):
    """A 3x3 convolution, without bias, at the centre, the corners and the middles of the sides of a box."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, feature: Tensor, offset: Tensor) -> Tensor:
        """``feature`` (N, channels, H, W) at ``offset`` (N, 18, H, W) of ``star_offset`` -> (N, channels, H, W)."""
        return sample_convolved(feature, offset, self.weight, None)


def star_offset(distances: Tensor, stride: int) -> Tensor:
    """How the nine points of a 3x3 kernel move onto a box: (N, 4, H, W) pixels, left top right bottom -> (N, 18, H, W).

    y and x of each point, in cells: row by row from the box's top left corner to its bottom right one.
    """
    left, top, right, bottom = (distances / stride).unbind(1)
    middle = torch.zeros_like(left)
    points = []
    for row, y in zip((-1, 0, 1), (-top, middle, bottom), strict=True):
        for column, x in zip((-1, 0, 1), (-left, middle, right), strict=True):
            points += [y - row, x - column]
    return torch.stack(points, dim=1)


class VFNetHead(nn.Module):
    """IoU-aware class logits and refined distances in pixels, and the distances before refinement."""

    def __init__(self, config: ModelConfig, *, num_classes: int) -> None:
        super().__init__()
        channels = config.neck.channels
        self.class_tower = tower(config.head, channels)
        self.box_tower = tower(config.head, channels)
        plain = config.head.model_copy(update={"deformable": False})
        self.initial_tower = tower(plain, channels, convolutions=1)
        self.initial = nn.Conv2d(channels, 4, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(STRIDES)))
        self.box_star = StarConv(channels)
        self.refined = nn.Conv2d(channels, 4, 3, padding=1)
        self.refined_scales = nn.Parameter(torch.ones(len(STRIDES)))
        self.class_star = StarConv(channels)
        self.class_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.apply(initialise)
        initialise_prior(self.class_logits)

    def forward(self, pyramid: Sequence[Tensor]) -> RefinedOutputs:
        """P3 to P7, (N, channels, H_l, W_l) each -> raw outputs."""
        class_logits, refined, initial = [], [], []
        for level, feature in enumerate(pyramid):
            box_feature = self.box_tower(feature)
            logarithms = self.initial(self.initial_tower(box_feature)).float() * self.scales[level]
            first = logarithms.exp() * DENOMINATORS[level]
            seen = POINT_GRADIENT * first + (1 - POINT_GRADIENT) * first.detach()
            offset = star_offset(seen, STRIDES[level])
            factor = self.refined(F.relu(self.box_star(box_feature, offset))).float() * self.refined_scales[level]
            class_feature = F.relu(self.class_star(self.class_tower(feature), offset))
            class_logits.append(self.class_logits(class_feature))
            refined.append(factor.exp() * first.detach())
            initial.append(first)
        return RefinedOutputs(class_logits, refined, initial)


def decode_pixels(distances: Tensor, anchors: Tensor, stride: Tensor) -> Tensor:
    """Boxes (..., 4) of distances (..., 4), in pixels, from the anchors' centres."""
    return around(centers(anchors), distances)


class VFNetCriterion(Criterion):
    """VFL on the refined boxes' IoUs; GIoU of the initial and of the refined boxes, each weighed by its own IoU."""

    def assigned_boxes(self, outputs: HeadOutputs, predicted: Tensor, grid: Grid) -> Tensor:
        """The refined boxes, or the initial ones where ``head.assigned_boxes`` says so."""
        if self.config.head.assigned_boxes == "refined":
            return predicted
        return self.decode(flatten(_initial(outputs)), grid.boxes, grid.stride)

    def weights(self, outputs: HeadOutputs, grid: Grid, found: Targets) -> tuple[Tensor, Tensor | None]:
        """IoUs of the refined and of the initial boxes."""
        raw = gather(flatten(_initial(outputs)), found.anchor_index)
        return found.iou, elementwise_iou(self.decode(raw, found.anchors, found.stride), found.boxes)

    def losses(self, outputs: HeadOutputs, targets: Targets, totals: Totals) -> dict[str, Tensor]:
        """``loss_cls``, ``loss_reg`` of the refined and ``loss_reg_initial`` of the initial boxes."""
        refined = giou_loss(self.predicted(outputs.box_regression, targets), targets.boxes)
        initial = giou_loss(self.predicted(_initial(outputs), targets), targets.boxes)
        refined_sum = masked_sum(refined, targets.positive, targets.weight)
        initial_sum = masked_sum(initial, targets.positive, targets.initial_weight)
        return {
            "loss_cls": self.classification(outputs, targets).sum() / totals.positives,
            "loss_reg": REFINED_LOSS_WEIGHT * refined_sum / totals.box_weight,
            "loss_reg_initial": INITIAL_LOSS_WEIGHT * initial_sum / totals.initial_weight,
        }


def _initial(outputs: HeadOutputs) -> list[Tensor]:
    assert isinstance(outputs, RefinedOutputs)
    return outputs.initial_regression
