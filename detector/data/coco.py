"""COCO-format folders: what their files say, and what training makes of it; where these are is in ``places``.

N images, M annotations in all images, C categories. Boxes of the JSON are xywh in pixels of the image as its JSON sizes
it; training boxes are xyxy in the same pixels. Neither torch nor Arrow is needed here, so that planning is instant.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from detector.data.places import find_annotations, find_images
from detector.errors import InputError


class Category(NamedTuple):
    """One class of objects; labels are positions in the categories sorted by id."""

    id: int
    name: str


@dataclass(frozen=True)
class Problem:
    """Something wrong with a data set, and what training does about it."""

    file: str
    """File it stands in."""
    where: str
    """Image or annotation it concerns, with its id; empty for the whole file."""
    reason: str
    """What is wrong; problems of one `kind` are counted together."""
    consequence: str
    """What training does about it, or the remedy where it refuses."""
    kind: str
    refuses: bool = False
    """Whether training refuses to start."""

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        return f"{self.file}: {where}{self.reason}; {self.consequence}"


@dataclass(frozen=True, eq=False)
class CocoSplit:
    """One split, images in the order of their ids, the annotations of image i at ``offsets[i]:offsets[i + 1]``."""

    annotation_file: Path
    image_folder: Path
    categories: tuple[Category, ...]
    """Sorted by id."""
    image_ids: np.ndarray
    """(N,) int64."""
    file_names: tuple[str, ...]
    """Relative to `image_folder`."""
    sizes: np.ndarray
    """(N, 2) int64, height and width."""
    offsets: np.ndarray
    """(N + 1,) int64."""
    boxes: np.ndarray
    """(M, 4) float64 xywh, as the JSON has them."""
    category_ids: np.ndarray
    """(M,) int64."""
    crowd: np.ndarray
    """(M,) bool."""
    areas: np.ndarray
    """(M,) float64, pixels."""
    annotation_ids: np.ndarray
    """(M,) int64, unique and positive."""
    has_annotations: bool
    """False for a list of images without boxes, as of COCO's test-dev."""
    annotations_sha256: str
    """SHA-256 of the annotation file."""

    def __len__(self) -> int:
        return len(self.image_ids)


def read_split(root: str | Path, split: str) -> CocoSplit:
    """Reads and checks a split; InputError names the first thing because of which training refuses.

    What training can deal with (boxes outside the image, without area, annotations of unlisted images) passes.
    """
    found, problems = inspect_split(root, split)
    refusals = [problem for problem in problems if problem.refuses]
    if found is None or refusals:
        more = f" ({len(refusals) - 1} more: `python -m detector.data check {root}`)" if len(refusals) > 1 else ""
        raise InputError(f"{refusals[0]}{more}")
    return found


def inspect_split(root: str | Path, split: str) -> tuple[CocoSplit | None, list[Problem]]:
    """The split and all that is wrong with its JSON; no split where the file isn't COCO at all.

    A split that comes with refusing problems holds only what could be read. InputError where the files are missing.
    """
    return inspect_file(find_annotations(root, split), find_images(root, split))


