"""What a training costs: hours from steps that were timed, or a rough number of operations where none were.

Trainings whose *workload* is the same take the same time: seed, weights of the assignment, rate and length aside, all
that costs time or memory is in it. What was measured is kept with the storage, by workload:

    STORAGE/measurements/WORKLOAD.json   the newest Measurement
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from detector.config import TrainingConfig
from orchestrator.identity import digest

if TYPE_CHECKING:
    from orchestrator.plan import PlannedRow
    from orchestrator.storage import Storage

# Multiply-adds of the classifiers at 224 x 224 pixels, from torchvision's table of models (GFLOPS; 32x4d by its sibling
# in He et al. and Xie et al., 2017, table 1). Here they only order trainings.
_BACKBONES = {
    "r18": 1.81e9,
    "r34": 3.66e9,
    "r50": 4.09e9,
    "r101": 7.80e9,
    "x101_32x4d": 7.99e9,
    "x101_32x8d": 16.41e9,
    "x101_64x4d": 15.46e9,
}
_OTHER_BACKBONE = 4.09e9
_LOCATIONS = (1 / 64) * (4 / 3)
"""Locations of the levels 3 to 7 for each pixel of the input, nearly."""


@dataclass(frozen=True)
class Measurement:
    """Some steps of one workload, timed. A failure has its ``error`` and no times."""

    step_s: float | None = None
    """Median seconds of an iteration of one worker, waiting for images included."""
    steps: int = 0
    """How many were timed; the warm-up isn't among them."""
    images: int = 0
    """Images a worker takes in an iteration."""
    eval_image_s: float | None = None
    """Seconds of evaluating one image on one worker, with as many detections as are kept at most."""
    checkpoint_s: float | None = None
    """Seconds of writing a checkpoint to this machine's disk."""
    gradient_bytes: int | None = None
    """What workers exchange in an iteration, where there are several; None: measured before this was noted."""
    memory_bytes: int | None = None
    """Most that the worker held: resident on a CPU, allocated on a GPU."""
    available_bytes: int = 0
    """What a worker has here."""
    largest: int | None = None
    """Where memory was too small: most images at once that fit; 0: not even one. None: it was enough."""
    device: str = "cpu"
    """"cpu" or "cuda"."""
    hardware: str = ""
    """Name of the device."""
    real: bool = True
    """Whether the images were the data set's own; else noise of their size."""
    beside: int = 0
    """How many others took the same steps at the same time, so that all cores were busy as they are in a sweep."""
    error: str | None = None
    """Why nothing was measured, in one sentence."""
    time: float = 0.0
    """When, in Unix seconds."""

    @property
    def known(self) -> bool:
        """Whether there are times."""
        return self.step_s is not None


def workload(row: PlannedRow) -> dict[str, Any]:
    """All of ``row`` that decides how long a step takes and how much memory it needs."""
    config = row.config
    model, data, schedule, resources = config.model, config.data, config.schedule, config.resources
    assigner = {"predicted": model.assigner.predicted_weight != 0}
    assigner |= model.assigner.model_dump(mode="json", include={"name", "topk", "options"})
    generated = data.generated.model_dump(mode="json") if data.generated is not None else None
    return {
        "model": model.model_dump(
            mode="json", exclude={"assigner", "postprocess", "pixels", "weights", "init", "norm_epsilon"}
        )
        | {"assigner": assigner, "pretrained": model.weights != "none"},
        "data": data.model_dump(mode="json", include={"short_side", "long_side", "resize", "augmentation"})
        | {"evaluated": data.evaluated_short_side, "images": generated or (row.train.digest if row.train else None)},
        "schedule": schedule.model_dump(mode="json", include={"batch_size", "precision", "optimizer"})
        | {"ema": schedule.ema is not None, "clip": schedule.clip_norm is not None},
        "resources": resources.model_dump(
            mode="json", include={"workers", "cpus_per_worker", "gpus_per_worker", "micro_batch_size", "loader_workers"}
        ),
        "evaluation": config.evaluation.batch_size,
        "plugins": [plugin.digest for plugin in config.plugins],
    }


