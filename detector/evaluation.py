"""Evaluation by COCO's definition: every image once, however many processes share the split."""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from collections import Counter
from collections.abc import Callable
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
from detector.model import Detector
from detector.progress import Progress

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class Evaluation:
    """What a model reaches on a split."""

    metrics: dict[str, float | None]
    """COCO's six figures in percent (None: undefined), ``inference_ms`` and ``eval_seconds``."""
    per_class: list[dict[str, Any]] = field(default_factory=list)
    """One entry a category: id, name, AP, AP50, boxes."""
    detections: list[dict[str, Any]] = field(default_factory=list)
    """Entries of a COCO results file, in the order of the split."""


def evaluate(
    model: Detector,
    store: Store,
    data: DataConfig,
    *,
    batch_size: int = 1,
    loader_workers: int = 0,
    label: str = "",
    tell: Callable[[], None] = lambda: None,
    alone: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Evaluation:
    """Runs ``model`` on all images of ``store`` and compares with its annotations.

    Calls ``tell`` after every batch, and is inside ``alone()`` while rank 0 compares and the others wait.

    All processes of the default group take part, each with its share, and all get the result's metrics; per class
    figures and detections are rank 0's. A split without annotations has detections and no figures.
    """
    began = time.perf_counter()
    found, milliseconds = _detect(model, store, data, batch_size, loader_workers, label, tell)
    gathered = distributed.gather((found, milliseconds))
    if distributed.rank() != 0:
        return Evaluation(distributed.broadcast(None))
    with alone():
        entries = {image: rows for part, _ in gathered for image, rows in part.items()}
        detections = [row for image in store.image_ids.tolist() for row in entries[image]]
        figures, per_class = coco_figures(store.coco_annotations(), detections) if store.has_annotations else ({}, [])
    times = [value for _, part in gathered for value in part]
    metrics: dict[str, float | None] = {
        **figures,
        "inference_ms": statistics.median(times) if times else None,
        "eval_seconds": time.perf_counter() - began,
    }
    return Evaluation(distributed.broadcast(metrics), per_class, detections)


def _detect(
    model: Detector,
    store: Store,
    data: DataConfig,
    batch_size: int,
    loader_workers: int,
    label: str,
    tell: Callable[[], None],
):
    """This process' share: COCO entries by image id, and milliseconds an image of each batch after the first."""
    rank, world = distributed.rank(), distributed.world_size()
    batches = evaluation_batches(
        store, data, rank=rank, world_size=world, batch_size=batch_size, loader_workers=loader_workers
    )
    progress = Progress(len(range(rank, len(store), world)), label or "evaluation") if rank == 0 and label else None
    found: dict[int, list[dict[str, Any]]] = {}
    milliseconds: list[float] = []
    was_training = model.training
    model.eval()
    for count, batch in enumerate(batches):
        batch = batch.to(model.device)
        began = time.perf_counter()
        with torch.inference_mode():
            outputs = model.network(model.normalise(batch.images, batch.sizes))
            rows = zip(
                batch.indices.tolist(), batch.sizes.tolist(), model.postprocess(outputs, batch.sizes), strict=True
            )
            for index, (height, width), detections in rows:
                original_height, original_width = store.sizes[index].tolist()
                scaled = detections.scaled(original_width / width, original_height / height)
                image_id = int(store.image_ids[index])
                found[image_id] = scaled.to_coco(image_id)
        if count:
            milliseconds.append((time.perf_counter() - began) * 1000 / len(batch.indices))
        tell()
        if progress:
            progress.update(len(found))
    if progress:
        progress.close()
    model.train(was_training)
    return found, milliseconds


def coco_figures(
    annotations: dict[str, Any], detections: list[dict[str, Any]]
) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
    """COCO's six figures in percent, and the same per category, by pycocotools. What is undefined is None."""
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
    figures = {key: _percent(value) for key, value in zip(FIGURES, evaluator.stats[:6], strict=True)}
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # IoU thresholds, recalls, categories
    counts = Counter(row["category_id"] for row in annotations["annotations"] if not row.get("iscrowd"))
    per_class = []
    for number, category_id in enumerate(evaluator.params.catIds):
        per_class.append(
            {
                "id": int(category_id),
                "name": truth.cats[category_id]["name"],
                "AP": _percent(_mean_defined(precision[:, :, number])),
                "AP50": _percent(_mean_defined(precision[0, :, number])),
                "boxes": counts[category_id],
            }
        )
    return figures, per_class


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
