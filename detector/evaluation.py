"""Evaluation by COCO's definition: every image once, however many processes share the split."""

from __future__ import annotations

import contextlib
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector import distributed
from detector.config import DataConfig
from detector.data.loader import evaluation_batches
from detector.data.store import Store
from detector.detections import Detections
from detector.fixed_positives import FixedPositives, mean_loss
from detector.model import Detector
from detector.pictures import Picture
from detector.prediction import Options, find, forward
from detector.progress import Progress
from detector.timing import TIMED, device_name, inference_ms

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class Evaluation:
    """What a model reaches on a split."""

    metrics: dict[str, float | None]
    """COCO's six figures in percent (None: undefined), ``loss_reg_fixed`` (``detector.fixed_positives``),
    ``inference_ms`` and ``eval_seconds``. The first seven need annotations."""
    per_class: list[dict[str, Any]] = field(default_factory=list)
    """One entry a category: id, name, AP, AP50, boxes."""
    detections: list[dict[str, Any]] = field(default_factory=list)
    """Entries of a COCO results file, in the order of the split; of categories that the split lists."""
    device: str = ""
    """What ``inference_ms`` was measured on."""
    precision: dict[str, list[float | None]] = field(default_factory=dict)
    """Precision at 0, 0.01, ... 1 recall, as the mean over the classes that have boxes (None: there are none), at the
    IoU "0.5", at "0.75", and as the mean over IoUs, "0.5:0.95"."""


_watcher: ContextVar[Callable[[Store, Evaluation], None] | None] = ContextVar("watcher", default=None)


@contextlib.contextmanager
def watched(tell: Callable[[Store, Evaluation], None]) -> Iterator[None]:
    """Inside, ``tell`` is called on rank 0 with the split and the result of every evaluation, also of a training's.

    For what is shown of an evaluation and decides nothing. It is not one of a training's hooks because the source of
    the training loop decides identities.
    """
    token = _watcher.set(tell)
    try:
        yield
    finally:
        _watcher.reset(token)


