"""AP of resampled images: what pycocotools says of the data set in which an image stands as often as it was drawn."""

from __future__ import annotations

import numpy as np
import pytest

from detector.bootstrap import average_precision, average_precision_per_class, resamples
from detector.matches import Matches
from tests.detector.cocos import cocos_own, matched


def random_case(seed, *, images=12, classes=4, decimals=6, crowds=True):
    """Boxes and detections that find some of them, some twice and some not; few decimals make equal scores."""
    generator = np.random.default_rng(seed)
    annotations, detections = [], []
    # In no order, with gaps; the last class has no box anywhere.
    image_ids = generator.permutation(np.arange(images) * 7 + 3).tolist()
    for image in image_ids:
        for _ in range(generator.integers(0, 6)):
            category = int(generator.integers(1, classes))
            box = [*generator.uniform(0, 200, 2).tolist(), *generator.uniform(10, 150, 2).tolist()]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(crowds and generator.random() < 0.15),
                }
            )
            for _ in range(generator.integers(0, 4)):
                moved = (np.array(box) + generator.normal(0, 6, 4)).clip(1).tolist()
                guess = category if generator.random() < 0.9 else int(generator.integers(1, classes + 1))
                score = round(float(generator.random()), decimals)
                detections.append({"image_id": image, "category_id": guess, "bbox": moved, "score": score})
    truth = {
        "images": [{"id": image, "width": 400, "height": 400} for image in image_ids],
        "annotations": annotations,
        "categories": [{"id": number, "name": str(number)} for number in range(classes, 0, -1)],
    }
    generator.shuffle(detections)
    return truth, detections


def repeated(truth, detections, weights):
    """The data set in which image k, by ascending id, stands weights[k] times, its copies together."""
    images, annotations, found = [], [], []
    for image, weight in zip(sorted(image["id"] for image in truth["images"]), weights, strict=True):
        for _ in range(weight):
            number = len(images) + 1
            images.append({"id": number, "width": 400, "height": 400})
            for row in truth["annotations"]:
                if row["image_id"] == image:
                    annotations.append({**row, "id": len(annotations) + 1, "image_id": number})
            found += [{**row, "image_id": number} for row in detections if row["image_id"] == image]
    return {**truth, "images": images, "annotations": annotations}, found


def witness(truth, detections):
    """AP, AP50 and AP75 in percent by pycocotools, and AP by category; nan where it is undefined."""
    evaluator = cocos_own(truth, detections)
    figures = [100 * value if value >= 0 else np.nan for value in evaluator.stats[:3]]
    by_class = evaluator.eval["precision"][:, :, :, 0, -1].mean((0, 1))
    return figures, np.where(by_class < 0, np.nan, 100 * by_class)


def figures_of(matches, weights=None):
    return [average_precision(matches, weights, used)[0] for used in (None, [0], [5])]


