"""AP by COCO's definition for many resamples of the images at once.

A resample says how often each image counts; nothing is matched again (``detector.matches``). AP of a resample is what
pycocotools gives for the data set in which an image that is drawn three times stands three times, each copy after the
other. Resampling whole images keeps what belongs together: detections of one image are no independent draws (Efron and
Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 8).

B resamples, I images, C categories, D detections, T IoU thresholds; AP in percent, nan where it is undefined.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detector.matches import Matches
from detector.precision import RECALLS

BLOCK = 2_000_000
"""Most weights of detections that are held at a time."""


def resamples(images: int, count: int = 1000, seed: int = 0) -> np.ndarray:
    """(count, images) uint8: how often each image counts, drawn with replacement. The same for every row of a table, so
    that differences are paired by image. Deterministic for a ``seed``."""
    generator = np.random.default_rng(seed)
    weights = np.empty((count, images), dtype=np.uint8)
    for line in weights:
        # An image is drawn once on average; 255 times has no probability worth a wider type.
        line[:] = np.bincount(generator.integers(0, images, images), minlength=images)
    return weights


def average_precision(
    matches: Matches, weights: np.ndarray | None = None, thresholds: Sequence[int] | None = None
) -> np.ndarray:
    """(B,) AP of each resample, in percent; nan where no category has a box.

    ``weights`` is (B, I), whole numbers from 0 to 255: how often each image of ``matches.image_ids`` counts; None is
    every image once. ``thresholds`` picks IoU thresholds by number (``[0]`` for AP50, ``[5]`` for AP75); None takes
    all. Raises ValueError where the weights are not such numbers or not of these images.
    """
    per_class = average_precision_per_class(matches, weights, thresholds)
    defined = ~np.isnan(per_class)
    count = defined.sum(1)
    # A category without boxes in a resample is left out of its mean, as COCO leaves it out.
    total = np.where(defined, per_class, 0.0).sum(1)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def average_precision_per_class(
    matches: Matches, weights: np.ndarray | None = None, thresholds: Sequence[int] | None = None
) -> np.ndarray:
    """(B, C) AP of each category; otherwise as ``average_precision``."""
    images = len(matches.image_ids)
    given = np.ones((1, images)) if weights is None else np.asarray(weights)
    if given.ndim != 2 or given.shape[1] != images:
        raise ValueError(f"weights have shape {given.shape}; expected (resamples, {images}), one a resample and image")
    counts = given.astype(np.uint8)
    if not np.array_equal(counts, given):
        raise ValueError("weights must be whole numbers from 0 to 255: how often each image counts")
    used = list(range(len(matches.matched))) if thresholds is None else list(thresholds)
    boxes = counts.astype(np.float64) @ matches.boxes  # (B, C); exact, whole numbers far below 2**53
    result = np.full((len(counts), len(matches.category_ids)), np.nan)
    starts = np.searchsorted(matches.category, np.arange(len(matches.category_ids) + 1))
    for category, (start, stop) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
        entries = _Entries(matches, start, stop, int(counts.max(initial=1)))
        lines = np.flatnonzero(boxes[:, category])
        step = max(1, BLOCK // max(1, len(entries.image)))
        for begin in range(0, len(lines), step):
            block = lines[begin : begin + step]
            weight = entries.weights(counts[block])
            positives = boxes[block, category]
            seen = np.cumsum(weight, axis=1, dtype=np.int32)
            sums = np.zeros(len(block))
            for threshold in used:
                sums += _precision_sum(entries, weight, seen, positives, threshold)
            result[block, category] = 100 * sums / (len(used) * len(RECALLS))
    return result


class _Entries:
    """The detections of one category in the order in which they are accumulated.

    The copies of a drawn image follow each other. So a detection with a score of its own counts as often as its image,
    at one place. Detections of one image with equal scores don't: the first copy's all come before the second copy's,
    so they have a place for each copy.
    """

    def __init__(self, matches: Matches, start: int, stop: int, most: int) -> None:
        image, score = matches.image[start:stop], matches.score[start:stop]
        equal = (image[1:] == image[:-1]) & (score[1:] == score[:-1])
        tied = np.r_[False, equal] | np.r_[equal, False] if stop > start else np.zeros(0, dtype=bool)
        if most > 1 and tied.any():
            group = np.cumsum(~np.r_[False, equal])
            place = np.repeat(np.arange(stop - start), np.where(tied, most, 1))
            # 0: as often as the image counts; c: once, if the image counts at least c times.
            first = np.searchsorted(place, place)
            copy = np.where(tied[place], np.arange(len(place)) - first + 1, 0)
            order = np.lexsort((place, copy, group[place]))
            place, copy = place[order], copy[order]
        else:
            place, copy = np.arange(stop - start), np.zeros(stop - start, dtype=int)
        self.image = image[place]
        self.copy = copy
        ignored = matches.ignored[:, start:stop][:, place]
        self.found = matches.matched[:, start:stop][:, place] & ~ignored
        self.ignored = ignored

    def weights(self, counts: np.ndarray) -> np.ndarray:
        """(B, entries) how often each entry counts, from (B, I)."""
        weight = counts[:, self.image]
        split = np.flatnonzero(self.copy)
        if split.size:
            weight[:, split] = weight[:, split] >= self.copy[split]
        return weight


def _precision_sum(
    entries: _Entries, weight: np.ndarray, seen: np.ndarray, positives: np.ndarray, threshold: int
) -> np.ndarray:
    """(B,) the sum over the 101 recalls of the highest precision at that recall or a higher one.

    ``weight`` and its running sum ``seen`` are (B, entries), ``positives`` is (B,).
    """
    places, passed = np.flatnonzero(entries.found[threshold]), np.flatnonzero(entries.ignored[threshold])
    if not places.size:
        return np.zeros(len(weight))
    # Only where something is found can a recall be reached, and only there is a precision highest.
    true = np.cumsum(weight[:, places], axis=1, dtype=np.int32)
    counted = seen[:, places]
    if passed.size:
        skipped = np.cumsum(weight[:, passed], axis=1, dtype=np.int32)
        before = np.searchsorted(passed, places)
        counted -= np.where(before > 0, skipped[:, before - 1], 0)
    # An image that isn't drawn leaves a place with nothing new, whose precision is no higher than the place before.
    precision = true / np.maximum(counted, 1)
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # The same quotient and the same comparison as pycocotools', so that a recall is reached by the same detection.
    reached = np.searchsorted(RECALLS, true / positives[:, None], side="right")
    steps = np.diff(reached, axis=1, prepend=0)
    return (highest * steps).sum(1)
