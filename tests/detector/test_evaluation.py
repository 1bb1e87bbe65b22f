"""Evaluation: pycocotools' figures, and the same from any number of processes."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.data.coco import Category
from detector.data.instances import Instances
from detector.data.store import open_store
from detector.evaluation import FIGURES, by_class, class_figures, evaluate, figures_of, precision_recall
from detector.precision import tables
from detector.results import Results
from detector.timing import WARM_UP
from detector.training import TrainingState
from tests.detector.conftest import small_config
from tests.detector.processes import run

CATEGORIES = [{"id": 3, "name": "left"}, {"id": 7, "name": "right"}, {"id": 9, "name": "never seen"}]
BOXES = ([0, 0, 100, 100], [200, 0, 100, 100], [0, 300, 40, 40])


def annotation(number, image, category, box, *, crowd=0):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": crowd,
    }


def compared(truth, found):
    return tables(Instances.of_document(truth), Results.of_entries(found))


def coco_figures(truth, found):
    """The six figures, and what is told of each class."""
    categories = [Category(row["id"], row["name"]) for row in truth["categories"]]
    result = compared(truth, found)
    return figures_of(result), by_class(result, Instances.of_document(truth), categories)


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


def on_files(truth, results, **params):
    """What pycocotools itself says of two files, used as its own documentation shows: AP, AP50, AP75, APs, APm, APl."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco_truth = COCO(str(truth))
        coco_results = coco_truth.loadRes(str(results))
        evaluator = COCOeval(coco_truth, coco_results, "bbox")
        for name, value in params.items():
            setattr(evaluator.params, name, value)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [None if value == -1 else 100 * value for value in evaluator.stats[:6]]


def test_an_ap_by_hand_is_that_of_pycocotools_on_files_and_ours(tmp_path):
    # Three boxes. Best first: exact; one that nothing is under; 100x100 shifted by 10, whose IoU is 90/110 = 0.818, so
    # that it is found at the seven thresholds up to 0.80 and not at 0.85, 0.90 and 0.95. The third box is never found.
    truth = {
        "images": [{"id": 4, "width": 500, "height": 500}],
        "annotations": [annotation(n, 4, 3, box) for n, box in enumerate(BOXES, 1)],
        "categories": CATEGORIES,
    }
    boxes = [BOXES[0], [400, 400, 50, 50], [210, 0, 100, 100]]
    results = [
        {"image_id": 4, "category_id": 3, "bbox": box, "score": score}
        for box, score in zip(boxes, (0.9, 0.8, 0.7), strict=True)
    ]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    # Precision is 1 up to recall 1/3, at 34 of the 101 recalls, then 2/3 up to recall 2/3, at another 33, then 0.
    loose, tight = 100 * (34 + 33 * 2 / 3) / 101, 100 * 34 / 101
    by_hand = [(7 * loose + 3 * tight) / 10, loose, loose]
    assert on_files(tmp_path / "truth.json", tmp_path / "results.json")[:3] == pytest.approx(by_hand, abs=1e-9)
    figures, _ = coco_figures(truth, results)
    assert [figures[name] for name in ("AP", "AP50", "AP75")] == pytest.approx(by_hand, abs=1e-9)


def test_figures_of_a_model_are_those_of_pycocotools_on_files(generated, tmp_path):
    """The whole way: what the model finds, in a results file, against the annotation file that the store came from."""
    store = generated[1]
    source = json.loads((Path(store.uri) / "manifest.json").read_text())["source"]
    figures, detections, per_class = evaluated(small_config(), store.uri)
    assert len(detections) > 100
    (tmp_path / "results.json").write_text(json.dumps(detections))
    assert list(figures.values()) == on_files(source, tmp_path / "results.json")
    assert figures["AP"] > 0
    for row in per_class:
        alone = on_files(source, tmp_path / "results.json", catIds=[row["id"]])
        assert [row["AP"], row["AP50"]] == pytest.approx(alone[:2], abs=1e-9)


def test_ap_by_class_is_a_metric_of_up_to_a_hundred_classes():
    rows = [{"id": 2 * number, "AP": None if number == 5 else float(number)} for number in range(101)]
    assert class_figures(rows) == {}
    found = class_figures(rows[:100])
    assert len(found) == 100
    assert (found["AP_class/8"], found["AP_class/10"]) == (4.0, None)


def test_noisy_boxes_and_crowds_are_counted_as_pycocotools_does_on_files(tmp_path):
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
    figures, per_class = coco_figures(truth, results)
    assert [figures[name] for name in FIGURES] == on_files(tmp_path / "truth.json", tmp_path / "results.json")
    assert 0 < figures["APs"] < 100
    assert sum(row["boxes"] for row in per_class) == sum(not a["iscrowd"] for a in annotations)
    for row in per_class:
        alone = on_files(tmp_path / "truth.json", tmp_path / "results.json", catIds=[row["id"]])
        assert [row["AP"], row["AP50"]] == pytest.approx(alone[:2], abs=1e-9)


def evaluated(config, uri):
    torch.set_num_threads(1)
    state = TrainingState(config, open_store(uri), torch.device("cpu"))
    # Make an untrained head talk: shift its class bias, so that there is something to count.
    with torch.no_grad():
        state.model.network.head.class_logits.bias.add_(4.0)
        state.model.network.head.class_logits.weight.mul_(20.0)
    result = evaluate(state.model, open_store(uri), config.data)
    metrics = {name: result.metrics[name] for name in FIGURES}
    return metrics, result.detections, result.per_class


def test_one_two_and_three_processes_agree(generated, tmp_path):
    store = generated[1]
    assert len(store) % 2
    assert len(store) % 3
    config = small_config()
    alone, detections, _ = evaluated(config, store.uri)
    assert detections
    assert alone["AP"] is not None
    for world in (2, 3):
        results = run(evaluated, world, tmp_path / str(world), config, store.uri)
        assert all(metrics == alone for metrics, *_ in results)
        assert results[0][1] == detections


def test_the_time_is_that_of_one_image_whatever_the_batch(generated):
    store = generated[1]
    config = small_config()
    model = TrainingState(config, store, torch.device("cpu")).model
    sizes = []
    model.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    result = evaluate(model, store, config.data, batch_size=4)
    timed = WARM_UP + len(store)
    assert max(sizes) > 1
    assert sizes[-timed:] == [1] * timed
    assert sum(sizes[:-timed]) == len(store)
    assert 0 < result.metrics["inference_ms"] < 10_000
    assert result.device
    assert model.training


def test_precision_over_recall_is_the_mean_over_classes_with_boxes():
    """Of two objects one is found, by a box of IoU 0.6: precision 1 up to half of the recall, at low IoUs."""
    images = [{"id": i, "height": 100, "width": 100} for i in (1, 2)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0} for i in (1, 2)
    ]
    categories = [{"id": 1, "name": "there"}, {"id": 2, "name": "absent"}]
    truth = {"images": images, "annotations": boxes, "categories": categories}
    found = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 6], "score": 0.9}]
    curves = precision_recall(compared(truth, found))
    assert curves["0.5"] == [1.0] * 51 + [0.0] * 50
    assert curves["0.75"] == [0.0] * 101
    assert curves["0.5:0.95"] == pytest.approx([0.3] * 51 + [0.0] * 50)
    assert sum(curves["0.5:0.95"]) / 101 == pytest.approx(coco_figures(truth, found)[0]["AP"] / 100, abs=1e-4)
    nothing = precision_recall(compared({**truth, "annotations": []}, found))
    assert nothing == {name: [None] * 101 for name in ("0.5", "0.75", "0.5:0.95")}
