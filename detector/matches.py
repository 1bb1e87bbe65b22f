"""Which detection found what, kept small: all that COCO's AP needs of an evaluation, without boxes.

Each image is matched by itself (``detector.matching``), so a match holds for the image however often it counts: AP for
any weights of the images follows from the matches alone (``detector.bootstrap``).

I images, C categories, D detections, T = 10 IoU thresholds (0.50, 0.55, ... 0.95).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from detector.data.instances import Instances
from detector.matching import match_boxes
from detector.results import Results


@dataclass(frozen=True, eq=False)
class Matches:
    """One evaluation, over boxes of all sizes and at most 100 detections an image and category.

    Detections stand in the order in which COCO accumulates them: by category, then from the highest score down, equal
    scores by image and then as they were found. ``Matches(**numpy.load(file))`` reads what
    ``numpy.savez_compressed(file, **matches.arrays())`` wrote.
    """

    image_ids: np.ndarray
    """(I,) int64, ascending: the data set's own."""
    category_ids: np.ndarray
    """(C,) int64, ascending: the data set's own."""
    image: np.ndarray
    """(D,) int32: place in ``image_ids``."""
    category: np.ndarray
    """(D,) int32: place in ``category_ids``."""
    score: np.ndarray
    """(D,) float64."""
    matched: np.ndarray
    """(T, D) bool: found a box."""
    ignored: np.ndarray
    """(T, D) bool: counts neither way, since what it found is a crowd."""
    boxes: np.ndarray
    """(I, C) int32: boxes to be found; crowds don't count."""

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def match(truth: Instances, found: Results) -> Matches:
    """Matches ``found`` with ``truth`` as COCO does.

    Detections on images that ``truth`` doesn't list, or of categories that it doesn't, count for nothing, as in COCO's
    own evaluation.
    """
    matching = match_boxes(truth, found)
    matched, ignored = matching.dense(0)
    images, categories = len(truth.image_ids), len(truth.category_ids)
    counted = matching.counted[0]
    cells = truth.image[counted] * categories + truth.category[counted]
    return Matches(
        image_ids=truth.image_ids,
        category_ids=truth.category_ids,
        image=matching.image.astype(np.int32),
        category=matching.category.astype(np.int32),
        score=matching.score,
        matched=matched,
        ignored=ignored,
        boxes=np.bincount(cells, minlength=images * categories).reshape(images, categories).astype(np.int32),
    )