def workload_key(row: PlannedRow) -> str:
    """The hash of :func:`workload`, 16 hexadecimal digits."""
    return digest(workload(row))[:16]


def remember(place: Storage, key: str, measurement: Measurement) -> None:
    """Keeps a measurement in the place of an earlier one."""
    place.update(_document(key), lambda found: asdict(measurement))


def remembered(place: Storage, keys: Iterable[str]) -> dict[str, Measurement]:
    """What is kept of ``keys``; what can't be read isn't there."""
    known = {field.name for field in fields(Measurement)}
    found: dict[str, Measurement] = {}
    for key in dict.fromkeys(keys):
        with contextlib.suppress(OSError, ValueError, TypeError):
            document = place.read(_document(key))
            if isinstance(document, dict):
                found[key] = Measurement(**{name: value for name, value in document.items() if name in known})
    return found


def training_seconds(row: PlannedRow, measurement: Measurement) -> float:
    """What the whole training of ``row`` takes, with its evaluations and checkpoints, all its workers side by side.

    Not in it: starting processes, and gradients that cross a network.
    """
    assert measurement.step_s is not None
    config = row.config
    iterations = config.schedule.max_iterations
    checkpoints = 1 + _between(iterations, config.checkpoint.every)
    evaluations = 1 + _between(iterations, config.evaluation.every)
    image_s = measurement.eval_image_s or 0.0
    images = (row.val.images if row.val else 0) * evaluations / config.resources.workers
    images += row.test.images if row.test else 0  # one worker's, after the training
    return iterations * measurement.step_s + images * image_s + checkpoints * (measurement.checkpoint_s or 0.0)


def _between(iterations: int, every: int | None) -> int:
    """How often something that is done every so many iterations is done before the last one."""
    return 0 if every is None else (iterations - 1) // every


def devices(config: TrainingConfig, measurement: Measurement) -> float:
    """GPUs that a training holds; its workers where there is no GPU."""
    if measurement.device != "cuda":
        return float(config.resources.workers)
    gpus = config.resources.gpus_per_worker
    return config.resources.workers * (1.0 if gpus is None else gpus)


def operations(config: TrainingConfig) -> float:
    """Roughly the multiply-adds of a training's forward passes: of the backbone, and of the towers of the head."""
    data, model, schedule = config.data, config.model, config.schedule
    side = data.short_side if isinstance(data.short_side, int) else sum(data.short_side) / 2
    pixels = side * min(data.long_side, side * 4 / 3)
    backbone = _BACKBONES.get(model.backbone.removesuffix("_dcn"), _OTHER_BACKBONE) / 224**2
    channels = model.neck.channels
    outputs = (model.num_classes or 80) + 5
    head = _LOCATIONS * 9 * channels * (2 * model.head.convolutions * channels + outputs)
    return schedule.max_iterations * schedule.batch_size * pixels * (backbone + head)


def relative_costs(
    rows: Iterable[PlannedRow], measurements: Mapping[str, Measurement]
) -> tuple[dict[str, float], bool]:
    """What each training costs, by identity, and whether that is measured: in seconds times devices.

    Unless all of them are measured on the same kind of device, all are estimated by their operations: the two can't
    be compared.
    """
    first = {row.identity: row for row in reversed(list(rows))}
    keys = {identity: workload_key(row) for identity, row in first.items()}
    found = {identity: measurements.get(key) for identity, key in keys.items()}
    seconds = {
        identity: training_seconds(first[identity], one) * devices(first[identity].config, one)
        for identity, one in found.items()
        if one is not None and one.known
    }
    same = len({one.hardware for one in found.values() if one is not None}) <= 1
    if same and len(seconds) == len(first) and all(math.isfinite(value) for value in seconds.values()):
        return seconds, True
    return {identity: operations(row.config) for identity, row in first.items()}, False


def _document(key: str) -> str:
    return f"measurements/{key}.json"
