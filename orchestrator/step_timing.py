"""Times some steps of one training in a process of its own: ``python -m orchestrator.step_timing JOB RESULT``.

JOB is JSON: the resolved configuration, the images to take, and what a worker has of this machine. Each stage is told
on standard output, a line each; RESULT gets the ``Measurement``. One worker's share of the global batch is trained, as
a training on several would. Initial weights are neither fetched nor read, since they don't change how long a step
takes: the network is built as for them, with what they freeze, from random ones.
"""

from __future__ import annotations

import contextlib
import json
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from detector import plugins
from detector.config import TrainingConfig
from detector.data.coco import Category
from detector.data.images import Decode, decode_image
from detector.data.instances import Instances
from detector.data.loader import Batch, training_batches
from detector.errors import InputError
from detector.evaluation import evaluate
from detector.memory import is_out_of_memory, largest_micro_batch
from detector.timing import device_name
from detector.training_state import TrainingState
from orchestrator.costs import Measurement

WARM_UP = 2
TIMED = 10
LONG_S = 20.0
"""Warm-up and timing end after so long each, but never before one step."""
EVALUATED = 8
"""Images whose evaluation is timed."""


class Sample:
    """Some images of a split, read from their files or made up, in the form of a converted store."""

    has_annotations = True
    is_local = True
    digest = "a sample"

    def __init__(self, sample: dict[str, Any]) -> None:
        self.uri = str(sample["root"])
        self.categories = tuple(Category(number, name) for number, name in sample["categories"])
        self._images = sample["images"]
        self.sizes = np.array([image["size"] for image in self._images], np.int64).reshape(-1, 2)
        self.image_ids = np.arange(1, len(self._images) + 1)

    def __len__(self) -> int:
        return len(self._images)

    def first(self, count: int) -> Sample:
        """The first ``count`` images."""
        categories = [(category.id, category.name) for category in self.categories]
        return Sample({"root": self.uri, "categories": categories, "images": self._images[:count]})

    def training_indices(self, keep_empty: bool) -> np.ndarray:
        """All: who took the sample has left out what isn't trained on."""
        return np.arange(len(self), dtype=np.int64)

    def boxes(self, index: int) -> np.ndarray:
        """(G, 4) float32 xyxy in the image's own pixels."""
        return np.array(self._images[index]["boxes"], np.float32).reshape(-1, 4)

    def labels(self, index: int) -> np.ndarray:
        """(G,) int64."""
        return np.array(self._images[index]["labels"], np.int64)

    def image(self, index: int, *, decode: Decode = decode_image, reduction: int = 1) -> np.ndarray:
        """(H, W, 3) uint8 RGB; noise where the image has no file."""
        height, width = (int(side) for side in self.sizes[index])
        path = self._images[index]["path"]
        if path is None:
            shape = (-(-height // reduction), -(-width // reduction), 3)
            return np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
        try:
            return decode(Path(path).read_bytes(), size=(height, width), reduction=reduction)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} can't be used: {error}") from error

    def instances(self) -> Instances:
        """What an evaluation compares with."""
        corners = np.concatenate([self.boxes(index) for index in range(len(self))]).astype(np.float64)
        sizes = corners[:, 2:] - corners[:, :2]
        counts = [len(self.boxes(index)) for index in range(len(self))]
        ids = np.array([category.id for category in self.categories], np.int64)
        return Instances.of_columns(
            image_ids=self.image_ids,
            category_ids=ids,
            owners=np.repeat(self.image_ids, counts),
            kinds=ids[np.concatenate([self.labels(index) for index in range(len(self))])],
            boxes=np.concatenate((corners[:, :2], sizes), axis=1),
            areas=sizes.prod(1),
            crowd=np.zeros(len(corners), dtype=bool),
            ids=np.arange(1, len(corners) + 1),
        )


def measure(job: dict[str, Any]) -> Measurement:
    """What ``job`` asks for. Raises what training raises, but for memory that isn't enough, which is a result."""
    config = _keeping_every_score(TrainingConfig.model_validate(job["config"]))
    on_gpu = config.resources.gpus_per_worker != 0 and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.set_num_threads(config.resources.cpus_per_worker)
    available = _gpu_share(config) if on_gpu else int(job["memory_bytes"])
    if not on_gpu:
        _bound(available)
    plugins.load(config.plugins)
    sample: Any = Sample(job["sample"])
    said: dict[str, Any] = {"device": device.type, "hardware": device_name(device), "available_bytes": available}
    said |= {"real": bool(job["sample"]["real"])}
    _say("building the model")
    state = TrainingState(config, sample, device, pretrained=False)
    _say("warming up")
    micro_batches: list[Batch] = []
    times: list[float] = []
    try:
        began, stage, read = time.perf_counter(), "warm-up", time.perf_counter()
        for micro_batches in _batches(config, sample):
            state.update(micro_batches)
            _finished(device)
            now = time.perf_counter()
            if stage == "timed":
                times.append(now - read)
                _say(f"step {len(times)} of up to {TIMED}")
                if len(times) == TIMED or now - began > LONG_S:
                    break
            elif state.step >= WARM_UP or now - began > LONG_S:
                began, stage = now, "timed"
            read = now
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    images = sum(len(batch) for batch in micro_batches)
    if not times:
        # Outside of the handler, whose traceback holds what the step had allocated.
        _say("looking for the largest batch that fits")
        return Measurement(images=images, largest=_largest(state, micro_batches), time=time.time(), **said)
    _say("evaluating")
    eval_image_s = _evaluation(state, config, sample.first(EVALUATED))
    with tempfile.TemporaryDirectory(prefix="detsweep-") as scratch:
        began = time.perf_counter()
        state.save(Path(scratch))
        checkpoint_s = time.perf_counter() - began
    peak = int(torch.cuda.max_memory_reserved(device)) if on_gpu else _peak()
    largest = None
    if peak > available:
        largest = max(0, min(int(images * available / peak), images - 1))
    return Measurement(
        step_s=statistics.median(times),
        steps=len(times),
        images=images,
        eval_image_s=eval_image_s,
        checkpoint_s=checkpoint_s,
        gradient_bytes=sum(
            each.numel() * each.element_size() for each in state.model.network.parameters() if each.requires_grad
        ),
        memory_bytes=peak,
        largest=largest,
        time=time.time(),
        **said,
    )


def _keeping_every_score(config: TrainingConfig) -> TrainingConfig:
    """The same, with an evaluation that has all that it may have."""
    postprocess = config.model.postprocess.model_copy(update={"score_threshold": 0.0})
    return config.model_copy(update={"model": config.model.model_copy(update={"postprocess": postprocess})})


def _batches(config: TrainingConfig, sample: Any) -> Any:
    resources = config.resources
    return training_batches(
        sample,
        config.data,
        batch_size=config.schedule.batch_size,
        seed=0,
        start=0,
        stop=WARM_UP + TIMED,
        rank=resources.workers - 1,  # whose share is the largest
        world_size=resources.workers,
        micro_batch_size=resources.micro_batch_size,
        loader_workers=resources.loader_processes,
        loader_threads=resources.loader_threads,
    )


def _evaluation(state: TrainingState, config: TrainingConfig, sample: Any) -> float:
    """Seconds an image, after one that doesn't count."""
    evaluate(state.model, sample.first(1), config.data)
    result = evaluate(state.model, sample, config.data, batch_size=config.evaluation.batch_size)
    return (result.metrics["eval_seconds"] or 0.0) / len(sample)


def _largest(state: TrainingState, micro_batches: list[Batch]) -> int:
    try:
        return largest_micro_batch(state, micro_batches) if micro_batches else 0
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return 0


def _finished(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _gpu_share(config: TrainingConfig) -> int:
    """What is free on the GPU, or the part of it that a worker is given."""
    free, total = torch.cuda.mem_get_info()
    share = config.resources.gpus_per_worker
    return free if share is None or share >= 1 else int(min(free, total * share))


def _bound(available: int) -> None:
    """Allocations beyond ``available`` bytes fail, as on a GPU, in the place of the system ending some process.

    What is reserved now and was never touched, such as the stacks of threads that wait, isn't counted.
    """
    memory = psutil.Process().memory_info()
    untouched = max(0, getattr(memory, "data", 0) - memory.rss)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with contextlib.suppress(ValueError, OSError):  # a system without such a bound measures all the same
        resource.setrlimit(resource.RLIMIT_DATA, (available + untouched, hard))


def _peak() -> int:
    """Most resident bytes of this process until now."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _say(text: str) -> None:
    sys.__stdout__.write(text + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def main() -> int:
    """The command; the result's ``error`` says what went wrong."""
    job_file, result_file = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        try:
            found = measure(json.loads(Path(job_file).read_text()))
        except Exception as error:
            words = " ".join(str(error).split())[:300]
            found = Measurement(error=words or type(error).__name__, time=time.time())
        Path(result_file).write_text(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
