"""COCO's twelve figures of a made-up evaluation of val2017's size, against pycocotools, and faster-coco-eval if it is
there (``pip install faster-coco-eval``).

All begin with the same arrays and end with the figures, so that what each has to load first counts.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
from typing import Any

import numpy as np

from detector.data.instances import Instances
from detector.precision import tables
from detector.results import Results
from tests.benchmarks.alternating import Figure, alternate

IMAGES, FOUND, CLASSES, ABSENT, CROWDS = 5_000, 100, 80, 3, 0.012
PAIRS = 3
GOAL = 10.0

Arrays = dict[str, np.ndarray]


def measure(images: int = IMAGES, pairs: int = PAIRS) -> list[Figure]:
    """Seconds, and how far the tables are apart."""
    truth, found = made_up(images)
    figures = []
    for name, modules in (
        ("pycocotools", ("pycocotools.coco", "pycocotools.cocoeval", "COCOeval")),
        ("faster-coco-eval", ("faster_coco_eval", "faster_coco_eval", "COCOeval_faster")),
    ):
        if importlib.util.find_spec(modules[0].split(".")[0]) is None:
            continue
        last: dict[str, Any] = {}

        def theirs(modules=modules, last=last) -> None:
            last["theirs"] = cocos(truth, found, *modules)

        def ours(last=last) -> None:
            last["ours"] = own(truth, found)

        measured = alternate(ours, theirs, pairs=pairs, warm_up=0)
        compared, evaluator = last["ours"], last["theirs"]
        figures.append(
            measured.figure(
                f"evaluation, {images:,} images of {FOUND} detections, {CLASSES} classes, s",
                at_least=GOAL if name == "pycocotools" else None,
                peer=name,
                largest_difference_of_a_figure=_apart(compared.figures(), evaluator.stats[:12]),
                largest_difference_of_precision=_apart(compared.precision, evaluator.eval["precision"][..., -1]),
                largest_difference_of_recall=_apart(compared.recall, evaluator.eval["recall"]),
            )
        )
    return figures


def own(truth: Arrays, found: Arrays):
    """Our tables, with the figures."""
    compared = tables(Instances.of_columns(**truth), Results(**found))
    compared.figures()
    return compared


def cocos(truth: Arrays, found: Arrays, coco: str, cocoeval: str, name: str) -> Any:
    """COCO's own interface, as its documentation shows it, with the detections as the array that it takes."""
    columns = (*(truth[key].tolist() for key in ("ids", "owners", "kinds", "boxes", "areas")), truth["crowd"].tolist())
    dataset = {
        "info": {},
        "images": [{"id": image} for image in truth["image_ids"].tolist()],
        "categories": [{"id": category, "name": str(category)} for category in truth["category_ids"].tolist()],
        "annotations": [
            {"id": key, "image_id": image, "category_id": kind, "bbox": box, "area": area, "iscrowd": int(crowd)}
            for key, image, kind, box, area, crowd in zip(*columns, strict=True)
        ],
    }
    rows = [found["image_ids"][:, None], found["boxes"], found["scores"][:, None], found["category_ids"][:, None]]
    with contextlib.redirect_stdout(io.StringIO()):
        index = importlib.import_module(coco).COCO()
        index.dataset = dataset
        index.createIndex()
        results = index.loadRes(np.concatenate(rows, axis=1).astype(np.float64))
        evaluator = getattr(importlib.import_module(cocoeval), name)(index, results, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def _apart(ours: np.ndarray, theirs: Any) -> float:
    return float(np.abs(ours - np.asarray(theirs).reshape(ours.shape)).max())


def made_up(images: int, seed: int = 0) -> tuple[Arrays, Arrays]:
    """Annotations with COCO's counts and sizes, a few kinds an image; 60 % of the detections lie near a box."""
    random = np.random.default_rng(seed)
    image_ids = np.sort(random.choice(600_000, images, replace=False) + 1)
    category_ids = np.sort(random.choice(np.arange(1, 91), CLASSES, replace=False))
    counts = random.poisson(7.3, images)
    boxes_in_all = int(counts.sum())
    often = 1 / np.arange(1, CLASSES - ABSENT + 1) ** 0.8
    seen = random.choice(CLASSES - ABSENT, (images, 3), p=often / often.sum())
    owner = np.repeat(np.arange(images), counts)
    kind = seen[owner, random.integers(0, 3, boxes_in_all)]
    sides = np.exp(random.normal(4.2, 1.0, (boxes_in_all, 2))).clip(3, 600)
    corner = random.uniform(0, 1, (boxes_in_all, 2)) * np.maximum(1, np.array([640, 480]) - sides)
    boxes = np.concatenate([corner, sides], axis=1).round(2)
    truth = {
        "image_ids": image_ids,
        "category_ids": category_ids,
        "owners": image_ids[owner],
        "kinds": category_ids[kind],
        "boxes": boxes,
        "areas": (boxes[:, 2] * boxes[:, 3] * random.uniform(0.4, 1, boxes_in_all)).round(3),
        "crowd": random.random(boxes_in_all) < CROWDS,
        "ids": np.arange(1, boxes_in_all + 1),
    }
    found = images * FOUND
    place = np.repeat(np.arange(images), FOUND)
    first = np.r_[0, np.cumsum(counts)][:-1]
    near = (random.random(found) < 0.6) & (counts[place] > 0)
    about = np.minimum(first[place] + (random.random(found) * counts[place]).astype(int), boxes_in_all - 1)
    moved = boxes[about] + random.normal(0, 0.12, (found, 4)) * np.tile(boxes[about, 2:], 2)
    stray = np.concatenate(
        [random.uniform(0, 1, (found, 2)) * [500, 400], np.exp(random.normal(4.2, 1, (found, 2)))], axis=1
    )
    guess = np.where(near[:, None], moved, stray)
    guess[:, 2:] = guess[:, 2:].clip(1)
    right = near & (random.random(found) < 0.8)
    common = seen[place, random.integers(0, 3, found)]
    other = np.where(random.random(found) < 0.5, common, random.integers(0, CLASSES, found))
    scores = np.where(right, random.beta(2, 4, found), random.beta(1, 8, found))
    return truth, {
        "image_ids": image_ids[place],
        "category_ids": category_ids[np.where(right, kind[about], other)],
        "boxes": guess.astype(np.float32),
        "scores": scores.astype(np.float32),
    }
