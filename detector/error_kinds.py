"""What a detector got wrong, by kind: confusion, localisation, duplicate, background, both, and boxes it missed.

Source: Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, section 2, with its
thresholds, foreground 0.5 and background 0.1, and the order in which its code asks. Of a detection that found no box,
with its IoUs with the boxes of its image, crowds left out:

    localisation   its best IoU with a box of its own class is from 0.1 to below 0.5
    confusion      otherwise, one with a box of another class is at least 0.5
    duplicate      otherwise, one with a box of its own class, which a higher score has found, is at least 0.5
    background     otherwise, all are below 0.1
    both           otherwise: near a box of another class, and badly placed
    missed         a box that nothing found and no localisation or confusion is about

Unlike TIDE, which weighs each kind by the AP that mending it would give, these are counts of the detections from a
score upwards: where F1 over all classes is highest, so that heads with scores of other scales can be compared.

I images, C categories, D detections from that score upwards, G boxes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from detector.data.instances import Instances, places
from detector.matches import Matches
from detector.results import Results

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1
KINDS = ("found", "localisation", "confusion", "duplicate", "background", "both", "in a crowd")
"""Of a detection, by its number."""
FOUND, LOCALISATION, CONFUSION, DUPLICATE, BACKGROUND, BOTH, IN_CROWD = range(len(KINDS))
STATES = ("found", "missed", "nearly", "crowd")
"""Of a box, by its number; "nearly": not found, but a localisation or a confusion is about it."""
SEEN, MISSED, NEARLY, CROWD = range(len(STATES))


@dataclass(frozen=True, eq=False)
class ErrorKinds:
    """One evaluation, box by box. ``ErrorKinds(**numpy.load(file))`` reads what was saved of ``arrays()``."""

    threshold: np.ndarray
    """() float64: detections with lower scores are left out; infinite where no detection found anything."""
    image_ids: np.ndarray
    """(I,) int64, ascending."""
    category_ids: np.ndarray
    """(C,) int64, ascending."""
    image: np.ndarray
    """(D,) int32: place in ``image_ids``."""
    category: np.ndarray
    """(D,) int32: place in ``category_ids``."""
    box: np.ndarray
    """(D, 4) float32 xywh, pixels of the original image."""
    score: np.ndarray
    """(D,) float32."""
    kind: np.ndarray
    """(D,) int8: place in ``KINDS``."""
    about: np.ndarray
    """(D,) int32: the box that it found, or that a localisation, confusion or duplicate is about; else -1."""
    truth_image: np.ndarray
    """(G,) int32."""
    truth_category: np.ndarray
    """(G,) int32."""
    truth_box: np.ndarray
    """(G, 4) float32 xywh."""
    truth_state: np.ndarray
    """(G,) int8: place in ``STATES``."""

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def counts(self) -> dict[str, int]:
        """How many detections of each kind of ``KINDS``, how many "boxes" there are without crowds, and "missed"."""
        by_kind = np.bincount(self.kind, minlength=len(KINDS)).tolist()
        boxes = np.count_nonzero(self.truth_state != CROWD)
        missed = np.count_nonzero(self.truth_state == MISSED)
        return {**dict(zip(KINDS, by_kind, strict=True)), "boxes": int(boxes), "missed": int(missed)}

    def errors_by_image(self) -> np.ndarray:
        """(I,) int64: boxes not found, and detections that found none."""
        wrong = (self.kind != FOUND) & (self.kind != IN_CROWD)
        lost = (self.truth_state == MISSED) | (self.truth_state == NEARLY)
        count = len(self.image_ids)
        return np.bincount(self.image[wrong], minlength=count) + np.bincount(self.truth_image[lost], minlength=count)


def best_threshold(matches: Matches) -> float:
    """The score from which upwards F1 at IoU 0.5, over all classes together, is highest; inf where nothing was found.

    F1 is 2 · found / (detections + boxes); crowds and what lies in them count neither way. Of equals the highest score.
    """
    counted = ~matches.ignored[0]
    order = np.argsort(-matches.score[counted], kind="stable")
    scores, found = matches.score[counted][order], np.cumsum(matches.matched[0][counted][order])
    if not len(scores) or found[-1] == 0:
        return math.inf
    f1 = 2 * found / (np.arange(1, len(scores) + 1) + int(matches.boxes.sum()))
    # A score stands for all detections that have it.
    last_of_equals = np.append(scores[1:] < scores[:-1], True)
    return float(scores[np.argmax(np.where(last_of_equals, f1, -1.0))])


def error_kinds(truth: Instances, found: Results, threshold: float) -> ErrorKinds:
    """Sorts the detections of ``found`` with at least ``threshold`` as score by kind.

    Boxes are found as COCO finds them: from the highest score down, the free box of the class with the highest IoU, if
    that is at least 0.5. Detections on images or of categories that ``truth`` doesn't list are left out.
    """
    image_ids, category_ids = truth.image_ids, truth.category_ids
    by_image = np.argsort(truth.image, kind="stable")
    truth_image, truth_category = truth.image[by_image].astype(np.int32), truth.category[by_image].astype(np.int32)
    truth_box, crowd = truth.boxes[by_image], truth.crowd[by_image]
    place, listed = places(found.image_ids, image_ids)
    kind_of, known = places(found.category_ids, category_ids)
    kept = np.flatnonzero((found.scores >= threshold) & listed & known)
    kept = kept[np.lexsort((-found.scores[kept], place[kept]))]
    image, category = place[kept].astype(np.int32), kind_of[kept].astype(np.int32)
    box = found.boxes[kept].astype(np.float64)
    state = np.where(crowd, CROWD, MISSED).astype(np.int8)
    kind = np.zeros(len(kept), dtype=np.int8)
    about = np.full(len(kept), -1, dtype=np.int32)
    firsts = np.searchsorted(image, np.arange(len(image_ids) + 1))
    truth_firsts = np.searchsorted(truth_image, np.arange(len(image_ids) + 1))
    for number in np.unique(image).tolist():
        mine = slice(firsts[number], firsts[number + 1])
        those = slice(truth_firsts[number], truth_firsts[number + 1])
        overlap = overlaps(box[mine], truth_box[those], crowd[those])
        same = category[mine][:, None] == truth_category[those][None]
        kind[mine], about[mine] = _of_image(overlap, same, crowd[those])
        about[mine] = np.where(about[mine] >= 0, about[mine] + those.start, -1)
    near = np.isin(kind, (LOCALISATION, CONFUSION))
    state[about[near]] = NEARLY
    state[about[kind == FOUND]] = SEEN
    return ErrorKinds(
        threshold=np.array(threshold, dtype=np.float64),
        image_ids=image_ids,
        category_ids=category_ids,
        image=image,
        category=category,
        box=box.astype(np.float32),
        score=found.scores[kept].astype(np.float32),
        kind=kind,
        about=about,
        truth_image=truth_image,
        truth_category=truth_category,
        truth_box=truth_box.astype(np.float32),
        truth_state=state,
    )


def confusions(found: ErrorKinds) -> np.ndarray:
    """(P, 3) int64: true class, found class, and how often, as places in ``category_ids``; C is background or nothing.

    (c, c) are boxes that were found and (c, d) confusions; (C, d) are the other detections that found nothing, and
    (c, C) boxes that neither were found nor are in a confusion. In the order of classes, without zeros.
    """
    none = len(found.category_ids)
    told = np.isin(found.kind, (FOUND, CONFUSION))
    stray = np.isin(found.kind, (LOCALISATION, DUPLICATE, BACKGROUND, BOTH))
    lost = np.isin(found.truth_state, (MISSED, NEARLY))
    lost[found.about[found.kind == CONFUSION]] = False
    true = (found.truth_category[found.about[told]], np.full(stray.sum(), none), found.truth_category[lost])
    said = (found.category[told], found.category[stray], np.full(lost.sum(), none))
    pairs = np.stack([np.concatenate(true), np.concatenate(said)], 1).astype(np.int64)
    unique, counts = np.unique(pairs, axis=0, return_counts=True)
    return np.concatenate([unique, counts[:, None].astype(np.int64)], 1)


def confusion_matrix(found: ErrorKinds) -> np.ndarray:
    """(C + 1, C + 1) int64: ``confusions`` as a table, true class by found class."""
    size = len(found.category_ids) + 1
    matrix = np.zeros((size, size), dtype=np.int64)
    true, said, count = confusions(found).T
    matrix[true, said] = count
    return matrix


def overlaps(boxes: np.ndarray, truths: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(D, G) IoU of boxes (D, 4) and truths (G, 4), xywh; with a ``crowd`` (G,) the share of the box that is in it."""
    first, second = boxes[:, None].astype(np.float64), truths[None].astype(np.float64)
    corner = np.maximum(first[..., :2], second[..., :2])
    far = np.minimum(first[..., :2] + first[..., 2:], second[..., :2] + second[..., 2:])
    common = np.clip(far - corner, 0, None).prod(-1)
    area, other = first[..., 2:].prod(-1), second[..., 2:].prod(-1)
    whole = np.where(crowd[None], area, area + other - common)
    return np.divide(common, whole, out=np.zeros_like(common), where=whole > 0)


