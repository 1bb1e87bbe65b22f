"""Backbones: torchvision's ResNets and ResNeXts without their classifier, giving C3, C4 and C5."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from detector.checkpoints import check_finite
from detector.config import ModelConfig
from detector.errors import InputError
from detector.layers import DeformableConv, FrozenBatchNorm
from detector.weights import cache_folder, cached_imagenet

# Block, blocks in each stage, groups and width per group.
RESNETS: dict[str, tuple] = {
    "r18": (BasicBlock, (2, 2, 2, 2), 1, 64),
    "r34": (BasicBlock, (3, 4, 6, 3), 1, 64),
    "r50": (Bottleneck, (3, 4, 6, 3), 1, 64),
    "r101": (Bottleneck, (3, 4, 23, 3), 1, 64),
    "x101_32x4d": (Bottleneck, (3, 4, 23, 3), 32, 4),
    "x101_32x8d": (Bottleneck, (3, 4, 23, 3), 32, 8),
    "x101_64x4d": (Bottleneck, (3, 4, 23, 3), 64, 4),
}
# torchvision's builders of the same networks, which know where the ImageNet weights lie.
TORCHVISION_NAMES = {
    "r18": "resnet18",
    "r34": "resnet34",
    "r50": "resnet50",
    "r101": "resnet101",
    "x101_32x8d": "resnext101_32x8d",
    "x101_64x4d": "resnext101_64x4d",
}
NORMS: dict[str, Callable[[ModelConfig], Callable[..., nn.Module]]] = {
    "frozen_bn": lambda config: partial(FrozenBatchNorm, eps=config.norm_epsilon),
    "gn": lambda config: partial(nn.GroupNorm, 32),
}


class ResNetBackbone(nn.Module):
    """A ResNet's stages under torchvision's own names, so that its state dicts fit.

    ``channels``: of C3, C4, C5. The stem and the first stage of a pretrained one take no gradient.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.norm is not None
        block, layers, groups, width = RESNETS[config.backbone.removesuffix("_dcn")]
        norm = NORMS[config.norm](config)
        resnet = ResNet(block, list(layers), groups=groups, width_per_group=width, norm_layer=norm)
        if config.norm == "gn":
            # Random networks learn sooner where each block begins as the identity (Goyal et al., 2017, section 5.1).
            for module in resnet.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
        self.channels = tuple(64 * 2**stage * block.expansion for stage in (1, 2, 3))
        if config.stride_in_1x1:
            self._stride_in_1x1()
        if config.backbone.endswith("_dcn"):
            self._deform(config)
        if config.weights != "none":
            for part in (self.conv1, self.bn1, self.layer1):
                part.requires_grad_(False)

    def _stride_in_1x1(self) -> None:
        for stage in (self.layer2, self.layer3, self.layer4):
            if not isinstance(stage[0], Bottleneck):
                raise InputError("model.stride_in_1x1 is true, but r18 and r34 have no 1x1 convolutions; set it false")
            stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, stage[0].conv1.stride

    def _deform(self, config: ModelConfig) -> None:
        """Puts deformable convolutions, which begin as plain ones, in the place of the bottlenecks' 3x3."""
        default = (4, 5) if config.backbone.startswith("x") else (3, 4, 5)
        for stage in config.dcn_stages or default:
            for bottleneck in getattr(self, f"layer{stage - 1}"):
                conv = bottleneck.conv2
                bottleneck.conv2 = DeformableConv(
                    conv.in_channels,
                    conv.out_channels,
                    stride=conv.stride[0],
                    groups=conv.groups,
                    modulated=config.dcn_version == 2,
                )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W), normalised -> C3, C4, C5 at strides 8, 16, 32."""
        c2 = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return [c3, c4, self.layer4(c4)]


def build_backbone(config: ModelConfig) -> nn.Module:
    """The backbone of a resolved ``config`` (no null norm, no "auto" weights), without pretrained weights.

    It gives C3, C4 and C5 and has their ``channels``.
    """
    assert config.norm is not None
    if config.backbone.startswith("timm:"):
        from detector.timm_backbone import TimmBackbone

        return TimmBackbone(config)
    return ResNetBackbone(config)


def channels_of(backbone: nn.Module) -> Sequence[int]:
    """Channels of C3, C4 and C5."""
    return cast(Sequence[int], backbone.channels)


def load_pretrained(backbone: nn.Module, config: ModelConfig) -> None:
    """Loads the initial weights that ``config`` names into ``backbone``; random ones stay as they are.

    Raises InputError when they can't be had or don't fit.
    """
    if config.weights == "none":
        return
    if config.backbone.startswith("timm:"):
        from detector.timm_backbone import load_timm_weights

        load_timm_weights(backbone, config)
        return
    source, state = _read_weights(config)
    # Predicted sampling points begin at the plain ones, unless the file has better.
    wanted = {key: value for key, value in backbone.state_dict().items() if ".offset." not in key or key in state}
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    wrong = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    wrong += [key for key in state if key not in wanted]
    if wrong:
        raise InputError(
            f"{source} is not a state dict of torchvision's {config.backbone} with {config.norm}: "
            f"{len(wrong)} tensors don't fit, such as {', '.join(sorted(wrong)[:3])}; "
            "give model.weights a file that matches model.backbone"
        )
    backbone.load_state_dict(state, strict=False)


def fetch_weights(config: ModelConfig) -> None:
    """Makes sure that the initial weights of a resolved ``config`` are on this machine, downloading them if need be.

    Raises InputError, saying how to supply a file, when they can't be had.
    """
    if config.init is not None:
        from detector.initial import read_whole

        read_whole(config.init)
    elif config.backbone.startswith("timm:"):
        load_pretrained(build_backbone(config), config)  # which also says whether there is such a network
    elif config.weights != "none":
        _read_weights(config)


def _read_weights(config: ModelConfig) -> tuple[str, dict[str, Tensor]]:
    if config.weights == "imagenet":
        name = TORCHVISION_NAMES[config.backbone.removesuffix("_dcn")]
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        try:
            return f"torchvision's {name}", weights.get_state_dict(progress=cached_imagenet(config.backbone) is None)
        except OSError as error:
            raise InputError(
                f"the ImageNet weights of {config.backbone} are not in {cache_folder()} and can't be downloaded "
                f"({error}); put {Path(weights.url).name} there, give model.weights the path of a state dict, "
                "or set model.weights: none to start from random weights"
            ) from error
    return config.weights, read_state(config.weights)


def read_state(file: str) -> dict[str, Tensor]:
    """The state dict in ``file``, a .safetensors or what torch saved; nothing in it is executed. Raises InputError."""
    path = Path(file)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"model.weights: {path} can't be read as a state dict ({reason})") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"model.weights: {path} holds no state dict; save one by torch.save(model.state_dict(), path)")
    check_finite(state, f"model.weights: {path}")
    return {key.removeprefix("module."): value for key, value in state.items()}
