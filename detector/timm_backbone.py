"""Backbones of timm (``model.backbone: timm:NAME``): any network with features at strides 8, 16 and 32.

Two things differ from what timm itself would train, so that the result doesn't depend on how a batch is split: batch
normalisation is frozen or replaced by GroupNorm, and dropout and stochastic depth are off. No stage is frozen.
"""

from __future__ import annotations

import difflib
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detector.config import ModelConfig
from detector.errors import InputError
from detector.model_config import PixelsConfig

STRIDES = (8, 16, 32)
# Height and width of the images that a new network is tried on.
PROBE = (64, 96)


class TimmBackbone(nn.Module):
    """One of timm's networks, giving C3, C4 and C5.

    ``channels``: of C3, C4, C5. ``body``: timm's own feature extractor. Raises InputError where timm has no such
    network, or where that one has no such features or can't take images of any size.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.name = config.backbone.removeprefix("timm:")
        if config.stride_in_1x1 or config.dcn_stages is not None:
            raise InputError(
                f"model.stride_in_1x1 and model.dcn_stages are for torchvision's ResNets, and model.backbone is timm:"
                f"{self.name}; leave them out"
            )
        with torch.random.fork_rng(devices=[]):
            info: Any = _create(self.name).feature_info
        self.indices = _indices(self.name, info)
        self.body = _create(self.name, out_indices=self.indices)
        info = self.body.feature_info
        self.channels: tuple[int, ...] = tuple(info.channels())
        self.channels_last = "NHWC" in str(getattr(self.body, "output_fmt", ""))
        norms = [module for module in self.body.modules() if isinstance(module, _BatchNorm)]
        self.frozen = config.norm == "frozen_bn"
        self.regrouped = config.norm == "gn" and bool(norms)
        if self.frozen:
            for norm in norms:
                norm.requires_grad_(False)
        elif self.regrouped:
            _regroup(self.body)
        _calm(self.body)
        self.train()
        self._try_out()

    def train(self, mode: bool = True) -> TimmBackbone:
        """As always, but frozen batch normalisation keeps its statistics."""
        super().train(mode)
        if self.frozen:
            for module in self.body.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W), normalised -> C3, C4, C5 at strides 8, 16, 32."""
        features = self.body(images)
        # What isn't asked for as NCHW, such as Swin's, comes as (N, H, W, C).
        return [feature.permute(0, 3, 1, 2) for feature in features] if self.channels_last else list(features)

    def _try_out(self) -> None:
        """Runs a small image through: other sizes than timm's own must do, and parameters that are of no use (behind
        the last feature) take no gradient, for which workers would wait.
        """
        height, width = PROBE
        mode = self.training
        self.eval()
        try:
            with torch.enable_grad():
                features = self(torch.zeros(1, 3, height, width))
                shapes = [tuple(feature.shape[1:]) for feature in features]
                torch.stack([feature.sum() for feature in features]).sum().backward()
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"timm's {self.name} can't take images of any size ({reason}), as detection needs; choose another "
                "model.backbone"
            ) from error
        expected = [(c, height // s, width // s) for c, s in zip(self.channels, STRIDES, strict=True)]
        if shapes != expected:
            raise InputError(
                f"timm's {self.name} gives features of {shapes} for an image of {height} by {width}, not {expected}; "
                "choose another model.backbone"
            )
        for parameter in self.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
        self.train(mode)


class GroupNormAct(nn.GroupNorm):
    """GroupNorm in the place of a batch normalisation, with the dropout and activation that timm puts inside that."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(math.gcd(32, norm.num_features), norm.num_features)
        if norm.affine:
            # Some begin at zero, so that their block begins as the identity.
            self.weight, self.bias = norm.weight, norm.bias
        self.drop = getattr(norm, "drop", None) or nn.Identity()
        self.act = getattr(norm, "act", None) or nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        return self.act(self.drop(super().forward(features)))


def load_timm_weights(backbone: nn.Module, config: ModelConfig) -> None:
    """Loads what ``config.weights`` names into ``backbone``: timm's own, or a state dict that timm's network has.

    Raises InputError where they can't be had or don't fit, or where they were trained on other pixels.
    """
    assert isinstance(backbone, TimmBackbone)
    name = backbone.name
    if backbone.regrouped:
        raise InputError(
            f"model.norm is gn, but the pretrained weights of timm's {name} are for batch normalisation; use "
            "model.norm: frozen_bn, or model.weights: none"
        )
    wanted = backbone.body.state_dict()
    if config.weights == "imagenet":
        _check_pixels(name, config.pixels)
        source = f"timm's pretrained {name}"
        state = _create(name, out_indices=backbone.indices, pretrained=True).state_dict()
    else:
        from detector.backbones import read_state

        source, state = config.weights, read_state(config.weights)
    # A feature extractor may have other names for the modules of the whole network: stages_0.x for stages.0.x.
    plain = {_plain(key): value for key, value in state.items()}
    found = {key: plain[_plain(key)] for key in wanted if _plain(key) in plain}
    wrong = [
        key for key, value in wanted.items()
        if not key.endswith("num_batches_tracked") and (key not in found or found[key].shape != value.shape)
    ]  # fmt: skip
    if wrong:
        raise InputError(
            f"{source} is not a state dict of timm's {name}: {len(wrong)} tensors don't fit, such as "
            f"{', '.join(sorted(wrong)[:3])}; give model.weights a file that was saved from that network"
        )
    backbone.body.load_state_dict(found, strict=False)


def _create(name: str, **options: Any) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"model.backbone is timm:{name}, but timm is not installed; pip install 'detsweep[timm]'"
        ) from error
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise InputError(
            f"timm {timm.__version__} has no network {architecture}"
            + (f"; did you mean {', '.join(near)}?" if near else "; timm.list_models() says which it has")
        )
    tags = [full.partition(".")[2] for full in timm.list_models(f"{architecture}.*", pretrained=True)]
    if tag and tag not in tags:
        raise InputError(
            f"timm {timm.__version__} has no weights {tag} of {architecture}; "
            + (f"valid are: {', '.join(tags)}" if tags else "it has none: leave the tag out")
        )
    if options.get("pretrained") and not tags:
        raise InputError(
            f"timm has no pretrained weights of {name}; give model.weights the path of a state dict, or none"
        )
    # The first where a network is otherwise bound to one size of images.
    attempts: tuple[dict[str, Any], ...] = ({"strict_img_size": False, **options}, options)
    for attempt in attempts:
        try:
            return timm.create_model(name, features_only=True, **attempt)
        except TypeError as error:
            reason: Exception = error
        except Exception as error:
            reason = error
            break
    if options.get("pretrained"):
        raise InputError(
            f"timm's pretrained weights of {name} can't be had ({_first_line(reason)}); give model.weights the path of "
            "a state dict that was saved from that network, or set model.weights: none to start from random weights"
        ) from reason
    raise InputError(
        f"timm's {name} gives no feature maps ({_first_line(reason)}); choose another model.backbone"
    ) from reason


def _indices(name: str, info: Any) -> tuple[int, ...]:
    """The features of a network that are C3, C4 and C5: of each stride the deepest."""
    reductions = list(info.reduction())
    missing = [stride for stride in STRIDES if stride not in reductions]
    if missing:
        raise InputError(
            f"timm's {name} has features at strides {', '.join(map(str, reductions))}, but the pyramid needs 8, 16 and "
            "32; choose another model.backbone"
        )
    places = [max(place for place, each in enumerate(reductions) if each == stride) for stride in STRIDES]
    return tuple(info.out_indices[place] for place in places)


def _regroup(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, GroupNormAct(child))
        else:
            _regroup(child)


def _calm(module: nn.Module) -> None:
    """Turns dropout and stochastic depth off: what they drop would depend on how the batch is split."""
    for part in module.modules():
        for name in ("p", "drop_prob"):
            if isinstance(getattr(part, name, None), float) and "Drop" in type(part).__name__:
                setattr(part, name, 0.0)


def _check_pixels(name: str, pixels: PixelsConfig) -> None:
    import timm

    trained: Any = timm.get_pretrained_cfg(name)
    mean, deviation = ([round(255 * value, 3) for value in values] for values in (trained.mean, trained.std))
    same = all(
        math.isclose(one, other, abs_tol=0.01)
        for one, other in zip((*pixels.mean, *pixels.deviation), (*mean, *deviation), strict=True)
    )
    if not same or pixels.order != "rgb":
        raise InputError(
            f"timm's weights of {name} were trained on other pixels than model.pixels says; set model.pixels.mean: "
            f"{mean}, model.pixels.deviation: {deviation} and model.pixels.order: rgb"
        )


def _plain(key: str) -> str:
    return key.removeprefix("model.").replace(".", "_")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
