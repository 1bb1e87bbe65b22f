"""COCO's matching of detections with annotated boxes, over arrays; equal to pycocotools' choice by choice.

Within one image and category, from the highest score down, a detection takes the free box with the highest IoU, if that
reaches the threshold; of equals the last. Boxes that don't count, crowds and those of another size, are taken only
where no other is to be had, and crowds any number of times. Source: ``COCOeval.evaluateImg`` of pycocotools 2.0.

Images and categories don't touch each other, and a detection matters to the others only if it reaches the lowest
threshold with some box. So the loop is over the first such detections of all images and categories at once, then the
second ones, and so on, at most as often as there are detections an image and category.

I images, C categories, M boxes, D detections, K of them near a box, T = 10 IoU thresholds, S ranges of sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detector.data.instances import Instances, places
from detector.results import Results

THRESHOLDS = np.linspace(0.5, 0.95, 10)
AT_50, AT_75 = 0, 5
"""Places of 0.5 and 0.75 in it."""
ALL = (0.0, 1e5**2)
"""Areas of COCO's figures in pixels, both ends included: boxes of all sizes."""
SMALL, MEDIUM, LARGE = (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e5**2)
MOST_DETECTIONS = 100
"""An image and category; those with lower scores are left out."""
_PAIRS = 2_000_000
"""Most IoUs that are held at a time."""


