"""From a sweep file and a command line to one resolved configuration a row and seed, each with its identity.

Nothing heavy is imported, and nothing is written before the specification, the weights and the data have been found
right. As a command, ``python -m orchestrator.plan SWEEP --cluster 8x8xV100``, it says what the sweep would take on a
cluster (:mod:`orchestrator.outlook`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from detector.config import ModelConfig, TrainingConfig
from detector.data.places import IN_SWEEPS, check_places
from detector.document import suggestion
from detector.errors import InputError
from detector.keys import Setting, flat
from detector.plugins import Plugin
from detector.weights import resolve_weights
from orchestrator.dataset import Facts, SplitFacts
from orchestrator.drafts import Draft, draft, draw, located, splits
from orchestrator.history import History, OtherCode
from orchestrator.identity import basis, evaluation_identity, identity
from orchestrator.ledger import Ledger
from orchestrator.request import (
    SweepRequest,
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
    left_out: tuple[str, ...] = ()
    """Names of rows of the sweep file that have no part in it."""
    partly: tuple[str, ...] = ()
    """Names of rows of which some seeds are finished, and others that aren't selected now are not."""
    beside: tuple[PlannedRow, ...] = ()
    """Finished seeds of rows that aren't selected and failed with another seed: in no report, but earlier looks had
    them."""
    wider: Plan | None = None
    """The same with the rows and seeds of the sweep file that aren't selected now and were finished before."""

    @property
    def whole(self) -> Plan:
        """The same with the samples of its search among the rows; they are compared with nothing."""
        return self if self.search is None else replace(self, rows=(*self.search.samples, *self.rows))

    @property
    def reported(self) -> Plan:
        """What the sweep's report is of: a selection by ``--only`` or ``--seeds`` takes nothing finished out of it."""
        return self.wider or self

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
    layers: tuple[Sequence[Setting], Sequence[Setting]] = (), settings
    again = None if request.rerun is None else read_run(request, Ledger(place), tracking_uri, settings)
    if again is not None:
        spec, key = again.spec, again.key
        drafts = [Draft(spec.rows[0], again.config, (), ())]
    else:
        spec = load_spec(request.sweep)
        profile = load_profile(request.profile, spec.path.parent) if request.profile else []
        key = sweep_key(spec.name, request.profile, settings)
        layers = profile, settings
        drafts = [draft(row, *layers) for row in _selected(spec, request.only)]
    seeds = spec.seeds if request.seeds is None else check_seeds(request.seeds, "--seeds")
    check_tracking_uri(request.tracking_uri, place)
    ledger = Ledger(place)
    if purpose == "read":
        _check_known(key, ledger, request)
    configs = [located(one.config, ledger.data) for one in drafts]
    for config in configs:
        if config.data.generated is None:
            check_places(str(config.data.root), splits(config), IN_SWEEPS)
    models = [resolve_weights(one.config.model) for one in drafts]
    facts = Facts(ledger.data)
    for config in configs:
        facts.of(config)
    if purpose == "run":
        ledger.prepare()
        draw(configs, ledger)
        facts.remember()
    history = History(ledger, key)
    rows = [
        _with_history(_planned(one, config, model, seed, facts), history, request, purpose)
        for one, config, model in zip(drafts, configs, models, strict=True)
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
    plan = Plan(
        key=key,
        name=spec.name,
        title=spec.title,
        profile=request.profile,
        rows=tuple(rows),
        quoted=spec.quoted,
        compare=spec.compare,
        pairs=len(spec.compare),
        register=spec.register,
        figures=spec.figures,
        storage=ledger.storage,
        uri=place if isinstance(place, str) else None,
        tracking_uri=tracking_uri,
        command=command_line("sweep", request),
        plugins=spec.plugins,
        dropped=history.dropped(row.name for row in spec.rows),
    )
    if spec.search is None and again is None:
        earlier, failed, partly = _finished_earlier(spec, layers, rows, history, request, ledger, facts)
        plan = replace(_with_rows(plan, spec, rows), beside=tuple(failed), partly=partly)
        if not earlier:
            return plan
        wider = _with_rows(plan, spec, sorted([*rows, *earlier], key=lambda row: row.seed))
        return replace(plan, wider=wider, left_out=wider.left_out)
    plan = _with_rows(plan, spec, rows)
    if spec.search is None:
        return plan
    from orchestrator.search_plan import with_search

    return with_search(plan, spec.search, ledger, request, spec.seeds[0], purpose)


def _with_rows(plan: Plan, spec: SweepSpec, rows: Sequence[PlannedRow]) -> Plan:
    """``plan`` of ``rows`` alone, in the order of the sweep file, and of the pairs and figures that they can make."""
    there = {row.row for row in rows}
    order = {row.name: place for place, row in enumerate(spec.rows)}
    return replace(
        plan,
        rows=tuple(sorted(rows, key=lambda row: order[row.row])),
        compare=tuple(pair for pair in spec.compare if there.issuperset(pair)),
        figures=tuple(figure for figure in spec.figures if there.intersection(figure.rows)),
        left_out=tuple(name for name in order if name not in there),
    )


def _finished_earlier(
    spec: SweepSpec,
    layers: tuple[Sequence[Setting], Sequence[Setting]],
    selected: Sequence[PlannedRow],
    history: History,
    request: SweepRequest,
    ledger: Ledger,
    facts: Facts,
) -> tuple[list[PlannedRow], list[PlannedRow], tuple[str, ...]]:
    """Rows and seeds of the sweep, as it was run before, that aren't ``selected`` now and are finished; those of rows
    that aren't selected and have failed with another seed, so that these would be a choice by results; and names of the
    rows that aren't wholly finished.
    """
    now = {(row.row, row.seed) for row in selected}
    failed, partly = [], []
    if request.other_code == "accept":
        request = replace(request, other_code="refuse")  # that was said of what is selected
    found = []
    for row in spec.rows:
        seeds = [seed for seed in history.seeds(row.name) if (row.name, seed) not in now]
        if not seeds:
            continue
        # What can't be planned any more isn't asked for: its data may be gone.
        with contextlib.suppress(InputError):
            made = draft(row, *layers)
            config = located(made.config, ledger.data)
            model = resolve_weights(config.model)
            planned = [_planned(made, config, model, seed, facts) for seed in seeds]
            rows = [_with_history(one, history, request, "read") for one in planned]
            states = [ledger.record(one.identity, one.evaluations).state for one in rows]
            finished = [one for one, state in zip(rows, states, strict=True) if state == "finished"]
            chosen = row.name in {one.row for one in selected}
            if "failed" in states and not chosen:
                failed += finished
                continue
            found += finished
            if len(finished) < len(rows) and (finished or chosen):
                partly.append(row.name)
    return found, failed, tuple(partly)


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


def _planned(made: Draft, config: TrainingConfig, model: ModelConfig, seed: int, facts: Facts) -> PlannedRow:
    train, val, test = facts.of(config)
    config = config.model_copy(
        update={"model": model.model_copy(update={"num_classes": len(train.categories)}), "seed": seed}
    )
    values = flat(config)
    mine = identity(config, train_digest=train.digest)
    return PlannedRow(
        row=made.spec.name,
        seed=seed,
        identity=mine,
        own_identity=mine,
        basis=basis(config, train_digest=train.digest),
        config=config,
        show=dict(made.spec.show),
        paper=dict(made.spec.paper),
        differences={setting.key: values.get(setting.key, setting.value) for setting in made.spec.settings},
        base=made.spec.stands_on,
        departures=made.departures,
        evaluation_departures=made.evaluation_departures,
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


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    from orchestrator import outlook

    return outlook.main(argv)


if __name__ == "__main__":
    sys.exit(main())
