"""Image plans and what they do to pixels and boxes: hand-worked numbers, and rectangles found again in the pixels."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from detector.config import AugmentationConfig, DataConfig
from detector.data.images import decode_image
from detector.data.plans import Colour, ImagePlan, padded_size, plan_image, resized_size
from detector.data.transforms import apply, move_boxes, prepare

NO_LABELS = np.zeros(0, np.int64)
NO_BOXES = np.zeros((0, 4), np.float32)


def config(short_side=64, long_side=96, **augmentation) -> DataConfig:
    return DataConfig(
        short_side=short_side, long_side=long_side, augmentation=AugmentationConfig(**{"flip": 0.0, **augmentation})
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1066)),  # 640 / 480 * 800 = 1066.67
        ((640, 480), (1066, 800)),
        ((500, 1000), (666, 1333)),  # the long side would be 1600
        ((500, 500), (800, 800)),
        ((10, 4000), (3, 1333)),
        ((1, 4000), (1, 1333)),
    ],
)
def test_the_short_side_is_brought_to_800_unless_the_long_one_would_pass_1333(size, expected):
    assert resized_size(size, 800, 1333) == expected


def test_padding_reaches_the_next_multiple_of_32_over_all_images():
    assert padded_size([(800, 1066), (666, 1333)]) == (800, 1344)
    assert padded_size([(1, 1)]) == (32, 32)
    assert padded_size([(32, 64)]) == (32, 64)


def test_evaluation_only_resizes_to_the_upper_end_of_the_range():
    data = config((480, 800), 1333, flip=1.0, scale_jitter=(0.5, 2.0), crop=1.0, colour=1.0)
    plan = plan_image(data, (480, 640), seed=1, step=2, index=3, training=False)
    assert plan == ImagePlan((480, 640), (0, 0, 480, 640), (800, 1066))


def test_a_plan_depends_on_seed_step_and_image_and_on_nothing_else():
    data = config((64, 640), 1333, flip=0.5, scale_jitter=(0.5, 2.0), crop=0.5, colour=0.5)

    def plan(seed=1, step=2, index=3):
        return plan_image(data, (480, 640), seed=seed, step=step, index=index, training=True)

    assert plan() == plan()
    assert len({plan().window + plan().output_size, plan(seed=2).window + plan(seed=2).output_size}) == 2
    assert plan() != plan(step=3)
    assert plan() != plan(index=4)


def test_switching_one_augmentation_on_leaves_the_draws_of_the_others():
    for index in range(20):
        plain = plan_image(config((64, 96), 400, flip=0.5), (48, 64), seed=0, step=0, index=index, training=True)
        coloured = plan_image(
            config((64, 96), 400, flip=0.5, colour=0.5), (48, 64), seed=0, step=0, index=index, training=True
        )
        assert (plain.output_size, plain.flip) == (coloured.output_size, coloured.flip)


def test_multi_scale_draws_every_short_side_of_the_range():
    data = config((640, 643), 5000)
    drawn = [
        min(plan_image(data, (100, 120), seed=0, step=0, index=index, training=True).output_size)
        for index in range(400)
    ]
    assert sorted(set(drawn)) == [640, 641, 642, 643]
    assert min(drawn.count(side) for side in set(drawn)) > 60


def test_flips_come_as_often_as_they_should():
    flips = [
        plan_image(config(flip=0.5), (48, 64), seed=0, step=step, index=1, training=True).flip for step in range(400)
    ]
    assert 150 < sum(flips) < 250


def test_scale_jitter_is_log_uniform_about_the_resized_image():
    data = config(64, 1000, scale_jitter=(0.5, 2.0))
    sides = [
        min(plan_image(data, (64, 64), seed=0, step=step, index=1, training=True).output_size) for step in range(400)
    ]
    assert 32 <= min(sides) < 34
    assert 124 < max(sides) <= 128
    assert abs(np.mean(np.log(np.array(sides) / 64))) < 0.05  # as often larger as smaller
    assert abs(np.std(np.log(np.array(sides) / 64)) - 2 * math.log(2) / math.sqrt(12)) < 0.03


def test_what_would_grow_beyond_the_long_side_is_cut_by_a_window():
    data = config(64, 96, scale_jitter=(1.99, 2.0))
    for step in range(50):
        plan = plan_image(data, (64, 96), seed=0, step=step, index=1, training=True)
        assert max(plan.output_size) <= 96
        assert plan.output_size[0] in (95, 96)
        top, left, height, width = plan.window
        assert height in (47, 48)  # 96 px at a scale of about 2
        assert 0 <= top <= 64 - height
        assert 0 <= left <= 96 - width
    assert len({plan_image(data, (64, 96), seed=0, step=s, index=1, training=True).window for s in range(9)}) > 4


def test_a_crop_keeps_between_60_and_100_percent_at_an_unchanged_scale():
    data = config(200, 400, crop=1.0)
    plans = [plan_image(data, (100, 150), seed=0, step=step, index=1, training=True) for step in range(200)]
    heights = [plan.window[2] for plan in plans]
    assert 60 <= min(heights) < 64
    assert 96 < max(heights) <= 100
    for plan in plans:
        assert plan.output_size == (2 * plan.window[2], 2 * plan.window[3])


def test_boxes_follow_the_true_ratio_of_each_axis():
    # 3 rows become 5 and 7 columns become 4, whatever ratio was asked for.
    plan = ImagePlan((3, 7), (0, 0, 3, 7), (5, 4))
    moved, kept = move_boxes(plan, np.array([[0, 0, 7, 3], [1, 1, 3.5, 1.5]], np.float32))
    assert kept.tolist() == [True, True]
    np.testing.assert_allclose(moved, [[0, 0, 4, 5], [4 / 7, 5 / 3, 2, 2.5]], rtol=1e-6)


def test_a_flip_mirrors_about_the_width_of_the_output():
    plan = ImagePlan((10, 20), (0, 0, 10, 20), (20, 40), flip=True)
    moved, _ = move_boxes(plan, np.array([[1, 2, 5, 8]], np.float32))
    assert moved.tolist() == [[30, 4, 38, 16]]  # 40 - 2 * 5, …, 40 - 2 * 1


def test_a_crop_drops_boxes_whose_centre_leaves_and_clips_the_others():
    plan = ImagePlan((100, 100), (20, 10, 50, 60), (100, 120))  # rows 20 to 70, columns 10 to 70, then doubled
    boxes = np.array(
        [
            [20, 30, 40, 60],  # inside
            [0, 10, 30, 60],  # centre (15, 35) inside: clipped
            [0, 30, 18, 60],  # centre x 9: dropped
            [30, 60, 50, 90],  # centre y 75: dropped
            [60, 30, 80, 60],  # centre x 70, on the border: dropped
        ],
        np.float32,
    )
    moved, kept = move_boxes(plan, boxes)
    assert kept.tolist() == [True, True, False, False, False]
    assert moved.tolist() == [[20, 20, 60, 80], [0, 0, 40, 80]]


def test_labels_stay_with_their_boxes():
    plan = ImagePlan((100, 100), (0, 0, 50, 100), (50, 100), flip=True)
    boxes = np.array([[0, 60, 10, 90], [0, 10, 10, 40], [90, 10, 100, 20]], np.float32)
    _, moved, labels = apply(plan, np.zeros((100, 100, 3), np.uint8), boxes, np.array([4, 5, 6]))
    assert labels.tolist() == [5, 6]
    assert labels.dtype == torch.int64
    assert moved.tolist() == [[90, 10, 100, 40], [0, 10, 10, 20]]


def extent(pixels: torch.Tensor) -> list[float]:
    """xyxy of the region where red exceeds half, in (3, H, W) uint8."""
    rows, columns = torch.nonzero(pixels[0] > 127, as_tuple=True)
    return [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]


@pytest.mark.parametrize("step", range(12))
def test_a_red_rectangle_is_found_where_its_box_says(step):
    data = config((90, 140), 170, flip=0.5, scale_jitter=(0.7, 1.5), crop=0.7)
    image = np.zeros((117, 151, 3), np.uint8)
    box = np.array([[50, 40, 97, 75]], np.float32)
    image[40:75, 50:97, 0] = 255
    plan = plan_image(data, image.shape[:2], seed=7, step=step, index=0, training=True)
    pixels, moved, labels = apply(plan, image, box, np.array([2]))
    assert tuple(pixels.shape[1:]) == plan.output_size
    assert pixels.dtype == torch.uint8
    assert labels.tolist() == [2]
    np.testing.assert_allclose(extent(pixels), moved[0], atol=1.0)


def test_the_checks_above_cover_flips_cuts_and_zooms():
    data = config((90, 140), 170, flip=0.5, scale_jitter=(0.7, 1.5), crop=0.7)
    plans = [plan_image(data, (117, 151), seed=7, step=step, index=0, training=True) for step in range(12)]
    assert {plan.flip for plan in plans} == {True, False}
    assert {plan.cuts for plan in plans} == {True, False}
    assert min(plan.scale[0] for plan in plans) < 0.95 < 1.2 < max(plan.scale[0] for plan in plans)


def test_colour_changes_pixels_by_its_factors_and_leaves_boxes():
    plan = ImagePlan((4, 4), (0, 0, 4, 4), (4, 4), colour=Colour(1.5, 1.0, 1.0, 0.0))
    image = np.full((4, 4, 3), 100, np.uint8)
    pixels, moved, _ = apply(plan, image, np.array([[0, 0, 2, 2]], np.float32), np.array([0]))
    assert torch.unique(pixels).tolist() == [150]
    assert moved.tolist() == [[0, 0, 2, 2]]


def test_colour_strength_bounds_the_factors():
    for step in range(100):
        colour = plan_image(config(colour=0.3), (48, 64), seed=0, step=step, index=0, training=True).colour
        assert all(0.7 <= factor <= 1.3 for factor in colour[:3])
        assert abs(colour.hue) <= 0.03


def test_the_image_itself_is_never_changed():
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    before = image.copy()
    plan = ImagePlan((48, 64), (0, 0, 48, 64), (48, 64), flip=True, colour=Colour(0.5, 0.5, 0.5, 0.1))
    apply(plan, image, NO_BOXES, NO_LABELS)
    assert np.array_equal(image, before)


def test_prepare_gives_the_pixels_of_evaluation_and_the_true_ratios():
    image = np.random.default_rng(0).integers(0, 256, (47, 64, 3), np.uint8)
    pixels, scale = prepare(image, config((50, 64), 80))
    assert tuple(pixels.shape) == (3, 58, 80)  # int(80 * 47 / 64)
    assert scale == (58 / 47, 80 / 64)
    plan = plan_image(config((50, 64), 80), (47, 64), seed=9, step=9, index=9, training=False)
    assert torch.equal(pixels, apply(plan, image, NO_BOXES, NO_LABELS)[0])


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [((480, 640), 800, 1), ((480, 640), 240, 2), ((479, 640), 240, 1), ((3000, 4000), 800, 2), ((3000, 4000), 300, 8)],
)
def test_an_image_is_never_decoded_smaller_than_it_becomes(size, short_side, expected):
    data = config(short_side, 1333).model_copy(update={"scaled_decoding": True})
    plan = plan_image(data, size, seed=0, step=0, index=0, training=True)
    assert plan.reduction == expected
    enough = all(-(-side // plan.reduction) >= new for side, new in zip(size, plan.output_size, strict=True))
    assert enough or plan.reduction == 1
    whole = plan_image(config(short_side, 1333), size, seed=0, step=0, index=0, training=True)
    assert (whole.reduction, whole.output_size, whole.flip) == (1, plan.output_size, plan.flip)
    assert plan_image(data, size, seed=0, step=0, index=0, training=False).reduction == 1


def test_an_image_that_is_cut_is_decoded_whole():
    data = config(60, 300, crop=1.0).model_copy(update={"scaled_decoding": True})
    assert plan_image(data, (480, 640), seed=0, step=0, index=0, training=True).reduction == 1


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("size", [(468, 604), (467, 603)])
def test_a_red_rectangle_decoded_small_is_found_where_its_box_says(size, flip):
    data = config(100, 200, flip=flip).model_copy(update={"scaled_decoding": True})
    image = np.zeros((*size, 3), np.uint8)
    box = np.array([[380, 160, 596, 460]], np.float32)
    image[160:460, 380:596, 0] = 255
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=95, subsampling=0)
    plan = plan_image(data, size, seed=7, step=1, index=0, training=True)
    assert plan.reduction == 4
    decoded = decode_image(stream.getvalue(), size=size, reduction=4)
    pixels, moved, _ = apply(plan, decoded, box, np.array([2]))
    assert tuple(pixels.shape[1:]) == plan.output_size
    np.testing.assert_allclose(extent(pixels), moved[0], atol=0.6)
