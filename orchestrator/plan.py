"""From a sweep file and a command line to one resolved configuration a row and seed, each with its identity.

Nothing heavy is imported, and nothing is written before the specification, the weights and the data have been found
right.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detector.config import ModelConfig, TrainingConfig
from detector.document import suggestion
from detector.errors import InputError
from detector.keys import Setting, flat, resolve
from detector.weights import resolve_weights
from orchestrator.dataset import SplitFacts, check_categories, check_places, remember, split_facts
from orchestrator.identity import deciding, digest, evaluation_identity, identity
from orchestrator.ledger import Ledger
from orchestrator.spec import Figure, Quoted, RowSpec, SweepSpec, check_seeds, load_profile, load_spec, read_set


@dataclass(frozen=True)
class SweepRequest:
    """What was asked for on the command line."""

    sweep: str
    """Sweep file."""
    profile: str | None = None
    """Name of a file in profiles/."""
    set: tuple[str, ...] = ()
    """``KEY=VALUE`` each."""
    only: tuple[str, ...] = ()
    """Names of rows; empty means all."""
    seeds: tuple[int, ...] | None = None
    """None: those of the sweep file."""
    storage: str | None = None
    """Folder; None: $DETSWEEP_STORAGE, then ~/detsweep."""
    tracking_uri: str | None = None
    """None: $MLFLOW_TRACKING_URI, then sqlite in the storage."""


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


def make_plan(request: SweepRequest) -> Plan:
    """The plan for ``request``.

    Raises InputError where the specification, the weights or the data are wrong, and UnreachableError where the storage
    can't be written. Only then anything is created: folders of the storage, generated data.
    """
    storage = resolve_storage(request.storage)
    spec = load_spec(request.sweep)
    profile = load_profile(request.profile, spec.path.parent) if request.profile else []
    settings = read_set(request.set)
    drafts = [_draft(row, profile, settings) for row in _selected(spec, request.only)]
    seeds = spec.seeds if request.seeds is None else check_seeds(request.seeds, "--seeds")
    for draft in drafts:
        if draft.config.data.generated is None:
            check_places(_root(draft.config), _splits(draft.config))
    models = [resolve_weights(draft.config.model) for draft in drafts]
    ledger = Ledger(storage)
    facts = _Facts(ledger)
    for draft in drafts:
        if draft.config.data.generated is None:
            facts.of(_root(draft.config), draft.config)
    ledger.prepare()
    facts.remember()
    rows = [_planned(draft, model, seed, facts) for draft, model in zip(drafts, models, strict=True) for seed in seeds]
    names = {row.row for row in rows}
    return Plan(
        key=sweep_key(spec.name, request.profile, settings),
        name=spec.name,
        title=spec.title,
        profile=request.profile,
        rows=tuple(rows),
        quoted=spec.quoted,
        compare=tuple(pair for pair in spec.compare if names.issuperset(pair)),
        figures=tuple(figure for figure in spec.figures if names.intersection(figure.rows)),
        storage=storage,
        tracking_uri=resolve_tracking_uri(request.tracking_uri, storage),
        command=command_line("sweep", request),
    )


def resolve_storage(given: str | None) -> Path:
    """The storage as an absolute path: ``given``, else $DETSWEEP_STORAGE, else ~/detsweep.

    Raises InputError for a URI.
    """
    text, origin = given, "--storage"
    if text is None:
        text, origin = os.environ.get("DETSWEEP_STORAGE") or "~/detsweep", "$DETSWEEP_STORAGE"
    if not text:
        raise InputError(f"{origin} is empty; give the path of a folder")
    if "://" in text:
        scheme = text.split("://")[0]
        raise InputError(
            f"{origin} is a {scheme}:// address, but the storage must be a folder that every node sees under one path, "
            "such as /mnt/shared/detsweep"
        )
    return Path(os.path.abspath(Path(text).expanduser()))


def resolve_tracking_uri(given: str | None, storage: Path) -> str:
    """MLflow's store: ``given``, else $MLFLOW_TRACKING_URI, else a database in the storage."""
    return given or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage / 'mlflow.db'}"


