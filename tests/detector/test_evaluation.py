"""Evaluation: pycocotools' figures, and the same from any number of processes."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.data.store import open_store
from detector.evaluation import FIGURES, coco_figures, evaluate
from detector.training import TrainingState
from tests.detector.conftest import small_config
from tests.detector.processes import run

CATEGORIES = [{"id": 3, "name": "left"}, {"id": 7, "name": "right"}, {"id": 9, "name": "never seen"}]


def annotation(number, image, category, box, *, crowd=0):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": crowd,
    }


def test_figures_by_hand():
    truth = {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "annotations": [annotation(1, 1, 3, [10, 10, 40, 40]), annotation(2, 1, 3, [60, 60, 40, 40])],
        "categories": CATEGORIES,
    }
    # One of two boxes is found exactly: precision 1 up to recall 1/2, that is at 51 of the 101 recalls.
    found = [{"image_id": 1, "category_id": 3, "bbox": [10, 10, 40, 40], "score": 0.9}]
    figures, per_class = coco_figures(truth, found)
    assert figures["AP"] == pytest.approx(100 * 51 / 101)
    assert figures["AP50"] == figures["APm"] == pytest.approx(100 * 51 / 101)
    assert figures["APs"] is None  # nothing of that size: undefined, not zero
    assert figures["APl"] is None
    assert per_class[0] == {"id": 3, "name": "left", "AP": figures["AP"], "AP50": figures["AP"], "boxes": 2}
    assert per_class[2]["AP"] is None


def test_a_detection_in_a_crowd_counts_neither_way():
    truth = {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "annotations": [annotation(1, 1, 3, [0, 0, 40, 40]), annotation(2, 1, 3, [50, 0, 50, 100], crowd=1)],
        "categories": CATEGORIES,
    }
    inside = {"image_id": 1, "category_id": 3, "bbox": [60, 10, 20, 20], "score": 0.99}
    right = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 40, 40], "score": 0.5}
    assert coco_figures(truth, [inside, right])[0]["AP"] == pytest.approx(100)
    outside = inside | {"bbox": [10, 60, 20, 20]}
    assert coco_figures(truth, [outside, right])[0]["AP"] == pytest.approx(50)


@pytest.mark.parametrize("category", [2**40, -5])
def test_category_ids_may_be_any_numbers(category):
    truth = {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "annotations": [annotation(1, 1, category, [10, 10, 40, 40])],
        "categories": [{"id": category, "name": "far"}],
    }
    found = [{"image_id": 1, "category_id": category, "bbox": [10, 10, 40, 40], "score": 0.9}]
    figures, per_class = coco_figures(truth, found)
    assert figures["AP"] == pytest.approx(100)
    assert (per_class[0]["id"], per_class[0]["boxes"]) == (category, 1)


def test_no_detection_at_all_is_zero():
    truth = {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "annotations": [annotation(1, 1, 3, [0, 0, 40, 40])],
        "categories": CATEGORIES,
    }
    assert coco_figures(truth, [])[0]["AP"] == 0


def test_equals_pycocotools_on_files(tmp_path):
    generator = torch.Generator().manual_seed(0)

    def boxes(count):
        place = torch.rand(count, 2, generator=generator) * 300
        size = 8 + torch.rand(count, 2, generator=generator) ** 3 * 250
        return torch.cat((place, size), 1).tolist()

    images = [{"id": 10 * number, "width": 640, "height": 480, "file_name": f"{number}.jpg"} for number in range(1, 13)]
    annotations, results = [], []
    for image in images:
        for box in boxes(9):
            category = [3, 7][int(torch.randint(2, (1,), generator=generator))]
            crowd = int(torch.rand(1, generator=generator) < 0.15)
            annotations.append(annotation(len(annotations) + 1, image["id"], category, box, crowd=crowd))
            moved = [value + float(torch.randn(1, generator=generator) * 4) for value in box]
            score = float(torch.rand(1, generator=generator))
            results.append({"image_id": image["id"], "category_id": category, "bbox": moved, "score": score})
    truth = {"info": {}, "images": images, "annotations": annotations, "categories": CATEGORIES}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        evaluator = COCOeval(coco, coco.loadRes(str(tmp_path / "results.json")), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    figures, per_class = coco_figures(truth, results)
    assert [figures[name] for name in FIGURES] == [100 * value for value in evaluator.stats[:6]]
    assert 0 < figures["APs"] < 100
    assert sum(row["boxes"] for row in per_class) == sum(not a["iscrowd"] for a in annotations)


def evaluated(config, uri):
    torch.set_num_threads(1)
    state = TrainingState(config, open_store(uri), torch.device("cpu"))
    # Make an untrained head talk: shift its class bias, so that there is something to count.
    with torch.no_grad():
        state.model.network.head.class_logits.bias.add_(4.0)
        state.model.network.head.class_logits.weight.mul_(20.0)
    result = evaluate(state.model, open_store(uri), config.data)
    metrics = {name: result.metrics[name] for name in FIGURES}
    return metrics, result.detections


def test_one_two_and_three_processes_agree(generated, tmp_path):
    store = generated[1]
    assert len(store) % 2
    assert len(store) % 3
    config = small_config()
    alone, detections = evaluated(config, store.uri)
    assert detections
    assert alone["AP"] is not None
    for world in (2, 3):
        results = run(evaluated, world, tmp_path / str(world), config, store.uri)
        assert all(metrics == alone for metrics, _ in results)
        assert results[0][1] == detections
