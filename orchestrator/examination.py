"""What an evaluation got wrong, box by box, kept beside it: kinds of error, and which images changed.

    STORAGE/trainings/IDENTITY/evaluations/KEY/errors.npz     detector.error_kinds.ErrorKinds

It follows from detections.json, matches.npz and the converted split, once for all.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.resampling import DAMAGED, keep, read_matches, truth_and_detections

if TYPE_CHECKING:
    from detector.error_kinds import ErrorKinds
    from orchestrator.storage import Storage


def examined(place: Storage, identity: str, key: str, split_digest: str) -> ErrorKinds | str:
    """Of the evaluation ``key`` of a training; a sentence that says what is missing, where it can't be had.

    Reads what is kept, or makes and keeps it.
    """
    from detector.error_kinds import ErrorKinds, best_threshold, error_kinds

    folder = f"trainings/{identity}/evaluations/{key}"
    with contextlib.suppress(*DAMAGED), np.load(place.fetch(f"{folder}/errors.npz")) as arrays:
        return ErrorKinds(**arrays)
    matches = read_matches(place, folder, split_digest)
    if isinstance(matches, str):
        return matches
    both = truth_and_detections(place, folder, split_digest)
    if isinstance(both, str):
        return both
    found = error_kinds(*both, best_threshold(matches))
    keep(place, f"{folder}/errors.npz", **found.arrays())
    return found
