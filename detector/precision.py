"""COCO's tables of precision and recall, and its twelve figures, from a matching. Equal to pycocotools' to the bit.

Precision is read off at 101 recalls, each time the highest at that recall or a higher one. Both change upwards only
where a detection finds a box, so only those places are looked at. Source: ``COCOeval.accumulate`` and ``summarize``.

C categories, D detections, K of them near a box, T = 10 IoU thresholds, R = 101 recalls, S ranges of sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detector.data.instances import Instances
from detector.matching import (
    ALL,
    AT_50,
    AT_75,
    LARGE,
    MEDIUM,
    MOST_DETECTIONS,
    SMALL,
    THRESHOLDS,
    Matching,
    match_boxes,
)
from detector.results import Results

RECALLS = np.linspace(0.0, 1.0, 101)
SIZES = (ALL, SMALL, MEDIUM, LARGE)
COUNTS = (1, 10, MOST_DETECTIONS)
"""Most detections an image and category."""


@dataclass(frozen=True, eq=False)
class Tables:
    """Precision and recall by category; -1 where the category has no box of that size."""

    precision: np.ndarray
    """(T, R, C, S) with at most 100 detections an image and category."""
    recall: np.ndarray
    """(T, C, S, 3) with at most 1, 10 and 100 detections an image and category."""

    def figures(self) -> np.ndarray:
        """(12,): AP, AP50, AP75, APs, APm, APl, then AR with 1, 10 and 100 detections, ARs, ARm, ARl; 0 to 1, and -1
        where it is undefined."""
        precision = self.precision
        chosen = [precision[..., 0], precision[AT_50, ..., 0], precision[AT_75, ..., 0]]
        chosen += [precision[..., size] for size in (1, 2, 3)]
        chosen += [self.recall[:, :, 0, count] for count in range(3)]
        chosen += [self.recall[:, :, size, 2] for size in (1, 2, 3)]
        return np.array([mean_defined(values) for values in chosen])


def mean_defined(values: np.ndarray) -> float:
    """The mean of what isn't -1, or -1."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def tables(truth: Instances, found: Results) -> Tables:
    """Compares ``found`` with ``truth`` by COCO's definition."""
    matching = match_boxes(truth, found, SIZES)
    categories = len(truth.category_ids)
    boxes = np.stack([np.bincount(truth.category[counted], minlength=categories) for counted in matching.counted])
    hits = matching.matched & ~matching.ignored
    return Tables(_precision(matching, hits, boxes), _recall(matching, hits, boxes))


def _recall(matching: Matching, hits: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    categories = boxes.shape[1]
    result = np.full((len(THRESHOLDS), categories, len(SIZES), len(COUNTS)), -1.0)
    size, threshold, place = np.nonzero(hits)
    near = matching.near[place]
    cell = (threshold * categories + matching.category[near]) * len(SIZES) + size
    for number, most in enumerate(COUNTS):
        found = np.bincount(cell[matching.rank[near] < most], minlength=result[..., 0].size)
        share = found.reshape(result.shape[:-1]) / np.maximum(boxes.T, 1)
        result[..., number] = np.where(boxes.T > 0, share, -1.0)
    return result


def _precision(matching: Matching, hits: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    categories = boxes.shape[1]
    result = np.where(boxes > 0, 0.0, -1.0)[:, None, :, None]  # (S, 1, C, 1)
    result = np.repeat(np.repeat(result, len(THRESHOLDS), 1), len(RECALLS), 3)
    starts = np.searchsorted(matching.category, np.arange(categories + 1))
    near_category = matching.category[matching.near]
    for size in range(len(SIZES)):
        # Detections that count, up to each; those near a box count by what they found, the others by their size.
        counts = ~matching.outside[size]
        counts[matching.near] = False
        others = np.r_[0, np.cumsum(counts)]
        before = others[starts]
        needed = {category: _needed(int(boxes[size, category])) for category in np.flatnonzero(boxes[size]).tolist()}
        for threshold in range(len(THRESHOLDS)):
            places = np.flatnonzero(hits[size, threshold])
            category = near_category[places]
            nearby = np.r_[0, np.cumsum(~matching.ignored[size, threshold])]
            first = np.searchsorted(near_category, category)
            seen = nearby[places + 1] - nearby[first] + others[matching.near[places]] - before[category]
            borders = np.searchsorted(category, np.arange(categories + 1))
            true = np.arange(1, len(places) + 1) - borders[category]
            false = seen - true
            precision = true / (false + true + np.spacing(1))
            for number, wanted in needed.items():
                start, stop = borders[number], borders[number + 1]
                if start < stop:
                    highest = np.maximum.accumulate(precision[start:stop][::-1])[::-1]
                    reached = np.searchsorted(wanted, stop - start)
                    result[size, threshold, number, :reached] = highest[wanted[:reached]]
    return result.transpose(1, 3, 2, 0)


def _needed(boxes: int) -> np.ndarray:
    """(R,) ascending: which box found, from 0, brings each recall, where there are so many."""
    return np.searchsorted(np.arange(1, boxes + 1) / boxes, RECALLS)
