"""What an evaluation would have been on other images: its matches, and AP over resamples of its images, kept beside it.

    STORAGE/trainings/IDENTITY/evaluations/KEY/matches.npz     which detection found what (detector.matches)
                                               resampled.npz   AP of each resample, and what it was made from

Both follow from detections.json and the converted split, once for all. The resamples are the same for every evaluation
of a split, so differences are paired by image.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.files import read_json

if TYPE_CHECKING:
    from detector.data.instances import Instances
    from detector.data.store import Store
    from detector.matches import Matches
    from detector.results import Results
    from orchestrator.storage import Storage

COUNT = 1000
"""Resamples."""
DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading a file raises that isn't there, or isn't what was written."""


@dataclass(frozen=True, eq=False)
class Resampled:
    """AP of one evaluation over resamples of its images, in percent."""

    ap: np.ndarray
    """(B,), nan where it is undefined."""
    images: int
    without_boxes: tuple[int, ...]
    """Ids of the categories that have no box in the split: undefined, and in no AP."""
    pairing: str
    """Digest of the resamples: figures with different ones aren't paired."""


def resampled(place: Storage, identity: str, key: str, split_digest: str) -> Resampled | str:
    """Of the evaluation ``key`` of a training; a sentence that says what is missing, where it can't be had.

    Reads what is kept, or makes and keeps it.
    """
    folder = f"trainings/{identity}/evaluations/{key}"
    kept = _read(place.fetch(f"{folder}/resampled.npz"))
    if kept is not None and kept.pairing == _pairing(kept.images):
        return kept
    matches = read_matches(place, folder, split_digest)
    if isinstance(matches, str):
        return matches
    from detector.bootstrap import average_precision, resamples

    found = Resampled(
        ap=average_precision(matches, resamples(len(matches.image_ids), COUNT)),
        images=len(matches.image_ids),
        without_boxes=tuple(matches.category_ids[matches.boxes.sum(0) == 0].tolist()),
        pairing=_pairing(len(matches.image_ids)),
    )
    keep(
        place,
        f"{folder}/resampled.npz",
        ap=found.ap,
        images=np.array(found.images),
        without_boxes=np.array(found.without_boxes, dtype=np.int64),
        pairing=np.array(found.pairing),
    )
    return found


def read_matches(place: Storage, folder: str, split_digest: str) -> Matches | str:
    """The matches of the evaluation in ``folder``, read or made and kept; or a sentence that says what is missing."""
    from detector.matches import Matches, match

    path = place.fetch(f"{folder}/matches.npz")
    with contextlib.suppress(*DAMAGED), np.load(path) as arrays:
        return Matches(**arrays)
    both = truth_and_detections(place, folder, split_digest)
    if isinstance(both, str):
        return both
    found = match(*both)
    keep(place, f"{folder}/matches.npz", **found.arrays())
    return found


def truth_and_detections(place: Storage, folder: str, split_digest: str) -> tuple[Instances, Results] | str:
    """The annotated boxes of the split and what the evaluation in ``folder`` found, or what of them is missing."""
    opened = split_store(place, split_digest)
    if isinstance(opened, str):
        return opened
    detections = _detections(place, folder)
    return detections if isinstance(detections, str) else (opened.instances(), detections)


def split_store(place: Storage, split_digest: str) -> Store | str:
    """The converted split with that digest, if its objects are known, or a sentence that says what is missing."""
    from detector.data.store import is_store, open_store

    uri = f"{place.shared('data')}/{split_digest}"
    if not is_store(uri):
        return "its converted images are no longer in the storage"
    opened = open_store(uri)
    return opened if opened.has_annotations else "its images have no annotations here"


def _detections(place: Storage, folder: str) -> Results | str:
    """What the evaluation in ``folder`` found, or a sentence that says what is missing."""
    from detector.results import Results

    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        entries = read_json(place.fetch(f"{folder}/detections.json"))
        if entries is not None:
            return Results.of_entries(entries)
    return "its detections are not in the storage"


def _read(path: Path) -> Resampled | None:
    try:
        with np.load(path) as kept:
            without = tuple(int(number) for number in kept["without_boxes"])
            return Resampled(kept["ap"], int(kept["images"]), without, str(kept["pairing"]))
    except DAMAGED:
        return None  # it is made again


def keep(place: Storage, key: str, **arrays: np.ndarray) -> None:
    """Keeps a file; a storage that can't be written shows itself where it is needed."""
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(prefix="detsweep-") as scratch:
        path = Path(scratch) / Path(key).name
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
        place.put(path, key)


@cache
def _pairing(images: int) -> str:
    """Of the resamples of so many images: other versions of NumPy may draw others."""
    from detector.bootstrap import resamples

    return hashlib.sha256(resamples(images, COUNT).tobytes()).hexdigest()[:16]
