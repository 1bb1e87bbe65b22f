"""Files of mmdetection, GFLV2, the original ATSS and Dynamic ATSS: recognised, with their conventions and outputs."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import detector
from detector.config import ModelConfig
from detector.foreign.conversion import read
from detector.model import build_model
from tests.detector.foreign.networks import MMDetection, OriginalATSS, randomise

MMDET = {
    "anchors.center_offset": 0.0,
    "neck.relu_before_p7": False,
    "head.tower_bias": False,
    "head.deformable": False,
    "head.quality_branch": "none",
    "norm_epsilon": 1e-5,
    "stride_in_1x1": False,
    "pixels.order": "rgb",
    "pixels.mean": (123.675, 116.28, 103.53),
    "pixels.deviation": (58.395, 57.12, 57.375),
    "postprocess.ranking": "class",
    "postprocess.score": "product",
    "postprocess.threshold_on": "class",
    "postprocess.nms_iou": 0.6,
    "postprocess.score_threshold": 0.05,
}
GFL = MMDET | {"head.name": "gfl", "head.classification_loss": "qfl"}
VFNET = MMDET | {"head.name": "vfnet", "neck.relu_before_p7": True, "head.classification_loss": "vfl"}
ATSS = MMDET | {"head.name": "atss", "head.quality_branch": "centerness", "head.classification_loss": "focal"}
GFLV2 = GFL | {"head.name": "gflv2", "postprocess.ranking": "joint", "postprocess.threshold_on": "final"}
ORIGINAL = {
    "head.name": "atss",
    "anchors.center_offset": 0.5,
    "neck.relu_before_p7": True,
    "head.tower_bias": True,
    "head.quality_branch": "centerness",
    "norm_epsilon": 0.0,
    "pixels.order": "bgr",
    "pixels.mean": (102.9801, 115.9465, 122.7717),
    "pixels.deviation": (1.0, 1.0, 1.0),
    "postprocess.ranking": "joint",
    "postprocess.score": "geometric_mean",
    "postprocess.threshold_on": "class",
    "postprocess.nms_iou": 0.6,
}
X32, X64, X32X8 = {"depth": 101, "groups": 32, "width": 4}, {"depth": 101, "groups": 64, "width": 4}, (101, 32, 8)
C3, C4 = {"dcn_stages": (3, 4, 5)}, {"dcn_stages": (4, 5)}
V1, V2 = {"dcn_version": 1}, {"dcn_version": 2}

CASES = {
    "atss_r50": (lambda: MMDetection("atss"), "r50", ATSS),
    "atss_r101": (lambda: MMDetection("atss", 101), "r101", ATSS),
    "gfl_r50": (lambda: MMDetection("gfl"), "r50", GFL),
    "gfl_r101_dconv": (lambda: MMDetection("gfl", 101, modulated=False, **C3), "r101_dcn", GFL | C3 | V1),
    "gfl_x101": (lambda: MMDetection("gfl", **X32), "x101_32x4d", GFL),
    "gfl_x101_dconv": (lambda: MMDetection("gfl", **X32, modulated=False, **C4), "x101_32x4d_dcn", GFL | C4 | V1),
    "gflv2_r50": (lambda: MMDetection("gflv2"), "r50", GFLV2),
    "gflv2_x101_dconv": (lambda: MMDetection("gflv2", **X32, modulated=False, **C4), "x101_32x4d_dcn", GFLV2 | C4 | V1),
    "vfnet_r50": (lambda: MMDetection("vfnet"), "r50", VFNET),
    "vfnet_r50_mdconv": (lambda: MMDetection("vfnet", **C3), "r50_dcn", VFNET | C3 | V2 | {"head.deformable": True}),
    "vfnet_x101_64x4d_mdconv": (
        lambda: MMDetection("vfnet", **X64, **C3),
        "x101_64x4d_dcn",
        VFNET | C3 | V2 | {"head.deformable": True},
    ),
    "original_r50": (lambda: OriginalATSS(), "r50", ORIGINAL | {"stride_in_1x1": True, "head.deformable": False}),
    "original_r101_dcn": (
        lambda: OriginalATSS(101, **C3),
        "r101_dcn",
        ORIGINAL | C3 | V2 | {"stride_in_1x1": True, "head.deformable": True},
    ),
    "original_x101_64x4d_dcn": (
        lambda: OriginalATSS(**X64, stride_in_1x1=False, **C4),
        "x101_64x4d_dcn",
        ORIGINAL | C4 | V2 | {"stride_in_1x1": False, "head.deformable": True},
    ),
    "original_x101_32x8d": (
        lambda: OriginalATSS(*X32X8, stride_in_1x1=False),
        "x101_32x8d",
        ORIGINAL | {"stride_in_1x1": False},
    ),
}


def value(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


def equal(mine, theirs):
    for one, other in zip(mine, theirs, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, atol=1e-4, rtol=1e-5), float((one - other).abs().max())


@pytest.mark.parametrize("case", CASES)
def test_a_file_is_recognised_and_its_raw_outputs_are_the_reference_s(case, tmp_path):
    make, backbone, expected = CASES[case]
    reference = randomise(make())
    torch.save({"state_dict": reference.state_dict(), "meta": {"epoch": 12}}, tmp_path / "file.pth")
    model = detector.load(tmp_path / "file.pth", device="cpu")
    assert model.config.backbone == backbone
    assert {key: value(model.config, key) for key in expected} == expected
    assert (len(model.categories), model.categories[79]) == (80, (90, "toothbrush"))
    original = case.startswith("original")
    assert (model.short_side, model.long_side, model.resize) == (800, 1333, "antialias" if original else "opencv")
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        mine, (classes, boxes, quality) = model.network(images), reference(images)
    assert min(float(level.std()) for level in classes[:3]) > 0.1  # the outputs depend on the image
    equal(mine.box_regression, boxes)
    if case.startswith("gflv2"):  # theirs tells the quality as a probability, and has one class too many
        equal(mine.class_logits, [level[:, :-1] for level in classes])
        equal([level.sigmoid() for level in mine.quality_logits], quality)
        return
    equal(mine.class_logits, classes)
    assert (mine.quality_logits is None) == (quality is None)
    if quality is not None:
        equal(mine.quality_logits, quality)


@pytest.mark.parametrize(
    "fields",
    [{"norm_epsilon": 1e-5}, {"stride_in_1x1": False}, {"neck": {"relu_before_p7": False}}],
    ids=["epsilon", "stride", "relu"],
)
def test_a_convention_that_keys_and_shapes_don_t_tell_shows_in_the_outputs(fields):
    reference = randomise(OriginalATSS(classes=3))
    reading = read(reference.state_dict(), "file")
    other = build_model(
        ModelConfig.model_validate(reading.config.model_dump() | fields), reading.categories, pretrained=False
    ).eval()
    other.network.load_state_dict(reading.state)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        mine, theirs = other.network(images).class_logits, reference(images)[0]
    assert max(float((a - b).abs().max()) for a, b in zip(mine, theirs, strict=True)) > 1e-3


@pytest.mark.parametrize("form", ["bare", "module", "model", "both", "safetensors", "half"])
def test_wrappers_and_prefixes_make_no_difference(form, tmp_path):
    state = randomise(MMDetection("atss", classes=3)).state_dict()
    path = tmp_path / "file.pth"
    parallel = {f"module.{key}": tensor for key, tensor in state.items()}
    if form == "safetensors":
        path = tmp_path / "file.safetensors"
        save_file(state, path)
    else:
        content = {
            "bare": state,
            "module": parallel,
            "model": {"model": state, "iteration": 7},
            "both": {"state_dict": parallel},
            "half": {key: t.half() if t.is_floating_point() else t for key, t in state.items()},
        }[form]
        torch.save(content, path)
    model = detector.load(path, device="cpu")
    weight = model.network.head.class_logits.weight
    assert weight.dtype == torch.float32
    assert torch.allclose(weight, state["bbox_head.atss_cls.weight"], atol=1e-3 if form == "half" else 0)
    assert model.categories == tuple((label + 1, f"class {label}") for label in range(3))


@pytest.mark.parametrize(("head", "count"), [("atss", 32_295_322), ("gfl", 32_440_537), ("vfnet", 32_891_554)])
def test_parameters_are_as_many_as_published(head, count):
    with torch.device("meta"):
        reference = MMDetection(head)
    assert sum(parameter.numel() for parameter in reference.parameters()) == count
    model = read({key: torch.empty(t.shape) for key, t in reference.state_dict().items() if "project" not in key}, head)
    mine = sum(tensor.numel() for key, tensor in model.state.items() if "running_" not in key)
    assert mine == count
