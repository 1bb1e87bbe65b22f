"""From a sweep file and a command line to one resolved configuration a row and seed, each with its identity.

Nothing heavy is imported, and nothing is written before the specification, the weights and the data have been found
right. As a command, ``python -m orchestrator.plan SWEEP --cluster 8x8xV100``, it says what the sweep would take on a
cluster (:mod:`orchestrator.outlook`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
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
from orchestrator.dataset import Facts, SplitFacts
from orchestrator.departures import departures, evaluation_departures
from orchestrator.history import History, OtherCode
from orchestrator.identity import basis, evaluation_identity, identity
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
from orchestrator.rerun import read_run
from orchestrator.search_spec import Search
from orchestrator.spec import (
    Figure,
    Quoted,
    Register,
    RowSpec,
    SweepSpec,
    check_seeds,
    load_profile,
    load_spec,
    read_set,
)

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
    evaluation_departures: tuple[str, ...] = ()
    """The same of keys that decide how the trained model is evaluated."""
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
    basis: dict[str, Any] = field(default_factory=dict, compare=False)
    """What the identity is a hash of."""
    other_code: OtherCode | None = None
    """A training of the same recipe by other code. It is this row's if that was accepted, or if the plan only reads;
    otherwise the sweep is refused."""
    own_identity: str = ""
    """What the present code would make; differs from ``identity`` where the training is one by other code."""
    changed: tuple[str, ...] = ()
    """What is different from the training that the row had when the sweep was last run."""

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
class PlannedSearch:
    """A search, as far as it has come. Its winner is judged by rows of the plan."""

    spec: Search
    key: str
    """What names it among the searches of its sweep."""
    template: PlannedRow
    """The reference row as a sample would be: by the samples' seed, evaluated on what the search sees."""
    samples: tuple[PlannedRow, ...]
    """What was tried, named by its values."""
    winner: PlannedRow | None
    """The best of them, once all are done."""


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
    """Pairs whose rows are both selected."""
    figures: tuple[Figure, ...]
    storage: Path
    """Folder; of an object store, what this node has of it."""
    tracking_uri: str
    command: str
    """The command line that means the same sweep."""
    plugins: tuple[Plugin, ...] = ()
    """What the sweep file declares, used by a row or not."""
    dropped: tuple[str, ...] = ()
    """Rows that the sweep file had when the sweep was last run, and no longer has."""
    uri: str | None = None
    """Of the storage, where that is no folder."""
    pairs: int = 0
    """How many pairs the sweep file compares, also of rows that aren't selected now."""
    register: Register | None = None
    """Where the winner goes, if anywhere."""
    search: PlannedSearch | None = None
    """What it searches beyond its rows."""

    @property
    def whole(self) -> Plan:
        """The same with the samples of its search among the rows; they are compared with nothing."""
        return self if self.search is None else replace(self, rows=(*self.search.samples, *self.rows))

    @property
    def place(self) -> str | Path:
        """What names the storage on every node."""
        return self.uri or self.storage

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
    evaluation_departures: tuple[str, ...]


