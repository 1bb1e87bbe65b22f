"""The assignment's share of a training step, with the model and image size of the small_data profile."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from detector.config import GeneratedDataConfig, TrainingConfig
from detector.data.coco import data_digest
from detector.data.loader import training_batches
from detector.data.store import ensure_store
from detector.data.synthetic import generate
from detector.training import TrainingState
from tests.benchmarks.alternating import Figure, Pairs, threads

CONFIG = {
    "model": {
        "backbone": "r18",
        "weights": "none",
        "neck": {"channels": 96},
        "head": {"convolutions": 2},
        "assigner": {"predicted_weight": 1.0, "anchor_weight": 1.0},
    },
    "data": {"short_side": 256, "long_side": 256},
    "schedule": {
        "iterations": 300,
        "batch_size": 8,
        "recipe_batch_size": 8,
        "optimizer": "adamw",
        "policy": "one_cycle",
        "learning_rate": 0.002,
        "precision": "bfloat16",
    },
}
WARM_UP, STEPS = 2, 12


def measure() -> list[Figure]:
    """Seconds of assigner, targets and losses beside those of the step, on one thread."""
    with threads(1):
        rows = _rows()
    steps = [row["step"] for row in rows]
    return [
        Pairs([row[key] for row in rows], steps).figure(f"{key}, s", peer="whole step")
        for key in ("assigner", "targets", "losses")
    ]


def _rows() -> list[dict[str, float]]:
    config = TrainingConfig.model_validate(CONFIG)
    with tempfile.TemporaryDirectory() as temporary:
        root = generate(GeneratedDataConfig(train_images=64, val_images=1), Path(temporary))
        digest = data_digest(root, "train", remember=None)
        store = ensure_store(root, "train", Path(temporary) / "stores", digest=digest)
        state = TrainingState(config, store, torch.device("cpu"))
        criterion = state.model.criterion
        spent = {"assigner": 0.0, "targets": 0.0, "losses": 0.0}
        criterion.assigner = _timed(criterion.assigner, "assigner", spent)
        criterion.targets = _timed(criterion.targets, "targets", spent)  # type: ignore[method-assign]
        criterion.losses = _timed(criterion.losses, "losses", spent)  # type: ignore[method-assign]
        rows = []
        batches = training_batches(store, config.data, batch_size=8, seed=0, start=0, stop=WARM_UP + STEPS)
        for micro_batches in batches:
            spent.update(dict.fromkeys(spent, 0.0))
            began = time.perf_counter()
            state.update(micro_batches)
            rows.append({"step": time.perf_counter() - began, **spent})
    return rows[WARM_UP:]


def _timed(function, name: str, spent: dict[str, float]):
    def timed(*args, **kwargs):
        began = time.perf_counter()
        result = function(*args, **kwargs)
        spent[name] += time.perf_counter() - began
        return result

    return timed
