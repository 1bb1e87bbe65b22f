"""What a model found on a split as arrays: the entries of a COCO results file. D detections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from detector.detections import Detections


@dataclass(frozen=True, eq=False)
class Results:
    """Detections of any number of images. The order among those of one image and category settles equal scores."""

    image_ids: np.ndarray
    """(D,) int64: the data set's own."""
    category_ids: np.ndarray
    """(D,) int64: the data set's own."""
    boxes: np.ndarray
    """(D, 4) float xywh, pixels of the original image."""
    scores: np.ndarray
    """(D,) float."""

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def of_entries(cls, entries: Sequence[Mapping[str, Any]]) -> Results:
        """From the content of a COCO results file."""
        return cls(
            np.array([entry["image_id"] for entry in entries], dtype=np.int64),
            np.array([entry["category_id"] for entry in entries], dtype=np.int64),
            np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4),
            np.array([entry["score"] for entry in entries], dtype=np.float64),
        )

    @classmethod
    def of_image(cls, found: Detections, image_id: int) -> Results:
        """What ``Detections.to_coco`` says, with float32 boxes and scores."""
        found = found.to("cpu")
        corners = found.boxes.numpy()
        return cls(
            np.full(len(found), image_id, dtype=np.int64),
            found.category_ids.numpy(),
            np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1),
            found.scores.numpy(),
        )

    @classmethod
    def together(cls, parts: Iterable[Results]) -> Results:
        """One after the other."""
        joined = [cls.of_entries(()), *parts]
        if len(joined) > 1:
            del joined[0]  # its types are not those of the others
        return cls(*(np.concatenate([getattr(part, field.name) for part in joined]) for field in fields(cls)))

    def take(self, chosen: np.ndarray) -> Results:
        """Those at ``chosen``, places or bool (D,)."""
        return Results(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def entries(self) -> list[dict[str, Any]]:
        """As a COCO results file has them."""
        columns = (self.image_ids, self.category_ids, self.boxes, self.scores)
        return [
            {"image_id": image, "category_id": category, "bbox": box, "score": score}
            for image, category, box, score in zip(*(column.tolist() for column in columns), strict=True)
        ]
