"""The head of ATSS and Dynamic ATSS: two towers shared over levels, and up to three outputs.

Source: Zhang et al., CVPR 2020; the IoU branch of Zhang, Luo, Sharda, Wang, J. Imaging 2022, takes centerness' place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detector.anchors import STRIDES
from detector.config import HeadConfig
from detector.heads.outputs import HeadOutputs

# Probability that an untrained head gives to every class.
PRIOR = 0.01


class ATSSHead(nn.Module):
    """Class logits from one tower; box deltas, scaled by a learned factor a level, and the quality from the other."""

    def __init__(self, config: HeadConfig, *, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.class_tower = _tower(config, in_channels)
        self.box_tower = _tower(config, in_channels)
        self.class_logits = nn.Conv2d(in_channels, num_classes, 3, padding=1)
        self.box_deltas = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(STRIDES)))
        self.apply(_initialise)
        nn.init.constant_(self.class_logits.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]
        # Last, so that heads which differ only here draw equal weights everywhere else.
        self.quality = nn.Conv2d(in_channels, 1, 3, padding=1) if config.quality_branch != "none" else None
        if self.quality is not None:
            _initialise(self.quality)

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


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _tower(config: HeadConfig, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(config.convolutions):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=config.tower_bias))
        layers += [nn.GroupNorm(32, channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
