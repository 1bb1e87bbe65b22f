"""The annotated boxes of a split as arrays: what an evaluation compares with. I images, C categories, M boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Instances:
    """A COCO instances file without names. Boxes are xywh in pixels of the image."""

    image_ids: np.ndarray
    """(I,) int64, ascending: the data set's own."""
    category_ids: np.ndarray
    """(C,) int64, ascending: the data set's own."""
    image: np.ndarray
    """(M,) int64: place in ``image_ids``."""
    category: np.ndarray
    """(M,) int64: place in ``category_ids``."""
    boxes: np.ndarray
    """(M, 4) float64 xywh."""
    areas: np.ndarray
    """(M,) float64: of the object, which may be less than its box's; decides its size in COCO's figures."""
    crowd: np.ndarray
    """(M,) bool."""
    ids: np.ndarray
    """(M,) int64, unique: the annotations' own."""

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of_columns(
        cls,
        *,
        image_ids: np.ndarray,
        category_ids: np.ndarray,
        owners: np.ndarray,
        kinds: np.ndarray,
        boxes: np.ndarray,
        areas: np.ndarray,
        crowd: np.ndarray,
        ids: np.ndarray,
    ) -> Instances:
        """From the ids of the images and categories in any order, and for each box its image's id (``owners``) and its
        category's (``kinds``). Boxes on other images or of other categories are left out, as COCO's evaluation does."""
        images, categories = np.unique(image_ids), np.unique(category_ids)
        image, listed = places(owners, images)
        category, known = places(kinds, categories)
        kept = listed & known
        return cls(
            image_ids=images,
            category_ids=categories,
            image=image[kept],
            category=category[kept],
            boxes=boxes[kept],
            areas=areas[kept],
            crowd=crowd[kept],
            ids=ids[kept],
        )

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> Instances:
        """From the content of a COCO instances file. Raises KeyError where an entry lacks what COCO's evaluation
        needs."""
        rows = document["annotations"]
        return cls.of_columns(
            image_ids=_whole(row["id"] for row in document["images"]),
            category_ids=_whole(row["id"] for row in document["categories"]),
            owners=_whole(row["image_id"] for row in rows),
            kinds=_whole(row["category_id"] for row in rows),
            boxes=np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4),
            areas=np.array([row["area"] for row in rows], dtype=np.float64),
            crowd=np.array([bool(row.get("iscrowd")) for row in rows], dtype=bool),
            ids=_whole(row["id"] for row in rows),
        )


def places(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each of ``values`` stands in the ascending ``known``, int64, and whether it stands there at all."""
    found = np.searchsorted(known, values)
    if not len(known):
        return found, np.zeros(len(values), dtype=bool)
    found = np.minimum(found, len(known) - 1)
    return found, known[found] == values


def _whole(values: Any) -> np.ndarray:
    return np.array(list(values), dtype=np.int64)
