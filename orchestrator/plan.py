"""From a sweep file and a command line to one resolved configuration a row and seed, each with its identity.

Nothing heavy is imported, and nothing is written before the specification, the weights and the data have been found
right.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from detector.config import ModelConfig, TrainingConfig
from detector.data.places import IN_SWEEPS, check_places
from detector.document import suggestion
from detector.errors import InputError
from detector.keys import Setting, flat, leaves, resolve
from detector.plugins import Plugin
from detector.refusals import short
from detector.weights import resolve_weights
from orchestrator.dataset import (
    SplitFacts,
    check_boxes,
    check_categories,
    remember,
    split_facts,
    undrawn_facts,
)
from orchestrator.identity import deciding, evaluation_identity, identity
from orchestrator.ledger import Ledger
from orchestrator.request import (
    SweepRequest,
    absolute,
    check_tracking_uri,
    command_line,
    resolve_storage,
    resolve_tracking_uri,
    sweep_key,
)
from orchestrator.spec import Figure, Quoted, RowSpec, SweepSpec, check_seeds, load_profile, load_spec, read_set

Purpose = Literal["run", "describe", "read"]


@dataclass(frozen=True)
class PlannedRow:
    """One row with one seed."""

    row: str
    seed: int
    identity: str
    """Of its training; rows with the same one share it."""
    config: TrainingConfig
    """Resolved: absolute data.root, known classes, weights and normalisation."""
    show: dict[str, str] = field(default_factory=dict)
    """Columns as the paper prints them."""
    paper: dict[str, float] = field(default_factory=dict)
    """Figures of the paper."""
    differences: dict[str, Any] = field(default_factory=dict)
    """What the row sets over its base, by dotted key."""
    base: str = ""
    """Name of that base."""
    departures: tuple[str, ...] = ()
    """Keys that decide the weights and that the profile or ``--set`` changed: not the paper's recipe."""
    train: SplitFacts | None = None
    """Training split."""
    val: SplitFacts | None = None
    """Validation split."""
    test: SplitFacts | None = None
    """Split that is evaluated once, at the end, if there is one."""
    evaluation: str = ""
    """Key of its evaluation on ``val``,"""
    test_evaluation: str = ""
    """and of that on ``test``."""

    @property
    def drawn(self) -> bool:
        """Whether its data are there. Without the bytes of images that are yet to be generated the identity stands for
        its configuration alone, and the training will have another.
        """
        return self.train is None or self.train.there

    @property
    def evaluations(self) -> dict[str, str]:
        """Keys of its evaluations, by the prefix of their metrics."""
        found = {"": self.evaluation, "test_": self.test_evaluation}
        return {prefix: key for prefix, key in found.items() if key}


@dataclass(frozen=True)
class Plan:
    """A sweep, ready to run."""

    key: str
    """NAME[@PROFILE][+HASH8]: names its folder, its parent run and its lease."""
    name: str
    title: str
    profile: str | None
    rows: tuple[PlannedRow, ...]
    quoted: tuple[Quoted, ...]
    compare: tuple[tuple[str, str], ...]
    figures: tuple[Figure, ...]
    storage: Path
    tracking_uri: str
    command: str
    """The command line that means the same sweep."""
    plugins: tuple[Plugin, ...] = ()
    """What the sweep file declares, used by a row or not."""

    @property
    def folder(self) -> Path:
        """The sweep's own folder."""
        return self.storage / "sweeps" / self.key

    @property
    def trainings(self) -> dict[str, TrainingConfig]:
        """Distinct trainings by identity, in the order of the rows."""
        found: dict[str, TrainingConfig] = {}
        for row in self.rows:
            found.setdefault(row.identity, row.config)
        return found

    @property
    def row_names(self) -> tuple[str, ...]:
        """Names of the rows, each once, in order."""
        return tuple(dict.fromkeys(row.row for row in self.rows))


@dataclass(frozen=True)
class _Draft:
    """A row before anything was looked up in files."""

    spec: RowSpec
    config: TrainingConfig
    departures: tuple[str, ...]


def make_plan(request: SweepRequest, purpose: Purpose = "run") -> Plan:
    """The plan for ``request``.

    To "run" it, folders of the storage and generated data are made, once everything has been found right. To "describe"
    it nothing is made. To "read" what has become of it nothing is made either, and it must be in the storage.

    Raises InputError where the specification, the weights or the data are wrong, and UnreachableError where the storage
    can't be written.
    """
    storage = resolve_storage(request.storage)
    tracking_uri = resolve_tracking_uri(request.tracking_uri, storage)
    spec = load_spec(request.sweep)
    profile = load_profile(request.profile, spec.path.parent) if request.profile else []
    settings = read_set(request.set)
    key = sweep_key(spec.name, request.profile, settings)
    drafts = [_draft(row, profile, settings) for row in _selected(spec, request.only)]
    seeds = spec.seeds if request.seeds is None else check_seeds(request.seeds, "--seeds")
    check_tracking_uri(request.tracking_uri, storage)
    if purpose == "read":
        _check_known(key, storage, request)
    ledger = Ledger(storage)
    configs = [_located(draft.config, ledger.data) for draft in drafts]
    for config in configs:
        if config.data.generated is None:
            check_places(str(config.data.root), _splits(config), IN_SWEEPS)
    models = [resolve_weights(draft.config.model) for draft in drafts]
    facts = _Facts(ledger)
    for config in configs:
        facts.of(config)
    if purpose == "run":
        ledger.prepare()
        _draw(configs, ledger)
        facts.remember()
    rows = [
        _planned(draft, config, model, seed, facts)
        for draft, config, model in zip(drafts, configs, models, strict=True)
        for seed in seeds
    ]
    missing = next((row for row in rows if not row.drawn), None)
    if purpose == "read" and missing is not None:
        raise InputError(
            f"the generated images are no longer in {missing.config.data.root}, and trainings are named by them; "
            f"`{command_line('sweep', request)}` draws them again"
        )
    names = {row.row for row in rows}
    return Plan(
        key=key,
        name=spec.name,
        title=spec.title,
        profile=request.profile,
        rows=tuple(rows),
        quoted=spec.quoted,
        compare=tuple(pair for pair in spec.compare if names.issuperset(pair)),
        figures=tuple(figure for figure in spec.figures if names.intersection(figure.rows)),
        storage=storage,
        tracking_uri=tracking_uri,
        command=command_line("sweep", request),
        plugins=spec.plugins,
    )


