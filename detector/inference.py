"""Having a detector: load one or build one. How it finds objects is in ``detector.prediction``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from detector.config import ModelConfig
from detector.data.coco import Category
from detector.detections import Detections
from detector.distributed import default_device
from detector.document import counted, listed
from detector.errors import InputError
from detector.loading import load_detector
from detector.model import Detector, build_model
from detector.recipes import model_config
from detector.weights import IMAGENET_FILES, cache_folder, cached_imagenet

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["Detections", "Detector", "build", "load"]


def load(
    source: str | PathLike[str], *, device: torch.device | str | None = None, tracking_uri: str | None = None
) -> Detector:
    """A trained detector, ready to predict.

    ``source``: ``runs:/RUN_ID/model``, ``models:/NAME/3``, ``models:/NAME@ALIAS``, a folder that training wrote, its
    model.safetensors, a .pth, .pt or .safetensors file in the layout of another project (docs/checkpoints.md), or the
    name of a published one, such as ``mmdet:atss_r50_fpn_1x_coco``. ``device`` None picks cuda, then mps, then cpu.
    ``tracking_uri``: the MLflow store of the first three; None means ``$MLFLOW_TRACKING_URI``, else the sqlite file in
    the default storage.
    Raises InputError when there is no such model or anything in it does not fit, and loads nothing then;
    UnreachableError when the store or the server doesn't answer.
    """
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    if not isinstance(name, str):
        raise InputError(_no_source(source))
    chosen = pick_device(device)
    return load_detector(name, tracking_uri).to(chosen).eval()


def _no_source(source: object) -> str:
    """The sentence for what names no model."""
    if isinstance(source, Mapping):
        return (
            "detector.load is given a table of tensors, but reads files; write it by torch.save(state_dict, FILE) and "
            "load FILE"
        )
    given = "None" if source is None else f"an object of type {type(source).__name__}"
    return f"detector.load is given {given} instead of a name; give a folder, a file, runs:/…, models:/… or mmdet:NAME"


def build(
    model: str | ModelConfig | dict[str, Any],
    *,
    num_classes: int | None = None,
    categories: Sequence[str] | None = None,
    seed: int = 0,
) -> Detector:
    """A new detector, ready to train.

    ``model``: a recipe's name such as "dynamic_atss_r50", a ModelConfig, or a dict of its fields. ``num_classes``
    stands in for the configuration's. ``categories`` names the classes, in their order, and so says how many there are;
    without them they are called "class 0", "class 1", …. Category ids count from 1.
    Initial weights are those that are named; where none are, ImageNet's if they are on this machine, and random ones,
    with a warning, if not: building needs no network.
    Raises InputError for an unknown recipe or field, names and a number that disagree, or weights that are named and
    can't be had.
    """
    if isinstance(model, str):
        config = model_config(model)
    else:
        try:
            config = ModelConfig.model_validate(model)
        except ValidationError as error:
            first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
            raise InputError(f"{'.'.join(map(str, ('model', *first['loc'])))}: {first['msg']}") from error
    classes = num_classes if num_classes is not None else config.num_classes
    names = None if categories is None else _names(categories)
    if classes is None:
        if names is None:
            raise InputError(
                "num_classes is needed to build a detector; give build(…, num_classes=80), or the names as categories"
            )
        classes = len(names)
    if isinstance(classes, bool) or not isinstance(classes, Integral) or not 1 <= classes <= 10**6:
        raise InputError(f"num_classes is {classes!r}; give a whole number from 1 to 1,000,000")
    if names is not None and len(names) != classes:
        raise InputError(
            f"num_classes is {classes}, but categories has {counted(len(names), 'name')} ({listed(names, 5)}); leave "
            "num_classes out, or name each class once"
        )
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed!r}; give a whole number from 0 to 4,294,967,295")
    if "weights" not in config.model_fields_set and config.init is None:
        config = config.model_copy(update={"weights": "auto"})
        if config.backbone in IMAGENET_FILES and cached_imagenet(config.backbone) is None:
            warnings.warn(
                f"the backbone starts from random weights: {IMAGENET_FILES[config.backbone]} is not in "
                f'{cache_folder()}; weights="imagenet" downloads it',
                stacklevel=2,
            )
    names = names or [f"class {index}" for index in range(int(classes))]
    return build_model(config, [Category(index, name) for index, name in enumerate(names, 1)], seed=int(seed))


def _names(categories: Sequence[str]) -> list[str]:
    """``categories`` as a list. Raises InputError unless they are names, each of one class."""
    names = list(categories) if isinstance(categories, list | tuple) else []
    wrong = [name for name in names if not isinstance(name, str) or not name.strip()]
    if not names or wrong:
        given = repr(wrong[0] if wrong else categories)[:60]
        raise InputError(f'categories has {given}; give a list of names, one for each class, such as ["cup", "plate"]')
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise InputError(f"categories names {twice!r} twice; give each class a name of its own")
    return names


def pick_device(name: torch.device | str | None) -> torch.device:
    """``name`` as a device that is there; None picks cuda, then mps, then cpu. Raises InputError for another."""
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"the device {str(name)!r} can't be used here ({reason}); use cpu, cuda, cuda:1 or mps"
        ) from error
    return device
