"""torchvision's RetinaNet and FCOS against ours: raw outputs, losses, and from pixels to boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import fcos_resnet50_fpn, retinanet_resnet50_fpn
from torchvision.models.detection._utils import overwrite_eps
from torchvision.ops import FrozenBatchNorm2d

import detector
from detector.foreign.conversion import read
from detector.outputs import flatten
from tests.detector.foreign.networks import randomise

BUILDERS = {"retinanet": retinanet_resnet50_fpn, "fcos": fcos_resnet50_fpn}


def reference(kind, classes=91, *, frozen=False, **options):
    """torchvision's model with random tensors, its scores spread above the threshold."""
    model = BUILDERS[kind](weights=None, weights_backbone=None, num_classes=classes, **options)
    if frozen:
        freeze(model)
        if kind == "retinanet":
            overwrite_eps(model, 0.0)  # as torchvision does with the published weights
    randomise(model)
    with torch.no_grad():
        head = model.head.classification_head.cls_logits
        head.weight.mul_({"retinanet": 6.0, "fcos": 2.0}[kind])
        head.bias.fill_(-5.0)
        model.head.regression_head.bbox_reg.weight.mul_(0.3)
        model.head.regression_head.bbox_reg.bias.mul_(0.2).add_(1.0 if kind == "fcos" else 0.0)
    return model


def freeze(module):
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features))
        else:
            freeze(child)


def older(state, kind):
    """The names that files of torchvision's first versions have."""
    renamed = {}
    for key, tensor in state.items():
        if "fpn.inner_blocks" in key or "fpn.layer_blocks" in key:
            key = key.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        if kind == "retinanet" and "_head.conv." in key:
            stem, number, _, end = key.rsplit(".", 3)
            key = f"{stem}.{2 * int(number)}.{end}"
        renamed[key] = tensor
    return renamed


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("form", ["live", "frozen", "older"])
def test_state_dicts_load_with_equal_outputs(kind, form, tmp_path):
    theirs = reference(kind, frozen=form != "live")
    state = theirs.state_dict()
    torch.save(older(state, kind) if form == "older" else state, tmp_path / "file.pth")
    mine = detector.load(tmp_path / "file.pth", device="cpu")
    assert mine.config.norm_epsilon == (0.0 if kind == "retinanet" and form != "live" else 1e-5)
    assert (mine.config.anchors.strides, mine.config.anchors.center_offset, mine.resize) == (
        "rounded",
        0,
        "torchvision",
    )
    assert (len(mine.categories), mine.categories[1], mine.categories[90]) == (91, (1, "person"), (90, "toothbrush"))
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, outputs = theirs.head(list(theirs.backbone(images).values())), mine.network(images)
    anchors = mine.criterion.anchors_per_location
    pairs = [(outputs.class_logits, "cls_logits"), (outputs.box_regression, "bbox_regression")]
    pairs += [(outputs.quality_logits, "bbox_ctrness")] if kind == "fcos" else []
    for levels, name in pairs:
        got = flatten(levels, anchors if name != "bbox_ctrness" else 1)
        assert torch.allclose(got, expected[name], atol=1e-4, rtol=1e-5)


SIZES = [(200, 300), (333, 251), (97, 640), (480, 640)]  # height, width; some give P6 and P7 an odd size


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("frozen", [False, True])
def test_from_pixels_to_boxes(kind, frozen):
    theirs = reference(kind, classes=7, frozen=frozen, min_size=256, max_size=416)
    mine = read(theirs.state_dict(), "file").detector()
    mine.short_side, mine.long_side = 256, 416
    generator = np.random.default_rng(0)
    odd = 0
    for height, width in SIZES:
        pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        with torch.inference_mode():
            expected = theirs([tensor])[0]
            (shape,) = {tuple(theirs.transform([tensor])[0].tensors.shape[-2:])}
        odd += any(side // 32 % 4 for side in shape)
        found = mine.predict(pixels, max_detections=theirs.detections_per_img)
        assert len(expected["scores"]) > 20
        assert float(expected["scores"].std()) > 0.01
        compare(found, expected)
    assert odd > 1


def compare(found, expected):
    """The same detections, in any order among nearly equal scores; a few may differ at the edges of the thresholds."""
    assert abs(len(found) - len(expected["scores"])) <= 1
    unmatched = 0
    for box, score, label in zip(expected["boxes"], expected["scores"], expected["labels"], strict=True):
        near = (found.labels == label) & ((found.scores - score).abs() < 1e-3)
        unmatched += not bool(((found.boxes - box).abs().amax(1)[near] < 0.05).any())
    assert unmatched <= 1
    assert torch.equal(found.category_ids, found.labels)


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("shape", [(128, 160), (160, 288)])
def test_losses_are_equal(kind, shape):
    """In training mode, with an image without boxes; the second shape has odd P6 and P7."""
    theirs = reference(kind, classes=7, frozen=True, min_size=min(shape), max_size=max(shape), _skip_resize=True)
    mine = read(theirs.state_dict(), "file").detector()
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(3, 3, *shape, generator=generator)
    targets = []
    for count in (6, 0, 2):
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([shape[1] - 60.0, shape[0] - 60.0])
        size = 8 + torch.rand(count, 2, generator=generator) ** 2 * (torch.tensor(shape[::-1]) - corner - 8)
        boxes = torch.cat((corner, corner + size), 1)
        targets.append({"boxes": boxes, "labels": torch.randint(7, (count,), generator=generator)})
    theirs.train()
    expected = theirs(list(images), targets)
    mine.train()
    sizes = torch.tensor([shape] * 3)
    outputs = mine.network(mine.normalise(images * 255, sizes))
    got = mine.loss(outputs, [t["boxes"] for t in targets], [t["labels"] for t in targets])
    names = {"loss_cls": "classification", "loss_reg": "bbox_regression", "loss_quality": "bbox_ctrness"}
    assert len(got) == len(expected)
    for name, value in got.items():
        assert float(value.detach()) == pytest.approx(float(expected[names[name]].detach()), rel=1e-4), name
    sum(got.values()).backward()
    sum(expected.values()).backward()
    pairs = [
        (mine.network.head.class_logits.weight.grad, theirs.head.classification_head.cls_logits.weight.grad),
        (mine.network.neck.p7.weight.grad, theirs.backbone.fpn.extra_blocks.p7.weight.grad),
    ]
    for one, other in pairs:
        assert torch.allclose(one, other, atol=1e-4 * float(other.abs().max()), rtol=1e-3)
