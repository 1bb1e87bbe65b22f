"""Evaluation by COCO's definition: every image once, however many processes share the split."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from detector import distributed
from detector.config import DataConfig
from detector.data.coco import Category
from detector.data.instances import Instances
from detector.data.loader import Batch, evaluation_batches
from detector.data.store import Store
from detector.detections import Detections
from detector.fixed_positives import FixedPositives, mean_loss
from detector.matching import AT_50, AT_75
from detector.model import Detector
from detector.pictures import Picture
from detector.precision import Tables, mean_defined, tables
from detector.prediction import Options, find, forward
from detector.progress import Progress
from detector.results import Results
from detector.timing import TIMED, device_name, inference_ms

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
CLASSES_AS_METRICS = 100
"""Of a split with more categories, AP by class is in ``Evaluation.per_class`` alone."""


@dataclass(frozen=True)
class Evaluation:
    """What a model reaches on a split."""

    metrics: dict[str, float | None]
    """COCO's six figures in percent (None: undefined), ``AP_class/CATEGORY_ID`` of up to 100 categories,
    ``loss_reg_fixed`` (``detector.fixed_positives``), ``inference_ms`` and ``eval_seconds``. Without annotations the
    last two alone."""
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
    loader_threads: int = 1,
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
    batches = evaluation_batches(
        store,
        data,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        batch_size=batch_size,
        loader_workers=loader_workers,
        loader_threads=loader_threads,
    )
    detected = _in_batches(model, store, batches, options, fixed)
    if not options.one_view:
        detected = _in_views(model, store, data, options)
    share = len(range(distributed.rank(), len(store), distributed.world_size()))
    progress = Progress(share, label) if distributed.rank() == 0 and label else None
    found: list[Results] = []
    with contextlib.closing(batches):
        for index, seen in detected:
            found.append(Results.of_image(seen, int(store.image_ids[index])))
            if progress:
                progress.update(len(found))
            tell()
    if progress:
        progress.close()
    gathered = distributed.collect((Results.together(found), fixed.found))
    if gathered is None:
        return Evaluation(distributed.broadcast(None))
    with alone():
        results, losses = _in_order(store, [part for part, _ in gathered]), [part for _, part in gathered]
        figures: dict[str, float | None] = {}
        per_class: list[dict[str, Any]] = []
        precision: dict[str, list[float | None]] = {}
        if store.has_annotations:
            truth = store.instances()
            compared = tables(truth, results)
            figures = figures_of(compared)
            per_class = by_class(compared, truth, store.categories)
            precision = precision_recall(compared)
        seconds = time.perf_counter() - began
        metrics: dict[str, float | None] = {
            **figures,
            **class_figures(per_class),
            **({"loss_reg_fixed": mean_loss(losses)} if store.has_annotations and options.one_view else {}),
            "inference_ms": inference_ms(model, _sample(store), data, options),
            "eval_seconds": seconds,
        }
        result = Evaluation(metrics, per_class, results.entries(), device_name(model.device), precision)
        watcher = _watcher.get()
        if watcher is not None:
            watcher(store, result)
    distributed.broadcast(metrics)
    return result


def _in_batches(
    model: Detector,
    store: Store,
    batches: Iterator[Batch],
    options: Options,
    fixed: FixedPositives,
) -> Iterator[tuple[int, Detections]]:
    """This process' share: positions in the store, and what is found there in pixels of the original image."""
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


def _in_order(store: Store, parts: list[Results]) -> Results:
    """What all processes found, in the order of the split, and of its categories alone."""
    results = Results.together(parts)
    # Each image comes whole from one process.
    results = results.take(np.argsort(np.searchsorted(store.image_ids, results.image_ids), kind="stable"))
    return results.take(np.isin(results.category_ids, [category.id for category in store.categories]))


def figures_of(compared: Tables) -> dict[str, float | None]:
    """COCO's six figures in percent; None where they are undefined."""
    return {key: _percent(value) for key, value in zip(FIGURES, compared.figures().tolist()[:6], strict=True)}


def by_class(compared: Tables, truth: Instances, categories: Sequence[Category]) -> list[dict[str, Any]]:
    """AP and AP50 of each category in percent, and how many boxes it has: one entry a category, by id."""
    names = {category.id: category.name for category in categories}
    boxes = np.bincount(truth.category[~truth.crowd], minlength=len(truth.category_ids)).tolist()
    precision = compared.precision[..., 0]
    return [
        {
            "id": category,
            "name": names[category],
            "AP": _percent(mean_defined(precision[:, :, place])),
            "AP50": _percent(mean_defined(precision[AT_50, :, place])),
            "boxes": boxes[place],
        }
        for place, category in enumerate(truth.category_ids.tolist())
    ]


def class_figures(per_class: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """``AP_class/CATEGORY_ID`` of each category in percent; nothing of more than ``CLASSES_AS_METRICS``."""
    if len(per_class) > CLASSES_AS_METRICS:
        return {}
    return {f"AP_class/{row['id']}": row["AP"] for row in per_class}


def precision_recall(compared: Tables) -> dict[str, list[float | None]]:
    """Precision over recall as ``Evaluation.precision`` has it, of all sizes and the most detections an image."""
    table = compared.precision[..., 0]
    table = table[:, :, (table > -1).any((0, 1))]
    if not table.size:
        return {name: [None] * table.shape[1] for name in ("0.5", "0.75", "0.5:0.95")}
    means = table.mean(2)
    chosen = {"0.5": means[AT_50], "0.75": means[AT_75], "0.5:0.95": means.mean(0)}
    return {name: [round(float(value), 5) for value in values] for name, values in chosen.items()}


def _percent(value: float) -> float | None:
    return None if value < 0 else value * 100