def sweep_key(name: str, profile: str | None, settings: Sequence[Setting]) -> str:
    """NAME, ``@PROFILE`` if there is one, and ``+HASH8`` of the ``--set`` values if there are any."""
    values = {setting.key: setting.value for setting in settings}
    if isinstance(values.get("data.root"), str):
        values["data.root"] = _absolute(values["data.root"])
    changed = f"+{digest(values)[:8]}" if values else ""
    return name + (f"@{profile}" if profile else "") + changed


def command_line(module: str, request: SweepRequest) -> str:
    """``python -m orchestrator.MODULE`` with everything that makes it mean the same sweep."""
    words = ["python", "-m", f"orchestrator.{module}", request.sweep]
    if request.profile:
        words += ["--profile", request.profile]
    for value in request.set:
        words += ["--set", value]
    for name in request.only:
        words += ["--only", name]
    if request.seeds is not None:
        words += ["--seeds", ",".join(map(str, request.seeds))]
    if request.storage is not None:
        words += ["--storage", request.storage]
    # A password is never shown; it stays in $MLFLOW_TRACKING_URI.
    if request.tracking_uri is not None and "@" not in request.tracking_uri:
        words += ["--tracking-uri", request.tracking_uri]
    return shlex.join(words)


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
    config = resolve(layers)
    return _Draft(row, config, _departures(row, config))


def _highest(layers: Sequence[Sequence[Setting]], key: str) -> int:
    """The highest layer that sets ``key`` or something below it; -1 if none does."""
    found = [
        index
        for index, layer in enumerate(layers)
        if any(s.value is not None and (s.key == key or s.key.startswith(key + ".")) for s in layer)
    ]
    return max(found, default=-1)


def _departures(row: RowSpec, config: TrainingConfig) -> tuple[str, ...]:
    try:
        recipe = resolve([row.base, row.settings])
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

    def of(self, root: str, config: TrainingConfig) -> tuple[SplitFacts, SplitFacts, SplitFacts | None]:
        """Training, validation and test split of ``config`` in ``root``, found to have the same classes."""
        train, val = (self._split(root, split) for split in (config.data.train, config.data.val))
        test = None if config.data.test is None else self._split(root, config.data.test)
        for other in (val, test):
            if other is not None:
                check_categories(train, other)
        classes = config.model.num_classes
        if classes is not None and classes != len(train.categories):
            raise InputError(
                f"model.num_classes is {classes}, but the data set in {root} has {len(train.categories)} categories; "
                "leave model.num_classes out, or set it to null"
            )
        return train, val, test

    def _split(self, root: str, split: str) -> SplitFacts:
        if (root, split) not in self._known:
            self._known[root, split] = split_facts(root, split, self._ledger.data)
        return self._known[root, split]

    def remember(self) -> None:
        """Keeps for later plans what was learnt while there was no storage yet."""
        remember(self._known.values(), self._ledger.data)

    def generate(self, config: TrainingConfig) -> TrainingConfig:
        """``config`` on its generated data, made now if it isn't there yet."""
        from detector.data.synthetic import generate

        assert config.data.generated is not None
        root = generate(config.data.generated, self._ledger.data)
        # A recipe's own test split is not among what is generated.
        test = config.data.test if config.data.test in ("train", "val") else None
        data = config.data.model_copy(update={"root": str(root), "train": "train", "val": "val", "test": test})
        return config.model_copy(update={"data": data})


def _planned(draft: _Draft, model: ModelConfig, seed: int, facts: _Facts) -> PlannedRow:
    config = draft.config if draft.config.data.generated is None else facts.generate(draft.config)
    root = _root(config)
    train, val, test = facts.of(root, config)
    config = config.model_copy(
        update={
            "model": model.model_copy(update={"num_classes": len(train.categories)}),
            "data": config.data.model_copy(update={"root": root}),
            "seed": seed,
        }
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
    return _absolute(config.data.root)


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _splits(config: TrainingConfig) -> tuple[str, ...]:
    data = config.data
    return (data.train, data.val) if data.test is None else (data.train, data.val, data.test)
