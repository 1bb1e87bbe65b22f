"""Kinds of error: boxes put by hand, plain loops written from the definitions, and pycocotools' own matching."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detector.data.instances import Instances
from detector.error_kinds import KINDS, STATES, ErrorKinds, best_threshold, confusion_matrix, error_kinds, overlaps
from detector.results import Results
from tests.detector.cocos import cocos_own, matched
from tests.detector.plain_atss import iou

CATEGORIES = [{"id": 3, "name": "left"}, {"id": 7, "name": "right"}, {"id": 9, "name": "never"}]


def truth(number, image, category, box, crowd=0):
    area = box[2] * box[3]
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}


def found(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def split(*annotations, images=(1, 2)):
    rows = [{"id": number, "width": 500, "height": 500} for number in images]
    return {"images": rows, "annotations": list(annotations), "categories": CATEGORIES}


def sorted_out(annotations, detections, threshold):
    return error_kinds(Instances.of_document(annotations), Results.of_entries(detections), threshold)


def kinds(result):
    return [KINDS[number] for number in result.kind]


def states(result):
    return [STATES[number] for number in result.truth_state]


def test_each_kind_by_hand():
    annotations = split(
        truth(1, 1, 3, [0, 0, 100, 100]),
        truth(2, 1, 7, [200, 0, 100, 100]),
        truth(3, 1, 3, [0, 200, 100, 100]),
        truth(4, 1, 3, [200, 200, 100, 100]),
        truth(5, 1, 7, [400, 400, 100, 100], crowd=1),
    )
    detections = [
        found(1, 3, [0, 0, 100, 100], 0.99),  # exact
        found(1, 3, [10, 0, 100, 100], 0.98),  # IoU 90/110 with the first, which is taken
        found(1, 3, [200, 0, 100, 100], 0.97),  # exactly the second, whose class is 7
        found(1, 3, [60, 200, 100, 100], 0.96),  # IoU 40/160 = 0.25 with the third
        found(1, 7, [60, 260, 100, 100], 0.95),  # 40 x 40 of the third: 1600/18400 = 0.087, background
        found(1, 7, [30, 250, 100, 100], 0.94),  # 70 x 50: 3500/16500 = 0.21 with a box of class 3, both
        found(1, 7, [410, 410, 50, 50], 0.93),  # in the crowd of its class
        found(2, 9, [0, 0, 10, 10], 0.92),  # an image without boxes
        found(1, 3, [0, 0, 100, 100], 0.1),  # below the threshold
    ]
    result = sorted_out(annotations, detections, 0.5)
    expected = ["found", "duplicate", "confusion", "localisation", "background", "both", "in a crowd", "background"]
    assert kinds(result) == expected
    assert states(result) == ["found", "nearly", "nearly", "missed", "crowd"]
    assert result.about.tolist() == [0, 0, 1, 2, -1, -1, -1, -1]
    counts = result.counts()
    assert (counts["boxes"], counts["missed"], counts["background"]) == (4, 1, 2)
    # Image 1: duplicate, confusion, localisation, background, both; three boxes without a detection. Image 2: one.
    assert result.errors_by_image().tolist() == [8, 1]
    matrix = confusion_matrix(result)
    # Rows and columns: 3, 7, 9, background or nothing.
    assert matrix.tolist() == [[1, 0, 0, 2], [1, 0, 0, 0], [0, 0, 0, 0], [2, 2, 1, 0]]


def test_a_found_box_may_be_confused_as_well():
    annotations = split(truth(1, 1, 3, [0, 0, 100, 100]))
    detections = [found(1, 3, [0, 0, 100, 100], 0.9), found(1, 7, [0, 0, 100, 100], 0.8)]
    result = sorted_out(annotations, detections, 0.0)
    assert (kinds(result), states(result)) == (["found", "confusion"], ["found"])
    assert confusion_matrix(result)[0].tolist() == [1, 1, 0, 0]


def test_nothing_found_and_nothing_to_find():
    empty = sorted_out(split(), [], 0.5)
    assert empty.counts()["boxes"] == 0
    assert confusion_matrix(empty).sum() == 0
    blind = sorted_out(split(truth(1, 2, 7, [0, 0, 9, 9])), [], math.inf)
    assert (blind.counts()["missed"], blind.errors_by_image().tolist()) == (1, [0, 1])
    astray = sorted_out(split(), [found(1, 3, [0, 0, 9, 9], 1.0), found(8, 3, [0, 0, 9, 9], 1.0)], 0.0)
    assert kinds(astray) == ["background"]
    assert confusion_matrix(astray)[3].tolist() == [1, 0, 0, 0]


def plain(annotations, detections, threshold):
    """The definitions, one detection after the other, in Python's own numbers."""
    answers = {}

    def corners(box):
        return (box[0], box[1], box[0] + box[2], box[1] + box[3])

    near = {}
    taken = {}
    order = sorted((d for d in detections if d["score"] >= threshold), key=lambda d: -d["score"])
    for detection in order:
        boxes = [t for t in annotations["annotations"] if t["image_id"] == detection["image_id"] and not t["iscrowd"]]
        best, best_iou = None, 0.5
        for box in boxes:
            value = iou(corners(detection["bbox"]), corners(box["bbox"]))
            if box["category_id"] == detection["category_id"] and box["id"] not in taken and value >= best_iou:
                best, best_iou = box["id"], value
        if best is not None:
            taken[best] = id(detection)
            answers[id(detection)] = "found"
    for detection in order:
        if id(detection) in answers:
            continue
        here = [t for t in annotations["annotations"] if t["image_id"] == detection["image_id"]]
        mine = [t for t in here if t["category_id"] == detection["category_id"]]
        area = detection["bbox"][2] * detection["bbox"][3]

        def inside(crowd, detection=detection, area=area):
            a, b = corners(detection["bbox"]), corners(crowd["bbox"])
            width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            return max(0, width) * max(0, height) / area

        def value(box, detection=detection):
            return iou(corners(detection["bbox"]), corners(box["bbox"]))

        own = {t["id"]: value(t) for t in mine if not t["iscrowd"]}
        other = {t["id"]: value(t) for t in here if not t["iscrowd"] and t not in mine}
        best_own, best_other = max(own.values(), default=0), max(other.values(), default=0)
        if any(inside(t) >= 0.5 for t in mine if t["iscrowd"]):
            answer = "in a crowd"
        elif 0.1 <= best_own < 0.5:
            answer = "localisation"
            near[id(detection)] = next(t for t in here if t["id"] == max(own, key=own.get))
        elif best_other >= 0.5:
            answer = "confusion"
            near[id(detection)] = next(t for t in here if t["id"] == max(other, key=other.get))
        elif any(v >= 0.5 and number in taken for number, v in own.items()):
            answer = "duplicate"
        elif max(best_own, best_other) < 0.1:
            answer = "background"
        else:
            answer = "both"
        answers[id(detection)] = answer
    nearly = {box["id"] for box in near.values()}
    state = {}
    for box in annotations["annotations"]:
        number = box["id"]
        state[number] = (
            "crowd" if box["iscrowd"] else "found" if number in taken else "nearly" if number in nearly else "missed"
        )
    return answers, state, near


