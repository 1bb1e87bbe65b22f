"""A sheet of a few fixed images of a split: the truth on the left of each, what was found on the right.

The images are chosen by the split's digest, so every evaluation of a split, of whatever model, shows the same ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from detector.data.store import Store
from detector.detections import Detections

IMAGES = 6
SIDE = 320
"""Pixels of the longer side of an image on the sheet."""
SCORE = 0.3
"""What is found with a lower score isn't drawn."""
MOST = 30
"""Most detections that are drawn in an image."""
_GAP = 6
_COLUMNS = 2


def shown_images(store: Store, count: int = IMAGES) -> list[int]:
    """Positions of ``count`` images of ``store``, those with boxes first: for a split always the same ones."""

    def place(index: int) -> tuple[bool, str]:
        name = f"{store.digest} {store.image_ids[index]}"
        return not with_boxes[index], hashlib.sha256(name.encode()).hexdigest()

    with_boxes = [False] * len(store)
    if store.has_annotations:
        for index in store.training_indices(keep_empty=False).tolist():
            with_boxes[index] = True
    return sorted(range(len(store)), key=place)[:count]


def predictions_sheet(store: Store, detections: Sequence[dict[str, Any]]) -> Image.Image:
    """The sheet. ``detections`` are entries of a COCO results file, of the whole split."""
    chosen = shown_images(store)
    wanted = {int(store.image_ids[index]) for index in chosen}
    found: dict[int, list[dict[str, Any]]] = {image: [] for image in wanted}
    for row in detections:
        if row["image_id"] in wanted and row["score"] >= SCORE:
            found[row["image_id"]].append(row)
    pairs = [_pair(store, index, found[int(store.image_ids[index])]) for index in chosen]
    lines = [pairs[start : start + _COLUMNS] for start in range(0, len(pairs), _COLUMNS)]
    heights = [max(pair.height for pair in line) for line in lines]
    width = _COLUMNS * (2 * SIDE + 2 * _GAP) - _GAP
    sheet = Image.new("RGB", (width, sum(heights) + _GAP * (len(lines) - 1)), "white")
    top = 0
    for line, height in zip(lines, heights, strict=True):
        for column, pair in enumerate(line):
            sheet.paste(pair, (column * (2 * SIDE + 2 * _GAP), top))
        top += height + _GAP
    return sheet


def _pair(store: Store, index: int, rows: list[dict[str, Any]]) -> Image.Image:
    """An image twice: with its boxes, and with the best of ``rows``."""
    pixels = Image.fromarray(store.image(index))
    scale = SIDE / max(pixels.size)
    small = pixels.resize((max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale))))
    x, y = small.width / pixels.width, small.height / pixels.height
    pair = Image.new("RGB", (2 * SIDE + _GAP, small.height), "white")
    for place, boxes in enumerate((_truth(store, index), _found(store, rows))):
        pair.paste(boxes.scaled(x, y).draw(small), (place * (SIDE + _GAP), 0))
    return pair


def _truth(store: Store, index: int) -> Detections:
    boxes = torch.from_numpy(store.boxes(index).copy()) if store.has_annotations else torch.zeros(0, 4)
    labels = torch.from_numpy(store.labels(index).copy()) if store.has_annotations else torch.zeros(0).long()
    return Detections(boxes, torch.ones(len(boxes)), labels, store.categories)


def _found(store: Store, rows: list[dict[str, Any]]) -> Detections:
    best = sorted(rows, key=lambda row: -row["score"])[:MOST]
    place = {category.id: label for label, category in enumerate(store.categories)}
    boxes = torch.tensor([row["bbox"] for row in best], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([place[row["category_id"]] for row in best], dtype=torch.int64)
    return Detections(boxes, torch.tensor([row["score"] for row in best]), labels, store.categories)
