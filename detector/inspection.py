"""What a file of weights is, in words: which project's, what of it matches, which conventions follow, which licence."""

from __future__ import annotations

from detector.checkpoints import FINITE_REMEDY, broken, load_model, not_finite
from detector.config import ModelConfig
from detector.document import listed
from detector.foreign.conversion import LONG_SIDE, SHORT_SIDE, Reading
from detector.keys import flat
from detector.loading import read_file
from detector.model import Detector
from detector.origins import locate

# Fields that say how the tensors are to be used; the others say which there are.
CONVENTIONS = (
    *("anchors.name", "anchors.center_offset", "anchors.strides", "neck.relu_before_p7", "head.tower_bias"),
    *("head.deformable", "head.quality_branch", "stride_in_1x1", "norm", "norm_epsilon", "dcn_version", "dcn_stages"),
    *("pixels.order", "pixels.mean", "pixels.deviation"),
    *("postprocess.score_threshold", "postprocess.threshold_on", "postprocess.ranking", "postprocess.score"),
    *("postprocess.nms_iou", "postprocess.max_detections"),
)
# Heads that without a quality branch give class scores alone: nothing is multiplied, whatever the configuration says.
# GFLV2 has a quality of its own without such a branch.
BY_CLASS_SCORE = ("atss", "retinanet", "gfl", "vfnet")


def describe(source: str, tracking_uri: str | None = None) -> tuple[str, bool]:
    """What ``source`` is, and whether it can be loaded. Raises InputError where it is no detector that is known."""
    path = locate(source, tracking_uri)
    if path.is_dir():
        return _ours(str(path), load_model(path)), True
    found = read_file(path)
    if not isinstance(found, Reading):
        return _ours(str(path), load_model(path.parent, tensors=found, source=path)), True
    lines = [
        f"{path}",
        f"what: {found.layout.name}",
        f"licence: {found.layout.licence} (docs/licences.md)",
        f"tensors: {len(found.state)} of the detector's are there, {len(found.unneeded)} in the file aren't needed",
        *_model(found.config, [category.name for category in found.categories]),
        f"images: {SHORT_SIDE} by at most {LONG_SIDE} pixels, resized as by {found.layout.resize}",
    ]
    wrong = not_finite(found.state)
    if found.loads:
        lines.append("everything matches: detector.load reads it")
    elif not found.fits:
        lines += ["it doesn't fit, and detector.load refuses it:", *(f"  {text}" for text in found.problems(None))]
        if not wrong:
            lines.append(f"to start a training from what fits: model.init: {path}")
    if wrong:
        lines.append(f"{broken(wrong, len(found.state))}, and detector.load refuses it: {FINITE_REMEDY}")
    return "\n".join(lines), found.loads


def _ours(source: str, model: Detector) -> str:
    names = [category.name for category in model.categories]
    size = f"images: {model.short_side} by at most {model.long_side} pixels, resized as by {model.resize}"
    licence = "licence: that of the data and of the initial weights that it was trained from"
    return "\n".join([source, "what: a model of detsweep", licence, *_model(model.config, names), size])


def _model(config: ModelConfig, names: list[str]) -> list[str]:
    values = flat(config)
    if config.head.name in BY_CLASS_SCORE and config.head.quality_branch == "none":
        values |= dict.fromkeys(("postprocess.ranking", "postprocess.score"), "class score, for there is no other")
    classes = f"{len(names)} class{'es' * (len(names) != 1)}"
    return [
        f"model: {config.head.name} on {config.backbone}, {classes} ({listed(names, 5)})",
        "conventions:",
        *(f"  model.{key}: {_text(values[key])}" for key in CONVENTIONS),
    ]


def _text(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