def inspect_file(path: Path, images: Path) -> tuple[CocoSplit | None, list[Problem]]:
    """As `inspect_split`, for any annotation file ``path`` of the images in the folder ``images``."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}; check its permissions") from error
    reader = _Reader(path)
    document = reader.document(content)
    if document is None:
        return None, reader.problems
    return reader.split(document, images, hashlib.sha256(content).hexdigest()), reader.problems


class _Reader:
    """Reads one annotation file and gathers its problems."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[Problem] = []

    def refuse(self, where: str, reason: str, remedy: str, kind: str) -> None:
        self.problems.append(Problem(str(self.path), where, reason, remedy, kind, refuses=True))

    def note(self, where: str, reason: str, consequence: str, kind: str) -> None:
        self.problems.append(Problem(str(self.path), where, reason, consequence, kind))

    def document(self, content: bytes) -> dict[str, Any] | None:
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            self.refuse("", f"is not valid JSON ({error})", "write it again, it may be cut short", "not JSON")
            return None
        remedy = 'expected a mapping with lists "images", "categories" and "annotations"'
        if not isinstance(document, dict):
            self.refuse("", f"is JSON but not COCO, its top is a {type(document).__name__}", remedy, "not COCO")
            return None
        for key in ("images", "categories", "annotations"):
            if key == "annotations" and key not in document:
                continue
            if not isinstance(document.get(key), list):
                state = "missing" if key not in document else "not a list"
                self.refuse("", f'is JSON but not COCO, "{key}" is {state}', remedy, "not COCO")
                return None
        return document

    def split(self, document: dict[str, Any], image_folder: Path, digest: str) -> CocoSplit:
        categories = self.categories(document["categories"])
        images = self.images(document["images"])
        names = {image_id: name for image_id, name, *_ in images}
        listed = document.get("annotations", [])
        rows = self.annotations(listed, names, {category.id for category in categories})
        position = {image_id: index for index, image_id in enumerate(names)}
        rows.sort(key=lambda row: position[row[0]])  # stable: an image's annotations keep the file's order
        counts = np.bincount([position[row[0]] for row in rows], minlength=len(names)) if rows else np.zeros(len(names))
        ids = np.array([row[5] for row in rows], np.int64)
        # The public evaluation code takes annotation id 0 for "no match", and equal ids for one annotation.
        if len(ids) and (ids.min() < 1 or len(np.unique(ids)) < len(ids)):
            self.note("", "annotation ids are missing, repeated or below 1", "they are numbered anew", "annotation ids")
            ids = np.arange(1, len(ids) + 1)
        return CocoSplit(
            annotation_file=self.path,
            image_folder=image_folder,
            categories=categories,
            image_ids=np.array(list(names), np.int64),
            file_names=tuple(names.values()),
            sizes=np.array([size for *_, size in images], np.int64).reshape(-1, 2),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes=np.array([row[2] for row in rows], np.float64).reshape(-1, 4),
            category_ids=np.array([row[1] for row in rows], np.int64),
            crowd=np.array([row[3] for row in rows], bool),
            areas=np.array([row[4] for row in rows], np.float64),
            annotation_ids=ids,
            has_annotations="annotations" in document,
            annotations_sha256=digest,
        )

    def categories(self, entries: list[Any]) -> tuple[Category, ...]:
        found: dict[int, Category] = {}
        for place, entry in enumerate(entries):
            identity = _integer(entry.get("id")) if isinstance(entry, dict) else None
            where = f"category {identity if identity is not None else f'at position {place}'}"
            if identity is None or not isinstance(entry.get("name"), str):
                self.refuse(where, 'has no whole-number "id" and "name"', "give it both", "category without id")
            elif identity in found:
                self.refuse(where, "is listed twice", "remove one", "category twice")
            else:
                found[identity] = Category(identity, entry["name"])
        for name, count in Counter(category.name for category in found.values()).items():
            if count > 1:
                self.note(
                    f"category {name!r}", f"{count} ids have this name", "they stay separate classes", "name twice"
                )
        if not found and not self.problems:
            self.refuse("", "lists no categories", "list the classes of the objects", "no categories")
        return tuple(found[key] for key in sorted(found))

    def images(self, entries: list[Any]) -> list[tuple[int, str, tuple[int, int]]]:
        found: dict[int, tuple[int, str, tuple[int, int]]] = {}
        named: dict[str, int] = {}
        for place, entry in enumerate(entries):
            entry = entry if isinstance(entry, dict) else {}
            identity, name = _integer(entry.get("id")), entry.get("file_name")
            height, width = _integer(entry.get("height")) or 0, _integer(entry.get("width")) or 0
            where = f"image {identity if identity is not None else f'at position {place}'} ({name})"
            if identity is None:
                self.refuse(where, f'its "id" is {entry.get("id")!r}', "ids are whole numbers", "image without id")
            elif not isinstance(name, str) or not _inside(name):
                self.refuse(where, 'its "file_name" is not a path inside the image folder', "correct it", "file name")
            elif height < 1 or width < 1:
                self.refuse(where, 'it has no positive "width" and "height"', "write the size there", "image size")
            elif identity in found:
                self.refuse(where, "this id is listed twice", "give each image its own", "image id twice")
            else:
                if named.setdefault(name, identity) != identity:
                    self.note(where, f"image {named[name]} is the same file", "it is trained on twice", "file twice")
                found[identity] = (identity, name, (height, width))
        if not found and not self.problems:
            self.refuse("", "lists no images", "list the images of the split", "no images")
        return [found[key] for key in sorted(found)]

    def annotations(self, entries: list[Any], names: dict[int, str], categories: set[int]) -> list[tuple[Any, ...]]:
        """Rows (image id, category id, xywh, crowd, area, annotation id), the id 0 where there is none."""
        rows: list[tuple[Any, ...]] = []
        seen: dict[tuple[Any, ...], Any] = {}
        unlisted: Counter[str] = Counter()
        for place, entry in enumerate(entries):
            entry = entry if isinstance(entry, dict) else {}
            image = _integer(entry.get("image_id"))
            identity = _integer(entry.get("id"))
            label = f"annotation {identity if identity is not None else f'at position {place}'}"
            if image is None or image not in names:
                unlisted[repr(entry.get("image_id"))] += 1
                continue
            where = f"{label} of image {image} ({names[image]})"
            category, box = _integer(entry.get("category_id")), _box(entry.get("bbox"))
            if category is None or category not in categories:
                reason = f"its category_id {entry.get('category_id')!r} is not among the categories"
                self.refuse(where, reason, "list the category or remove the annotation", "unlisted category")
            elif box is None:
                reason = f"its bbox {entry.get('bbox')!r} is not four finite numbers"
                self.refuse(where, reason, "write [x, y, width, height] in pixels", "bad box")
            else:
                crowd = bool(entry.get("iscrowd", 0))
                area = entry.get("area")
                area = float(area) if isinstance(area, (int, float)) and abs(area) < 1e18 else box[2] * box[3]
                key = (image, category, box, crowd)
                if key in seen:
                    self.note(where, f"has the category and the box of {seen[key]}", "both are trained on", "box twice")
                seen.setdefault(key, label)
                rows.append((image, category, box, crowd, area, identity or 0))
        for image_id, count in unlisted.items():
            self.note(
                f"image {image_id}", f"{count} annotations name it, but it isn't listed", "left out", "unlisted image"
            )
        return rows


