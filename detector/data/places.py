"""Where the files of a COCO-format folder are, and what is said of a folder that hasn't got them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from detector.document import listed
from detector.errors import InputError


class Named(NamedTuple):
    """By what a user names a data set: what a refusal tells to change."""

    root: str = "ROOT"
    """The folder,"""
    split: str = "--split"
    """and the split."""


IN_COMMANDS = Named()
IN_SWEEPS = Named("data.root", "data.train, data.val or data.test")


def check_places(root: str | Path, splits: Iterable[str], named: Named) -> None:
    """Raises InputError, saying what is expected where, unless annotations and images of each split are there."""
    for split in splits:
        find_annotations(root, split, named)
        find_images(root, split, named)


def find_annotations(root: str | Path, split: str, named: Named = IN_COMMANDS) -> Path:
    """The annotation file of ``split``; InputError says what is expected where."""
    folder = Path(root)
    if not folder.is_dir():
        raise InputError(
            f"{named.root} is {root}, which is not a folder; expected there: annotations/instances_{split}.json (or "
            f"annotations/{split}.json) and the images in {split}/ (or images/{split}/). {_remedy(folder, named)}"
        )
    names = (f"instances_{split}.json", f"{split}.json", f"image_info_{split}.json")
    for name in names:
        if (folder / "annotations" / name).is_file():
            return folder / "annotations" / name
    present = sorted(path.name for path in (folder / "annotations").glob("*.json"))
    there = f" (annotations/ holds {listed(present, 6)}; {named.split} names another split)" if present else ""
    raise InputError(
        f"{folder} has no annotations of split {split!r}; expected annotations/{names[0]}, annotations/{names[1]} or, "
        f"for images without boxes, annotations/{names[2]}{there}. {_remedy(folder, named)}"
    )


def find_images(root: str | Path, split: str, named: Named = IN_COMMANDS) -> Path:
    """The image folder of ``split`` (test-dev2017 lies in test2017); InputError says what is expected where."""
    names = dict.fromkeys((split, split.replace("test-dev", "test")))
    candidates = [place for name in names for place in (Path(root) / name, Path(root) / "images" / name)]
    for folder in candidates:
        if folder.is_dir():
            return folder
    expected = " or ".join(f"{place.relative_to(root)}/" for place in candidates)
    raise InputError(
        f"{root} has no images of split {split!r}; expected them in {expected}. {_remedy(Path(root), named)}"
    )


def _remedy(folder: Path, named: Named) -> str:
    inside = sorted(path.parent for path in folder.glob("*/annotations") if path.is_dir())
    if len(inside) == 1:
        return f"It holds a data set in a folder of its own: give {inside[0]} as {named.root}"
    if inside:
        return f"It holds data sets in folders of their own: give one of {listed([str(path) for path in inside], 4)}"
    if named == IN_SWEEPS:
        return (
            "Name another folder by data.root, download COCO with `python -m detector.data download coco2017`, or use "
            "`--profile laptop`, which generates its own data and needs nothing"
        )
    return (
        f"Give another folder as {named.root}, or make one by `python -m detector.data`: import (from other formats), "
        "synthesize (generated images) or download coco2017"
    )