def evaluate(
    model: Detector,
    store: Store,
    data: DataConfig,
    *,
    batch_size: int = 1,
    loader_workers: int = 0,
    label: str = "",
    options: Options | None = None,
    tell: Callable[[], None] = lambda: None,
    alone: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Evaluation:
    """Runs ``model`` on all images of ``store`` and compares with its annotations.

    Calls ``tell`` after every image, and is inside ``alone()`` while rank 0 compares and the others wait.

    All processes of the default group take part, each with its share, and all get the result's metrics; per class
    figures and detections are rank 0's. A split without annotations has detections and no figures. ``options`` None is
    the model's own recipe. ``inference_ms`` is measured apart, on rank 0 and one image at a time.
    """
    began = time.perf_counter()
    options = options or Options(max_detections=model.config.postprocess.max_detections)
    fixed = FixedPositives(store)
    detected = _in_batches(model, store, data, batch_size, loader_workers, options, fixed)
    if not options.one_view:
        detected = _in_views(model, store, data, options)
    share = len(range(distributed.rank(), len(store), distributed.world_size()))
    progress = Progress(share, label) if distributed.rank() == 0 and label else None
    found: dict[int, list[dict[str, Any]]] = {}
    wanted = {category.id for category in store.categories}
    for index, seen in detected:
        image_id = int(store.image_ids[index])
        found[image_id] = [row for row in seen.to_coco(image_id) if row["category_id"] in wanted]
        if progress:
            progress.update(len(found))
        tell()
    if progress:
        progress.close()
    gathered, losses = distributed.gather(found), distributed.gather(fixed.found)
    if distributed.rank() != 0:
        return Evaluation(distributed.broadcast(None))
    with alone():
        entries = {image: rows for part in gathered for image, rows in part.items()}
        detections = [row for image in store.image_ids.tolist() for row in entries[image]]
        figures: dict[str, float | None] = {}
        per_class: list[dict[str, Any]] = []
        precision: dict[str, list[float | None]] = {}
        if store.has_annotations:
            annotations = store.coco_annotations()
            compared = _compared(annotations, detections)
            figures, per_class = _figures(compared, annotations)
            precision = precision_recall(compared)
        seconds = time.perf_counter() - began
        metrics: dict[str, float | None] = {
            **figures,
            **({"loss_reg_fixed": mean_loss(losses)} if store.has_annotations and options.one_view else {}),
            "inference_ms": inference_ms(model, _sample(store), data, options),
            "eval_seconds": seconds,
        }
        result = Evaluation(metrics, per_class, detections, device_name(model.device), precision)
        watcher = _watcher.get()
        if watcher is not None:
            watcher(store, result)
    distributed.broadcast(metrics)
    return result


def _in_batches(
    model: Detector,
    store: Store,
    data: DataConfig,
    batch_size: int,
    loader_workers: int,
    options: Options,
    fixed: FixedPositives,
) -> Iterator[tuple[int, Detections]]:
    """This process' share: positions in the store, and what is found there in pixels of the original image."""
    batches = evaluation_batches(
        store,
        data,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        batch_size=batch_size,
        loader_workers=loader_workers,
    )
    was_training = model.training
    model.eval()
    overrides: dict[str, Any] = {
        "max_detections": options.max_detections,
        "min_score": options.score_threshold,
        "class_agnostic": options.class_agnostic,
    }
    try:
        network = forward(model, options)
        for batch in batches:
            batch = batch.to(model.device)
            with torch.inference_mode():
                pixels = model.normalise(batch.images, batch.sizes)
                with torch.autocast(model.device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
                    outputs = network(pixels)
                found = model.postprocess(outputs, batch.sizes, **overrides)
                fixed.add(model.criterion, outputs, batch)
            places = zip(batch.indices.tolist(), batch.sizes.tolist(), found, strict=True)
            for index, (height, width), detections in places:
                original_height, original_width = store.sizes[index].tolist()
                yield index, detections.scaled(original_width / width, original_height / height)
    finally:
        model.train(was_training)


def _in_views(model: Detector, store: Store, data: DataConfig, options: Options) -> Iterator[tuple[int, Detections]]:
    """As ``_in_batches``, each image seen several times."""
    for index in range(distributed.rank(), len(store), distributed.world_size()):
        yield index, find(model, [_picture(store, index)], data, options)[0]


def _picture(store: Store, index: int) -> Picture:
    height, width = store.sizes[index].tolist()
    return Picture(store.image(index), (height, width))


def _sample(store: Store) -> list[Picture]:
    """Images from all over the split."""
    places = np.linspace(0, len(store) - 1, min(TIMED, len(store))).round().astype(int)
    return [_picture(store, index) for index in places.tolist()]


def coco_figures(
    annotations: dict[str, Any], detections: list[dict[str, Any]]
) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
    """COCO's six figures in percent, and the same per category, by pycocotools. What is undefined is None."""
    return _figures(_compared(annotations, detections), annotations)


def _compared(annotations: dict[str, Any], detections: list[dict[str, Any]]) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _coco(annotations)
        rows = [
            {**row, "id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
            for number, row in enumerate(detections, 1)
        ]
        result = _coco({**annotations, "annotations": rows})
        evaluator = COCOeval(truth, result, iouType="bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def _figures(evaluator: COCOeval, annotations: dict[str, Any]) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
    figures = {key: _percent(value) for key, value in zip(FIGURES, evaluator.stats[:6], strict=True)}
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # IoU thresholds, recalls, categories
    counts = Counter(row["category_id"] for row in annotations["annotations"] if not row.get("iscrowd"))
    per_class = []
    for number, category_id in enumerate(evaluator.params.catIds):
        per_class.append(
            {
                "id": int(category_id),
                "name": evaluator.cocoGt.cats[category_id]["name"],
                "AP": _percent(_mean_defined(precision[:, :, number])),
                "AP50": _percent(_mean_defined(precision[0, :, number])),
                "boxes": counts[category_id],
            }
        )
    return figures, per_class


def precision_recall(evaluator: COCOeval) -> dict[str, list[float | None]]:
    """Precision over recall as ``Evaluation.precision`` has it, of all sizes and the most detections an image."""
    table = evaluator.eval["precision"][:, :, :, 0, -1]  # IoU thresholds, recalls, categories
    table = table[:, :, (table > -1).any((0, 1))]  # pycocotools says -1 for a class without boxes
    if not table.size:
        return {name: [None] * table.shape[1] for name in ("0.5", "0.75", "0.5:0.95")}
    means = table.mean(2)
    at = {float(threshold): index for index, threshold in enumerate(evaluator.params.iouThrs.round(2))}
    chosen = {"0.5": means[at[0.5]], "0.75": means[at[0.75]], "0.5:0.95": means.mean(0)}
    return {name: [round(float(value), 5) for value in values] for name, values in chosen.items()}


def _coco(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _mean_defined(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def _percent(value: float) -> float | None:
    # pycocotools says -1 where there is nothing to find.
    return None if value < 0 else float(value) * 100
