"""Assignment against plain loops, and against the likely wrong rules."""

from __future__ import annotations

from unittest.mock import ANY

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detector.anchors import grid_anchors, level_shapes
from detector.assigners import ATSSAssigner
from detector.assigners.atss import nearest_anchors
from detector.boxes import elementwise_iou
from tests.detector.plain_atss import assign, candidates

SHAPES = level_shapes(128, 160)
ANCHORS = grid_anchors(SHAPES)


def random_boxes(count, generator, *, width=160, height=128, smallest=2.0, largest=120.0):
    center = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    size = smallest + (largest - smallest) * torch.rand(count, 2, generator=generator) ** 2
    return torch.cat((center - size / 2, center + size / 2), 1)


def predictions_near(anchors, images, generator):
    """Boxes of about the right place and size, so that predicted IoUs vary."""
    noise = torch.randn(images, len(anchors), 4, generator=generator) * 0.15
    size = (anchors[:, 2:] - anchors[:, :2]).repeat(1, 2)
    return anchors + noise * size


def check(assigner, wp, wa, gt_boxes, predicted, progress=0.0, shapes=SHAPES, anchors=ANCHORS):
    result = assigner(anchors, shapes, gt_boxes, predicted, progress)
    for image, boxes in enumerate(gt_boxes):
        index, overlap = assign(
            anchors.double().tolist(),
            shapes,
            boxes.double().tolist(),
            predicted[image].double().tolist(),
            wp,
            wa,
            assigner.topk,
        )
        assert result.gt_index[image].tolist() == index
        assert torch.allclose(result.predicted_iou[image].double(), torch.tensor(overlap).double(), atol=1e-6)
    return result


@pytest.mark.parametrize(
    ("predicted_weight", "anchor_weight", "progress", "wp", "wa"),
    [
        (1, 1, 0.0, 1, 1),
        (0.5, 1, 0.0, 0.5, 1),
        (1, 0.5, 0.3, 1, 0.5),
        (0, 1, 0.0, 0, 1),
        (1, 0, 0.0, 1, 0),
        ("up", 1, 0.25, 0.25, 1),
        (1, "down", 0.25, 1, 0.75),
        ("up", "down", 0.9, 0.9, 0.1),
    ],
)
def test_equals_plain_loops_on_several_images_at_once(predicted_weight, anchor_weight, progress, wp, wa):
    generator = torch.Generator().manual_seed(1)
    gt_boxes = [random_boxes(count, generator) for count in (0, 1, 40, 7)]
    predicted = predictions_near(ANCHORS, 4, generator)
    assigner = ATSSAssigner(topk=9, predicted_weight=predicted_weight, anchor_weight=anchor_weight)
    result = check(assigner, wp, wa, gt_boxes, predicted, progress)
    assert (result.gt_index[2] >= 0).sum() > 20


HAND_MADE = {
    "tiny": [[50.0, 50.0, 50.5, 50.5]],
    "larger than the image": [[-100.0, -100.0, 400.0, 300.0]],
    "slender": [[10.0, 60.0, 150.0, 66.0], [70.0, 0.0, 75.0, 128.0]],
    "at the border": [[0.0, 0.0, 30.0, 20.0], [140.0, 100.0, 160.0, 128.0]],
    "centre outside the grid": [[150.0, 110.0, 400.0, 300.0], [-300.0, -10.0, 20.0, 60.0]],
    "duplicates": [[32.0, 32.0, 96.0, 96.0], [32.0, 32.0, 96.0, 96.0]],
    "on a grid point, many equal distances": [[36.0, 36.0, 100.0, 100.0], [32.0, 32.0, 96.0, 96.0]],
    "without area": [[40.0, 40.0, 40.0, 40.0]],
    "concentric": [[40.0, 40.0, 88.0, 88.0], [48.0, 48.0, 80.0, 80.0], [56.0, 56.0, 72.0, 72.0]],
}


@pytest.mark.parametrize("name", HAND_MADE)
@pytest.mark.parametrize(("wp", "wa"), [(1, 1), (0, 1), (1, 0)])
@pytest.mark.parametrize("offset", [0.5, 0.0])
def test_equals_plain_loops_on_hand_made_boxes(name, wp, wa, offset):
    anchors = grid_anchors(SHAPES, center_offset=offset)
    predicted = predictions_near(anchors, 1, torch.Generator().manual_seed(3))
    check(ATSSAssigner(9, wp, wa), wp, wa, [torch.tensor(HAND_MADE[name])], predicted, anchors=anchors)


