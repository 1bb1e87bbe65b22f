"""Frozen normalisation, deformable convolutions, the towers of heads, and their initial weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d, deform_conv2d

from detector.config import HeadConfig

# Probability that an untrained head gives to every class.
PRIOR = 0.01


def tower(config: HeadConfig, channels: int, *, convolutions: int | None = None) -> nn.Sequential:
    """``config.convolutions`` (or as many as given) 3x3 convolutions, each with GroupNorm(32) and ReLU."""
    count = config.convolutions if convolutions is None else convolutions
    layers: list[nn.Module] = []
    for number in range(count):
        if config.deformable and number == count - 1:
            layers.append(DeformableConv(channels, channels, bias=config.tower_bias, offset_std=0.01))
        else:
            layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=config.tower_bias))
        layers += [nn.GroupNorm(32, channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def initialise(module: nn.Module) -> None:
    """Weights of a convolution normal(0, 0.01), its bias 0; other modules stay as they are."""
    if isinstance(module, nn.Conv2d | DeformableConv):
        nn.init.normal_(module.weight, std=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def initialise_prior(class_logits: nn.Conv2d) -> None:
    """Sets the biases so that every class begins at the probability ``PRIOR``."""
    assert class_logits.bias is not None
    nn.init.constant_(class_logits.bias, -math.log((1 - PRIOR) / PRIOR))


class FrozenBatchNorm(FrozenBatchNorm2d):
    """torchvision's, whose input must be what a convolution gave and nobody else needs: float32 is written over it.

    So feature maps are neither copied twice nor, under autocast, made float32 again.
    """

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> the same in the same precision."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        if features.dtype == scale.dtype:
            return features.mul_(scale.view(-1, 1, 1)).add_(shift.view(-1, 1, 1))
        return _Scaled.apply(features, scale, shift)


class _Scaled(torch.autograd.Function):
    """Scale and shift of each channel, computed in their own precision and rounded once to that of the features.

    In one pass of the kernel that batch normalisation has for this, where the operators would make both float32 first;
    and without keeping the features for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return _scaled(features, scale, shift)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        return _scaled(gradient, scale, None), None, None


def _scaled(features: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    mean, variance = torch.zeros_like(scale), torch.ones_like(scale)
    return functional.batch_norm(features, mean, variance, scale, shift, eps=0.0)


class DeformableConv(nn.Module):
    """A 3x3 deformable convolution that predicts its own sampling points, padded so that it keeps the size at stride 1.

    ``modulated`` also predicts a factor for every point (Zhu et al., Deformable ConvNets v2, CVPR 2019); without it is
    v1 (Dai et al., ICCV 2017). ``offset`` gives 18 channels, y and x of the nine points in turn, then 9 of factors.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        modulated: bool = True,
        offset_std: float = 0.0,
    ) -> None:
        super().__init__()
        self.stride, self.modulated = stride, modulated
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.offset = nn.Conv2d(in_channels, 27 if modulated else 18, 3, stride=stride, padding=1)
        nn.init.normal_(self.offset.weight, std=offset_std) if offset_std else nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride))."""
        predicted = self.offset(features).float()
        mask = predicted[:, 18:].sigmoid() if self.modulated else None
        return sample_convolved(features, predicted[:, :18], self.weight, self.bias, mask, self.stride)


def sample_convolved(
    features: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None = None, stride: int = 1
) -> Tensor:
    """A 3x3 convolution of ``features`` at points moved by ``offset`` (N, 18, H', W'), y and x in turn.

    In float32 whatever the precision around it: sampling points need it.
    """
    with torch.autocast(features.device.type, enabled=False):
        bias = None if bias is None else bias.float()
        mask = None if mask is None else mask.float()
        return deform_conv2d(
            features.float().contiguous(), offset.float(), weight.float(), bias, stride=stride, padding=1, mask=mask
        )