def _check_known(key: str, storage: Path, request: SweepRequest) -> None:
    folder = storage / "sweeps"
    if not (folder / key).is_dir():
        known = [place.name for place in sorted(folder.iterdir()) if place.is_dir()] if folder.is_dir() else []
        near = suggestion(key, known)
        raise InputError(
            f'the storage {storage} has no sweep "{key}" ({near.rstrip("?")}); `{command_line("sweep", request)}` '
            "starts it"
        )


def _selected(spec: SweepSpec, only: Sequence[str]) -> list[RowSpec]:
    names = [row.name for row in spec.rows]
    for name in only:
        if name not in names:
            raise InputError(f'--only {name}: the sweep {spec.name} has no row "{name}"; {suggestion(name, names)}')
    return [row for row in spec.rows if not only or row.name in only]


def _draft(row: RowSpec, profile: Sequence[Setting], settings: Sequence[Setting]) -> _Draft:
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
    return _Draft(row, config, _departures(row, config))


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


def _departures(row: RowSpec, config: TrainingConfig) -> tuple[str, ...]:
    try:
        recipe = resolve([row.base, row.settings], row.plugins)
    except InputError:
        # The base alone is no recipe; there is nothing to depart from.
        return ()
    stated, meant = deciding(config), deciding(recipe)
    changed = [
        key
        for key, value in _flat(stated).items()
        if key not in ("schedule.batch_factor", "seed") and value != _flat(meant).get(key)
    ]
    if config.data.generated != recipe.data.generated:
        changed.append("data.generated")
    elif (config.data.train, config.data.val) != (recipe.data.train, recipe.data.val):
        changed.append("data.train")
    return tuple("schedule.iterations" if key == "schedule.max_iterations" else key for key in changed)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return found


class _Facts:
    """Facts of the splits, each looked up once a plan."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._known: dict[tuple[str, str], SplitFacts] = {}

    def of(self, config: TrainingConfig) -> tuple[SplitFacts, SplitFacts, SplitFacts | None]:
        """Training, validation and test split of a located ``config``, found to be of use and of the same classes."""
        train, val = (self._split(config, split) for split in (config.data.train, config.data.val))
        test = None if config.data.test is None else self._split(config, config.data.test)
        check_boxes(train, val)
        for other in (val, test):
            if other is not None:
                check_categories(train, other)
        classes = config.model.num_classes
        if classes is not None and classes != len(train.categories):
            raise InputError(
                f"model.num_classes is {classes}, but the data set in {config.data.root} has {len(train.categories)} "
                "categories; leave model.num_classes out, or set it to null"
            )
        return train, val, test

    def _split(self, config: TrainingConfig, split: str) -> SplitFacts:
        root, generated = str(config.data.root), config.data.generated
        if generated is not None and not Path(root).is_dir():
            return undrawn_facts(generated, root, split)
        if (root, split) not in self._known:
            self._known[root, split] = split_facts(root, split, self._ledger.data)
        return self._known[root, split]

    def remember(self) -> None:
        """Keeps for later plans what was learnt while there was no storage yet."""
        remember(self._known.values(), self._ledger.data)


def _located(config: TrainingConfig, data_folder: Path) -> TrainingConfig:
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


def _draw(configs: Iterable[TrainingConfig], ledger: Ledger) -> None:
    """Makes the generated data that aren't there yet."""
    for config in configs:
        if config.data.generated is not None:
            from detector.data.synthetic import generate

            generate(config.data.generated, ledger.data)


def _planned(draft: _Draft, config: TrainingConfig, model: ModelConfig, seed: int, facts: _Facts) -> PlannedRow:
    train, val, test = facts.of(config)
    config = config.model_copy(
        update={"model": model.model_copy(update={"num_classes": len(train.categories)}), "seed": seed}
    )
    values = flat(config)
    return PlannedRow(
        row=draft.spec.name,
        seed=seed,
        identity=identity(config, train_digest=train.digest),
        config=config,
        show=dict(draft.spec.show),
        paper=dict(draft.spec.paper),
        differences={setting.key: values.get(setting.key, setting.value) for setting in draft.spec.settings},
        base=draft.spec.stands_on,
        departures=draft.departures,
        train=train,
        val=val,
        test=test,
        evaluation=evaluation_identity(config, split_digest=val.digest),
        test_evaluation="" if test is None else evaluation_identity(config, split_digest=test.digest),
    )


def _root(config: TrainingConfig) -> str:
    if config.data.root is None:
        raise InputError(
            "no data set is named; give its folder by --set data.root=FOLDER or $DETSWEEP_DATA, download COCO with "
            "`python -m detector.data download coco2017`, or use `--profile laptop`, which needs nothing"
        )
    return absolute(config.data.root)


def _splits(config: TrainingConfig) -> tuple[str, ...]:
    data = config.data
    return (data.train, data.val) if data.test is None else (data.train, data.val, data.test)
