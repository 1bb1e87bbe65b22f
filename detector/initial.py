"""``model.init``: a training that starts from a whole detector, ours or another project's, of other classes or not.

Every tensor that fits is taken; the class layer is made anew where the classes differ. torch is imported where it is
used: a plan can resolve a configuration without it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from detector.checkpoints import CLASS_LAYER, DESCRIPTION, check_finite, read_description, read_weights
from detector.config import ModelConfig
from detector.data.coco import Category
from detector.document import counted, listed
from detector.errors import InputError
from detector.foreign.published import find_published, is_published
from detector.keys import flat
from detector.origins import TRACKED, WEIGHTS, locate
from detector.signatures import first_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from detector.model import Detector

# What the same tensors mean something else under; a training that starts from them should agree on it.
CONVENTIONS = (
    *("pixels.order", "pixels.mean", "pixels.deviation", "stride_in_1x1", "norm_epsilon", "dcn_version"),
    *("neck.relu_before_p7", "anchors.name", "anchors.scale", "anchors.center_offset", "anchors.strides"),
)
SHOWN = 4


class Whole(NamedTuple):
    """A detector in a file."""

    config: ModelConfig
    categories: Sequence[Category]
    tensors: dict[str, Tensor]
    """By our names."""
    unknown: tuple[str, ...]
    """Keys that have no name of ours."""


def resolve_init(config: ModelConfig) -> ModelConfig:
    """``config`` with the absolute place of its ``init`` and a null norm and "auto" weights replaced accordingly.

    MLflow's models are brought to this machine; published files are named, but not fetched yet.
    Raises InputError when there is no such file or name, UnreachableError when MLflow's store doesn't answer.
    """
    assert config.init is not None
    if config.weights not in ("imagenet", "none", "auto"):
        raise InputError(
            f"model.init and model.weights both name a file, {config.init} and {config.weights}, but the first has a "
            "backbone, too; leave model.weights out"
        )
    init, norm = config.init, config.norm or "frozen_bn"
    if is_published(init):
        find_published(init)
    else:
        if not init.startswith(TRACKED) and not Path(init).expanduser().exists():
            raise InputError(
                f"model.init names {init}, and there is no such file; give a model's folder, a file that detector.load "
                "reads, runs:/…, models:/… or mmdet:NAME"
            )
        path = locate(init).absolute()
        if not path.is_dir():
            try:
                first_bytes(path)
            except InputError as error:
                raise InputError(f"model.init: {error}") from error
        init = str(path.parent if path.name == WEIGHTS and (path.parent / DESCRIPTION).is_file() else path)
        folder = path if path.is_dir() else path.parent
        if path.is_dir() or (folder / DESCRIPTION).is_file():
            norm = config.norm or read_description(folder)[0].norm or norm
    weights = "none" if norm == "gn" else "imagenet" if config.weights == "auto" else config.weights
    return config.model_copy(update={"init": init, "norm": norm, "weights": weights})


def read_whole(source: str) -> Whole:
    """The detector that a resolved ``init`` names. Raises InputError where it is none or isn't finite."""
    whole = _read_whole(source)
    check_finite(whole.tensors, f"model.init: {source}")
    return whole


def _read_whole(source: str) -> Whole:
    from detector.foreign.conversion import Reading
    from detector.loading import read_file

    path = locate(source)
    if path.is_dir():
        config, categories, _ = read_description(path)
        return Whole(config, categories, read_weights(path), ())
    found = read_file(path)
    if isinstance(found, Reading):
        return Whole(found.config, found.categories, found.state, found.unmatched)
    config, categories, _ = read_description(path.parent)
    return Whole(config, categories, found, ())


def start_from(model: Detector) -> None:
    """Takes from the ``init`` of its configuration what fits ``model``, and says what was taken, skipped and new.

    Raises InputError, and takes nothing, where the file is no detector or has another backbone.
    """
    from detector import distributed

    source = model.config.init
    assert source is not None
    whole = read_whole(source)
    wanted = model.network.state_dict()
    anew = _other_classes(whole.categories, model.categories)
    taken = {
        key: value for key, value in whole.tensors.items()
        if key in wanted and wanted[key].shape == value.shape and not (anew and key.startswith(CLASS_LAYER))
    }  # fmt: skip
    new = [key for key in wanted if key not in taken]
    # Predicted sampling points begin at the plain ones, unless the file has better.
    lost = [key for key in new if key.startswith("backbone.") and ".offset." not in key]
    theirs, ours = whole.config, model.config
    if lost or theirs.norm != ours.norm:
        count = f": {counted(len(lost), 'tensor')} of it can't be taken, the first is {lost[0]}" if lost else ""
        raise InputError(
            f"model.init: the backbone of {source} is {theirs.backbone} with {theirs.norm}, and model.backbone is "
            f"{ours.backbone} with model.norm {ours.norm}{count}; set model.backbone: {theirs.backbone} and "
            f"model.norm: {theirs.norm}"
        )
    model.network.load_state_dict(taken, strict=False)
    if distributed.rank() == 0:
        skipped = [*(key for key in whole.tensors if key not in taken), *whole.unknown]
        print("\n".join(_report(source, theirs, ours, taken, skipped, new)), file=sys.stderr)


def _other_classes(theirs: Sequence[Category], ours: Sequence[Category]) -> bool:
    """Whether both have classes with names of their own, and not the same."""
    names = [[category.name for category in each] for each in (theirs, ours)]
    numbered = [each == [f"class {label}" for label in range(len(each))] for each in names]
    return not any(numbered) and names[0] != names[1]


def _report(
    source: str, theirs: ModelConfig, ours: ModelConfig, taken: dict, skipped: Sequence[str], new: Sequence[str]
) -> list[str]:
    lines = [f"starting from {source}: {counted(len(taken), 'tensor')} taken"]
    for word, keys in (("skipped, for they don't fit", skipped), ("new", new)):
        lines.append(f"  {len(keys)} {word}" + (f": {listed(keys, SHOWN)}" if keys else ""))
    there, here = flat(theirs), flat(ours)
    lines += [
        f"  careful: model.{key} is {here[key]} here, but the tensors were trained with {there[key]}"
        for key in CONVENTIONS
        if here[key] != there[key]
    ]
    return lines
