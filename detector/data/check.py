"""Everything that is wrong with a COCO-format folder, and what training does about it.

K boxes that are trained on, in all images of a split.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np

from detector.data.coco import Category, CocoSplit, Problem, inspect_split, training_boxes
from detector.data.conversion import decoding_threads
from detector.data.images import SUFFIXES, decode_image
from detector.data.places import find_annotations
from detector.data.plans import resized_size
from detector.errors import InputError
from detector.progress import track

SMALL_SIDE = 8
"""Boxes with a side below this, in pixels at training resolution, are hard to learn: it is the finest stride."""
SMALL_SHARE = 0.1
_SHOWN = 20
_IGNORED_JSON = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_unlabeled")


@dataclass
class SplitReport:
    """What was found in one split."""

    split: str
    problems: list[Problem] = field(default_factory=list)
    images: int = 0
    images_with_boxes: int = 0
    boxes_per_class: dict[str, int] = field(default_factory=dict)
    """Boxes trained on, by name of the class."""
    annotations: int = 0
    sides: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(K,) shorter sides of the boxes at training resolution, in pixels."""
    categories: tuple[Category, ...] = ()
    contents: dict[str, str] = field(default_factory=dict)
    """File name by checksum of its bytes."""

    @property
    def refused(self) -> bool:
        """Whether training refuses this split."""
        return any(problem.refuses for problem in self.problems)


def splits_of(root: str | Path) -> list[str]:
    """The splits that have annotations under ``root``; InputError where there are none."""
    names = [path.stem for path in sorted((Path(root) / "annotations").glob("*.json")) if path.is_file()]
    found = [
        name.removeprefix("instances_").removeprefix("image_info_")
        for name in names
        if not name.startswith(_IGNORED_JSON)
    ]
    if not found:
        find_annotations(root, "train")  # says what is expected where
    return list(dict.fromkeys(found))


def check(root: str | Path, splits: list[str], *, short_side: int, long_side: int) -> list[SplitReport]:
    """Reports on ``splits``, decoding each image once; box sizes are those at the given training resolution."""
    reports = [_check_split(root, split, short_side, long_side) for split in splits]
    for number, report in enumerate(reports):
        for earlier in reports[:number]:
            report.problems += _between(earlier, report)
    return reports


def _check_split(root: str | Path, split: str, short_side: int, long_side: int) -> SplitReport:
    report = SplitReport(split)
    try:
        found, report.problems = inspect_split(root, split)
    except InputError as error:
        report.problems.append(Problem(str(root), f"split {split}", str(error), "training refuses", "files", True))
        return report
    if found is None:
        return report
    report.images, report.annotations, report.categories = len(found), len(found.boxes), found.categories
    report.problems += [*_images(found, report), *_strangers(found), *_boxes(found)]
    counts = np.diff(found.offsets)
    sizes = np.repeat(found.sizes, counts, 0)
    boxes, kept = training_boxes(found.boxes, sizes, found.crowd)
    owners = np.repeat(np.arange(len(found)), counts)[kept]
    report.images_with_boxes = len(np.unique(owners))
    resized = np.array([resized_size((h, w), short_side, long_side) for h, w in found.sizes.tolist()]).reshape(-1, 2)
    scale = (resized / found.sizes)[owners][:, ::-1]
    report.sides = ((boxes[kept][:, 2:] - boxes[kept][:, :2]) * scale).min(1) if len(owners) else np.zeros(0)
    tally = Counter(found.category_ids[kept].tolist())
    report.boxes_per_class = {category.name: tally[category.id] for category in found.categories}
    report.problems += _whole(found, report, short_side, long_side)
    return report


def _images(found: CocoSplit, report: SplitReport) -> Iterator[Problem]:
    """Images that are missing, can't be decoded, have another size or the same content."""

    def look(index: int) -> tuple[str, str, str]:
        path = found.image_folder / found.file_names[index]
        height, width = (int(side) for side in found.sizes[index])
        try:
            content = path.read_bytes()
        except OSError as error:
            return "", f"it can't be read ({error.strerror})", "unreadable image"
        checksum = hashlib.sha256(content).hexdigest()
        try:
            decode_image(content, size=(height, width))
        except ValueError as error:
            return checksum, str(error), "unusable image"
        return checksum, "", ""

    with ThreadPoolExecutor(decoding_threads()) as pool:
        looks = pool.map(look, range(len(found)))
        for index, (checksum, reason, kind) in enumerate(track(looks, len(found), f"checking {report.split}")):
            name = found.file_names[index]
            where = f"image {found.image_ids[index]}"
            if reason:
                remedy = "training refuses; replace the file or remove the image from the JSON"
                yield Problem(str(found.image_folder / name), where, reason, remedy, kind, refuses=True)
            same = report.contents.setdefault(checksum, name) if checksum else name
            if same != name:
                reason = f"has the same bytes as {same}"
                yield Problem(str(found.image_folder / name), where, reason, "it is trained on twice", "same image")


