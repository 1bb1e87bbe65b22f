"""COCO's tables and figures: bit for bit those of pycocotools, on cases drawn to be awkward, and some by hand."""

from __future__ import annotations

import numpy as np
import pytest

from detector import matching
from detector.data.instances import Instances
from detector.matching import match_boxes
from detector.precision import Tables, tables
from detector.results import Results
from tests.detector.cocos import cocos_own

SIDES = (8.0, 31.0, 32.0, 33.0, 60.0, 96.0, 97.0, 150.0)
"""Squares of 32 and 96 lie on the borders of COCO's ranges of sizes."""


def scene(seed, *, images=10, classes=4, per_box=4, stray=6, decimals=6, crowd=0.15, step=None):
    """Boxes and detections around them. ``decimals`` rounds the scores, ``step`` all corners and sides, so that scores
    and IoUs are often equal."""
    random = np.random.default_rng(seed)
    annotations, detections = [], []
    image_ids = random.permutation(np.arange(images) * 11 + 2).tolist()
    category_ids = random.permutation(np.arange(classes) * 5 + 1).tolist()

    def rounded(box):
        values = np.array(box, dtype=float)
        return (values if step is None else np.round(values / step) * step).tolist()

    def add(image, category, box):
        score = round(float(random.random()), decimals)
        detections.append({"image_id": image, "category_id": category, "bbox": rounded(box), "score": score})

    for image in image_ids[1:]:  # one has no box
        for _ in range(random.integers(0, 7)):
            category = int(random.choice(category_ids[1:]))  # one has no box anywhere
            corner, sides = random.uniform(0, 120, 2), random.choice(SIDES, 2)
            box = rounded([*corner, *sides])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    # Of the object's outline: it needn't be the box's, and may lie on a border, too.
                    "area": float(random.choice([box[2] * box[3], 1024.0, 9216.0, 0.5 * box[2] * box[3]])),
                    "iscrowd": int(random.random() < crowd),
                }
            )
            for _ in range(random.integers(0, per_box + 1)):
                said = category if random.random() < 0.85 else int(random.choice(category_ids))
                moved = np.array(box) + random.normal(0, 1, 4) * np.tile(sides, 2) * random.choice([0, 0.03, 0.15])
                add(image, said, [*moved[:2], *np.maximum(moved[2:], 0.5)])
    for image in image_ids[:-1]:  # one has no detection
        for _ in range(random.integers(0, stray)):
            add(image, int(random.choice(category_ids)), [*random.uniform(0, 150, 2), *random.choice(SIDES, 2)])
    random.shuffle(detections)
    random.shuffle(annotations)
    truth = {
        "images": [{"id": image} for image in image_ids],
        "annotations": annotations,
        "categories": [{"id": category, "name": str(category)} for category in category_ids],
    }
    return truth, detections


def ours(truth, detections) -> Tables:
    return tables(Instances.of_document(truth), Results.of_entries(detections))


def assert_equal(truth, detections):
    """Every entry of both tables, and the figures, have the same bits."""
    found, own = ours(truth, detections), cocos_own(truth, detections)
    assert np.array_equal(found.precision, own.eval["precision"][..., -1])
    assert np.array_equal(found.recall, own.eval["recall"])
    assert np.array_equal(found.figures(), own.stats)
    return found


CASES = {
    "free": {},
    "equal scores": {"decimals": 1},
    "one score": {"decimals": 0},
    "equal IoUs": {"step": 8.0, "decimals": 1},
    "many crowds": {"crowd": 0.6, "step": 4.0},
    "crowds alone": {"crowd": 1.0},
    "crowded": {"images": 3, "classes": 2, "per_box": 60, "stray": 80},
    "few detections": {"per_box": 0, "stray": 1},
    "one image of one class": {"images": 2, "classes": 2, "per_box": 20},
}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_tables_and_figures_are_pycocotools_to_the_bit(case, seed):
    truth, detections = scene(seed, **case)
    assert_equal(truth, detections)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_matches_are_pycocotools_one_by_one(case):
    truth, detections = scene(99, **case)
    matching = match_boxes(Instances.of_document(truth), Results.of_entries(detections))
    matched, ignored = matching.dense(0)
    own = cocos_own(truth, detections)
    images = len(truth["images"])
    for number, category in enumerate(sorted(row["id"] for row in truth["categories"])):
        # pycocotools has four ranges of sizes for each category, the first of which is all.
        each = [entry for entry in own.evalImgs[number * 4 * images : (number * 4 + 1) * images] if entry is not None]
        mine = matching.category == number
        assert [entry["category_id"] for entry in each] == [category] * len(each)
        scores = np.concatenate([entry["dtScores"] for entry in each] or [np.zeros(0)])
        order = np.argsort(-scores, kind="mergesort")
        assert np.array_equal(scores[order], matching.score[mine])
        for name, values in (("dtMatches", matched), ("dtIgnore", ignored)):
            theirs = np.concatenate([entry[name] != 0 for entry in each] or [np.zeros((10, 0), dtype=bool)], axis=1)
            assert np.array_equal(theirs[:, order], values[:, mine])


def test_blocks_of_pairs_change_nothing(monkeypatch):
    truth, detections = scene(4, images=20)
    whole = ours(truth, detections)
    for pairs in (1, 7, 50):
        monkeypatch.setattr(matching, "_PAIRS", pairs)
        parts = ours(truth, detections)
        assert np.array_equal(parts.precision, whole.precision)
        assert np.array_equal(parts.recall, whole.recall)