def make_plan(request: SweepRequest, purpose: Purpose = "run") -> Plan:
    """The plan for ``request``.

    To "run" it, folders of the storage and generated data are made, once everything has been found right. To "describe"
    it nothing is made. To "read" what has become of it nothing is made either, and it must be in the storage.

    Raises InputError where the specification, the weights or the data are wrong, and UnreachableError where the storage
    can't be written.
    """
    place = resolve_storage(request.storage)
    tracking_uri = resolve_tracking_uri(request.tracking_uri, place)
    settings = read_set(request.set)
    again = None if request.rerun is None else read_run(request, Ledger(place), tracking_uri, settings)
    if again is not None:
        spec, key = again.spec, again.key
        drafts = [_Draft(spec.rows[0], again.config, (), ())]
    else:
        spec = load_spec(request.sweep)
        profile = load_profile(request.profile, spec.path.parent) if request.profile else []
        key = sweep_key(spec.name, request.profile, settings)
        drafts = [_draft(row, profile, settings) for row in _selected(spec, request.only)]
    seeds = spec.seeds if request.seeds is None else check_seeds(request.seeds, "--seeds")
    check_tracking_uri(request.tracking_uri, place)
    ledger = Ledger(place)
    if purpose == "read":
        _check_known(key, ledger, request)
    configs = [_located(draft.config, ledger.data) for draft in drafts]
    for config in configs:
        if config.data.generated is None:
            check_places(str(config.data.root), _splits(config), IN_SWEEPS)
    models = [resolve_weights(draft.config.model) for draft in drafts]
    facts = Facts(ledger.data)
    for config in configs:
        facts.of(config)
    if purpose == "run":
        ledger.prepare()
        _draw(configs, ledger)
        facts.remember()
    history = History(ledger, key)
    rows = [
        _with_history(_planned(draft, config, model, seed, facts), history, request, purpose)
        for draft, config, model in zip(drafts, configs, models, strict=True)
        for seed in seeds
    ]
    if again is not None and purpose == "run":
        if request.other_code == "refuse" and rows[0].other_code is None:
            again.refuse_another(rows[0].identity, rows[0].basis)
        again.keep(ledger)
    missing = next((row for row in rows if not row.drawn), None)
    if purpose == "read" and missing is not None:
        raise InputError(
            f"the generated images are no longer in {missing.config.data.root}, and trainings are named by them; "
            f"`{command_line('sweep', request)}` draws them again"
        )
    names = {row.row for row in rows}
    plan = Plan(
        key=key,
        name=spec.name,
        title=spec.title,
        profile=request.profile,
        rows=tuple(rows),
        quoted=spec.quoted,
        compare=tuple(pair for pair in spec.compare if names.issuperset(pair)),
        pairs=len(spec.compare),
        register=spec.register,
        figures=tuple(figure for figure in spec.figures if names.intersection(figure.rows)),
        storage=ledger.storage,
        uri=place if isinstance(place, str) else None,
        tracking_uri=tracking_uri,
        command=command_line("sweep", request),
        plugins=spec.plugins,
        dropped=history.dropped(row.name for row in spec.rows),
    )
    if spec.search is None:
        return plan
    from orchestrator.search_plan import with_search

    return with_search(plan, spec.search, ledger, request, spec.seeds[0], purpose)


def _check_known(key: str, ledger: Ledger, request: SweepRequest) -> None:
    known = ledger.place.names("sweeps")
    if key not in known:
        near = suggestion(key, known)
        raise InputError(
            f'the storage {ledger.address} has no sweep "{key}" ({near.rstrip("?")}); '
            f"`{command_line('sweep', request)}` starts it"
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
    return _Draft(row, config, departures(row, config), evaluation_departures(row, config))


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


def _planned(draft: _Draft, config: TrainingConfig, model: ModelConfig, seed: int, facts: Facts) -> PlannedRow:
    train, val, test = facts.of(config)
    config = config.model_copy(
        update={"model": model.model_copy(update={"num_classes": len(train.categories)}), "seed": seed}
    )
    values = flat(config)
    mine = identity(config, train_digest=train.digest)
    return PlannedRow(
        row=draft.spec.name,
        seed=seed,
        identity=mine,
        own_identity=mine,
        basis=basis(config, train_digest=train.digest),
        config=config,
        show=dict(draft.spec.show),
        paper=dict(draft.spec.paper),
        differences={setting.key: values.get(setting.key, setting.value) for setting in draft.spec.settings},
        base=draft.spec.stands_on,
        departures=draft.departures,
        evaluation_departures=draft.evaluation_departures,
        train=train,
        val=val,
        test=test,
        evaluation=evaluation_identity(config, split_digest=val.digest),
        test_evaluation="" if test is None else evaluation_identity(config, split_digest=test.digest),
    )


def _with_history(row: PlannedRow, history: History, request: SweepRequest, purpose: Purpose) -> PlannedRow:
    """``row`` with what is known of its earlier trainings, and with the one by other code where that is to be used."""
    if not row.drawn:
        return row
    changed = history.changed(row.row, row.seed, row.identity, row.basis)
    other = None if request.other_code == "anew" else history.other_code(row.identity, row.basis)
    if other is None:
        return replace(row, changed=changed)
    other = replace(other, accepted=other.accepted or request.other_code == "accept")
    used = other.identity if other.accepted or purpose == "read" else row.identity
    return replace(row, changed=changed, other_code=other, identity=used)


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


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    from orchestrator import outlook

    return outlook.main(argv)


if __name__ == "__main__":
    sys.exit(main())
