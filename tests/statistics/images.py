"""Simulated evaluations: the share in which the intervals from resampled images contain the true difference."""

from __future__ import annotations

import math

import numpy as np

from detector.bootstrap import average_precision, resamples
from detector.matches import Matches
from orchestrator.statistics.images import image_intervals

CLASSES = 4
THRESHOLDS = np.linspace(0.5, 0.95, 10)


def evaluation(quality: float, difficulty: np.ndarray, boxes: np.ndarray, generator: np.random.Generator) -> Matches:
    """What a detector of a ``quality`` finds in images of a ``difficulty`` (I,) that have ``boxes`` (I, C).

    Harder images have worse boxes and lower scores, and every image has three false detections a class.
    """
    images = len(difficulty)
    place, kind = np.nonzero(boxes)
    place, kind = np.repeat(place, boxes[place, kind]), np.repeat(kind, boxes[place, kind])
    fit = quality - difficulty[place] + generator.normal(0, 0.5, len(place))
    overlap = 1 / (1 + np.exp(-fit))
    wrong = 3 * CLASSES * images
    image = np.r_[place, np.repeat(np.arange(images), 3 * CLASSES)]
    category = np.r_[kind, np.tile(np.arange(CLASSES), 3 * images)]
    score = np.r_[fit + generator.normal(0, 0.5, len(place)), generator.normal(-0.5, 1, wrong)]
    matched = np.r_[overlap, np.zeros(wrong)] >= THRESHOLDS[:, None]
    order = np.lexsort((image, -score, category))
    return Matches(
        image_ids=np.arange(images),
        category_ids=np.arange(CLASSES),
        image=image[order].astype(np.int32),
        category=category[order].astype(np.int32),
        score=score[order],
        matched=matched[:, order],
        ignored=np.zeros_like(matched),
        boxes=boxes,
    )


def image_coverage(seeds: int, count: int, *, images: int = 150, draws: int = 200, seed: int = 0) -> dict[str, float]:
    """Coverage of the interval for images like these (of given trainings), and for images and seeds like these."""
    generator = np.random.default_rng(seed)
    qualities = np.array([1.0, 1.1])
    weights = resamples(images, draws, seed)

    def data() -> tuple[np.ndarray, np.ndarray]:
        return generator.normal(0, 0.8, images), generator.poisson(0.8, (images, CLASSES)).astype(np.int32)

    def difference(quality: np.ndarray, found: tuple[np.ndarray, np.ndarray], lines: np.ndarray | None) -> np.ndarray:
        one, two = (average_precision(evaluation(value, *found, generator), lines) for value in quality)
        return one - two

    def trained() -> np.ndarray:
        return qualities + generator.normal(0, 0.05, 2)

    fixed = np.array([trained() for _ in range(seeds)])
    many = [data() for _ in range(20 * count)]
    truth_fixed = np.mean([difference(fixed[place % seeds], found, None)[0] for place, found in enumerate(many)])
    truth = np.mean([difference(trained(), found, None)[0] for found in many])
    held = {"images": 0, "images and seeds": 0}
    once = np.ones((1, images), dtype=np.uint8)
    for _ in range(count):
        found = data()
        by_seed = np.array([difference(quality, found, np.concatenate([once, weights])) for quality in fixed])
        middle = by_seed.mean(0)
        low, high = image_intervals(float(middle[0]), middle[1:], images=images).images or (math.nan, math.nan)
        held["images"] += low <= truth_fixed <= high
        if seeds > 1:
            by_seed = np.array([difference(trained(), found, np.concatenate([once, weights])) for _ in range(seeds)])
            error = float(by_seed[:, 0].std(ddof=1)) / math.sqrt(seeds)
            middle = by_seed.mean(0)
            intervals = image_intervals(float(middle[0]), middle[1:], images=images, error=error, df=seeds - 1)
            low, high = intervals.both or (math.nan, math.nan)
            held["images and seeds"] += low <= truth <= high
    return {name: value / count for name, value in held.items() if seeds > 1 or name == "images"}
