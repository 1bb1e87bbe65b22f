"""A small generated data set and small trainings, shared by the tests of the detector."""

from __future__ import annotations

import pytest

from detector.config import GeneratedDataConfig, TrainingConfig
from detector.data.coco import data_digest
from detector.data.store import Store, ensure_store
from detector.data.synthetic import generate

GENERATED = GeneratedDataConfig(train_images=12, val_images=7, long_side=160, classes=3)


@pytest.fixture(scope="session")
def generated(tmp_path_factory) -> tuple[Store, Store]:
    """Stores of 12 training and 7 validation images, of several aspect ratios."""
    folder = tmp_path_factory.mktemp("generated")
    root = generate(GENERATED, folder)
    train, val = (
        ensure_store(root, split, folder / "stores", digest=data_digest(root, split, remember=None))
        for split in ("train", "val")
    )
    return train, val


def small_config(**changes) -> TrainingConfig:
    """A training of seconds: ResNet-18, 64 channels, images of 96 px, combined IoUs. ``changes`` replace sections."""
    sections = {
        "model": {
            "backbone": "r18",
            "weights": "none",
            "neck": {"channels": 64},
            "head": {"convolutions": 1},
            "assigner": {"predicted_weight": 1.0, "anchor_weight": 1.0},
        },
        "data": {"short_side": 96, "long_side": 96},
        "schedule": {"iterations": 10, "batch_size": 4, "recipe_batch_size": 4, "learning_rate": 0.002},
        "tracking": {"every": 1},
    }
    for name, fields in changes.items():
        sections[name] = sections.get(name, {}) | fields if isinstance(fields, dict) else fields
    return TrainingConfig.model_validate(sections)
