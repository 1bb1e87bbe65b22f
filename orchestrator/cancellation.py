"""Trainings that the user takes out of a sweep, and puts back: a mark in the ledger, which their own workers look for.

No driver, cluster or tracking server is needed to set it. A training that is at work saves a checkpoint and ends, so
that it can go on from there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from detector.errors import InputError, UnreachableError
from orchestrator.heartbeat import read_signs
from orchestrator.ledger import Ledger

if TYPE_CHECKING:
    from orchestrator.plan import Plan, PlannedRow

CANCELLED = "cancelled by the user; `python -m orchestrator.status SWEEP --retry ROW` puts it back"
LOOK_S = 1.0
GRACE_S = 30.0
"""What a training that is to end has at least without getting on towards its checkpoint; then its processes end
themselves."""
MOST_S = 600.0
"""What it has in all: an evaluation that has begun is finished first."""

log = logging.getLogger(__name__)


def cancel(plan: Plan, ledger: Ledger, row: str) -> list[str]:
    """Marks the trainings of ``row``; returns the names of all rows of the plan that they concern.

    Raises ``InputError`` where there is nothing to cancel.
    """
    rows = _named(plan, row, "--cancel")
    left = [one for one in rows if not ledger.record(one.identity).trained]
    if not left:
        raise InputError(f"--cancel {row}: the row is trained already, and there is nothing to cancel")
    for one in left:
        holder = ledger.record(one.identity).holder
        if holder not in (None, plan.key) and ledger.held(holder):
            raise InputError(f"--cancel {row}: its training is being done by the sweep {holder}; cancel it there")
    for one in left:
        if not ledger.exists(one.identity):
            # Never begun: it needs a place for the mark, and is nobody's afterwards.
            ledger.claim(
                one.identity,
                sweep=plan.key,
                row=one.row,
                seed=one.seed,
                config=one.config.model_dump(mode="json"),
                iterations=one.config.schedule.max_iterations,
                basis=one.basis,
            )
        ledger.place.update(_key(one.identity), _cancelled)
        holder = ledger.record(one.identity).holder
        if holder is None or not ledger.held(holder):
            ledger.release(one.identity)
    return _concerned(plan, left)


def retry(plan: Plan, ledger: Ledger, row: str) -> list[str]:
    """Makes the failed and cancelled trainings and evaluations of ``row`` pending; returns as :func:`cancel`.

    Raises ``InputError`` where nothing has failed.
    """
    rows = _named(plan, row, "--retry")
    found = [ledger.record(one.identity, one.evaluations) for one in rows]
    failed = [one for one, record in zip(rows, found, strict=True) if record.state == "failed" or record.cancelled]
    if not failed:
        states = ", ".join(dict.fromkeys(record.state for record in found))
        raise InputError(f"--retry {row}: the row is {states}; only what failed or was cancelled can be retried")
    for one in failed:
        ledger.place.update(_key(one.identity), _pending)
    return _concerned(plan, failed)


def is_cancelled(ledger: Ledger, identity: str) -> bool:
    """Whether ``identity`` is to end: the user has taken it out, or its driver stops."""
    try:
        status = ledger.place.read(_key(identity))
    except (OSError, ValueError, UnreachableError):
        return False  # a storage that is away for a moment has said nothing
    return isinstance(status, dict) and bool(status.get("cancelled") or status.get("stopping"))


class Grace:
    """How long what is to end is waited for. ``progress`` gives what changes as long as it gets on, at least once in
    ``pace_s`` seconds.
    """

    def __init__(self, progress: Callable[[], object], pace_s: float = 0.0) -> None:
        self._progress, self._seen, self._still_s = progress, object(), max(GRACE_S, pace_s)
        self._began = self._moved = time.monotonic()

    def over(self) -> bool:
        """Whether it has stood still for ``GRACE_S`` and ``pace_s``, or taken ``MOST_S``."""
        now = time.monotonic()
        try:
            seen = self._progress()
        except Exception:  # a storage that is away for a moment: nothing is known
            self._moved = now
        else:
            if seen != self._seen:
                self._seen, self._moved = seen, now
        return now - self._moved > self._still_s or now - self._began > MOST_S


def end_gracefully(
    ledger: Ledger, identities: Iterable[str], trials: threading.Thread | None, pace_s: float = 0.0
) -> None:
    """Asks trainings to save a checkpoint and end, and waits for ``trials``, as long as any of them gets on, be it
    once in ``pace_s`` seconds.
    """

    def under_way(identities: list[str]) -> list[str]:
        found = ((one, ledger.place.read(_key(one))) for one in identities)
        return [one for one, status in found if status and any("outcome" not in each for each in status["attempts"])]

    left = [identity for identity in identities if ledger.exists(identity)]
    for identity in left:
        ledger.stop(identity)
    grace = Grace(lambda: [_counts(ledger, identity) for identity in left], pace_s)
    while trials is not None and trials.is_alive():
        with contextlib.suppress(OSError, ValueError, UnreachableError):
            left = under_way(left)
        if not left or grace.over():  # what waits for room has nothing to save
            return
        trials.join(timeout=LOOK_S)


@contextlib.contextmanager
def watching(
    ledger: Ledger, identity: str, launch: str | None = None, pace_s: float = 0.0
) -> Iterator[threading.Event]:
    """An event that is set within seconds once ``identity`` is cancelled.

    A process that is still in here when none of the ``launch``'s workers gets on any more, not once in ``pace_s``
    seconds, ends: they hang, or wait for others that have ended.
    """
    cancelled, done = threading.Event(), threading.Event()

    def look() -> None:
        while not done.wait(LOOK_S):
            if is_cancelled(ledger, identity):
                log.info("the training is to end, by the user or by its driver: saving a checkpoint")
                cancelled.set()
                grace = Grace(lambda: _counts(ledger, identity, launch), pace_s)
                while not done.wait(LOOK_S):
                    if grace.over():
                        log.info("it has not ended, and gets on no more or takes too long, and is ended")
                        os._exit(143)
                return

    thread = threading.Thread(target=look, name="cancellation", daemon=True)
    thread.start()
    try:
        yield cancelled
    finally:
        done.set()


def _counts(ledger: Ledger, identity: str, launch: str | None = None) -> list[tuple[int, int, bool]]:
    """How often each worker has got on, as it says itself."""
    signs = read_signs(ledger.place, identity, launch)
    return [(sign["rank"], sign["count"], sign["done"]) for sign in signs]


def _named(plan: Plan, row: str, option: str) -> list[PlannedRow]:
    rows = [one for one in plan.rows if one.row == row]
    if not rows:
        from detector.document import suggestion

        raise InputError(
            f'{option} {row}: the sweep {plan.key} has no row "{row}"; {suggestion(row, list(plan.row_names))}'
        )
    return rows


def _concerned(plan: Plan, rows: list[PlannedRow]) -> list[str]:
    identities = {one.identity for one in rows}
    return list(dict.fromkeys(one.row for one in plan.rows if one.identity in identities))


def _cancelled(status: dict[str, Any] | None) -> dict[str, Any] | None:
    if status is None or status["state"] == "finished":
        return None  # since it was looked at
    # Who holds it still writes its checkpoint, and then gives it back.
    status.update(state="failed", error=CANCELLED, cancelled=time.time(), finished=time.time())
    return status


def _pending(status: dict[str, Any] | None) -> dict[str, Any] | None:
    if status is None:
        return None
    if status["state"] == "failed":
        status.update(state="pending", error=None)
        if not status.get("cancelled"):
            status["holder"] = None
        elif any("outcome" not in attempt for attempt in status["attempts"]):
            status["stopping"] = time.time()  # its workers may be saving their checkpoint, and end first
    status.pop("cancelled", None)
    known = status.get("evaluations") or {}
    status["evaluations"] = {key: one for key, one in known.items() if one["state"] != "failed"}
    return status


def _key(identity: str) -> str:
    return f"trainings/{identity}/status.json"
