"""Frozen normalisation folded into the convolutions before it, while a network is used and not trained.

A frozen batch normalisation is y = scale x + shift for each channel, and so is a part of the convolution before it.
Beside it are two passes over each feature map of the backbone, which are saved.
"""

from __future__ import annotations

import copy
import itertools
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from detector.backbones import ResNetBackbone
from detector.layers import DeformableConv, FrozenBatchNorm

# Modules known to apply bnN to what convN gives, and to nothing else.
BLOCKS = (ResNetBackbone, BasicBlock, Bottleneck)
PAIRS = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def folded(network: Module, precision: torch.dtype = torch.float32) -> Module:
    """``network`` with every frozen normalisation that follows a convolution folded into that; itself where there is
    none.

    It stays as it is: what changes is a copy, made of the present weights, and everything else is shared. Make a new
    one for each use, which costs about what reading the backbone's weights does: then there is none that weights
    changed since could belie. ``precision`` is what folded convolutions have their weights in (deformable ones stay in
    float32). Convolutions and normalisations that hooks watch are left alone.
    """
    return cast(Module, _folded(network, precision))


def _folded(module: nn.Module, precision: torch.dtype) -> nn.Module:
    changed: dict[str, nn.Module] = {}
    for conv_name, norm_name in _pairs(module):
        conv, norm = module._modules.get(conv_name), module._modules.get(norm_name)
        if _foldable(conv) and _foldable(norm) and isinstance(norm, FrozenBatchNorm2d):
            changed[conv_name] = _merged(cast(nn.Module, conv), norm, precision)
            changed[norm_name] = nn.Identity()
    for name, child in module._modules.items():
        if child is not None and name not in changed:
            inside = _folded(child, precision)
            if inside is not child:
                changed[name] = inside
    return _with(module, changed) if changed else module


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Names of children of which the second is applied to what the first gives."""
    if type(module) in BLOCKS:
        return list(PAIRS)
    if type(module) is nn.Sequential:
        names = list(module._modules)
        return list(itertools.pairwise(names))
    return []


def _foldable(module: nn.Module | None) -> bool:
    """Whether ``module`` is of a kind that is known here, exactly, and nobody watches it."""
    known = type(module) in (nn.Conv2d, DeformableConv, FrozenBatchNorm, FrozenBatchNorm2d)
    return known and module is not None and not (module._forward_hooks or module._forward_pre_hooks)


def _merged(conv: nn.Module, norm: FrozenBatchNorm2d, precision: torch.dtype) -> nn.Module:
    """``conv`` (a Conv2d or a DeformableConv) with ``norm`` in its weight and its bias."""
    weight, bias = cast(Tensor, conv.weight), cast("Tensor | None", conv.bias)
    scale = cast(Tensor, norm.weight) * (cast(Tensor, norm.running_var) + norm.eps).rsqrt()
    shift = cast(Tensor, norm.bias) - cast(Tensor, norm.running_mean) * scale
    if bias is not None:
        shift = shift + bias * scale
    kept = torch.float32 if isinstance(conv, DeformableConv) else precision
    twin = _with(conv, {})
    twin.__dict__.pop("bias", None)  # a None that was never registered would hide the parameter
    twin._parameters = {
        "weight": nn.Parameter((weight * scale.view(-1, 1, 1, 1)).to(kept), requires_grad=False),
        "bias": nn.Parameter(shift.to(kept), requires_grad=False),
    }
    return twin


def _with(module: nn.Module, children: dict[str, nn.Module]) -> nn.Module:
    """A copy of ``module`` that shares all it has, but for these ``children``."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, **children}
    return twin
