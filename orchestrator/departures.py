"""How far a row is from the paper's recipe: what else decides its weights, its evaluation or its data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detector.config import TrainingConfig
from detector.errors import InputError
from detector.keys import flat, resolve
from orchestrator.identity import deciding, flattened
from orchestrator.spec import RowSpec

if TYPE_CHECKING:
    from orchestrator.dataset import SplitFacts
    from orchestrator.plan import PlannedRow

COCO_IMAGES = {"train2017": 118_287, "val2017": 5_000}
"""Images of COCO's splits. A folder whose splits have their names alone is not COCO."""
COCO_CLASSES = 80
_EVALUATION = ("data.evaluation_short_side", "data.long_side", "data.resize", "model.postprocess.")


def departures(row: RowSpec, config: TrainingConfig) -> tuple[str, ...]:
    """Keys that decide the weights and that something above the row's recipe changed: the profile or ``--set``."""
    recipe = _recipe(row)
    if recipe is None:
        return ()
    meant = flattened(deciding(recipe))
    changed = [
        key
        for key, value in flattened(deciding(config)).items()
        if key not in ("schedule.batch_factor", "seed") and value != meant.get(key)
    ]
    if config.data.generated != recipe.data.generated:
        changed.append("data.generated")
    elif (config.data.train, config.data.val) != (recipe.data.train, recipe.data.val):
        changed.append("data.train")
    return tuple("schedule.iterations" if key == "schedule.max_iterations" else key for key in changed)


def evaluation_departures(row: RowSpec, config: TrainingConfig) -> tuple[str, ...]:
    """Keys that decide how its model is evaluated and that something above the row's recipe changed."""
    recipe = _recipe(row)
    if recipe is None:
        return ()
    meant = flat(recipe)
    return tuple(
        key for key, value in flat(config).items() if key.startswith(_EVALUATION) and value != meant.get(key, value)
    )


def other_than_paper(row: PlannedRow) -> tuple[str, ...]:
    """Keys in which ``row`` is not what the paper did: recipe, evaluation and data; empty if it is all of that."""
    keys = [*row.departures, *row.evaluation_departures]
    if any(facts is not None and _is_other_coco(facts) for facts in (row.train, row.val)):
        keys.append("data.root")
    return tuple(dict.fromkeys(keys))


def data_name(row: PlannedRow) -> str:
    """What ``row`` is trained on, in words."""
    if row.config.data.generated is not None:
        return "generated images"
    if row.train is None:
        return "its data"
    if row.train.split in COCO_IMAGES and not _is_other_coco(row.train):
        return "COCO"
    folder = row.train.root.rstrip("/").rpartition("/")[2]
    return f"{folder} ({row.train.split}, {row.train.images:,} images)"


def model_name(row: PlannedRow) -> str:
    """Head and backbone of ``row``."""
    return f"{row.config.model.head.name} {row.config.model.backbone}"


def _is_other_coco(facts: SplitFacts) -> bool:
    images = COCO_IMAGES.get(facts.split)
    return images is not None and (facts.images, len(facts.categories)) != (images, COCO_CLASSES)


def _recipe(row: RowSpec) -> TrainingConfig | None:
    try:
        return resolve([row.base, row.settings], row.plugins)
    except InputError:
        # The base alone is no recipe; there is nothing to depart from.
        return None
