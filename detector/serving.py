"""A saved model as MLflow serves it: the module that an MLmodel file names to load the folder that it lies in.

One row a picture: the bytes of an image file go in, lists of what was found come out.
"""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from detector.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from detector.model import Detector

COLUMN = "image"
COLUMNS = ("boxes", "scores", "labels", "names", "category_ids")


class Served:
    """What MLflow calls ``predict`` of."""

    def __init__(self, model: Detector) -> None:
        self.model = model

    def predict(self, pictures: pd.DataFrame, params: dict[str, Any] | None = None) -> list[dict[str, list[Any]]]:
        """What is found in each row's "image": the bytes of a JPEG or PNG file, or the same in base64.

        A dict a row: "boxes" (D, 4) xyxy in pixels of the image, "scores" (D,) descending, "labels" (D,) from 0,
        "names" (D,) and "category_ids" (D,). ``params``: "score_threshold" (0: the recipe's rule) and
        "max_detections". Raises InputError where a row is no image.
        """
        if COLUMN not in getattr(pictures, "columns", ()):
            raise InputError(f'the request has no column "{COLUMN}"; send the bytes of an image file in it, in base64')
        given = params or {}
        threshold = float(given.get("score_threshold") or 0.0)
        images = [_opened(content, f"row {number}") for number, content in enumerate(pictures[COLUMN])]
        found = self.model.predict(
            images, score_threshold=threshold or None, max_detections=int(given.get("max_detections", 100))
        )
        return [
            {
                "boxes": one.boxes.tolist(),
                "scores": one.scores.tolist(),
                "labels": one.labels.tolist(),
                "names": one.names,
                "category_ids": one.category_ids.tolist(),
            }
            for one in found
        ]


def _opened(content: Any, where: str) -> Image.Image:
    try:
        if isinstance(content, str):
            content = base64.b64decode(content, validate=True)
        return Image.open(io.BytesIO(bytes(content)))
    except (binascii.Error, TypeError, ValueError, OSError, Image.DecompressionBombError) as error:
        raise InputError(f'{where}: "{COLUMN}" is no image file, as bytes or in base64 ({error})') from error


def _load_pyfunc(folder: str) -> Served:
    """The name and the argument that MLflow wants."""
    from detector.inference import load

    return Served(load(Path(folder)))
