"""Images a second of the training loader with one process, against torchvision's CocoDetection and its v2 transforms.

Images are made up, COCO's sizes in COCO's mix, or real ones: DETSWEEP_BENCHMARK_COCO names the folder of a data set,
DETSWEEP_BENCHMARK_SPLIT its split (train2017). Both give the same: batches of uint8 images with a short side of 640 to
800, mirrored or not, padded to multiples of 32, with their boxes and labels. That pixels are equal is checked first.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from detector.config import AugmentationConfig, DataConfig
from detector.data.coco import data_digest
from detector.data.loader import Batch, training_batches
from detector.data.places import find_annotations, find_images
from detector.data.store import Store, ensure_store
from tests.benchmarks.alternating import Figure, alternate

BATCH, BATCHES, PAIRS, GOAL = 8, 12, 7, 1.5
SHORT_SIDE, LONG_SIDE = (640, 800), 1333
SIZES = {(480, 640): 44, (640, 480): 20, (427, 640): 16, (426, 640): 8, (640, 427): 6, (500, 375): 3, (375, 500): 3}
"""(height, width), and how many of a hundred images of train2017 are about that."""


def measure() -> list[Figure]:
    """Seconds an image, starting the process left out."""
    with tempfile.TemporaryDirectory(prefix="detsweep-") as scratch:
        root, split = os.environ.get("DETSWEEP_BENCHMARK_COCO"), os.environ.get("DETSWEEP_BENCHMARK_SPLIT", "train2017")
        if root is None:
            root = str(Path(scratch) / "made_up")
            write(Path(root), split)
        store = ensure_store(root, split, Path(scratch) / "stores", digest=data_digest(root, split, remember=None))
        equal = _equal_images(store, root, split)
        ours, theirs = _endless(lambda: _ours(store)), _endless(lambda: _theirs(store, root, split))
        pairs = alternate(lambda: _take(ours), lambda: _take(theirs), pairs=PAIRS, warm_up=1)
        ours.close()
        theirs.close()
    return [
        pairs.figure(
            f"loader, {SHORT_SIDE[0]}–{SHORT_SIDE[1]} px, batch {BATCH}, one process, s an image",
            at_least=GOAL,
            per=BATCH * BATCHES,
            peer="CocoDetection with v2 transforms",
            images="made up" if "DETSWEEP_BENCHMARK_COCO" not in os.environ else f"{len(store)} of {split}",
            images_with_equal_pixels=equal,
        )
    ]


def _take(batches: Iterator[Any]) -> None:
    """The pixels of some batches are looked at, as a training does."""
    for _ in range(BATCHES):
        batch = next(batches)
        assert int(batch.images[:, :, ::64, ::64].sum()) > 0


def _endless(make: Any) -> Any:
    while True:
        yield from make()


def _ours(store: Store) -> Iterator[Batch]:
    data = DataConfig(short_side=SHORT_SIDE, long_side=LONG_SIDE)
    options: dict[str, Any] = {"batch_size": BATCH, "seed": 0, "start": 0, "stop": 10_000, "loader_workers": 1}
    for (batch,) in training_batches(store, data, **options):
        yield batch


def _theirs(store: Store, root: str, split: str) -> Iterator[Batch]:
    """As a torchvision user writes it; images without boxes are left out, as ours does."""
    dataset = _dataset(
        root, split, v2.RandomShortestSize(list(range(SHORT_SIDE[0], SHORT_SIDE[1] + 1)), LONG_SIDE), 0.5
    )
    trained = Subset(dataset, store.training_indices(keep_empty=False).tolist())
    yield from DataLoader(trained, BATCH, shuffle=True, num_workers=1, collate_fn=_collated, drop_last=True)


def _dataset(root: str, split: str, resize: Any, flip: float) -> Any:
    transforms = v2.Compose(
        [
            v2.ToImage(),
            resize,
            v2.RandomHorizontalFlip(flip),
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(),
        ]
    )
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = CocoDetection(
            str(find_images(Path(root), split)), str(find_annotations(root, split)), transforms=transforms
        )
    return wrap_dataset_for_transforms_v2(dataset, target_keys=("boxes", "labels"))


def _collated(samples: list[Any]) -> Batch:
    images = [image for image, _ in samples]
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = (-(-side // 32) * 32 for side in sizes.amax(0).tolist())
    padded = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    for place, image in enumerate(images):
        padded[place, :, : image.shape[1], : image.shape[2]] = image
    boxes = [torch.as_tensor(target["boxes"]).float() for _, target in samples]
    labels = [target["labels"] for _, target in samples]
    return Batch(padded, sizes, sizes, boxes, labels, torch.zeros(len(images), dtype=torch.int64))


def _equal_images(store: Store, root: str, split: str) -> str:
    """How many of the first batch have the peer's pixels, with one short side and no mirroring."""
    data = DataConfig(short_side=720, long_side=LONG_SIDE, augmentation=AugmentationConfig(flip=0.0))
    ((batch,),) = training_batches(store, data, batch_size=BATCH, seed=0, start=0, stop=1)
    dataset = _dataset(root, split, v2.Resize(720, max_size=LONG_SIDE), 0.0)
    count = 0
    for place, index in enumerate(batch.indices.tolist()):
        height, width = batch.sizes[place].tolist()
        count += torch.equal(batch.images[place, :, :height, :width], dataset[index][0].as_subclass(torch.Tensor))
    return f"{count} of {len(batch)}"


def write(root: Path, split: str, count: int = 100) -> None:
    """A COCO folder of ``count`` JPEGs with the spectrum of photographs, so that they are as large as those."""
    random = np.random.default_rng(0)
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir()
    images, annotations = [], []
    sizes = [size for size, share in SIZES.items() for _ in range(share)]
    for number in range(1, count + 1):
        height, width = sizes[number % len(sizes)]
        name = f"{number:012}.jpg"
        Image.fromarray(photograph(height, width, random)).save(root / split / name, quality=92)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for _ in range(1 + int(random.poisson(6))):
            box = [*(random.uniform(0, 0.6, 2) * [width, height]), *random.uniform(10, 150, 2)]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": int(random.integers(1, 81))}
                | {"bbox": [float(side) for side in box], "area": float(box[2] * box[3]), "iscrowd": 0}
            )
    categories = [{"id": category, "name": f"class {category}"} for category in range(1, 81)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))


def photograph(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """(height, width, 3) uint8: noise whose amplitude falls with its frequency, as in photographs, mostly grey."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    fall = 1 / np.maximum(frequency, 1 / max(height, width)) ** 1.1

    def layer() -> np.ndarray:
        drawn = np.fft.irfft2(np.fft.rfft2(random.normal(size=(height, width))) * fall, (height, width))
        return drawn / drawn.std()

    grey = layer()
    return np.stack([128 + 50 * grey + 15 * layer() for _ in range(3)], -1).clip(0, 255).astype(np.uint8)