@pytest.mark.parametrize("topk", [1, 2, 9, 30])
@pytest.mark.parametrize("shapes", [[(1, 40), (1, 20)], [(30, 1), (15, 1)], [(2, 3), (1, 1)], [(4, 5)]])
def test_levels_of_any_shape_and_any_topk(topk, shapes):
    strides = (8, 16)[: len(shapes)]
    anchors = grid_anchors(shapes, strides=strides)
    generator = torch.Generator().manual_seed(4)
    boxes = random_boxes(12, generator, width=8 * shapes[0][1], height=8 * shapes[0][0], largest=60.0)
    predicted = predictions_near(anchors, 1, generator)
    check(ATSSAssigner(topk, 1, 1), 1, 1, [boxes], predicted, shapes=shapes, anchors=anchors)


def test_batched_equals_one_by_one():
    generator = torch.Generator().manual_seed(5)
    gt_boxes = [random_boxes(count, generator) for count in (3, 0, 25)]
    predicted = predictions_near(ANCHORS, 3, generator)
    assigner = ATSSAssigner()
    together = assigner(ANCHORS, SHAPES, gt_boxes, predicted)
    for image, boxes in enumerate(gt_boxes):
        alone = assigner(ANCHORS, SHAPES, [boxes], predicted[image : image + 1])
        assert torch.equal(together.gt_index[image], alone.gt_index[0])
        assert torch.equal(together.predicted_iou[image], alone.predicted_iou[0])


def test_candidates_list_every_positive_once():
    generator = torch.Generator().manual_seed(6)
    gt_boxes = [random_boxes(count, generator) for count in (30, 2)]
    result = ATSSAssigner()(ANCHORS, SHAPES, gt_boxes, predictions_near(ANCHORS, 2, generator))
    for image in range(2):
        mask = result.candidate_positive[image]
        listed = dict(
            zip(result.candidate_anchor[image][mask].tolist(), result.candidate_gt[image][mask].tolist(), strict=True)
        )
        assert len(listed) == mask.sum()
        assert listed == {a: g for a, g in enumerate(result.gt_index[image].tolist()) if g >= 0}


