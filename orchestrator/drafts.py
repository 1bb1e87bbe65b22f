"""Rows of a sweep file as resolved configurations, before any file but theirs was looked into."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detector.config import TrainingConfig
from detector.errors import InputError
from detector.keys import Setting, leaves, resolve
from detector.refusals import short
from orchestrator.departures import departures, evaluation_departures
from orchestrator.ledger import Ledger
from orchestrator.request import absolute
from orchestrator.spec import RowSpec


@dataclass(frozen=True)
class Draft:
    """A row before anything was looked up in files."""

    spec: RowSpec
    config: TrainingConfig
    departures: tuple[str, ...]
    evaluation_departures: tuple[str, ...]


def draft(row: RowSpec, profile: Sequence[Setting], settings: Sequence[Setting]) -> Draft:
    """``row`` with its base, ``profile``, the environment and ``settings``, the strongest last. Raises InputError."""
    environment = os.environ.get("DETSWEEP_DATA")
    from_environment = [Setting("data.root", environment, "$DETSWEEP_DATA")] if environment else []
    # The environment stands above the files of the recipe and below what a row or the command line says.
    layers = [row.base, profile, from_environment, row.settings, settings]
    stated = [row.base, profile, [], row.settings, settings]
    if _highest(stated, "data.root") > _highest(stated, "data.generated"):
        layers.append([Setting("data.generated", None, "data.root")])
    config = resolve(layers, row.plugins)
    if config.data.generated is not None:
        _refuse_ignored(stated)
    return Draft(row, config, departures(row, config), evaluation_departures(row, config))


def _refuse_ignored(layers: Sequence[Sequence[Setting]]) -> None:
    """Raises InputError where something names data, but images are generated all the same."""
    level = _highest(layers, "data.generated")
    for index in range(max(level, 0), len(layers)):
        for setting in layers[index]:
            for key, value in leaves(setting.key, setting.value):
                allowed: dict[str, tuple[Any, ...]] = {
                    "data.train": ("train",),
                    "data.val": ("val",),
                    "data.test": (None, "train", "val"),
                    # A file may well clear what the files below it name; on the command line it can only be a slip.
                    "data.root": () if index == len(layers) - 1 else (None,),
                }
                if value not in allowed.get(key, (value,)):
                    remedy = (
                        "keep one of data.root and data.generated"
                        if key == "data.root" and value is not None
                        else "leave it out, or name a data set by data.root"
                    )
                    raise InputError(
                        f"{setting.origin}: {key} is {short(value)}, but the images are generated (data.generated), "
                        f"with splits train and val; {remedy}"
                    )


def _highest(layers: Sequence[Sequence[Setting]], key: str) -> int:
    """The highest layer that sets ``key`` or something below it; -1 if none does."""
    found = [
        index
        for index, layer in enumerate(layers)
        if any(
            value is not None and f"{leaf}.".startswith(f"{key}.")
            for setting in layer
            for leaf, value in leaves(setting.key, setting.value)
        )
    ]
    return max(found, default=-1)


def located(config: TrainingConfig, data_folder: Path) -> TrainingConfig:
    """``config`` with the absolute place of its data, also of those that are yet to be generated."""
    if config.data.generated is None:
        update: dict[str, Any] = {"root": _root(config)}
    else:
        from detector.data.synthetic import place

        # A recipe's own test split is not among what is generated.
        test = config.data.test if config.data.test in ("train", "val") else None
        root = str(place(config.data.generated, data_folder))
        update = {"root": root, "train": "train", "val": "val", "test": test}
    return config.model_copy(update={"data": config.data.model_copy(update=update)})


def draw(configs: Iterable[TrainingConfig], ledger: Ledger) -> None:
    """Makes the generated data that aren't there yet."""
    for config in configs:
        if config.data.generated is not None:
            from detector.data.synthetic import generate

            generate(config.data.generated, ledger.data)


def _root(config: TrainingConfig) -> str:
    if config.data.root is None:
        raise InputError(
            "no data set is named; give its folder by --set data.root=FOLDER or $DETSWEEP_DATA, download COCO with "
            "`python -m detector.data download coco2017`, or use `--profile laptop`, which needs nothing"
        )
    return absolute(config.data.root)


def splits(config: TrainingConfig) -> tuple[str, ...]:
    """Names of the splits that ``config`` trains on, evaluates on and tests on."""
    data = config.data
    return (data.train, data.val) if data.test is None else (data.train, data.val, data.test)