def scene(seed, images=60):
    random = np.random.default_rng(seed)
    annotations, detections = [], []
    for image in range(1, images + 1):
        for _ in range(int(random.integers(0, 7))):
            box = [*random.uniform(0, 150, 2), *random.uniform(20, 90, 2)]
            crowd = int(random.random() < 0.15)
            annotations.append(truth(len(annotations) + 1, image, int(random.choice([3, 7])), box, crowd))
            for _ in range(int(random.integers(0, 4))):
                moved = [*(np.array(box) + random.normal(0, random.choice([3, 12]), 4)).clip(5)]
                detections.append(found(image, int(random.choice([3, 3, 7, 9])), moved, float(random.random())))
        for _ in range(2):
            stray = [*random.uniform(0, 200, 2), *random.uniform(10, 60, 2)]
            detections.append(found(image, int(random.choice([3, 7])), stray, float(random.random())))
    return split(*annotations, images=range(1, images + 1)), detections


@pytest.mark.parametrize("seed", range(8))
def test_plain_loops_say_the_same(seed):
    annotations, detections = scene(seed)
    result = sorted_out(annotations, detections, 0.3)
    answers, state, near = plain(annotations, detections, 0.3)
    kept = sorted((d for d in detections if d["score"] >= 0.3), key=lambda d: (d["image_id"], -d["score"]))
    assert kinds(result) == [answers[id(d)] for d in kept]
    in_order = sorted(annotations["annotations"], key=lambda t: t["image_id"])
    assert states(result) == [state[t["id"]] for t in in_order]
    assert set(kinds(result)) == set(KINDS)
    assert set(states(result)) == set(STATES)
    expected = np.zeros((4, 4), dtype=int)
    columns = {3: 0, 7: 1, 9: 2}
    confused = set()
    for detection in kept:
        answer, column = answers[id(detection)], columns[detection["category_id"]]
        if answer == "found":
            expected[column, column] += 1
        elif answer == "confusion":
            box = near[id(detection)]
            confused.add(box["id"])
            expected[columns[box["category_id"]], column] += 1
        elif answer != "in a crowd":
            expected[3, column] += 1
    for box in annotations["annotations"]:
        if state[box["id"]] in ("missed", "nearly") and box["id"] not in confused:
            expected[columns[box["category_id"]], 3] += 1
    assert confusion_matrix(result).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_what_is_found_is_what_pycocotools_finds(seed):
    annotations, detections = scene(seed)
    result = sorted_out(annotations, detections, 0.0)
    own = cocos_own(annotations, detections)
    entries = [entry for entry in own.evalImgs if entry is not None and entry["aRng"] == own.params.areaRng[0]]
    found = sum(np.count_nonzero(entry["dtMatches"][0][~entry["dtIgnore"][0]]) for entry in entries)
    assert np.count_nonzero(result.kind == KINDS.index("found")) == found > 0
    in_a_crowd = sum(np.count_nonzero(entry["dtIgnore"][0]) for entry in entries)
    assert np.count_nonzero(result.kind == KINDS.index("in a crowd")) == in_a_crowd
    assert result.counts()["boxes"] == sum(np.count_nonzero(entry["gtIgnore"] == 0) for entry in entries)


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_has_the_highest_f1_of_all(seed):
    annotations, detections = scene(seed, images=12)
    for detection in detections[::3]:
        detection["score"] = round(detection["score"], 1)
    chosen = best_threshold(matched(annotations, detections))

    def f1(threshold):
        result = sorted_out(annotations, detections, threshold)
        hits, of = result.counts()["found"], np.count_nonzero(result.kind != KINDS.index("in a crowd"))
        return 2 * hits / (of + result.counts()["boxes"])

    everywhere = {d["score"]: f1(d["score"]) for d in detections}
    assert f1(chosen) == pytest.approx(max(everywhere.values()))
    assert chosen in everywhere


def test_without_a_hit_no_detection_counts():
    annotations = split(truth(1, 1, 3, [0, 0, 50, 50]))
    assert best_threshold(matched(annotations, [found(1, 7, [0, 0, 50, 50], 0.9)])) == math.inf
    assert best_threshold(matched(annotations, [])) == math.inf


def test_overlaps_are_those_of_a_plain_formula():
    boxes, truths = np.array([[0, 0, 10, 10], [5, 5, 0, 0]]), np.array([[5, 0, 10, 10], [0, 0, 20, 10]])
    assert overlaps(boxes, truths, np.array([False, True])).tolist() == [[50 / 150, 1.0], [0.0, 0.0]]


def test_it_survives_a_file(tmp_path):
    result = sorted_out(*scene(3), 0.3)
    np.savez_compressed(tmp_path / "errors.npz", **result.arrays())
    with np.load(tmp_path / "errors.npz") as arrays:
        again = ErrorKinds(**arrays)
    assert again.counts() == result.counts()
    assert all(np.array_equal(again.arrays()[name], value) for name, value in result.arrays().items())
