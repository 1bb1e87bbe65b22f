"""Eq. (1)-(4) written as plain loops in Python floats: slow, and easy to check against the paper."""

from __future__ import annotations

import math


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def center(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def deviation(values):
    if len(values) == 1:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def candidates(anchors, level_shapes, box, topk):
    chosen, start = [], 0
    x, y = center(box)
    for height, width in level_shapes:
        level = range(start, start + height * width)
        distance = {a: (center(anchors[a])[0] - x) ** 2 + (center(anchors[a])[1] - y) ** 2 for a in level}
        chosen += sorted(level, key=lambda a: (distance[a], a))[:topk]
        start += height * width
    return chosen


def assign(anchors, level_shapes, boxes, predicted, wp, wa, topk):
    """One image. Returns the box index (or -1) and the predicted IoU of every anchor."""
    best = {}
    for g, box in enumerate(boxes):
        chosen = candidates(anchors, level_shapes, box, topk)
        p = [iou(predicted[a], box) for a in chosen]
        q = [iou(anchors[a], box) for a in chosen]
        mean_p, mean_q = math.fsum(p) / len(p), math.fsum(q) / len(q)
        threshold = wp * (mean_p + deviation(p)) + wa * (mean_q + deviation(q))
        for a, p_a, q_a in zip(chosen, p, q, strict=True):
            x, y = center(anchors[a])
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            score = wp * p_a + wa * q_a
            if inside and score >= threshold and (a not in best or score > best[a][0]):
                best[a] = (score, g, p_a)
    index = [best[a][1] if a in best else -1 for a in range(len(anchors))]
    return index, [best[a][2] if a in best else 0.0 for a in range(len(anchors))]