@dataclass(frozen=True, eq=False)
class Matching:
    """Which detections found a box, in the order in which COCO accumulates them: by category, then from the highest
    score down, equal scores by image and then as they were found."""

    image: np.ndarray
    """(D,) int64: place in ``Instances.image_ids``."""
    category: np.ndarray
    """(D,) int64: place in ``Instances.category_ids``."""
    score: np.ndarray
    """(D,) float64."""
    rank: np.ndarray
    """(D,) int64: place by score among the detections of its image and category, from 0."""
    outside: np.ndarray
    """(S, D) bool: its area is not in the range."""
    near: np.ndarray
    """(K,) int64, ascending: the detections that reach the lowest threshold with a box. No other finds any."""
    matched: np.ndarray
    """(S, T, K) bool: found a box."""
    ignored: np.ndarray
    """(S, T, K) bool: counts neither way, since the box that it found doesn't count, or it found none and is of
    another size."""
    counted: np.ndarray
    """(S, M) bool: boxes that are to be found."""

    def dense(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """``matched`` and ``ignored`` for all D detections, (T, D) each, in one of the S ranges."""
        matched = np.zeros((len(THRESHOLDS), len(self.score)), dtype=bool)
        ignored = np.repeat(self.outside[size][None], len(THRESHOLDS), axis=0)
        matched[:, self.near], ignored[:, self.near] = self.matched[size], self.ignored[size]
        return matched, ignored


def match_boxes(truth: Instances, found: Results, sizes: Sequence[tuple[float, float]] = (ALL,)) -> Matching:
    """Matches ``found`` with ``truth`` in each range of areas of ``sizes`` by itself.

    Detections on images or of categories that ``truth`` doesn't list are left out.
    """
    image, listed = places(found.image_ids, truth.image_ids)
    category, known = places(found.category_ids, truth.category_ids)
    kept = np.flatnonzero(listed & known)
    order = kept[np.lexsort((image[kept], -found.scores[kept], category[kept]))]
    image, category = image[order], category[order]
    group = category * len(truth.image_ids) + image
    by_group = np.argsort(group, kind="stable")
    rank = np.empty(len(group), dtype=np.int64)
    rank[by_group] = _places_in_runs(group[by_group])
    kept = np.flatnonzero(rank < MOST_DETECTIONS)
    order, group = order[kept], group[kept]
    boxes = found.boxes[order].astype(np.float64)
    areas = boxes[:, 2] * boxes[:, 3]
    outside = np.stack([(areas < low) | (areas > high) for low, high in sizes])
    counted = np.stack([~(truth.crowd | (truth.areas < low) | (truth.areas > high)) for low, high in sizes])
    pairs = _near_pairs(boxes, group, rank[kept], truth)
    near, matched, ignored = _assign(pairs, truth, counted, outside)
    return Matching(
        image=image[kept],
        category=category[kept],
        score=found.scores[order].astype(np.float64),
        rank=rank[kept],
        outside=outside,
        near=near,
        matched=matched,
        ignored=ignored,
        counted=counted,
    )


@dataclass(frozen=True, eq=False)
class _Pairs:
    """P pairs of a detection and a box of its image and category whose IoU reaches the lowest threshold.

    By turn, then by detection; the pairs of one detection from the one it would take last to the one it would take
    first.
    """

    detection: np.ndarray
    """(P,)."""
    box: np.ndarray
    """(P,)."""
    iou: np.ndarray
    """(P,); of a crowd the share of the detection that lies in it."""
    turn: np.ndarray
    """(P,): how many detections of its image and category are before it, of those that have pairs."""


def _near_pairs(boxes: np.ndarray, group: np.ndarray, rank: np.ndarray, truth: Instances) -> _Pairs:
    truth_group = truth.category * len(truth.image_ids) + truth.image
    truth_order = np.argsort(truth_group, kind="stable")
    sorted_groups = truth_group[truth_order]
    first = np.searchsorted(sorted_groups, group)
    count = np.searchsorted(sorted_groups, group, side="right") - first
    some = np.flatnonzero(count)
    # Blocks of detections with about as many pairs each, so that memory is bounded.
    ends = np.cumsum(count[some])
    borders = np.searchsorted(ends, np.arange(_PAIRS, ends[-1] if len(ends) else 0, _PAIRS))
    parts = []
    for chosen in np.split(some, borders):
        detection = np.repeat(chosen, count[chosen])
        box = truth_order[np.repeat(first[chosen], count[chosen]) + _places_in_runs(detection)]
        iou = _ious(boxes[detection], truth.boxes[box], truth.crowd[box])
        reached = iou >= THRESHOLDS[0]
        parts.append((detection[reached], box[reached], iou[reached]))
    detection, box, iou = (np.concatenate(column) for column in zip(*parts, strict=True))
    # Whose turn it is: the detections that have pairs, by image and category, from the highest score down.
    near = np.unique(detection)
    by_group = near[np.lexsort((rank[near], group[near]))]
    turn = np.empty(len(group), dtype=np.int64)
    turn[by_group] = _places_in_runs(group[by_group])
    # Stable: of equal IoUs the last box stays last.
    order = np.lexsort((iou, detection, turn[detection]))
    return _Pairs(detection[order], box[order], iou[order], turn[detection[order]])


def _assign(
    pairs: _Pairs, truth: Instances, counted: np.ndarray, outside: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``near``, ``matched`` and ``ignored`` of a Matching."""
    near = np.unique(pairs.detection)
    line = np.searchsorted(near, pairs.detection)
    ranges, thresholds = len(counted), len(THRESHOLDS)
    chosen = np.full((len(near), ranges, thresholds), -1, dtype=np.int64)
    taken = np.zeros((len(truth), ranges, thresholds), dtype=bool)
    counts = counted.T[..., None]  # (M, S, 1)
    ends = np.searchsorted(pairs.turn, np.arange(pairs.turn.max(initial=-1) + 2))
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        box, size = pairs.box[start:end], end - start
        free = ~taken[box]
        free |= truth.crowd[box][:, None, None]
        free &= (pairs.iou[start:end, None] >= np.minimum(THRESHOLDS, 1 - 1e-10))[:, None]
        # The last that is free, those that count after those that don't.
        wish = np.arange(size)[:, None, None] + size * counts[box]
        lines = line[start:end]
        firsts = np.flatnonzero(np.r_[True, lines[1:] != lines[:-1]])
        best = np.maximum.reduceat(np.where(free, wish, -1), firsts, axis=0)
        took = best >= 0
        best = np.where(took, box[best % size], -1)
        chosen[lines[firsts]] = best
        _, sizes, levels = np.nonzero(took)
        taken[best[took], sizes, levels] = True
    hit = chosen >= 0
    skipped = hit & ~counted[np.arange(ranges)[:, None], chosen]
    # pycocotools writes down the box's id, and takes a 0 for none.
    hit &= truth.ids[chosen] != 0
    ignored = skipped | (~hit & outside[:, near].T[..., None])
    return near, hit.transpose(1, 2, 0), ignored.transpose(1, 2, 0)


def _ious(first: np.ndarray, second: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(P,) IoU of boxes (P, 4) xywh, in the steps of pycocotools' C code; with a crowd the first box's share in it."""
    width = np.fmin(first[:, 2] + first[:, 0], second[:, 2] + second[:, 0]) - np.fmax(first[:, 0], second[:, 0])
    height = np.fmin(first[:, 3] + first[:, 1], second[:, 3] + second[:, 1]) - np.fmax(first[:, 1], second[:, 1])
    common = width * height
    area = first[:, 2] * first[:, 3]
    whole = np.where(crowd, area, area + second[:, 2] * second[:, 3] - common)
    meet = (width > 0) & (height > 0)
    return np.divide(common, whole, out=np.zeros(len(common)), where=meet)


def _places_in_runs(values: np.ndarray) -> np.ndarray:
    """(n,) int64: how many before it are in the same run of equal values."""
    numbers = np.arange(len(values))
    starts = np.where(np.r_[True, values[1:] != values[:-1]][: len(values)], numbers, 0)
    return numbers - np.maximum.accumulate(starts)
