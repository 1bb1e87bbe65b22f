"""The two steps of a criterion: targets without gradients, and losses over the totals of a whole batch."""

from __future__ import annotations

import pytest
import torch

from detector.anchors import level_shapes
from detector.config import HeadConfig, ModelConfig
from detector.heads import HeadOutputs, build_criterion

SIZE = (64, 96)
SHAPES = level_shapes(*SIZE)
CLASSES = 3


def random_outputs(images, *, quality=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def level(channels, scale):
        return [torch.randn(images, channels, h, w, generator=generator) * scale for h, w in SHAPES]

    return HeadOutputs(level(CLASSES, 2.0), level(4, 1.0), level(1, 1.0) if quality else None)


BOXES = [
    torch.tensor([[5.0, 5.0, 60.0, 50.0], [20.0, 10.0, 44.0, 40.0], [70.0, 2.0, 95.0, 63.0]]),
    torch.zeros(0, 4),
    torch.tensor([[0.0, 0.0, 96.0, 64.0]]),
]
LABELS = [torch.tensor([0, 2, 1]), torch.zeros(0, dtype=torch.int64), torch.tensor([2])]


@pytest.mark.parametrize("kind", ["focal", "qfl", "vfl"])
def test_without_any_box_the_losses_are_finite_and_every_output_has_a_gradient(kind):
    criterion = build_criterion(ModelConfig(head=HeadConfig(classification_loss=kind)))
    outputs = random_outputs(2)
    for level in (*outputs.class_logits, *outputs.box_regression, *outputs.quality_logits):
        level.requires_grad_()
    empty = [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2
    targets = criterion.targets(outputs, *empty, 0.0)
    losses = criterion.losses(outputs, targets, targets.totals)
    sum(losses.values()).backward()
    assert losses["loss_reg"].item() == losses["loss_quality"].item() == 0
    assert losses["loss_cls"].item() > 0
    for level in (*outputs.box_regression, *outputs.quality_logits):
        assert (level.grad == 0).all()
    assert all(level.grad.abs().sum() > 0 for level in outputs.class_logits)


def test_targets_are_detached():
    # With the IoU branch the box loss is weighted by an IoU that depends on the box: no gradient may go through it.
    criterion = build_criterion(ModelConfig(head=HeadConfig(classification_loss="qfl", quality_branch="iou")))
    outputs = random_outputs(3)
    for level in outputs.box_regression:
        level.requires_grad_()
    targets = criterion.targets(outputs, BOXES, LABELS, 0.0)
    losses = criterion.losses(outputs, targets, targets.totals)
    assert not any(tensor.requires_grad for tensor in (targets.iou, targets.weight, targets.totals.vector))
    assert not losses["loss_cls"].requires_grad
    assert not losses["loss_quality"].requires_grad
    assert losses["loss_reg"].requires_grad


def test_two_halves_over_common_totals_are_the_whole():
    criterion = build_criterion(ModelConfig(head=HeadConfig(quality_branch="iou", classification_loss="qfl")))
    outputs = random_outputs(3)
    whole = criterion.targets(outputs, BOXES, LABELS, 0.0)
    expected = criterion.losses(outputs, whole, whole.totals)
    parts = []
    for chosen in (slice(0, 1), slice(1, 3)):
        part = HeadOutputs(*([level[chosen] for level in levels] for levels in outputs))
        parts.append((part, criterion.targets(part, BOXES[chosen], LABELS[chosen], 0.0)))
    totals = parts[0][1].totals + parts[1][1].totals
    sums = [criterion.losses(part, targets, totals) for part, targets in parts]
    for key, value in expected.items():
        assert sum(each[key] for each in sums).item() == pytest.approx(value.item(), rel=1e-5)
