"""Models by name: ``atss_r50`` is ATSS, ``dynamic_atss_r50`` the final model of the paper."""

from __future__ import annotations

import difflib
from typing import get_args

from detector.config import AssignerConfig, Backbone, HeadConfig, ModelConfig
from detector.errors import InputError

# What each family sets; the rest is ModelConfig's default, which follows the authors.
FAMILIES: dict[str, dict] = {
    "atss": {},
    "dynamic_atss": {
        "head": HeadConfig(quality_branch="iou", classification_loss="qfl"),
        "assigner": AssignerConfig(predicted_weight=1.0, anchor_weight=1.0),
    },
}


def recipe_names() -> list[str]:
    """Every name that ``model_config`` knows."""
    return [f"{family}_{backbone}" for family in FAMILIES for backbone in get_args(Backbone)]


def model_config(name: str) -> ModelConfig:
    """The model called ``name``. Raises InputError with the nearest names for an unknown one."""
    for family, fields in FAMILIES.items():
        backbone = name.removeprefix(f"{family}_")
        if name.startswith(f"{family}_") and backbone in get_args(Backbone):
            return ModelConfig(backbone=backbone, **fields)
    near = difflib.get_close_matches(name, recipe_names(), n=3) or recipe_names()[:3]
    raise InputError(f"there is no recipe {name!r}; did you mean {', '.join(near)}?")