def _integer(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) >= 2**63:
        return None
    return int(value) if int(value) == value else None


def _box(value: Any) -> tuple[float, float, float, float] | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    if any(isinstance(number, bool) or not isinstance(number, (int, float)) for number in value):
        return None
    try:
        x, y, width, height = (float(number) for number in value)
    except OverflowError:
        return None
    return (x, y, width, height) if all(abs(number) < 1e9 for number in (x, y, width, height)) else None


def _inside(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    parts = path.parts
    return bool(parts) and "\0" not in name and not path.is_absolute() and ".." not in parts and ":" not in parts[0]


def training_boxes(boxes: np.ndarray, sizes: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What training makes of annotated boxes: clipped to the image; crowds, and what has no area then, left out.

    boxes (M, 4) xywh, sizes (M, 2) height and width of each box's image, crowd (M,) bool
    -> all clipped boxes (M, 4) float32 xyxy, and which of them are trained on (M,) bool.
    """
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    limits = sizes[:, [1, 0, 1, 0]].astype(np.float64)
    clipped = np.clip(corners, 0, limits).astype(np.float32)
    return clipped, (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1]) & ~crowd


def data_digest(root: str | Path, split: str, *, remember: Path | None = None) -> str:
    """SHA-256 over the annotation file and the sorted (file name, size in bytes) list of the split's images.

    ``remember`` is a JSON file that keeps the annotation file's checksum and list of images by (path, size, mtime),
    which spares reading it again. The images' sizes are looked up each time.
    """
    path, folder = find_annotations(root, split), find_images(root, split)
    status = path.stat()
    key, stamp = str(path.resolve()), [status.st_size, status.st_mtime_ns]
    known = _remembered(remember)
    entry = known.get(key)
    if not (isinstance(entry, dict) and entry.get("stamp") == stamp):
        found = read_split(root, split)
        names = [[int(identity), name] for identity, name in zip(found.image_ids, found.file_names, strict=True)]
        entry = {"stamp": stamp, "sha256": found.annotations_sha256, "images": names}
        _remember(remember, {**known, key: entry})
    return digest_of(entry["sha256"], image_bytes(path, folder, [tuple(image) for image in entry["images"]]))


def digest_of(annotations_sha256: str, files: dict[str, int]) -> str:
    """The data digest from the annotation file's checksum and the images' sizes in bytes by file name."""
    digest = hashlib.sha256(annotations_sha256.encode())
    for name in sorted(files):
        digest.update(f"\n{name}\0{files[name]}".encode())
    return digest.hexdigest()


def image_bytes(annotation_file: Path, folder: Path, images: list[tuple[int, str]]) -> dict[str, int]:
    """Sizes in bytes of ``images`` (id, file name) in ``folder``; InputError names the first that is missing."""
    present: dict[str, int] = {}
    for place in {os.path.dirname(name) for _, name in images}:  # one listing a folder is far cheaper than a stat each
        prefix = f"{place}/" if place else ""
        if (folder / place).is_dir():
            with os.scandir(folder / place) as entries:
                present.update((prefix + entry.name, entry.stat().st_size) for entry in entries if entry.is_file())
    missing = [(identity, name) for identity, name in images if name not in present]
    if missing:
        identity, name = missing[0]
        more = f" ({len(missing) - 1} more are missing)" if len(missing) > 1 else ""
        raise InputError(
            f"{folder / name} is missing, which {annotation_file} lists as image {identity}{more}; put it there or "
            "remove the image from the JSON"
        )
    return {name: present[name] for _, name in images}


def _remembered(path: Path | None) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text()) if path else {}
    except (OSError, ValueError):
        return {}  # only a shortcut: without it everything is read
    return known if isinstance(known, dict) else {}


def _remember(path: Path | None, known: dict[str, Any]) -> None:
    if path is None:
        return
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(known))
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)  # a storage that can't be written shows itself where it is needed
