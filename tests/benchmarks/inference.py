"""One image of 800x1344 from pixels to boxes by ATSS R50, in turns with torchvision's FCOS R50 and with matrix
multiplications of as many FLOP.

Of torchvision's network there are two: with FrozenBatchNorm2d, which is what it runs with pretrained weights, and with
BatchNorm2d, which is what it builds without them. In bfloat16 both sides run under autocast.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.fcos import FCOS
from torchvision.models.resnet import resnet50
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detector.config import DataConfig
from detector.data.coco import Category
from detector.model import Detector, build_model
from detector.pictures import Picture
from detector.prediction import Options, find, forward
from detector.recipes import model_config
from tests.benchmarks.alternating import Figure, Pairs, alternate

HEIGHT, WIDTH, CLASSES, PAIRS = 800, 1344, 80, 7
# Sides of square matrices; the limit is the fastest of them.
SIDES = (1024, 2048, 4096)
GOALS = {"float32": (0.85, 1.25), "bfloat16": (0.85, 1.5)}
DATA = DataConfig(short_side=HEIGHT, long_side=WIDTH)


def measure() -> list[Figure]:
    """Both precisions: against torchvision's, whole; and backbone to head against matrix multiplications."""
    model, pixels = detector_r50(), image()
    peers = {"FrozenBatchNorm2d": fcos(FrozenBatchNorm2d), "BatchNorm2d": fcos(nn.BatchNorm2d)}
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    picture = Picture(pixels, (HEIGHT, WIDTH))
    figures = []
    with torch.no_grad():
        batch = normalised(model, pixels)
        with FlopCounterMode(display=False) as counter:
            model.network(batch)
        flop = counter.get_total_flops()
        for precision, (whole_goal, limit_goal) in GOALS.items():
            options = Options(precision=precision)
            dtype = getattr(torch, precision)

            def ours(options: Options = options) -> None:
                find(model, [picture], DATA, options)

            for name, peer in peers.items():

                def theirs(peer: nn.Module = peer, low: bool = precision == "bfloat16") -> None:
                    with torch.autocast("cpu", torch.bfloat16, enabled=low):
                        peer([tensor])

                pairs = alternate(ours, theirs, pairs=PAIRS, warm_up=1)
                what = f"pixels to boxes, {precision}, s"
                figures.append(pairs.figure(what, at_most=whole_goal, peer=f"torchvision FCOS, {name}"))
            multiply, side, share = multiplications(flop, dtype)

            def network(options: Options = options, low: bool = precision == "bfloat16") -> None:
                with torch.autocast("cpu", torch.bfloat16, enabled=low):
                    forward(model, options)(batch)

            pairs = alternate(network, multiply, pairs=PAIRS, warm_up=1)
            pairs = Pairs(pairs.ours, [seconds * share for seconds in pairs.against])
            rate = flop / 1e9 / sorted(pairs.against)[PAIRS // 2]
            figures.append(
                pairs.figure(
                    f"backbone to head, {precision}, s",
                    at_most=limit_goal,
                    peer=f"{flop / 1e9:.1f} GFLOP of {side}x{side} matrices",
                    **{"matrices, GFLOP/s": f"{rate:.0f}"},
                )
            )
    return figures


def detector_r50() -> Detector:
    """ATSS R50 as it predicts after training: frozen normalisation, channels last. Its weights are random."""
    config = model_config("atss_r50").model_copy(update={"norm": "frozen_bn"})
    categories = [Category(number + 1, f"class {number}") for number in range(CLASSES)]
    return build_model(config, categories, short_side=HEIGHT, long_side=WIDTH, pretrained=False).eval()


def fcos(norm: Callable[..., nn.Module]) -> nn.Module:
    """What ``fcos_resnet50_fpn`` builds, with that normalisation, for images of this size."""
    backbone = _resnet_fpn_extractor(
        resnet50(weights=None, norm_layer=norm),
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    return FCOS(backbone, num_classes=CLASSES, min_size=HEIGHT, max_size=WIDTH).eval()


def image() -> np.ndarray:
    """uint8 (H, W, 3)."""
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def normalised(model: Detector, pixels: np.ndarray) -> torch.Tensor:
    """The batch of one that the network sees of ``pixels``."""
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return model.normalise(batch, torch.tensor([[HEIGHT, WIDTH]]))


def multiplications(flop: float, dtype: torch.dtype) -> tuple[Callable[[], None], int, float]:
    """Multiplications of about ``flop``, the side of their matrices, and ``flop`` over what they really are."""
    calls: dict[int, Callable[[], None]] = {}
    for side in SIDES:
        first, second = torch.randn(side, side, dtype=dtype), torch.randn(side, side, dtype=dtype)
        result = torch.empty(side, side, dtype=dtype)

        def call(
            times: int = max(1, round(flop / (2 * side**3))),
            arguments: tuple[torch.Tensor, ...] = (first, second),
            result: torch.Tensor = result,
        ) -> None:
            for _ in range(times):
                torch.mm(*arguments, out=result)

        calls[side] = call
    shares = {side: flop / (max(1, round(flop / (2 * side**3))) * 2 * side**3) for side in SIDES}
    best = min(
        SIDES, key=lambda side: min(alternate(calls[side], lambda: None, pairs=2, warm_up=0).ours) * shares[side]
    )
    return calls[best], best, shares[best]
