"""pycocotools as the witness of evaluations, and documents in COCO's form."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.data.instances import Instances
from detector.data.store import Store
from detector.matches import Matches, match
from detector.results import Results


def cocos_own(truth: dict[str, Any], detections: list[dict[str, Any]]) -> COCOeval:
    """pycocotools' evaluation of two documents, with its tables in ``eval`` and its twelve figures in ``stats``."""
    with contextlib.redirect_stdout(io.StringIO()):
        rows = [
            {**row, "id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
            for number, row in enumerate(detections, 1)
        ]
        ours, theirs = COCO(), COCO()
        ours.dataset = {**truth, "annotations": [dict(row) for row in truth["annotations"]]}
        theirs.dataset = {**truth, "annotations": rows}
        ours.createIndex()
        theirs.createIndex()
        evaluator = COCOeval(ours, theirs, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def matched(truth: dict[str, Any], detections: list[dict[str, Any]]) -> Matches:
    """Of two documents."""
    return match(Instances.of_document(truth), Results.of_entries(detections))


def document(store: Store) -> dict[str, Any]:
    """The content of an instances file with what ``store`` has."""
    found = store.instances()
    columns = (found.ids, found.image_ids[found.image], found.category_ids[found.category], found.boxes, found.areas)
    return {
        "images": [
            {"id": number, "file_name": name, "height": height, "width": width}
            for number, name, (height, width) in zip(
                store.image_ids.tolist(), store.file_names, store.sizes.tolist(), strict=True
            )
        ],
        "annotations": [
            {"id": key, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": int(crowd)}
            for key, image, category, box, area, crowd in zip(
                *(column.tolist() for column in (*columns, found.crowd)), strict=True
            )
        ],
        "categories": [{"id": category.id, "name": category.name} for category in store.categories],
    }
