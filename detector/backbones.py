"""Backbones: torchvision's ResNets and ResNeXts without their classifier, giving C3, C4 and C5."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from detector.config import ModelConfig
from detector.errors import InputError
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
NORMS = {"frozen_bn": FrozenBatchNorm2d, "gn": partial(nn.GroupNorm, 32)}


class ResNetBackbone(nn.Module):
    """A ResNet's stages under torchvision's own names, so that its state dicts fit.

    ``channels``: of C3, C4, C5. With ``frozen_stages`` 1 the stem and the first stage take no gradient.
    """

    def __init__(self, name: str, norm: str, *, frozen_stages: int) -> None:
        super().__init__()
        block, layers, groups, width = RESNETS[name]
        resnet = ResNet(block, list(layers), groups=groups, width_per_group=width, norm_layer=NORMS[norm])
        if norm == "gn":
            # Random networks learn sooner where each block begins as the identity (Goyal et al., 2017, section 5.1).
            for module in resnet.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
        self.channels = tuple(64 * 2**stage * block.expansion for stage in (1, 2, 3))
        frozen: list[nn.Module] = [self.conv1, self.bn1, self.layer1] if frozen_stages else []
        for module in frozen:
            module.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W), normalised -> C3, C4, C5 at strides 8, 16, 32."""
        c2 = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return [c3, c4, self.layer4(c4)]


def build_backbone(config: ModelConfig) -> ResNetBackbone:
    """The backbone of a resolved ``config`` (no null norm, no "auto" weights), without pretrained weights."""
    assert config.norm is not None
    return ResNetBackbone(config.backbone, config.norm, frozen_stages=0 if config.weights == "none" else 1)


def load_pretrained(backbone: ResNetBackbone, config: ModelConfig) -> None:
    """Loads the initial weights that ``config`` names into ``backbone``; random ones stay as they are.

    Raises InputError when they can't be had or don't fit.
    """
    if config.weights == "none":
        return
    source, state = _read_weights(config)
    wanted = backbone.state_dict()
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
    backbone.load_state_dict(state)


def fetch_weights(config: ModelConfig) -> None:
    """Makes sure that the initial weights of a resolved ``config`` are on this machine, downloading them if need be.

    Raises InputError, saying how to supply a file, when they can't be had.
    """
    if config.weights != "none":
        _read_weights(config)


def _read_weights(config: ModelConfig) -> tuple[str, dict[str, Tensor]]:
    if config.weights == "imagenet":
        name = TORCHVISION_NAMES[config.backbone]
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        try:
            return f"torchvision's {name}", weights.get_state_dict(progress=cached_imagenet(config.backbone) is None)
        except OSError as error:
            raise InputError(
                f"the ImageNet weights of {config.backbone} are not in {cache_folder()} and can't be downloaded "
                f"({error}); put {Path(weights.url).name} there, give model.weights the path of a state dict, "
                "or set model.weights: none to start from random weights"
            ) from error
    path = Path(config.weights)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return str(path), load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"model.weights: {path} can't be read as a state dict ({reason})") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"model.weights: {path} holds no state dict; save one by torch.save(model.state_dict(), path)")
    return str(path), {key.removeprefix("module."): value for key, value in state.items()}
