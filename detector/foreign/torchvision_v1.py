"""torchvision's retinanet_resnet50_fpn and fcos_resnet50_fpn (v1), also on its other ResNets.

Facts read there: anchors at j strides, these being the input's size over the level's; labels are category ids.
RetinaNet's published weights are used with frozen batch norms without an epsilon; files of live batch norms, which
count batches, have 1e-5. FCOS always has 1e-5.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from detector.config import ModelConfig
from detector.foreign.layout import Layout, Tensors, replaced, tower_depth
from detector.recipes import FAMILIES

LICENCE = "torchvision's code is under BSD-3-Clause and names no other terms for the weights; they were trained on COCO"

FPN, CLASSES, BOXES = "backbone.fpn.", "head.classification_head.", "head.regression_head."
NECK = {
    "neck.laterals.": f"{FPN}inner_blocks.",
    "neck.outputs.": f"{FPN}layer_blocks.",
    "neck.p": f"{FPN}extra_blocks.p",
}
OUTPUTS = {
    "head.class_logits": f"{CLASSES}cls_logits",
    "head.box_deltas": f"{BOXES}bbox_reg",
    "head.box_distances": f"{BOXES}bbox_reg",
    "head.quality": f"{BOXES}bbox_ctrness",
}
TOWERS = {"head.class_tower.": f"{CLASSES}conv.", "head.box_tower.": f"{BOXES}conv."}


def _names(key: str, config: ModelConfig) -> tuple[str, ...]:
    if key.startswith("backbone."):
        return (key.replace("backbone.", "backbone.body.", 1),)
    if (name := replaced(key, NECK)) is not None:
        stem, kind = name.rsplit(".", 1)
        return (name,) if "extra_blocks" in name else (f"{stem}.0.{kind}",)
    if (name := replaced(key, OUTPUTS)) is not None:
        return (name,)
    name = replaced(key, TOWERS)
    assert name is not None
    if config.head.name == "fcos":
        return (name,)
    stem, index, kind = name.rsplit(".", 2)  # a convolution and its ReLU are one module there
    return (f"{stem}.{int(index) // 2}.0.{kind}",)


def _renamed(head: str, key: str) -> str:
    """The older files number the parts of the pyramid, and RetinaNet's towers, differently."""
    if key.startswith((f"{FPN}inner_blocks.", f"{FPN}layer_blocks.")):
        return re.sub(r"_blocks\.(\d+)\.(weight|bias)$", r"_blocks.\1.0.\2", key)
    old = re.fullmatch(r"(head\.\w+_head\.conv)\.(\d+)\.(weight|bias)", key)
    if head == "retinanet" and old:
        return f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}"
    return key


def _configure(head: str, tensors: Tensors) -> dict[str, Any]:
    family = FAMILIES[head]
    depth = tower_depth(tensors, f"{CLASSES}conv.")
    live = any(key.endswith(".num_batches_tracked") for key in tensors)
    return {
        **family,
        "head": {**family["head"], "convolutions": depth if head == "retinanet" else depth // 2},
        "neck": {"channels": tensors[f"{FPN}layer_blocks.0.0.weight"].shape[0], "relu_before_p7": True},
        "norm_epsilon": 0.0 if head == "retinanet" and not live else 1e-5,
    }


def _layout(head: str, name: str, *marks: str) -> Layout:
    return Layout(
        name=name,
        licence=LICENCE,
        backbone="backbone.body.",
        classes=f"{CLASSES}cls_logits",
        marks=("backbone.body.conv1.weight", f"{FPN}layer_blocks.0.0.weight", f"{CLASSES}cls_logits.weight", *marks),
        configure=partial(_configure, head),
        names=_names,
        resize="torchvision",
        renamed=partial(_renamed, head),
        labels_are_ids=True,
    )


LAYOUTS = (
    _layout("fcos", "torchvision's FCOS", f"{BOXES}bbox_ctrness.weight"),
    _layout("retinanet", "torchvision's RetinaNet (v1)", f"{CLASSES}conv.0.0.weight", f"{BOXES}bbox_reg.weight"),
)

# A key that tells a model of torchvision that has no layout here, and what it is.
UNSUPPORTED = {
    f"{CLASSES}conv.0.1.weight": "torchvision's RetinaNet v2 (retinanet_resnet50_fpn_v2: towers with GroupNorm)",
}
