"""Losses against their printed formulas in float64, their gradients, and their ends."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss

from detector.losses import (
    distribution_focal_loss,
    focal_loss,
    giou_loss,
    quality_focal_loss,
    varifocal_loss,
)

LOGITS = torch.linspace(-6, 6, 25, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 0.5)])
def test_focal_loss_is_equation_5(target, alpha, gamma):
    got = focal_loss(LOGITS, torch.full_like(LOGITS, target), alpha, gamma)
    for logit, value in zip(LOGITS.tolist(), got.tolist(), strict=True):
        p = sigmoid(logit)
        p_t, alpha_t = (p, alpha) if target == 1 else (1 - p, 1 - alpha)
        assert value == pytest.approx(-alpha_t * (1 - p_t) ** gamma * math.log(p_t), rel=1e-9)


def test_focal_loss_equals_torchvisions():
    targets = (torch.arange(25) % 2).double()
    assert torch.allclose(focal_loss(LOGITS, targets), sigmoid_focal_loss(LOGITS, targets, reduction="none"))


@pytest.mark.parametrize("target", [0.0, 0.3, 0.85, 1.0])
def test_quality_focal_loss_is_equation_6(target):
    got = quality_focal_loss(LOGITS, torch.full_like(LOGITS, target))
    for logit, value in zip(LOGITS.tolist(), got.tolist(), strict=True):
        p = sigmoid(logit)
        expected = -(abs(target - p) ** 2) * ((1 - target) * math.log(1 - p) + target * math.log(p))
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("target", [0.0, 0.3, 0.85, 1.0])
def test_varifocal_loss_is_equation_7(target):
    got = varifocal_loss(LOGITS, torch.full_like(LOGITS, target))
    for logit, value in zip(LOGITS.tolist(), got.tolist(), strict=True):
        p = sigmoid(logit)
        if target > 0:
            expected = -target * (target * math.log(p) + (1 - target) * math.log(1 - p))
        else:
            expected = -0.75 * p**2 * math.log(1 - p)
        assert value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (focal_loss, [0.0, 1.0, 0.0, 1.0]),
        (quality_focal_loss, [0.0, 0.31, 0.9, 1.0]),
        (varifocal_loss, [0.0, 0.31, 0.9, 1.0]),
    ],
)
def test_gradients_go_through_the_modulating_factor(loss, targets):
    logits = torch.tensor([-1.3, 0.4, 2.2, -3.1], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor(targets, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, targets), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", [focal_loss, quality_focal_loss, varifocal_loss])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_far_logits_stay_finite(loss, target, dtype):
    logits = torch.tensor([-100.0, -17.0, 0.0, 17.0, 100.0], dtype=dtype, requires_grad=True)
    value = loss(logits, torch.full((5,), target, dtype=dtype))
    value.sum().backward()
    assert value.isfinite().all()
    assert logits.grad.isfinite().all()
    right, wrong = (0, 4) if target == 0 else (4, 0)
    assert value[right] < 1e-40
    # Where all is wrong the modulating factor is 1, and the cross-entropy the logit itself.
    weight = {focal_loss: 0.75 if target == 0 else 0.25, varifocal_loss: 0.75 if target == 0 else 1.0}.get(loss, 1.0)
    assert value[wrong].item() == pytest.approx(100 * weight, rel=1e-2)


def test_distribution_focal_loss_by_hand():
    logits = torch.zeros(2, 4, dtype=torch.float64)
    logits[1] = torch.tensor([0.0, math.log(2.0), math.log(4.0), 0.0])  # softmax 1/8 2/8 4/8 1/8
    got = distribution_focal_loss(logits, torch.tensor([1.7, 1.25], dtype=torch.float64))
    assert got[0].item() == pytest.approx(math.log(4))
    assert got[1].item() == pytest.approx(-(0.75 * math.log(2 / 8) + 0.25 * math.log(4 / 8)))
    ends = distribution_focal_loss(logits[1:].repeat(2, 1), torch.tensor([0.0, 3.0], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([math.log(8), math.log(8)])
    far = torch.tensor([[100.0, -100.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    distribution_focal_loss(far, torch.tensor([1.5])).sum().backward()
    assert far.grad.isfinite().all()


def test_distribution_focal_loss_gradients():
    logits = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([0.0, 1.2, 3.5, 4.9, 5.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: distribution_focal_loss(x, targets), logits)


def test_giou_loss_by_hand():
    unit = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert giou_loss(unit, unit).item() == 0
    # Two unit squares with a gap of one: IoU 0, hull 3, union 2 -> GIoU -1/3.
    assert giou_loss(unit, torch.tensor([[2.0, 0.0, 3.0, 1.0]])).item() == pytest.approx(4 / 3)
    # Shifted by a half: IoU 1/3, hull = union.
    assert giou_loss(unit, torch.tensor([[0.5, 0.0, 1.5, 1.0]])).item() == pytest.approx(2 / 3)


def test_giou_loss_equals_torchvisions():
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(2, 50, 2, generator=generator, dtype=torch.float64) * 100
    boxes = torch.cat((corner, corner + 1 + torch.rand(2, 50, 2, generator=generator, dtype=torch.float64) * 60), -1)
    expected = 1 - generalized_box_iou(boxes[0], boxes[1]).diagonal()
    assert torch.allclose(giou_loss(boxes[0], boxes[1]), expected)
    first = boxes[0, :8].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: giou_loss(x, boxes[1, :8]), first)


def test_giou_loss_of_boxes_without_area_is_finite():
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]], requires_grad=True)
    value = giou_loss(point, torch.tensor([[5.0, 5.0, 5.0, 5.0]]))
    value.sum().backward()
    assert value.item() == 1
    assert point.grad.isfinite().all()
