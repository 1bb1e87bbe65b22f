"""Small COCO-format folders for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GAPPED = [{"id": 7, "name": "cat"}, {"id": 3, "name": "bird"}, {"id": 90, "name": "dog"}]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8, smooth enough to survive JPEG."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def annotation(identity: int, image: int, box: list[float], category: int = 3, **more: Any) -> dict[str, Any]:
    """One annotation in COCO's form."""
    base = {"id": identity, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
    return {**base, "area": box[2] * box[3], **more}


def write_set(
    root: Path,
    split: str = "train",
    sizes: dict[int, tuple[int, int]] | None = None,
    annotations: list[dict[str, Any]] | None = None,
    categories: list[dict[str, Any]] | None = None,
    **document: Any,
) -> Path:
    """A split with an image of (height, width) for each id of ``sizes``; ``document`` replaces parts of its JSON."""
    sizes = sizes or {1: (60, 80)}
    images = []
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    for identity, (height, width) in sizes.items():
        name = f"{split}{identity}.jpg"
        Image.fromarray(noise(height, width, identity + 1000 * len(split))).save(root / split / name, quality=92)
        images.append({"id": identity, "file_name": name, "height": height, "width": width})
    default = [annotation(1, next(iter(sizes)), [10, 10, 20, 30])]
    content = {
        "images": images,
        "annotations": default if annotations is None else annotations,
        "categories": GAPPED if categories is None else categories,
        **document,
    }
    (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return root
