"""A sheet of augmented training images with their boxes and positive anchors, as plain ATSS assigns them.

N images, G boxes in an image, A anchors. Boxes are xyxy in pixels of the network's input.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from detector.anchors import grid_anchors, level_shapes
from detector.assigners import ATSSAssigner
from detector.config import AnchorConfig, DataConfig
from detector.data.loader import Batch, training_batches
from detector.data.store import Store, convert, open_store
from detector.errors import InputError, UnreachableError

COLOURS = ("#e6194b", "#ffe119", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#bfef45", "#fabed4")
_GAP = 6


def browse(
    data: DataConfig, out: str | Path, *, images: int = 12, seed: int = 0, anchors: AnchorConfig | None = None
) -> int:
    """Writes the sheet ``out`` of the first ``images`` that a training on ``data`` with ``seed`` would see.

    Dots mark the centres of the anchors that ATSS (no predictions yet) makes positive, in the colour of the class they
    are positive for. Returns the number of images drawn. InputError where the data are wrong.
    """
    if data.root is None:
        raise InputError("data.root is not set; name the COCO-format folder to browse")
    with tempfile.TemporaryDirectory() as scratch:
        store = open_store(convert(data.root, data.train, Path(scratch) / "store"))
        count = min(images, len(store.training_indices(data.keep_empty)))
        batches = training_batches(store, data, batch_size=max(1, count), seed=seed, start=0, stop=1)
        sheet = draw_sheet(next(batches)[0], store, anchors or AnchorConfig())
    try:
        sheet.save(out)
    except (OSError, ValueError) as error:
        raise UnreachableError(f"{out} can't be written ({error}); name a .png in a folder that can") from error
    return count


def draw_sheet(batch: Batch, store: Store, config: AnchorConfig) -> Image.Image:
    """The images of ``batch`` side by side."""
    height, width = batch.images.shape[-2:]
    shapes = level_shapes(height, width)
    anchors = grid_anchors(shapes, scale=config.scale, center_offset=config.center_offset)
    assignment = ATSSAssigner(predicted_weight=0, anchor_weight=1)(anchors, shapes, batch.boxes)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    columns = math.ceil(math.sqrt(len(batch)))
    rows = math.ceil(len(batch) / columns)
    sheet = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), "white")
    for place in range(len(batch)):
        picture = Image.fromarray(batch.images[place].permute(1, 2, 0).numpy())
        pen = ImageDraw.Draw(picture)
        labels = batch.labels[place].tolist()
        for box, label in zip(batch.boxes[place].tolist(), labels, strict=True):
            pen.rectangle(box, outline=_colour(label), width=2)
            pen.text((box[0] + 3, box[1] + 1), store.categories[label].name, fill=_colour(label))
        positive = torch.nonzero(assignment.gt_index[place] >= 0).flatten()
        for (x, y), owner in zip(
            centres[positive].tolist(), assignment.gt_index[place][positive].tolist(), strict=True
        ):
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=_colour(labels[owner]), outline="black")
        sheet.paste(picture, (place % columns * (width + _GAP), place // columns * (height + _GAP)))
    return sheet


def _colour(label: int) -> str:
    return COLOURS[label % len(COLOURS)]