def _strangers(found: CocoSplit) -> Iterator[Problem]:
    """Image files that the JSON doesn't list."""
    listed = set(found.file_names)
    for path in sorted(found.image_folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.relative_to(found.image_folder).as_posix() not in listed:
            reason = f"is not listed in {found.annotation_file.name}"
            yield Problem(str(path), "", reason, "training leaves it out", "unlisted file")


def _boxes(found: CocoSplit) -> Iterator[Problem]:
    """Boxes that training changes or leaves out."""
    for image in range(len(found)):
        height, width = (int(side) for side in found.sizes[image])
        for place in range(int(found.offsets[image]), int(found.offsets[image + 1])):
            x, y, w, h = found.boxes[place].tolist()
            where = f"annotation {found.annotation_ids[place]} of image {found.image_ids[image]} "
            where += f"({found.file_names[image]})"
            file, box = str(found.annotation_file), f"its box {[x, y, w, h]}"
            if w <= 0 or h <= 0:
                yield Problem(file, where, f"{box} has no area", "training leaves it out", "no area")
            elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
                reason = f"{box} is wholly outside the image of {width}x{height}"
                yield Problem(file, where, reason, "training leaves it out", "outside")
            elif max(-x, -y, x + w - width, y + h - height) > 1:  # up to a pixel is rounding
                reason = f"{box} reaches beyond the image of {width}x{height}"
                yield Problem(file, where, reason, "training clips it to the image", "partly outside")


def _whole(found: CocoSplit, report: SplitReport, short_side: int, long_side: int) -> Iterator[Problem]:
    """What concerns the split as a whole."""
    file = str(found.annotation_file)
    if not found.has_annotations:
        yield Problem(file, "", "has no annotations", "it can be predicted on, not trained on", "no annotations")
        return
    if not report.images_with_boxes:
        reason, remedy = "no image has a box to train on", "training refuses this split; annotate some images"
        yield Problem(file, "", reason, remedy, "no boxes", refuses=True)
    without = report.images - report.images_with_boxes
    if without:
        reason = f"{without} of {report.images} images have no box to train on"
        yield Problem(file, "", reason, "training leaves them out unless data.keep_empty is true", "empty images")
    if found.crowd.any():
        reason = f"{int(found.crowd.sum())} annotations are crowds"
        yield Problem(file, "", reason, "they never train and are ignored in evaluation", "crowds")
    for name, count in report.boxes_per_class.items():
        if not count:
            reason, remedy = "has no box", "it can't be learned from this split, and has no AP on it"
            yield Problem(file, f"category {name!r}", reason, remedy, "empty class")
    small = float((report.sides < SMALL_SIDE).mean()) if len(report.sides) else 0.0
    if small > SMALL_SHARE:
        reason = (
            f"{100 * small:.1f} % of the boxes are under {SMALL_SIDE} px wide or high at training resolution (short "
            f"side {short_side}, long side {long_side})"
        )
        yield Problem(file, "", reason, "few of them will be found; raise data.short_side and long_side", "small boxes")


def _between(earlier: SplitReport, report: SplitReport) -> Iterator[Problem]:
    """What two splits have against each other."""
    if earlier.categories and report.categories and earlier.categories != report.categories:
        reason = f"its categories differ from those of split {earlier.split}"
        remedy = "detections carry the ids of the split trained on, so make both lists equal"
        yield Problem(f"split {report.split}", "", reason, remedy, "other categories")
    for checksum in report.contents.keys() & earlier.contents.keys():
        reason = f"has the same bytes as {earlier.contents[checksum]} of split {earlier.split}"
        remedy = "an image that is both trained and evaluated on makes the figures too good; remove one"
        yield Problem(f"{report.split}/{report.contents[checksum]}", "", reason, remedy, "image in two splits")


def write_report(reports: list[SplitReport], *, short_side: int, long_side: int, everything: bool, out: TextIO) -> None:
    """Prints ``reports``; of a kind of note only the first twenty unless ``everything``."""
    for report in reports:
        shown: Counter[str] = Counter()
        trained = sum(report.boxes_per_class.values())
        print(f"{report.split}: {report.images} images, {report.annotations} annotations", end="", file=out)
        print(f", {trained} boxes to train on in {report.images_with_boxes} images", file=out)
        if report.boxes_per_class:
            counts = ", ".join(f"{name} {count}" for name, count in report.boxes_per_class.items())
            print(f"  boxes by class: {counts}", file=out)
        if len(report.sides):
            low, middle, high = np.percentile(report.sides, [5, 50, 95])
            small = 100 * (report.sides < SMALL_SIDE).mean()
            print(
                f"  shorter side of the boxes at short side {short_side}, long side {long_side}: 5 % under {low:.0f} "
                f"px, half under {middle:.0f}, 95 % under {high:.0f}; {small:.1f} % under {SMALL_SIDE}",
                file=out,
            )
        for problem in sorted(report.problems, key=lambda problem: not problem.refuses):
            shown[problem.kind] += 1
            if everything or problem.refuses or shown[problem.kind] <= _SHOWN:
                print(f"  {'ERROR' if problem.refuses else 'note '} {problem}", file=out)
        for kind, count in shown.items():
            if count > _SHOWN and not everything and not any(p.refuses for p in report.problems if p.kind == kind):
                print(f"  note  {count - _SHOWN} more of this kind ({kind}): --all shows them", file=out)
    refused = [report.split for report in reports if report.refused]
    notes = sum(not problem.refuses for report in reports for problem in report.problems)
    verdict = f"training refuses {', '.join(refused)}" if refused else "training accepts all splits"
    print(f"{verdict}; {notes} note{'' if notes == 1 else 's'}", file=out)