def _of_image(overlap: np.ndarray, same: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kind (d,) of each detection of one image, best score first, and the box (d,) that it is about, or -1."""
    kind = np.full(len(overlap), BACKGROUND, dtype=np.int8)
    about = np.full(len(overlap), -1, dtype=np.int32)
    if not overlap.shape[1]:
        return kind, about
    own = np.where(same & ~crowd, overlap, -1.0)
    other = np.where(~same & ~crowd, overlap, -1.0)
    in_crowd = np.where(same & crowd, overlap, -1.0).max(1) >= FOREGROUND_IOU
    taken = np.zeros(overlap.shape[1], dtype=bool)
    for row in range(len(overlap)):  # in order: what one has found is taken for those after it
        free = np.where(taken, -1.0, own[row])
        best = len(free) - 1 - int(free[::-1].argmax())  # COCO takes the last of equals
        if free[best] >= FOREGROUND_IOU:
            kind[row], about[row], taken[best] = FOUND, best, True
    best_own, best_other = own.argmax(1), other.argmax(1)
    own_iou, other_iou = own.max(1), other.max(1)
    rest = kind != FOUND
    known = np.maximum(own_iou, other_iou)
    choices = (
        (IN_CROWD, in_crowd, None),
        (LOCALISATION, (own_iou >= BACKGROUND_IOU) & (own_iou < FOREGROUND_IOU), best_own),
        (CONFUSION, other_iou >= FOREGROUND_IOU, best_other),
        # Every free box of the class with that IoU would have been found by this one.
        (DUPLICATE, own_iou >= FOREGROUND_IOU, best_own),
        (BACKGROUND, known < BACKGROUND_IOU, None),
        (BOTH, np.ones(len(kind), dtype=bool), None),
    )
    for number, holds, box in choices:
        chosen = rest & holds
        kind[chosen] = number
        if box is not None:
            about[chosen] = box[chosen]
        rest &= ~holds
    return kind, about