def annotation(number, box, *, image=1, category=1, area=None, crowd=0):
    area = box[2] * box[3] if area is None else area
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}


def detection(box, score, *, image=1, category=1):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def split(*annotations, images=(1, 2), categories=(1, 2)):
    return {
        "images": [{"id": image} for image in images],
        "annotations": list(annotations),
        "categories": [{"id": category, "name": str(category)} for category in categories],
    }


def test_only_the_hundred_best_of_an_image_and_category_count():
    # The box is found by the 101st, so it isn't; in the other category by the hundredth.
    box, far = [0, 0, 50, 50], [300, 300, 50, 50]
    truth = split(annotation(1, box), annotation(2, box, category=2))
    detections = [detection(far, 0.9 - n / 1000) for n in range(100)] + [detection(box, 0.1)]
    detections += [detection(far, 0.9 - n / 1000, category=2) for n in range(99)] + [detection(box, 0.1, category=2)]
    found = assert_equal(truth, detections)
    assert found.recall[0, :, 0, :].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert found.precision[0, :, 1, 0] == pytest.approx(np.full(101, 0.01))


def test_one_and_ten_detections_an_image_are_the_best_ones():
    boxes = [[60 * n, 0, 50, 50] for n in range(12)]
    truth = split(*(annotation(n + 1, box) for n, box in enumerate(boxes)))
    found = assert_equal(truth, [detection(box, 0.9 - n / 100) for n, box in enumerate(boxes)])
    assert found.recall[0, 0, 0].tolist() == [1 / 12, 10 / 12, 1]
    assert found.figures()[6:9] == pytest.approx([1 / 12, 10 / 12, 1])


@pytest.mark.parametrize(("area", "sizes"), [(1024.0, "sm"), (9216.0, "ml"), (1023.9, "s"), (9216.1, "l"), (1e10, "l")])
def test_a_box_on_a_border_is_of_both_sizes(area, sizes):
    box = [0, 0, 40, 40]
    found = assert_equal(split(annotation(1, box, area=area)), [detection(box, 0.5)])
    figures = dict(zip("sml", found.figures()[3:6].tolist(), strict=True))
    assert {size for size, value in figures.items() if value == pytest.approx(1)} == set(sizes)
    assert {size for size, value in figures.items() if value == -1} == set("sml") - set(sizes)


def test_of_equal_ious_the_last_box_is_taken_and_one_that_counts_before_one_that_does_not():
    # The detection in the middle has IoU 30/50 with both boxes; the crowd covers all of it and is left alone.
    left, right, middle = [0, 0, 40, 40], [20, 0, 40, 40], [10, 0, 40, 40]
    crowd = annotation(3, [0, 0, 60, 60], crowd=1)
    truth = split(annotation(1, left), annotation(2, right), crowd)
    detections = [detection(middle, 0.9), detection(right, 0.8), detection(left, 0.7)]
    assert_equal(truth, detections)
    found = match_boxes(Instances.of_document(truth), Results.of_entries(detections))
    # At 0.5 it takes the right one. Whose box that is goes to the crowd, and the third finds the left one.
    matched, ignored = found.dense(0)
    assert matched[0].tolist() == [True, True, True]
    assert ignored[0].tolist() == [False, True, False]


def test_an_iou_at_a_threshold_reaches_it():
    # IoUs 0.5 and 0.75 without rounding: 50 and 75 of 100.
    truth = split(annotation(1, [0, 0, 10, 10]), annotation(2, [0, 0, 10, 10], image=2))
    found = assert_equal(truth, [detection([0, 0, 10, 5], 0.9), detection([0, 0, 10, 7.5], 0.8, image=2)])
    assert found.recall[:, 0, 0, 2].tolist() == [1] + [0.5] * 5 + [0] * 4


def test_without_boxes_nothing_is_defined_and_without_detections_all_is_zero():
    box = [0, 0, 50, 50]
    nothing = assert_equal(split(), [detection(box, 0.5)])
    assert (nothing.figures() == -1).all()
    blind = assert_equal(split(annotation(1, box)), [])
    assert blind.figures().tolist() == [0, 0, 0, -1, 0, -1, 0, 0, 0, -1, 0, -1]
    assert (ours(split(images=(), categories=()), []).figures() == -1).all()


def test_detections_elsewhere_count_for_nothing():
    box = [0, 0, 50, 50]
    truth = split(annotation(1, box))
    elsewhere = [detection(box, 0.9, image=5), detection(box, 0.9, category=8), detection(box, 0.9, image=0)]
    found = ours(truth, [*elsewhere, detection(box, 0.5)])
    assert np.array_equal(found.precision, ours(truth, [detection(box, 0.5)]).precision)


def test_ids_of_any_size_and_an_annotation_of_id_zero():
    # pycocotools takes the id 0 for "found nothing".
    box = [0, 0, 50, 50]
    truth = split(annotation(0, box, image=2**40), annotation(-3, box), images=(1, 2**40), categories=(1, -7))
    found = assert_equal(truth, [detection(box, 0.9, image=2**40), detection(box, 0.8)])
    assert found.recall[0, 1, 0].tolist() == [0.5, 0.5, 0.5]
