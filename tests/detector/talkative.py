"""Untrained detectors that find things: their scores and boxes are spread out."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

import detector
from detector.model import Detector
from detector.recipes import FAMILIES, model_config

# Two families that differ in the assignment alone have one network.
NETWORKS = [family for family in FAMILIES if not family.endswith("_ciou")]
# By how much box layers are spread out; VFNet's, whose exponential is taken twice, less.
_BOXES = {"box_deltas": 10.0, "box_distances": 10.0, "box_distributions": 10.0, "initial": 2.0, "refined": 2.0}


def talkative(name: str, *, num_classes: int = 4, **changes) -> Detector:
    """The recipe ``name`` with 64 channels and one convolution a tower, random weights, and input of 96 by 160."""
    fields = model_config(name).model_dump(mode="json") | {"weights": "none"} | changes
    fields["neck"]["channels"], fields["head"]["convolutions"] = 64, 1
    model = detector.build(fields, num_classes=num_classes)
    model.short_side, model.long_side = 96, 160
    head = model.network.head
    with torch.no_grad():
        head.class_logits.bias.add_(3.0)
        head.class_logits.weight.mul_(30.0)
        for part, factor in _BOXES.items():
            if hasattr(head, part):
                getattr(head, part).weight.mul_(factor)
    return model.eval()


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coarse coloured noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
