"""Where a backbone's initial weights come from, decided without importing torch, so that plans can say it at once."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from detector.config import ModelConfig
from detector.errors import InputError
from detector.signatures import first_bytes

# torchvision's files of IMAGENET1K_V1; a backbone that is not here has no such weights.
IMAGENET_FILES = {
    "r18": "resnet18-f37072fd.pth",
    "r34": "resnet34-b627a593.pth",
    "r50": "resnet50-0676ba61.pth",
    "r101": "resnet101-63fe2227.pth",
    "x101_32x8d": "resnext101_32x8d-8ba56ff5.pth",
    "x101_64x4d": "resnext101_64x4d-173b62eb.pth",
}


def cache_folder() -> Path:
    """Where torch keeps downloaded weights: under ``$TORCH_HOME``, ``$XDG_CACHE_HOME/torch`` or ``~/.cache/torch``."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def cached_imagenet(backbone: str) -> Path | None:
    """The file of ImageNet weights for ``backbone`` on this machine, or None."""
    name = IMAGENET_FILES.get(backbone.removesuffix("_dcn"))
    path = cache_folder() / name if name else None
    return path if path and path.is_file() else None


def resolve_weights(config: ModelConfig) -> ModelConfig:
    """``config`` with "auto" weights and a null norm replaced by what they mean on this machine.

    Raises InputError when a file doesn't exist, or no ImageNet weights are published for the backbone.
    """
    if config.backbone.startswith("timm:") and find_spec("timm") is None:
        raise InputError(
            f"model.backbone is {config.backbone}, but timm is not installed; pip install 'detsweep[timm]', or choose "
            "one of torchvision's, such as r50"
        )
    if config.init is not None:
        from detector.initial import resolve_init

        return resolve_init(config)
    weights = config.weights
    if weights == "auto":
        weights = "imagenet" if cached_imagenet(config.backbone) else "none"
    published = config.backbone.startswith("timm:") or config.backbone.removesuffix("_dcn") in IMAGENET_FILES
    if weights == "imagenet" and not published:
        raise InputError(
            f"model.weights is imagenet, but torchvision has no ImageNet weights for {config.backbone}; "
            "give model.weights the path of a state dict, or none for random weights"
        )
    if weights not in ("imagenet", "none"):
        path = Path(weights).expanduser().absolute()
        if not path.is_file():
            state = "that is no file" if path.exists() else "there is no such file"
            raise InputError(
                f"model.weights names {weights}, and {state}; give the path of a state dict, imagenet, none or auto"
            )
        try:
            first_bytes(path)
        except InputError as error:
            raise InputError(f"model.weights: {error}") from error
        weights = str(path)
    norm = config.norm or ("gn" if weights == "none" else "frozen_bn")
    if norm == "frozen_bn" and weights == "none":
        raise InputError(
            "model.norm is frozen_bn and model.weights is none: a frozen random normalisation can't learn; "
            "use model.norm: gn, or pretrained weights"
        )
    return config.model_copy(update={"weights": weights, "norm": norm})
