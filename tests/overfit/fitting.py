"""One training on eight fixed generated images, and what it reached."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detector.config import GeneratedDataConfig, ModelConfig, TrainingConfig
from detector.criterion import Criterion, Targets
from detector.data.coco import data_digest
from detector.data.loader import Batch, training_batches
from detector.data.store import Store, ensure_store, open_store
from detector.data.synthetic import generate
from detector.evaluation import evaluate
from detector.losses import giou_loss
from detector.outputs import HeadOutputs
from detector.recipes import FAMILIES, model_config
from detector.training import TrainingState

STEPS, IMAGES, SIDE = 300, 8, 128

# What the recipes don't have: other rules on the ATSS head, and combined IoUs on the others.
COMBINED = {"predicted_weight": 1.0, "anchor_weight": 1.0}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "atss, combined IoUs": ("atss", {"assigner": COMBINED}),
    "atss, predicted IoUs only": ("atss", {"assigner": {"predicted_weight": 1.0, "anchor_weight": 0.0}}),
    "atss, D_up:D_down": ("atss", {"assigner": {"predicted_weight": "up", "anchor_weight": "down"}}),
    "atss, fixed_iou": ("atss", {"assigner": {"name": "fixed_iou"}}),
    "atss, fcos": ("atss", {"assigner": {"name": "fcos"}}),
    "atss, vfl": ("atss", {"assigner": COMBINED, "head": {"quality_branch": "iou", "classification_loss": "vfl"}}),
    "atss, no quality": ("atss", {"head": {"quality_branch": "none"}}),
    "fcos, combined IoUs": ("fcos", {"assigner": {"name": "atss"} | COMBINED}),
    "gfl, combined IoUs": ("gfl", {"assigner": COMBINED}),
    "vfnet_ciou, initial boxes": ("vfnet_ciou", {"head": {"assigned_boxes": "initial"}}),
}
NAMES = [*FAMILIES, *VARIANTS]


def configuration(name: str) -> TrainingConfig:
    """The training called ``name``: a small ResNet-18 from random weights, no augmentation."""
    family, changes = VARIANTS.get(name, (name, {}))
    model = model_config(f"{family}_r18").model_dump(mode="json")
    common: dict[str, Any] = {"neck": {"channels": 64}, "head": {"convolutions": 2}}
    if not family.startswith(("gfl", "vfnet")):  # their first boxes have the size of anchors of 8 strides
        common["anchors"] = {"scale": 4.0}
    for part in (common, changes):
        for section, fields in part.items():
            model[section] = model[section] | fields
    model |= {"weights": "none", "norm": "gn"}
    return TrainingConfig.model_validate(
        {
            "model": ModelConfig.model_validate(model),
            "data": {"short_side": SIDE, "long_side": SIDE, "augmentation": {"flip": 0.0}},
            "schedule": {
                "iterations": STEPS,
                "batch_size": IMAGES,
                "recipe_batch_size": IMAGES,
                "optimizer": "adamw",
                "policy": "one_cycle",
                "learning_rate": 2e-3,
                "weight_decay": 1e-4,
                "clip_norm": 10.0,
            },
        }
    )


def overfit(name: str, uri: str) -> dict[str, Any]:
    """Trains ``name`` on the store at ``uri`` and returns what it reached."""
    torch.set_num_threads(1)
    store, config = open_store(uri), configuration(name)
    began = time.perf_counter()
    state = TrainingState(config, store, torch.device("cpu"))
    batches = training_batches(store, config.data, batch_size=IMAGES, seed=0, start=0, stop=STEPS)
    first = None
    for micro_batches in batches:
        if first is None:
            first = measured(state, micro_batches[0], 0.0)
        state.update(micro_batches)
    last = measured(state, micro_batches[0], (STEPS - 1) / STEPS)
    assert first is not None
    result = evaluate(state.model, store, config.data)
    return {
        "name": name,
        "giou_loss": last[0],
        "cls_left": last[1] / first[1],
        "AP50": result.metrics["AP50"],
        "seconds": time.perf_counter() - began,
    }


@torch.no_grad()
def measured(state: TrainingState, batch: Batch, progress: float) -> tuple[float, float]:
    """Mean GIoU loss of the positives, and the classification loss less the entropy of its targets."""
    model = state.model
    outputs = model.network(model.normalise(batch.images, batch.sizes))
    criterion: Criterion = model.criterion
    targets = criterion.targets(outputs, batch.boxes, batch.labels, progress)
    boxes = giou_loss(criterion.predicted(outputs.box_regression, targets), targets.boxes)[targets.positive]
    losses = criterion.losses(outputs, targets, targets.totals)
    return boxes.mean().item(), losses["loss_cls"].item() - entropy(state.config.model, outputs, targets)


def entropy(config: ModelConfig, outputs: HeadOutputs, targets: Targets) -> float:
    """What no classifier can avoid: of VFL the entropy of its targets, weighed by them; of the others nothing."""
    if config.head.classification_loss != "vfl":
        return 0.0
    q: Tensor = targets.iou[targets.positive].clamp(1e-6, 1 - 1e-6)
    return float((q * -(q * q.log() + (1 - q) * (1 - q).log())).sum() / targets.totals.positives)


def eight_images(folder: Path) -> Store:
    """The images, drawn and converted in ``folder``."""
    root = generate(GeneratedDataConfig(train_images=IMAGES, val_images=1, seed=3, long_side=SIDE), folder)
    return ensure_store(root, "train", folder / "stores", digest=data_digest(root, "train", remember=None))
