"""What a plan must know of a data set: its digest, its categories and how many images it has.

Reading COCO's annotations takes half a minute, so what was learnt is remembered in the storage by the split's digest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.config import GeneratedDataConfig, TrainingConfig
from detector.data.coco import CocoSplit, data_digest, read_split, training_boxes
from detector.data.places import find_annotations
from detector.document import listed
from detector.errors import InputError
from orchestrator.files import locked, read_json, write_json


@dataclass(frozen=True)
class SplitFacts:
    """One split of a data set."""

    root: str
    split: str
    digest: str
    """SHA-256 over annotations, file names and sizes."""
    categories: tuple[tuple[int, str], ...]
    """Ids and names, by id."""
    images: int
    boxes: int
    """Those that training would learn from: no crowds, nothing without area in its image."""
    annotated: bool = True
    """Whether its objects are known; those of COCO's test-dev are its server's."""
    without_boxes: tuple[str, ...] = ()
    """Classes that have none of these boxes."""
    there: bool = True
    """False for images that are yet to be generated: the digest is then not that of the data."""


def split_facts(root: str, split: str, data_folder: Path) -> SplitFacts:
    """The facts of ``split``, read once and then remembered in ``data_folder`` (if there is such a folder yet).

    Raises InputError where the annotations aren't COCO.
    """
    known = data_folder.is_dir()
    digest = data_digest(root, split, remember=data_folder / "digests.json" if known else None)
    path = data_folder / "splits.json"
    remembered: Any = _remembered(path).get(digest)
    if remembered is None or not {"boxes", "annotated", "without_boxes"} <= remembered.keys():
        found = read_split(root, split)
        with_boxes = _of_boxes(found)
        there = set(with_boxes.tolist())
        remembered = {
            "categories": [[category.id, category.name] for category in found.categories],
            "images": len(found.image_ids),
            "boxes": len(with_boxes),
            "annotated": found.has_annotations,
            "without_boxes": [category.name for category in found.categories if category.id not in there],
        }
        if known:
            _remember(path, {digest: remembered})
    pairs = tuple((int(number), str(name)) for number, name in remembered["categories"])
    images, boxes = int(remembered["images"]), int(remembered["boxes"])
    without = tuple(map(str, remembered["without_boxes"]))
    return SplitFacts(root, split, digest, pairs, images, boxes, bool(remembered["annotated"]), without)


def _of_boxes(found: CocoSplit) -> np.ndarray:
    """Category ids of the boxes that training would learn from."""
    sizes = np.repeat(found.sizes, np.diff(found.offsets), 0)
    return found.category_ids[training_boxes(found.boxes, sizes, found.crowd)[1]]


def undrawn_facts(generated: GeneratedDataConfig, root: str, split: str) -> SplitFacts:
    """What is known of a split before its images are generated in ``root``: everything but the digest."""
    from detector.data.synthetic import class_names

    names = tuple(enumerate(class_names(generated), 1))
    images = generated.train_images if split == "train" else generated.val_images
    return SplitFacts(root, split, f"{Path(root).name}/{split}", names, images, boxes=images, there=False)


def remember(facts: Iterable[SplitFacts], data_folder: Path) -> None:
    """Remembers what was learnt before ``data_folder`` existed."""
    path = data_folder / "splits.json"
    learnt: dict[str, dict[str, object]] = {}
    for item in facts:
        if item.digest not in _remembered(path):
            data_digest(item.root, item.split, remember=data_folder / "digests.json")
            categories = [list(pair) for pair in item.categories]
            learnt[item.digest] = {
                "categories": categories,
                "images": item.images,
                "boxes": item.boxes,
                "annotated": item.annotated,
                "without_boxes": list(item.without_boxes),
            }
    if learnt:
        _remember(path, learnt)


def check_boxes(train: SplitFacts, val: SplitFacts) -> None:
    """Raises InputError where there is nothing to learn from, or nothing to compare detections with."""
    for facts, key, use in ((train, "data.train", "train on"), (val, "data.val", "evaluate against")):
        if not facts.boxes:
            lack = "has no box" if facts.annotated else "has no annotations, and so nothing"
            raise InputError(
                f"{find_annotations(facts.root, facts.split)} {lack} to {use}; annotate its images, or name another "
                f"split by {key}"
            )


def check_categories(train: SplitFacts, val: SplitFacts) -> None:
    """Raises InputError where the two splits don't have the same classes."""
    if train.categories != val.categories:
        missing = [name for item in train.categories if item not in val.categories for name in [item[1]]]
        extra = [name for item in val.categories if item not in train.categories for name in [item[1]]]
        difference = "; ".join(
            f"{words} {listed(names, 5)}"
            for words, names in (("not in the second:", missing), ("only there:", extra))
            if names
        )
        raise InputError(
            f"{find_annotations(train.root, train.split)} and {find_annotations(val.root, val.split)} list different "
            f'categories ({difference}); give both the same "categories"'
        )


def _remember(path: Path, learnt: dict[str, dict[str, object]]) -> None:
    # Only a shortcut: a storage that can't be written shows itself where it is needed.
    with contextlib.suppress(OSError), locked(path.with_name(".splits.lock")):
        write_json(path, {**_remembered(path), **learnt})


def _remembered(path: Path) -> dict[str, dict[str, object]]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class Facts:
    """Facts of the splits, each looked up once a plan."""

    def __init__(self, data_folder: Path) -> None:
        self._data = data_folder
        self._known: dict[tuple[str, str], SplitFacts] = {}

    def of(self, config: TrainingConfig) -> tuple[SplitFacts, SplitFacts, SplitFacts | None]:
        """Training, validation and test split of a located ``config``, found to be of use and of the same classes."""
        train, val = (self._split(config, split) for split in (config.data.train, config.data.val))
        test = None if config.data.test is None else self._split(config, config.data.test)
        check_boxes(train, val)
        for other in (val, test):
            if other is not None:
                check_categories(train, other)
        classes = config.model.num_classes
        if classes is not None and classes != len(train.categories):
            raise InputError(
                f"model.num_classes is {classes}, but the data set in {config.data.root} has {len(train.categories)} "
                "categories; leave model.num_classes out, or set it to null"
            )
        return train, val, test

    def _split(self, config: TrainingConfig, split: str) -> SplitFacts:
        root, generated = str(config.data.root), config.data.generated
        if generated is not None and not Path(root).is_dir():
            return undrawn_facts(generated, root, split)
        if (root, split) not in self._known:
            self._known[root, split] = split_facts(root, split, self._data)
        return self._known[root, split]

    def remember(self) -> None:
        """Keeps for later plans what was learnt while there was no storage yet."""
        remember(self._known.values(), self._data)
