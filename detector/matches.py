"""Which detection found what, kept small: all that COCO's AP needs of an evaluation, without boxes.

pycocotools matches each image by itself, so a match holds for the image however often it counts: AP for any weights of
the images follows from the matches alone (``detector.bootstrap``).

I images, C categories, D detections, T = 10 IoU thresholds (0.50, 0.55, ... 0.95).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


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


def match(annotations: Mapping[str, Any], detections: list[dict[str, Any]]) -> Matches:
    """Matches ``detections`` (entries of a COCO results file) with ``annotations`` (a COCO instances file), by
    pycocotools.

    Both are left as they are. Detections on images that the annotations don't list, or of categories that they don't,
    count for nothing, as in COCO's own evaluation.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(_coco(annotations), _coco(annotations, detections), "bbox")
        evaluator.params.areaRng, evaluator.params.areaRngLbl = evaluator.params.areaRng[:1], ["all"]
        evaluator.evaluate()
    image_ids = np.asarray(evaluator.params.imgIds, dtype=np.int64)
    category_ids = np.asarray(evaluator.params.catIds, dtype=np.int64)
    images, categories, thresholds = len(image_ids), len(category_ids), len(evaluator.params.iouThrs)
    boxes = np.zeros((images, categories), dtype=np.int32)
    image, category, score = [], [], []
    matched, ignored = [np.zeros((thresholds, 0), dtype=bool)], [np.zeros((thresholds, 0), dtype=bool)]
    # evalImgs lies category by category, and image by image within one.
    for number, entry in enumerate(evaluator.evalImgs):
        if entry is None:
            continue
        column, line = divmod(number, images)
        boxes[line, column] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
        image += [line] * len(entry["dtScores"])
        category += [column] * len(entry["dtScores"])
        score += entry["dtScores"]
        matched.append(entry["dtMatches"] != 0)
        ignored.append(entry["dtIgnore"] != 0)
    scores = np.asarray(score, dtype=np.float64)
    columns = np.asarray(category, dtype=np.int32)
    # Stable in both keys, as pycocotools' own mergesort is.
    order = np.lexsort((-scores, columns))
    return Matches(
        image_ids=image_ids,
        category_ids=category_ids,
        image=np.asarray(image, dtype=np.int32)[order],
        category=columns[order],
        score=scores[order],
        matched=np.concatenate(matched, axis=1)[:, order],
        ignored=np.concatenate(ignored, axis=1)[:, order],
        boxes=boxes,
    )


def _coco(annotations: Mapping[str, Any], detections: list[dict[str, Any]] | None = None) -> COCO:
    """An index of the annotations, or of the detections as if they were ones."""
    rows = [dict(row) for row in annotations["annotations"]] if detections is None else _as_annotations(detections)
    coco = COCO()
    coco.dataset = {**annotations, "annotations": rows}
    coco.createIndex()
    return coco


def _as_annotations(detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**row, "id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        for number, row in enumerate(detections, 1)
    ]
