"""Step times that others have published, for planning on GPUs that nobody here has.

All are of the paper's images (short side 800, long side at most 1333), 16 in a step, two on each of eight V100 of one
node, in float32, with the gradients' exchange between those eight in it. A time of ours is measured by ``sweep
--dry-run --measure``, and goes first.

What is published for one head and one backbone at a time is put together: the step of ATSS with ResNet-50, plus what a
larger backbone adds to another detector with the same pyramid, plus what deformable convolutions add to the backbone,
times the ratio of inference times for another head. Other sizes of images count by their pixels. One sum can be
compared: 180,000 steps of ATSS on X-101-64x4d-DCN come to 3.1 days; FCOS' author recalls "about 4 days" of FCOS with
that backbone, those sizes, and deformable convolutions in the head as well, on eight V100 (tianzhi0549/FCOS, issue
170).

Times of other software, of 2019 and 2020: detectron2 states 0.200 s for RetinaNet with ResNet-50 where mmdetection
states 0.308, on the same GPUs. Ours was never run on one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detector.config import TrainingConfig

GPUS = ("V100",)
"""GPUs of which there is something."""
_V1 = "mmdetection 1.x"
_ATSS = 0.357
"""Seconds of a step of ATSS with ResNet-50 (mmdetection 1.x, configs/atss/README.md)."""
_BACKBONE = {
    # RetinaNet with this backbone, less RetinaNet with ResNet-50 (mmdetection 1.x, docs/MODEL_ZOO.md).
    "r50": (0.0, ""),
    "r101": (0.429 - 0.308, _V1),
    "x101_32x4d": (0.632 - 0.308, _V1),
    "x101_64x4d": (0.993 - 0.308, _V1),
    # Faster R-CNN with it, less Faster R-CNN with ResNet-50 (detectron2, MODEL_ZOO.md, both 3x).
    "x101_32x8d": (0.638 - 0.209, "detectron2"),
}
_DEFORMABLE = {
    # Faster R-CNN with deformable convolutions in stages 3 to 5, less without (mmdetection 1.x, configs/dcn/README.md).
    "r50": (0.598 - 0.353, _V1),
    "r101": (0.811 - 0.474, _V1),
    "x101_32x4d": (1.126 - 0.672, _V1),
    # That of 32x4d, times what they add to VFNet's inference with either backbone.
    "x101_64x4d": (
        (1.126 - 0.672) * (1 / 6.7 - 1 / 9.2) / (1 / 10.1 - 1 / 13.1),
        "VFNet's authors",
    ),
}
_HEAD = {
    # Inference with ResNet-50 on a V100, over that of ATSS (mmdetection 2.x, configs/*/metafile.yml; VFNet's README).
    "atss": (1.0, ""),
    "gfl": (51.28 / 50.76, "mmdetection 2.x"),
    "vfnet": (19.7 / 19.3, "VFNet's authors"),
    # On a 2080 Ti, where the GFLV2 paper has 19.4 images/s for both; "without (almost) extra computing cost".
    "gflv2": (1.0, "GFLV2's authors"),
}
_IMAGES_PER_SECOND = {
    # VFNet's inference on a V100, one image at a time (hyz-xmaster/VarifocalNet, README.md).
    "r50": 19.3,
    "r50_dcn": 16.3,
    "r101": 15.6,
    "r101_dcn": 12.6,
    "x101_32x4d": 13.1,
    "x101_32x4d_dcn": 10.1,
    "x101_64x4d": 9.2,
    "x101_64x4d_dcn": 6.7,
    # VFNet's with ResNet-50, plus what it adds to Faster R-CNN's (detectron2, MODEL_ZOO.md).
    "x101_32x8d": 1 / (1 / 19.3 + 0.098 - 0.038),
}
# Weights that learn: without those of the stem and the first stage, and without normalisation, which is frozen.
_BACKBONE_WEIGHTS = {
    "r50": 23.23e6,
    "r50_dcn": 24.10e6,
    "r101": 42.17e6,
    "r101_dcn": 44.10e6,
    "x101_32x4d": 41.80e6,
    "x101_32x4d_dcn": 45.39e6,
    "x101_32x8d": 86.11e6,
    "x101_64x4d": 80.81e6,
    "x101_64x4d_dcn": 88.02e6,
}
_HEAD_WEIGHTS = {"atss": 8.79e6, "gfl": 8.93e6, "gflv2": 8.93e6, "vfnet": 9.38e6}


@dataclass(frozen=True)
class Published:
    """What others say of one training's steps."""

    image_s: float
    """Seconds of a step for each image of a worker; gradients inside a node are in it."""
    eval_image_s: float
    """Seconds of inference on one image; COCO's figures aren't in it."""
    weights: float
    """How many learn."""
    source: str


def published(config: TrainingConfig, gpu: str) -> Published | str:
    """What is published for ``config`` on a GPU of this name, or in a sentence why that is nothing."""
    model, data, schedule = config.model, config.data, config.schedule
    if gpu not in GPUS:
        return f"nothing is published for the GPU {gpu}, only for {', '.join(GPUS)}"
    deformable = model.backbone.endswith("_dcn")
    backbone = model.backbone.removesuffix("_dcn")
    if backbone not in _BACKBONE or (deformable and backbone not in _DEFORMABLE) or model.head.name not in _HEAD:
        return f"nothing is published for {model.head.name} on {model.backbone} with a {gpu}"
    sides = (data.short_side,) * 2 if isinstance(data.short_side, int) else data.short_side
    if not (sides[0] >= 480 and sides[1] <= 960 and data.long_side >= 1200):
        return f"what is published for a {gpu} is of images of 800 x 1333 pixels, not {data.short_side}"
    if schedule.precision != "float32" or model.neck.channels != 256:
        return f"what is published for a {gpu} is in float32 with 256 channels"
    adds, ratio = [_BACKBONE[backbone]], _HEAD[model.head.name]
    if deformable:
        adds.append(_DEFORMABLE[backbone])
    # The mean of the square of a side that is drawn from a range; pixels decide what a step takes.
    low, high = sides
    pixels = (low * low + low * high + high * high) / 3 / 800**2
    sources = dict.fromkeys([_V1, *(source for _, source in [*adds, ratio] if source)])
    return Published(
        image_s=(_ATSS + sum(seconds for seconds, _ in adds)) * ratio[0] * pixels / 2,
        eval_image_s=1 / _IMAGES_PER_SECOND[model.backbone],
        weights=_BACKBONE_WEIGHTS[model.backbone] + _HEAD_WEIGHTS[model.head.name],
        source=", ".join(sources),
    )