class Made(TorchDispatchMode):
    """Elements of all that operators make anew."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {place(each) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        made = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor) and place(each) not in given]
        self.sizes += [tensor.numel() for tensor in made]
        return result


def place(tensor):
    return tensor.untyped_storage().data_ptr()


def test_only_the_results_grow_with_the_image():
    generator = torch.Generator().manual_seed(8)
    gt_boxes = [random_boxes(count, generator) for count in (20, 13)]
    rest = []
    for factor in (1, 2):
        shapes = level_shapes(512 * factor, 640 * factor)
        anchors = grid_anchors(shapes)
        predicted = anchors.expand(2, -1, -1).contiguous()
        ATSSAssigner()(anchors, shapes, gt_boxes, predicted)  # which keeps where the lines of this grid are
        with Made() as made:
            result = ATSSAssigner()(anchors, shapes, gt_boxes, predicted)
        dense = result.gt_index.numel()
        assert [size for size in made.sizes if size > dense / 2] == ([dense] * 2 if factor == 2 else ANY)
        rest.append(sum(made.sizes) - 2 * dense)
    # The rest depends on the boxes, and on the image's sides by the lines of the grid alone, in a few tensors.
    longer = 2 * len(shapes) * (max(shapes[0]) // 2)
    assert 0 <= rest[1] - rest[0] <= 5 * longer < rest[0] / 10


@pytest.mark.parametrize("side", [1.0, 24.0, 64.0, 100.0])
def test_ties_by_the_lowest_index_all_over_the_grid(side):
    """Centres on, between and half-way between grid points, where many anchors are equally far, out to the borders."""
    anchors = grid_anchors(SHAPES)
    places = torch.tensor([(x, y) for x in range(-8, 177, 4) for y in range(-8, 145, 4)], dtype=torch.float32)
    boxes = torch.cat((places - side / 2, places + side / 2), 1)
    found = nearest_anchors(anchors, SHAPES, boxes.double()[None], 9)[0]
    table = anchors.double().tolist()
    for box, mine in zip(boxes.double().tolist()[::7], found.tolist()[::7], strict=True):
        assert mine == candidates(table, SHAPES, box, 9)


def test_no_boxes_is_all_background():
    result = ATSSAssigner(9, 0, 1)(ANCHORS, SHAPES, [torch.zeros(0, 4)] * 2)
    assert (result.gt_index == -1).all()
    assert (result.predicted_iou == 0).all()


def one_level(*, boxes, predicted, topk, wp, wa):
    """Four anchors 8 px apart in a row, their sides 8 px."""
    anchors = grid_anchors([(1, 4)], scale=1.0, strides=[8])
    return ATSSAssigner(topk, wp, wa)(anchors, [(1, 4)], [torch.tensor(boxes)], torch.tensor([predicted]))


# Anchor IoUs with the box 0..32 x 0..8 are 1/4 each, so they neither help nor hurt; predicted boxes 0..w have IoU w/32.
WIDE_BOX = [[0.0, 0.0, 32.0, 8.0]]


def predicted_with(ious):
    return [[0.0, 0.0, 32.0 * value, 8.0] for value in ious]


def test_the_deviation_is_the_unbiased_one():
    # 0, 0, 0, 1 -> mean 0.25; deviation 0.5 unbiased, 0.433 biased. A fourth of 0.7 instead:
    # 0.35, 0.35, 0.6875, 0.5: mean 0.4719, unbiased 0.1599 -> 0.6318; make the largest lie between both thresholds.
    ious = [0.0, 0.0, 0.5, 0.53125]
    mean = sum(ious) / 4
    unbiased = (sum((v - mean) ** 2 for v in ious) / 3) ** 0.5
    biased = (sum((v - mean) ** 2 for v in ious) / 4) ** 0.5
    assert mean + biased < 0.53125 < mean + unbiased
    result = one_level(boxes=WIDE_BOX, predicted=predicted_with(ious), topk=4, wp=1.0, wa=0.0)
    assert result.gt_index.tolist() == [[-1, -1, -1, -1]]


def test_deviations_are_added_not_taken_of_the_sum():
    # Predicted IoUs fall where anchor IoUs rise: the sum varies little, the two deviations much.
    anchors = grid_anchors([(1, 4)], scale=1.0, strides=[8])
    box = torch.tensor([[0.0, 0.0, 16.0, 8.0]])  # anchor IoUs 1/2, 1/2, 0, 0
    predicted = torch.tensor([[[0, 0, 2.0, 8], [0, 0, 3.2, 8], [0, 0, 8.0, 8], [0, 0, 8.0, 8]]])  # .125 .2 .5 .5
    anchor_iou = elementwise_iou(anchors, box)
    predicted_iou = elementwise_iou(predicted[0], box)
    total = anchor_iou + predicted_iou
    of_sum = total.mean() + total.std()
    added = predicted_iou.mean() + predicted_iou.std() + anchor_iou.mean() + anchor_iou.std()
    assert of_sum < total.max() < added
    result = ATSSAssigner(4, 1, 1)(anchors, [(1, 4)], [box], predicted)
    assert (result.gt_index == -1).all()


def test_a_conflict_goes_to_the_combined_iou_not_the_anchors():
    anchors = grid_anchors([(1, 1)], scale=1.0, strides=[8])
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 16.0]])  # anchor IoUs 1 and 1/2
    predicted = torch.tensor([[[0.0, 0.0, 8.0, 16.0]]])  # predicted IoUs 1/2 and 1
    favour_prediction = ATSSAssigner(9, 1.0, 0.5)(anchors, [(1, 1)], [boxes], predicted)
    assert favour_prediction.gt_index.tolist() == [[1]]
    assert favour_prediction.predicted_iou.tolist() == [[1.0]]
    favour_anchor = ATSSAssigner(9, 0.5, 1.0)(anchors, [(1, 1)], [boxes], predicted)
    assert favour_anchor.gt_index.tolist() == [[0]]
    tie = ATSSAssigner(9, 1.0, 1.0)(anchors, [(1, 1)], [boxes], predicted)
    assert tie.gt_index.tolist() == [[0]]


def test_the_anchors_centre_must_be_inside_not_the_predictions():
    anchors = grid_anchors([(1, 1)], scale=1.0, strides=[8])  # centre (4, 4)
    box = torch.tensor([[4.005, 0.0, 12.0, 8.0]])
    on_the_box = box[None]
    assert ATSSAssigner()(anchors, [(1, 1)], [box], on_the_box).gt_index.tolist() == [[-1]]
    just_inside = torch.tensor([[3.98, 0.0, 12.0, 8.0]])
    far_away = torch.tensor([[[100.0, 100.0, 108.0, 108.0]]])
    assert ATSSAssigner()(anchors, [(1, 1)], [just_inside], far_away).gt_index.tolist() == [[0]]


def test_candidates_are_chosen_on_each_level_not_over_all():
    box = torch.tensor([60.0, 60.0, 68.0, 68.0])
    chosen = candidates(ANCHORS.tolist(), SHAPES, box.tolist(), 9)
    finest = SHAPES[0][0] * SHAPES[0][1]
    assert sum(a < finest for a in chosen) == 9
    distance = ((ANCHORS[:, :2] + ANCHORS[:, 2:]) / 2 - (box[:2] + box[2:]) / 2).norm(dim=1)
    overall = distance.argsort()[: len(chosen)]
    assert (overall < finest).sum() > 9  # over all levels together the finest would dominate
    generator = torch.Generator().manual_seed(7)
    check(ATSSAssigner(9, 1, 1), 1, 1, [box[None]], predictions_near(ANCHORS, 1, generator))


def test_without_any_predicted_overlap_every_candidate_inside_is_positive():
    result = one_level(boxes=WIDE_BOX, predicted=[[90.0, 90.0, 99.0, 99.0]] * 4, topk=4, wp=1.0, wa=0.0)
    assert result.gt_index.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("side", [30.0, 31.0, 33.3, 47.0])
def test_candidates_of_equal_iou_are_all_positive(side):
    anchors = grid_anchors([(3, 3)], scale=1.0, strides=[8])  # all nine lie in the box
    box = torch.tensor([[12 - side / 2, 12 - side / 2, 12 + side / 2, 12 + side / 2]])
    result = ATSSAssigner(9, 0, 1)(anchors, [(3, 3)], [box])
    assert result.gt_index.tolist() == [[0] * 9]


def test_plain_atss_needs_no_predictions_and_others_do():
    boxes = [torch.tensor([[10.0, 10.0, 60.0, 70.0]])]
    assert (ATSSAssigner(9, 0, 1)(ANCHORS, SHAPES, boxes).gt_index >= 0).any()
    for weight in (1, "up", "down"):
        with pytest.raises(ValueError, match="predicted_boxes"):
            ATSSAssigner(9, weight, 1)(ANCHORS, SHAPES, boxes)


@pytest.mark.parametrize("weights", [(0, 0), (-1, 1), (1, "sideways"), (float("nan"), 1), (1, float("inf")), (True, 1)])
def test_weights_outside_their_domain_are_refused(weights):
    with pytest.raises(ValueError, match="weight"):
        ATSSAssigner(9, *weights)


def test_anchors_must_fill_the_levels():
    with pytest.raises(ValueError, match="don't fill"):
        ATSSAssigner(9, 0, 1)(ANCHORS[:-1], SHAPES, [torch.zeros(0, 4)])


@pytest.mark.parametrize(
    ("gt_boxes", "predicted", "words"),
    [
        ([], None, "gt_boxes is empty"),
        ([torch.zeros(3, 5)], None, r"gt_boxes\[0\] has shape \(3, 5\)"),
        ([torch.zeros(0)], None, r"gt_boxes\[0\] has shape \(0,\)"),
        ([torch.zeros(0, 4)], torch.zeros(2, len(ANCHORS), 4), r"predicted_boxes have shape \(2,"),
        ([torch.zeros(0, 4)], torch.zeros(1, 7, 4), r"predicted_boxes have shape \(1, 7, 4\)"),
    ],
)
def test_shapes_that_do_not_fit_are_said(gt_boxes, predicted, words):
    with pytest.raises(ValueError, match=words):
        ATSSAssigner(predicted_weight=0.0)(ANCHORS, SHAPES, gt_boxes, predicted)


@pytest.mark.parametrize("topk", ["9", 1.5, 0, True])
def test_topk_is_a_whole_number(topk):
    with pytest.raises(ValueError, match=r"topk is .*whole number"):
        ATSSAssigner(topk=topk)
