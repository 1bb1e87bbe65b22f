"""Fixed IoU thresholds and FCOS's rule against torchvision's own code and against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from detector.anchors import STRIDES, build_grid, level_shapes
from detector.assigners import FCOSAssigner, FixedIoUAssigner
from detector.boxes import elementwise_iou
from detector.config import AnchorConfig

SIZE = (128, 160)
SHAPES = level_shapes(*SIZE)
SQUARES = build_grid(AnchorConfig(), SHAPES).boxes
NINE = build_grid(AnchorConfig(name="retinanet", center_offset=0.0, strides="rounded"), SHAPES).boxes


def random_boxes(seed, count):
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(count, 2, generator=generator) ** 2 * torch.tensor([150.0, 120.0]) + 2
    place = torch.rand(count, 2, generator=generator) * torch.tensor([160.0, 128.0]) - size / 4
    return torch.cat((place, place + size), 1)


def images(seed):
    return [random_boxes(seed, 12), torch.zeros(0, 4), random_boxes(seed + 1, 1), random_boxes(seed + 2, 3)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("keep_best", [True, False])
@pytest.mark.parametrize("anchors", [SQUARES, NINE], ids=["square", "nine"])
def test_fixed_iou_is_torchvisions_matcher(seed, keep_best, anchors):
    boxes = images(100 * seed)
    got = FixedIoUAssigner(keep_best=keep_best)(anchors, SHAPES, boxes)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=keep_best)
    for image, own in enumerate(boxes):
        expected = matcher(box_iou(own, anchors)) if len(own) else torch.full((len(anchors),), -1)
        assert torch.equal(got.gt_index[image], expected)
        assert torch.equal(got.ignored[image], expected == -2)


def test_fixed_iou_by_hand():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4.5], [0, 0, 10, 2], [50, 50, 60, 60]])
    box = [torch.tensor([[0.0, 0, 10, 10], [52, 50, 90, 60]])]
    # IoUs with the first box 1, 0.5, 0.45, 0.2, 0; the last anchor is the best of the second box at 80 / 400 = 0.2.
    got = FixedIoUAssigner()(anchors, [(5, 1)], box)
    assert got.gt_index.tolist() == [[0, 0, -2, -1, 1]]
    assert FixedIoUAssigner(keep_best=False)(anchors, [(5, 1)], box).gt_index.tolist() == [[0, 0, -2, -1, -1]]


def plain_fcos(boxes, radius):
    """The box of every location, or -1."""
    index = []
    start = 0
    for level, ((rows, columns), stride) in enumerate(zip(SHAPES, STRIDES, strict=True)):
        low = 0.0 if level == 0 else 4.0 * stride
        high = math.inf if level == len(SHAPES) - 1 else 8.0 * stride
        for place in range(rows * columns):
            x0, y0, x1, y1 = SQUARES[start + place].tolist()
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            best, chosen = math.inf, -1
            for g, (left, top, right, bottom) in enumerate(boxes.tolist()):
                sides = (x - left, y - top, right - x, bottom - y)
                near = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2)) < radius * stride
                area = (right - left) * (bottom - top)
                if min(sides) > 0 and near and low < max(sides) < high and area < best:
                    best, chosen = area, g
            index.append(chosen)
        start += rows * columns
    return index


@pytest.mark.parametrize("seed", range(6))
def test_fcos_is_the_plain_loop(seed):
    boxes = images(1000 + 100 * seed)
    boxes[0] = torch.cat((boxes[0], boxes[0][:2]))  # duplicates: the first takes the location
    radius = (1.5, 0.7, 3.0)[seed % 3]
    got = FCOSAssigner(radius)(SQUARES, SHAPES, boxes)
    assert got.gt_index.tolist() == [plain_fcos(own, radius) for own in boxes]
    assert (got.gt_index[0] >= 0).any()


@pytest.mark.parametrize("assigner", [FixedIoUAssigner(), FCOSAssigner()])
def test_the_candidates_are_the_positives_and_ious_those_of_predictions(assigner):
    boxes = images(7)
    predicted = SQUARES + torch.randn(4, len(SQUARES), 4, generator=torch.Generator().manual_seed(0))
    got = assigner(SQUARES, SHAPES, boxes, predicted)
    for image, own in enumerate(boxes):
        positive = got.gt_index[image] >= 0
        marked = got.candidate_anchor[image][got.candidate_positive[image]]
        assert sorted(marked.tolist()) == positive.nonzero().squeeze(1).tolist()
        assert torch.equal(got.candidate_gt[image][got.candidate_positive[image]], got.gt_index[image][marked])
        expected = torch.zeros(len(SQUARES))
        if len(own):
            expected[positive] = elementwise_iou(predicted[image][positive], own[got.gt_index[image][positive]])
        assert torch.allclose(got.predicted_iou[image], expected)


@pytest.mark.parametrize("assigner", [FixedIoUAssigner(), FCOSAssigner()])
def test_without_any_box_all_is_background(assigner):
    got = assigner(SQUARES, SHAPES, [torch.zeros(0, 4)] * 2)
    assert (got.gt_index == -1).all()
    assert not got.candidate_positive.any()
    assert not got.ignored.any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FixedIoUAssigner(0.4, 0.5), "negative_iou <= positive_iou"),
        (lambda: FixedIoUAssigner(1.5, 0.4), "thresholds are 0.4 and 1.5"),
        (lambda: FCOSAssigner(0), "center_radius is 0"),
        (lambda: FCOSAssigner()(SQUARES, SHAPES[:3], [torch.zeros(0, 4)]), "don't fill"),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
