"""Losses of ATSS, GFL, GFLV2 and VFNet, and their gradients, against loops over single anchors."""

from __future__ import annotations

import pytest
import torch

from detector.anchors import build_grid, level_shapes
from detector.config import ModelConfig
from detector.heads import build_criterion
from detector.heads.gfl import joint_logits
from detector.losses import distribution_focal_loss
from detector.outputs import HeadOutputs, RefinedOutputs
from detector.recipes import model_config
from tests.detector.heads import plain

SHAPES = level_shapes(64, 96)
CLASSES = 3
BOXES = [
    torch.tensor([[5.0, 5.0, 60.0, 50.0], [20.0, 10.0, 44.0, 40.0], [70.0, 2.0, 95.0, 63.0]]),
    torch.zeros(0, 4),
    torch.tensor([[0.0, 0.0, 96.0, 64.0]]),
]
LABELS = [torch.tensor([0, 2, 1]), torch.zeros(0, dtype=torch.int64), torch.tensor([2])]


def levels(generator, channels, scale=1.0, shift=0.0):
    drawn = [torch.randn(len(BOXES), channels, h, w, generator=generator) * scale + shift for h, w in SHAPES]
    return [level.requires_grad_() for level in drawn]


def in_double(outputs):
    """The same outputs as leaves in float64."""

    def copy(part):
        return None if part is None else [level.detach().double().requires_grad_() for level in part]

    if isinstance(outputs, RefinedOutputs):
        return RefinedOutputs(copy(outputs[0]), copy(outputs[1]), copy(outputs.initial_regression))
    return HeadOutputs(*(copy(part) for part in outputs))


def leaves(outputs):
    parts = [*outputs, getattr(outputs, "initial_regression", None)]
    return [level for part in parts if part is not None for level in part]


def compare(criterion, outputs, witness):
    targets = criterion.targets(outputs, BOXES, LABELS, 0.0)
    got = criterion.losses(outputs, targets, targets.totals)
    reference = in_double(outputs)
    expected = witness(reference)
    assert {key: value.item() for key, value in got.items()} == pytest.approx(
        {key: value.item() for key, value in expected.items()}, rel=1e-4
    )
    sum(got.values()).backward()
    sum(expected.values()).backward()
    for mine, theirs in zip(leaves(outputs), leaves(reference), strict=True):
        wanted = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        assert torch.allclose(mine.grad.double(), wanted, rtol=1e-3, atol=1e-6)


def grid_of(config):
    grid = build_grid(config.anchors, SHAPES)
    return grid.boxes.double().tolist(), grid.stride.flatten().tolist()


@pytest.mark.parametrize("branch", ["centerness", "iou", "none"])
@pytest.mark.parametrize("loss", ["focal", "qfl", "vfl"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_atss_equals_the_formulas(loss, branch, weights):
    assigner = {"predicted_weight": weights[0], "anchor_weight": weights[1]}
    config = ModelConfig(head={"classification_loss": loss, "quality_branch": branch}, assigner=assigner)
    generator = torch.Generator().manual_seed(4)
    quality = None if branch == "none" else levels(generator, 1)
    outputs = HeadOutputs(levels(generator, CLASSES, 2.0), levels(generator, 4), quality)
    anchors, _ = grid_of(config)
    boxes = [b.double() for b in BOXES]
    compare(
        build_criterion(config),
        outputs,
        lambda o: plain.atss(o, anchors, SHAPES, boxes, LABELS, *weights, loss=loss, branch=branch),
    )


@pytest.mark.parametrize("recipe", ["gfl_r18", "gflv2_r18", "gflv2_ciou_r18"])
def test_gfl_equals_the_formulas(recipe):
    config = model_config(recipe)
    generator = torch.Generator().manual_seed(1)
    quality = levels(generator, 1) if "v2" in recipe else None
    outputs = HeadOutputs(levels(generator, CLASSES, 2.0), levels(generator, 68, 1.5), quality)
    anchors, strides = grid_of(config)
    weights = config.assigner.predicted_weight, config.assigner.anchor_weight
    boxes = [b.double() for b in BOXES]
    compare(build_criterion(config), outputs, lambda o: plain.gfl(o, anchors, strides, SHAPES, boxes, LABELS, *weights))


@pytest.mark.parametrize("seen", ["refined", "initial"])
@pytest.mark.parametrize("recipe", ["vfnet_r18", "vfnet_ciou_r18"])
def test_vfnet_equals_the_formulas(recipe, seen):
    config = model_config(recipe)
    config = config.model_copy(update={"head": config.head.model_copy(update={"assigned_boxes": seen})})
    generator = torch.Generator().manual_seed(2)
    distances = [[level.detach().abs().requires_grad_() for level in levels(generator, 4, 20.0)] for _ in range(2)]
    outputs = RefinedOutputs(levels(generator, CLASSES, 2.0), *distances)
    anchors, _ = grid_of(config)
    weights = config.assigner.predicted_weight, config.assigner.anchor_weight
    boxes = [b.double() for b in BOXES]
    compare(build_criterion(config), outputs, lambda o: plain.vfnet(o, anchors, SHAPES, boxes, LABELS, *weights, seen))


def test_ignored_anchors_take_no_part_in_the_classification():
    config = ModelConfig(assigner={"name": "fixed_iou"})
    criterion = build_criterion(config)
    generator = torch.Generator().manual_seed(3)
    outputs = HeadOutputs(levels(generator, CLASSES), levels(generator, 4), levels(generator, 1))
    targets = criterion.targets(outputs, BOXES, LABELS, 0.0)
    assert targets.ignored.any()
    criterion.losses(outputs, targets, targets.totals)["loss_cls"].backward()
    gradients = torch.cat([level.grad.flatten(2) for level in outputs.class_logits], 2).abs().sum(1)
    assert torch.equal(gradients == 0, targets.ignored)


def test_the_joint_logit_is_that_of_the_product():
    a, b = torch.randn(50, 3, dtype=torch.float64) * 5, torch.randn(50, 1, dtype=torch.float64) * 5
    product = a.sigmoid() * b.sigmoid()
    assert torch.allclose(joint_logits(a, b), torch.logit(product), rtol=1e-9)
    extreme = torch.tensor([[-100.0, 100.0, 100.0]]).requires_grad_()
    other = torch.tensor([[100.0]]).requires_grad_()
    joint_logits(extreme, other).sum().backward()
    assert extreme.grad.isfinite().all()
    assert other.grad.isfinite().all()


@pytest.mark.parametrize("target", [0.0, 0.25, 3.0, 7.6, 15.9])
def test_dfl_is_least_where_the_mean_of_the_distribution_is_the_target(target):
    left = min(int(target), 15)
    share = target - left
    probabilities = torch.full((17,), 1e-12, dtype=torch.float64)
    probabilities[left], probabilities[left + 1] = max(1 - share, 1e-12), max(share, 1e-12)
    logits = probabilities.log()[None].requires_grad_()
    loss = distribution_focal_loss(logits, torch.tensor([target], dtype=torch.float64))
    entropy = -sum(p * torch.log(torch.tensor(p)).item() for p in (1 - share, share) if p > 0)
    assert loss.item() == pytest.approx(entropy, abs=1e-6)
    loss.sum().backward()
    assert logits.grad.abs().max() < 1e-9
    # The mean is the integral of x over the distribution: exactly the target.
    assert (logits.softmax(-1) @ torch.arange(17.0, dtype=torch.float64)).item() == pytest.approx(target, abs=1e-9)
