"""Boxes and anchors by hand, and against torchvision."""

from __future__ import annotations

import math

import torch
from torchvision.ops import box_iou

from detector.anchors import grid_anchors, level_shapes
from detector.boxes import clip, decode, elementwise_iou, encode


def test_decoding_by_hand():
    anchor = torch.tensor([[10.0, 20.0, 74.0, 84.0]])  # centre (42, 52), side 64
    deltas = torch.tensor([[1.0, -2.0, 5 * math.log(2.0), 0.0]])
    # Centre moves by 0.1 and -0.2 sides; the width doubles.
    expected = torch.tensor([[42 + 6.4 - 64, 52 - 12.8 - 32, 42 + 6.4 + 64, 52 - 12.8 + 32]])
    assert torch.allclose(decode(deltas, anchor), expected)
    huge = decode(torch.tensor([[0.0, 0.0, 1e4, 0.0]]), anchor)
    assert torch.allclose(huge[0, 2] - huge[0, 0], torch.tensor(64 * 1000 / 16))


def test_decoding_undoes_encoding():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(30, 2, generator=generator) * 200
    boxes = torch.cat((corner, corner + 3 + torch.rand(30, 2, generator=generator) * 150), 1)
    anchors = grid_anchors([(5, 6)], strides=[16])
    assert torch.allclose(decode(encode(boxes, anchors), anchors), boxes, atol=1e-3)


def test_iou_equals_torchvisions_and_is_zero_without_a_union():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(2, 40, 2, generator=generator) * 50
    boxes = torch.cat((corner, corner + torch.rand(2, 40, 2, generator=generator) * 60), -1)
    assert torch.allclose(elementwise_iou(boxes[0], boxes[1]), box_iou(boxes[0], boxes[1]).diagonal(), atol=1e-6)
    point = torch.tensor([1.0, 1.0, 1.0, 1.0])
    assert elementwise_iou(point, point).item() == 0


def test_clipping_cuts_x_at_the_width_and_y_at_the_height():
    boxes = torch.tensor([[[-5.0, -5.0, 500.0, 500.0], [1.0, 2.0, 3.0, 4.0]]])
    cut = clip(boxes, torch.tensor([[100, 200]])[:, None])
    assert cut.tolist() == [[[0.0, 0.0, 200.0, 100.0], [1.0, 2.0, 3.0, 4.0]]]


def test_anchors_go_row_by_row_from_fine_to_coarse():
    anchors = grid_anchors([(2, 3), (1, 2)], strides=[8, 16])
    assert anchors.shape == (8, 4)
    assert anchors[0].tolist() == [4 - 32, 4 - 32, 4 + 32, 4 + 32]
    assert anchors[1].tolist() == [12 - 32, 4 - 32, 12 + 32, 4 + 32]  # the next column, not the next row
    assert anchors[3].tolist() == [4 - 32, 12 - 32, 4 + 32, 12 + 32]
    assert anchors[6].tolist() == [8 - 64, 8 - 64, 8 + 64, 8 + 64]
    assert grid_anchors([(1, 2)], strides=[8], center_offset=0.0)[1].tolist() == [8 - 32, -32, 8 + 32, 32]


def test_level_shapes_round_up_after_p5():
    assert level_shapes(800, 1344) == [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