@pytest.mark.parametrize("decimals", [6, 1], ids=["own scores", "equal scores"])
@pytest.mark.parametrize("seed", range(6))
def test_every_image_once_is_pycocotools(seed, decimals):
    truth, detections = random_case(seed, decimals=decimals)
    matches = matched(truth, detections)
    figures, by_class = witness(truth, detections)
    assert figures_of(matches) == pytest.approx(figures, abs=1e-9, nan_ok=True)
    assert average_precision_per_class(matches)[0] == pytest.approx(by_class, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("decimals", [6, 1, 0], ids=["own scores", "equal scores", "hardly any scores"])
@pytest.mark.parametrize("seed", range(4))
def test_a_resample_is_pycocotools_on_the_repeated_images(seed, decimals):
    truth, detections = random_case(seed, decimals=decimals)
    matches = matched(truth, detections)
    weights = resamples(len(truth["images"]), 8, seed)
    ours = average_precision(matches, weights)
    ours_by_class = average_precision_per_class(matches, weights)
    for line, weight in enumerate(weights.tolist()):
        figures, by_class = witness(*repeated(truth, detections, weight))
        assert ours[line] == pytest.approx(figures[0], abs=1e-9, nan_ok=True)
        assert ours_by_class[line] == pytest.approx(by_class, abs=1e-9, nan_ok=True)
        assert figures_of(matches, weights[line : line + 1]) == pytest.approx(figures, abs=1e-9, nan_ok=True)


def test_an_ap_by_hand():
    # Image 1: its box is found with 0.9. Image 2: its box is found with 0.7, and nothing with 0.8.
    box, other = [0, 0, 50, 50], [100, 100, 50, 50]
    truth = {
        "images": [{"id": 1, "width": 200, "height": 200}, {"id": 2, "width": 200, "height": 200}],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 1, "bbox": box, "area": 2500, "iscrowd": 0}
            for number in (1, 2)
        ],
        "categories": [{"id": 1, "name": "one"}],
    }
    found = [(1, box, 0.9), (2, other, 0.8), (2, box, 0.7)]
    detections = [{"image_id": i, "category_id": 1, "bbox": b, "score": s} for i, b, s in found]
    # Precision 1 to recall 1/2, 51 of 101 recalls, then 2/3. Image 1 alone: 1. Image 2 alone: 1/2.
    # Image 2 twice and image 1 once: 1 to recall 1/3 (34 recalls), then 3 of 5.
    expected = [(51 + 50 * 2 / 3) / 1.01, 100, 50, (34 + 67 * 3 / 5) / 1.01]
    weights = np.array([[1, 1], [1, 0], [0, 1], [1, 2]])
    assert average_precision(matched(truth, detections), weights) == pytest.approx(expected, abs=1e-12)


def test_without_boxes_ap_is_undefined_and_without_detections_zero():
    truth, detections = random_case(0)
    empty = matched({**truth, "annotations": []}, detections)
    assert np.isnan(average_precision(empty)).all()
    assert np.isnan(average_precision_per_class(empty)).all()
    assert average_precision(matched(truth, []))[0] == 0
    # A resample that draws no image with a box is undefined, too.
    matches = matched(truth, detections)
    assert np.isnan(average_precision(matches, (matches.boxes.sum(1) == 0)[None].astype(int)))[0]


def test_many_resamples_at_once_are_each_of_them_alone(monkeypatch):
    truth, detections = random_case(3, decimals=1)
    matches = matched(truth, detections)
    weights = resamples(len(truth["images"]), 20, 1)
    together = average_precision(matches, weights)
    assert together.tolist() == [average_precision(matches, weight[None])[0] for weight in weights]
    monkeypatch.setattr("detector.bootstrap.BLOCK", 7)
    assert average_precision(matches, weights).tolist() == together.tolist()


def test_it_is_kept_in_one_file(tmp_path):
    truth, detections = random_case(4)
    matches = matched(truth, detections)
    np.savez_compressed(tmp_path / "matches.npz", **matches.arrays())
    again = Matches(**np.load(tmp_path / "matches.npz"))
    assert again.arrays().keys() == matches.arrays().keys()
    for name, array in matches.arrays().items():
        assert np.array_equal(array, again.arrays()[name])
        assert array.dtype == again.arrays()[name].dtype


def test_what_came_in_stays_as_it_was():
    truth, detections = random_case(5)
    before = repr((truth, detections))
    matched(truth, detections)
    assert repr((truth, detections)) == before


def test_resamples_draw_as_many_images_as_there_are_and_again_the_same():
    weights = resamples(50, 400, 7)
    assert (weights.sum(1) == 50).all()
    assert np.array_equal(weights, resamples(50, 400, 7))
    assert not np.array_equal(weights, resamples(50, 400, 8))
    assert weights.var() == pytest.approx(1 - 1 / 50, rel=0.1)  # of a multinomial count


@pytest.mark.parametrize("wrong", [np.ones((2, 3)), np.ones(12), np.full((1, 12), 0.5), np.full((1, 12), -1)])
def test_wrong_weights_are_refused(wrong):
    truth, detections = random_case(6)
    with pytest.raises(ValueError, match="weights"):
        average_precision(matched(truth, detections), wrong)
