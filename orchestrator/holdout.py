"""Two halves of a split: what a search sees, and what its winner is judged on.

    STORAGE/data/halves-DIGEST/annotations/SPLIT-search.json, SPLIT-judge.json    and links to the images

An image's half follows from the SHA-256 of the file names: sorted by it, every second image is judged on. So the halves
are equally large, and the same wherever the data set lies.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detector.data.places import find_annotations, find_images
from detector.errors import InputError
from orchestrator.dataset import SplitFacts, check_boxes, split_facts

SEEN, UNSEEN = "search", "judge"


@dataclass(frozen=True)
class Holdout:
    """Where both parts are."""

    root: str
    """Data root of both, with the training split beside them."""
    seen: SplitFacts
    """What the search is evaluated on."""
    unseen: SplitFacts
    """What the winner is judged on."""


def second_half(names: Sequence[str]) -> set[str]:
    """The file names that the search doesn't see."""
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(ordered[1::2])


def halves(train: SplitFacts, val: SplitFacts, data_folder: Path, *, make: bool) -> Holdout:
    """Both halves of ``val``. Without ``make``, and where they aren't made yet, with provisional digests.

    Raises InputError where a half has no box to compare with.
    """
    make = make and val.images > 1  # one image has no halves, which refuse_without says
    name = hashlib.sha256(f"{val.digest} {train.digest} {train.split}".encode()).hexdigest()[:16]
    root = data_folder / f"halves-{name}"
    if not root.is_dir() and make:
        _write(root, train, val)
    if root.is_dir():
        seen, unseen = (split_facts(str(root), f"{val.split}-{part}", data_folder) for part in (SEEN, UNSEEN))
        for part in (seen, unseen):
            check_boxes(train, part)
    else:
        sizes = (val.images - val.images // 2, val.images // 2)
        seen, unseen = (
            replace(val, split=f"{val.split}-{part}", digest=f"{val.digest}/{part}", images=size, there=False)
            for part, size in zip((SEEN, UNSEEN), sizes, strict=True)
        )
    return Holdout(str(root), seen, unseen)


def refuse_without(unseen: SplitFacts) -> None:
    """Raises InputError where nothing is left that a search doesn't see."""
    if not unseen.images:
        raise InputError(
            f"{unseen.split.removesuffix(f'-{UNSEEN}')} has 1 image, which can't be halved, so nothing is left that "
            "the search doesn't see; add images, or name another split by data.test and set search.holdout: test"
        )


def _write(root: Path, train: SplitFacts, val: SplitFacts) -> None:
    document: Any = json.loads(find_annotations(val.root, val.split).read_text(encoding="utf-8"))
    unseen = second_half([image["file_name"] for image in document["images"]])
    partial = root.with_name(f".{root.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        (partial / "annotations").mkdir(parents=True)
        (partial / "images").mkdir()
        for part in (SEEN, UNSEEN):
            images = [image for image in document["images"] if (image["file_name"] in unseen) == (part == UNSEEN)]
            ids = {image["id"] for image in images}
            kept = [one for one in document.get("annotations", []) if one["image_id"] in ids]
            text = json.dumps({**document, "images": images, "annotations": kept})
            (partial / "annotations" / f"{val.split}-{part}.json").write_text(text, encoding="utf-8")
            _link(find_images(val.root, val.split), partial / "images" / f"{val.split}-{part}")
        annotations = find_annotations(train.root, train.split)
        _link(annotations, partial / "annotations" / annotations.name)
        _link(find_images(train.root, train.split), partial / "images" / train.split)
        os.replace(partial, root)
    except OSError:
        if not root.is_dir():  # else another driver was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _link(source: Path, link: Path) -> None:
    link.symlink_to(source.resolve())
