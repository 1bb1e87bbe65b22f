"""Detections of one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from detector.data.coco import Category
from detector.errors import InputError
from detector.pictures import read_picture

if TYPE_CHECKING:
    from detector.pictures import ImageLike

# Distinct on light and dark ground; reused in turn.
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324")


@dataclass(frozen=True)
class Detections:
    """D detections, best first."""

    boxes: Tensor
    """(D, 4) float32 xyxy, inside the image."""
    scores: Tensor
    """(D,) float32, descending."""
    labels: Tensor
    """(D,) int64, 0..C-1."""
    categories: Sequence[Category]
    """The data set's categories, by label."""
    size: tuple[int, int] | None = None
    """Height and width of the image whose pixels the boxes are in, where that is known."""

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """Name of each detection's category."""
        return [self.categories[label].name for label in self.labels.tolist()]

    @property
    def category_ids(self) -> Tensor:
        """(D,) int64: the data set's own category ids."""
        ids = torch.tensor([category.id for category in self.categories], device=self.labels.device)
        return ids[self.labels]

    def to(self, device: torch.device | str) -> Detections:
        """The same on ``device``."""
        return replace(self, boxes=self.boxes.to(device), scores=self.scores.to(device), labels=self.labels.to(device))

    def scaled(self, x: float, y: float) -> Detections:
        """The same with boxes stretched by ``x`` and ``y``: from pixels of the input to those of the original image."""
        # How the sides of the other image are rounded is not known here.
        return replace(self, boxes=self.boxes * self.boxes.new_tensor((x, y, x, y)), size=None)

    def mirrored(self, width: int) -> Detections:
        """The same in the mirrored image, of that ``width``."""
        left, top, right, bottom = self.boxes.unbind(1)
        return replace(self, boxes=torch.stack((width - right, top, width - left, bottom), dim=1))

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Entries of a COCO results file: boxes xywh. Raises InputError unless ``image_id`` is a whole number."""
        if isinstance(image_id, bool) or not isinstance(image_id, Integral):
            raise InputError(f"image_id is {image_id!r}; give the image's id in the data set, a whole number")
        sizes = self.boxes[:, 2:] - self.boxes[:, :2]
        boxes = torch.cat((self.boxes[:, :2], sizes), dim=1).tolist()
        rows = zip(boxes, self.scores.tolist(), self.category_ids.tolist(), strict=True)
        return [
            {"image_id": int(image_id), "category_id": category, "bbox": box, "score": score}
            for box, score, category in rows
        ]

    def draw(self, image: ImageLike) -> Image.Image:
        """A copy of ``image``, the one that was predicted on in any form, with boxes, names and scores.

        Upright, as the boxes are; a very large image is drawn at the size at which it is read (`detector.pictures`).
        Raises InputError for an image of another size.
        """
        picture = read_picture(image)
        if self.size is not None and picture.size != self.size:
            given, own = (f"{width} x {height}" for height, width in (picture.size, self.size))
            raise InputError(
                f"the image to draw on is {given} pixels, and the boxes are in pixels of one of {own}; draw on the "
                "image that was predicted on, or on another after scaled(x, y), which stretches the boxes"
            )
        drawn = Image.fromarray(picture.pixels)
        pen = ImageDraw.Draw(drawn)
        width = max(1, round(max(drawn.size) / 400))
        here = self.scaled(drawn.width / picture.size[1], drawn.height / picture.size[0]).to("cpu")
        rows = zip(here.boxes.tolist(), here.names, here.scores.tolist(), here.labels.tolist(), strict=True)
        for box, name, score, label in reversed(list(rows)):
            colour = COLOURS[label % len(COLOURS)]
            pen.rectangle(box, outline=colour, width=width)
            text = f"{name} {score:.2f}"
            place = pen.textbbox((box[0] + width, box[1] + width), text)
            pen.rectangle(place, fill=colour)
            pen.text(place[:2], text, fill="white")
        return drawn
