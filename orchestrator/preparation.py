"""What comes before a sweep's first training: what is left to do, what can be refused, and the data converted."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from orchestrator import nodes
from orchestrator.history import accept, remember_rows
from orchestrator.lease import refuse_held
from orchestrator.ledger import Ledger

if TYPE_CHECKING:
    from orchestrator.plan import Plan, PlannedRow


def make_ready(plan: Plan, ledger: Ledger, address: str | None, *, fresh: bool) -> None:
    """What can be refused is refused, and the data are converted, before anything of the sweep itself is written.

    Raises ``InputError``, ``UnreachableError`` and ``SweepHeldError``.
    """
    from orchestrator.tracking import Tracker

    refuse_held(ledger.place, plan.key)
    todo = unfinished(plan, ledger, fresh)
    if todo:
        nodes.check_address(address)
        # Hours of converting must not come before a server that isn't there. A database is made later, by the sweep.
        tracker = Tracker(plan, ledger)
        before = (lambda: None) if plan.tracking_uri.startswith("sqlite:") else tracker.connect
        convert_data(plan, todo, ledger, fresh=fresh, before=before)


def convert_data(
    plan: Plan,
    identities: Collection[str],
    ledger: Ledger,
    *,
    fresh: bool = False,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Converts the data that ``identities`` still need, each split once, before anything starts.

    ``before`` is called if that is going to take time. Raises ``InputError`` for data that can't be used.
    """
    from detector.data.store import ensure_store, is_store

    # Nodes that keep data on their own disks copy what is converted here.
    rows = [row for row in plan.rows if row.identity in identities]
    splits = {
        facts
        for row in rows
        for facts in (row.train if fresh or not ledger.record(row.identity).trained else None, row.val, row.test)
        if facts is not None and not is_store(f"{ledger.stores}/{facts.digest}")
    }
    if splits:
        before()
    for root, split, digest in sorted({(facts.root, facts.split, facts.digest) for facts in splits}):
        ensure_store(root, split, ledger.stores, digest=digest)


def remember_choices(plan: Plan, ledger: Ledger) -> None:
    """Keeps what a later plan compares itself with, and which trainings by other code were accepted."""
    remember_rows(ledger, plan.key, [(row.row, row.seed, row.identity) for row in plan.rows])
    for row in plan.rows:
        if row.other_code is not None and row.identity != row.own_identity:
            accept(ledger, row.own_identity, row.other_code, sweep=plan.key, row=row.row)


def unfinished(plan: Plan, ledger: Ledger, fresh: bool) -> list[str]:
    """Identities that lack something, in the order of the rows; not those that the user has cancelled."""
    found: dict[str, None] = {}
    for row in plan.rows:
        record = ledger.record(row.identity, row.evaluations)
        if fresh or (record.state != "finished" and not record.cancelled):
            found[row.identity] = None
    return list(found)


def state_of(row: PlannedRow, ledger: Ledger) -> str:
    """State of a row's training and of its evaluations together."""
    return ledger.record(row.identity, row.evaluations).state


def data_of(plan: Plan, identities: Collection[str]) -> tuple[set[str], set[str]]:
    """Digests of the converted splits that ``identities`` are trained and evaluated on, and the nodes' own caches."""
    rows = [row for row in plan.rows if row.identity in identities]
    stores = {facts.digest for row in rows for facts in (row.train, row.val, row.test) if facts is not None}
    return stores, {row.config.data.cache for row in rows if row.config.data.cache is not None}
