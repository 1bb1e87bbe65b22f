"""The plan of a sweep that searches: what its samples are made from, and the rows that judge the winner.

The samples stand on the reference row, with the values that were drawn laid over it. They are trained with the first
seed of the file and evaluated on what the search sees. Then the winner and every row of the file are trained with
``winner_seeds`` and evaluated on what it didn't see: these are the plan's rows, and winner and reference a pair that is
compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from detector.config import TrainingConfig
from detector.errors import InputError
from detector.keys import leaves
from orchestrator.dataset import SplitFacts
from orchestrator.holdout import Holdout, halves
from orchestrator.identity import basis, deciding, evaluation_identity, identity
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan, PlannedRow, PlannedSearch, Purpose
from orchestrator.request import SweepRequest
from orchestrator.samples import Sample, read_samples, search_key
from orchestrator.search_spec import Search, check_domains, laid, sample_name, shown_values
from orchestrator.spec import check_seeds, read_set

WINNER = "winner"


def with_search(plan: Plan, search: Search, ledger: Ledger, request: SweepRequest, seed: int, purpose: Purpose) -> Plan:
    """``plan``, whose rows are those of the file, as that of a search whose samples have ``seed``.

    Raises InputError where the space can't be trained, there are no data to judge the winner on, or the samples that
    are there were trained by other code.
    """
    for setting in read_set(request.set):
        for key, _ in leaves(setting.key, setting.value):
            if key in search.parameters:
                raise InputError(f"{setting.origin}: {key} is searched, so it has no one value; leave it out")
    first = {row.row: row for row in reversed(plan.rows)}
    name = search.reference if search.reference is not None else next(reversed(first))
    if name not in first:
        raise InputError(f'--only leaves out "{name}", the reference of the search; name it, too')
    reference = first[name]
    check_domains(search, reference.config)
    found = _holdout(search, reference, ledger, make=purpose == "run")
    template = _as_sample(search, reference, seed, found)
    key = search_key(search, {**deciding(template.config), "seed": seed}, template.evaluation)
    known = read_samples(ledger, plan.key, key)
    if purpose != "read" and known.samples and known.other_code and request.other_code == "refuse":
        raise InputError(
            f"{len(known.samples)} samples of the search were trained before the code that decides the weights was "
            "changed; --accept-code-change goes on with them, --fresh begins the search anew"
        )
    samples = tuple(sample_row(search, template, sample.values, sample) for sample in known.samples)
    done = known.winner is not None and known.chosen_of >= search.samples
    winner = next((row for row, one in zip(samples, known.samples, strict=True) if one.number == known.winner), None)
    planned = PlannedSearch(search, key, template, samples, winner if done else None)
    seeds = search.winner_seeds if request.seeds is None else check_seeds(request.seeds, "--seeds")
    if seed in seeds:
        raise InputError(f"--seeds has {seed}, with which the samples are trained; the winner needs others")
    unseen = found.unseen
    judged = [_judged(row, each, found, unseen) for row in reversed(first.values()) for each in seeds]
    compared = list(plan.compare)
    if planned.winner is not None:
        title = f"{WINNER}: {planned.winner.row}"
        chosen = replace(planned.winner, row=title, paper={}, base=reference.base)
        judged += [_judged(chosen, each, found, unseen) for each in seeds]
        compared.append((title, reference.row))
    return replace(
        plan,
        rows=tuple(judged),
        compare=tuple(compared),
        pairs=max(plan.pairs + 1, len(compared)),
        search=planned,
        # Former winners were never in the file.
        dropped=tuple(row for row in plan.dropped if not row.startswith(f"{WINNER}: ")),
    )


def sample_row(
    search: Search, template: PlannedRow, values: Mapping[str, Any], sample: Sample | None = None
) -> PlannedRow:
    """The row that trains ``values``; with the identity under which ``sample`` was begun, if it is one.

    Raises InputError for values that can't be trained together.
    """
    name = sample_name(search, values)
    row = replace(
        template,
        row=name,
        show=shown_values(search, values),
        paper={},
        differences={**template.differences, **values},
        config=laid(template.config, values, f"the sample {name}"),
    )
    row = _renamed(row)
    return row if sample is None else replace(row, identity=sample.identity)


def evaluated_every(search: Search, config: TrainingConfig) -> int:
    """Steps between two evaluations of a sample: the grace period, so that every rung has a figure.

    A whole number of checkpoints, with which figures are reported.
    """
    steps, every = search.scheduler.grace_steps(config.schedule.max_iterations), config.checkpoint.every
    if every is None or every >= steps:
        return steps
    return -(-steps // every) * every


def _as_sample(search: Search, reference: PlannedRow, seed: int, found: Holdout) -> PlannedRow:
    row = _judged(reference, seed, found, found.seen)
    every = evaluated_every(search, row.config)
    saved = min(every, row.config.checkpoint.every or every)
    config = row.config.model_copy(
        update={
            "evaluation": row.config.evaluation.model_copy(update={"every": every}),
            "checkpoint": row.config.checkpoint.model_copy(update={"every": saved}),
        }
    )
    return replace(row, config=config)


def _holdout(search: Search, reference: PlannedRow, ledger: Ledger, *, make: bool) -> Holdout:
    train, val, test = reference.train, reference.val, reference.test
    assert train is not None
    assert val is not None
    if search.holdout == "test":
        if test is None or not test.annotated:
            why = "there is no data.test" if test is None else f"{test.split} has no annotations here"
            raise InputError(
                f"search.holdout is test, but {why}, so nothing is left that the search doesn't see; name an annotated "
                "split by data.test, or set search.holdout: halves"
            )
        if test.digest == val.digest:
            raise InputError(
                f"search.holdout is test, but data.test ({test.split}) has the same images as data.val, which the "
                "search sees; name another split, or set search.holdout: halves"
            )
        return Holdout(str(reference.config.data.root), val, test)
    return halves(train, val, ledger.data, make=make and val.there)


def _judged(row: PlannedRow, seed: int, found: Holdout, facts: SplitFacts) -> PlannedRow:
    """``row`` with another seed, evaluated on ``facts`` alone."""
    data = row.config.data.model_copy(
        update={"root": found.root, "val": facts.split, "test": None, "generated": None if facts.there else _kept(row)}
    )
    config = row.config.model_copy(update={"data": data, "seed": seed})
    # The paper's figures are of all images.
    part = ("data.val",) if row.val is not None and row.val.digest != facts.digest else ()
    departures = tuple(dict.fromkeys((*row.evaluation_departures, *part)))
    row = replace(row, seed=seed, config=config, val=facts, evaluation_departures=departures)
    return _renamed(replace(row, test=None, test_evaluation=""))


def _kept(row: PlannedRow) -> Any:
    """What is yet to be generated."""
    return row.config.data.generated


def _renamed(row: PlannedRow) -> PlannedRow:
    """``row`` with the names that follow from its configuration."""
    assert row.train is not None
    assert row.val is not None
    mine = identity(row.config, train_digest=row.train.digest)
    return replace(
        row,
        identity=mine,
        own_identity=mine,
        basis=basis(row.config, train_digest=row.train.digest),
        evaluation=evaluation_identity(row.config, split_digest=row.val.digest),
        other_code=None,
        changed=(),
    )
