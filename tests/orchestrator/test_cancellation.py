"""Rows taken out of a sweep and put back, from the ledger alone."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from detector.errors import UnreachableError
from orchestrator import cancellation
from orchestrator.cancellation import CANCELLED, GRACE_S, MOST_S, Grace, end_gracefully, is_cancelled, watching
from orchestrator.heartbeat import Heartbeat
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan, SweepRequest, make_plan
from orchestrator.preparation import unfinished
from orchestrator.status import main
from tests.orchestrator.tables import BASE, TABLE, write_data, write_table

SAME = '  - {name: again, set: {model.assigner.predicted_weight: 1}}\ncompare: [["1:1"'


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETSWEEP_STORAGE", str(tmp_path / "storage"))
    monkeypatch.delenv("DETSWEEP_DATA", raising=False)
    write_data(tmp_path / "data")
    table = TABLE.replace('compare: [["1:1"', SAME)
    return write_table(tmp_path, table, base=BASE + f"data.root: {tmp_path / 'data'}\n")


@pytest.fixture
def plan(table: Path) -> Plan:
    found = make_plan(SweepRequest(str(table)))
    Ledger(found.storage).sweep(found.key).mkdir()
    return found


def begin(plan: Plan, index: int = 0) -> str:
    ledger, row = Ledger(plan.storage), plan.rows[index]
    claim = {"row": row.row, "seed": 0, "config": {}, "iterations": 100, "basis": row.basis}
    ledger.claim(row.identity, sweep=plan.key, **claim)
    ledger.started(row.identity, node="n", from_step=0, hardware={})
    return row.identity


def states(capfd: pytest.CaptureFixture[str]) -> list[tuple[str, str | None]]:
    return [(row["state"], row["error"]) for row in json.loads(capfd.readouterr().out)["rows"]]


def test_a_cancelled_row_has_failed_and_stays_out_until_it_is_put_back(
    table: Path, plan: Plan, capfd: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(plan.storage)
    with Lease(ledger.sweep(plan.key)):
        identity = begin(plan)
        assert main([str(table), "--cancel", "1:1", "--json"]) == 0
        assert states(capfd) == [("failed", CANCELLED), ("pending", None), ("failed", CANCELLED)]
        # What its workers and its driver still say changes nothing.
        ledger.failed(identity, "worker died")
        ledger.release(identity)
        assert ledger.record(identity).error == CANCELLED
        assert ledger.record(identity).holder is None
    assert unfinished(plan, ledger, fresh=False) == [plan.rows[1].identity]
    claim = {"row": "1:1", "seed": 0, "config": {}, "iterations": 100}
    assert not ledger.claim(identity, sweep=plan.key, **claim)
    assert main([str(table), "--retry", "again"]) == 0
    out = capfd.readouterr().out
    assert "pending again: again, and with it 1:1, whose training is the same; the next run of the sweep takes" in out
    assert unfinished(plan, ledger, fresh=False) == [plan.rows[0].identity, plan.rows[1].identity]
    assert ledger.claim(identity, sweep=plan.key, **claim)


def test_a_training_that_is_cancelled_while_it_is_placed_never_begins(
    table: Path, plan: Plan, capfd: pytest.CaptureFixture[str]
) -> None:
    ledger, row = Ledger(plan.storage), plan.rows[0]
    with Lease(ledger.sweep(plan.key)):
        ledger.claim(row.identity, sweep=plan.key, row=row.row, seed=0, config={}, iterations=100)
        assert main([str(table), "--cancel", "1:1"]) == 0
        assert not ledger.started(row.identity, node="n", from_step=0, hardware={})
        ledger.release(row.identity)
    record = ledger.record(row.identity)
    assert (record.state, record.error, record.attempts) == ("failed", CANCELLED, 0)
    assert main([str(table), "--retry", "1:1"]) == 0
    assert unfinished(plan, ledger, fresh=False)[0] == row.identity


@pytest.mark.parametrize("state", ["pending", "running"])
def test_a_cancelled_row_can_be_put_back_whatever_else_is_said_of_it(table: Path, plan: Plan, state: str) -> None:
    ledger, identity = Ledger(plan.storage), begin(plan)
    mark = {"state": state, "cancelled": time.time()}
    ledger.place.update(f"trainings/{identity}/status.json", lambda found: {**(found or {}), **mark})
    assert main([str(table), "--retry", "1:1"]) == 0
    assert not ledger.record(identity).cancelled
    assert unfinished(plan, ledger, fresh=False)[0] == identity


def test_what_is_released_after_it_was_cancelled_has_failed(table: Path, plan: Plan) -> None:
    ledger, identity = Ledger(plan.storage), begin(plan)
    mark = {"state": "running", "error": CANCELLED, "cancelled": time.time()}
    ledger.place.update(f"trainings/{identity}/status.json", lambda found: {**(found or {}), **mark})
    ledger.release(identity)
    assert (ledger.record(identity).state, ledger.record(identity).error) == ("failed", CANCELLED)


def test_a_row_that_was_never_begun_can_be_cancelled(
    table: Path, plan: Plan, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(table), "--cancel", "D_up:1", "--json"]) == 0
    assert states(capfd) == [("pending", None), ("failed", CANCELLED), ("pending", None)]
    assert main([str(table), "--retry", "D_up:1", "--json"]) == 0
    assert states(capfd)[1] == ("pending", None)


def test_a_failed_row_is_pending_after_a_retry(table: Path, plan: Plan) -> None:
    ledger = Ledger(plan.storage)
    with Lease(ledger.sweep(plan.key)):
        identity = begin(plan)
        ledger.failed(identity, "broken")
    assert main([str(table), "--retry", "1:1"]) == 0
    assert (ledger.record(identity).state, ledger.record(identity).error) == ("pending", None)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--cancel", "1;1"], '--cancel 1;1: the sweep tiny has no row "1;1"; did you mean "1:1"?'),
        (["--retry", "1:1"], "--retry 1:1: the row is pending; only what failed or was cancelled can be retried"),
        (["--cancel", "D_up:1"], "--cancel D_up:1: the row is trained already"),
    ],
)
def test_what_can_not_be_cancelled_or_retried_is_said(
    table: Path, plan: Plan, words: list[str], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(plan.storage)
    with Lease(ledger.sweep(plan.key)):
        identity = begin(plan, 1)
        ledger.evaluated(identity, plan.rows[1].evaluation, plan.storage, {"AP": 1.0}, {})
        ledger.finished(identity, plan.storage, {})
    assert main([str(table), *words]) == 2
    assert sentence in capfd.readouterr().err


def test_the_training_of_another_live_sweep_is_cancelled_there(
    table: Path, plan: Plan, capfd: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(plan.storage)
    with Lease(ledger.sweep("other")):
        row = plan.rows[0]
        ledger.claim(row.identity, sweep="other", row="x", seed=0, config={}, iterations=100)
        assert main([str(table), "--cancel", "1:1"]) == 2
    assert "its training is being done by the sweep other; cancel it there" in capfd.readouterr().err


def test_a_worker_notices_within_seconds(table: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "LOOK_S", 0.05)
    ledger = Ledger(plan.storage)
    with Lease(ledger.sweep(plan.key)):
        identity = begin(plan)
        with watching(ledger, identity) as cancelled:
            time.sleep(0.3)
            assert not cancelled.is_set()
            assert main([str(table), "--cancel", "1:1"]) == 0
            assert cancelled.wait(5)
    assert is_cancelled(ledger, identity)


def test_a_worker_goes_on_looking_after_its_storage_was_away(
    table: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellation, "LOOK_S", 0.05)
    ledger, identity = Ledger(plan.storage), begin(plan)

    def away(key: str) -> None:
        raise UnreachableError("the storage can't be used (Service Unavailable)")

    with watching(ledger, identity) as cancelled:
        with monkeypatch.context() as patch:
            patch.setattr(ledger.place, "read", away)
            assert not is_cancelled(ledger, identity)
            time.sleep(0.3)
        assert main([str(table), "--cancel", "1:1"]) == 0
        assert cancelled.wait(5)


def test_what_gets_on_has_minutes_and_what_stands_still_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now, progress = [0.0], [0]
    monkeypatch.setattr(cancellation.time, "monotonic", lambda: now[0])
    grace = Grace(lambda: progress[0])

    def look(at: float, count: int) -> bool:
        now[0], progress[0] = at, count
        return grace.over()

    assert not look(1.0, 1)
    assert not look(GRACE_S, 2)
    assert not look(2 * GRACE_S - 1, 2)
    assert look(2 * GRACE_S + 1, 2)
    grace = Grace(lambda: progress[0])
    began = int(now[0])
    assert not any(look(began + second, second) for second in range(0, int(MOST_S), 10))
    assert look(began + MOST_S + 1, 10_000)


def test_an_iteration_may_take_what_the_user_said_and_an_outage_is_no_standstill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, away = [0.0], [False]
    monkeypatch.setattr(cancellation.time, "monotonic", lambda: now[0])

    def progress() -> int:
        if away[0]:
            raise UnreachableError("503")
        return 1

    slow, usual = Grace(progress, 4 * GRACE_S), Grace(progress)
    now[0] = 1.0
    assert not slow.over()
    assert not usual.over()
    now[0], away[0] = GRACE_S + 2, True
    assert not usual.over()
    now[0], away[0] = 2 * GRACE_S, False
    assert not usual.over()
    now[0] = 4 * GRACE_S
    assert usual.over()
    assert not slow.over()
    now[0] = 4 * GRACE_S + 2
    assert slow.over()


def test_a_worker_is_ended_only_when_no_worker_of_its_training_gets_on(
    table: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellation, "LOOK_S", 0.02)
    monkeypatch.setattr(cancellation, "GRACE_S", 0.6)
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    ledger, identity = Ledger(plan.storage), begin(plan)
    with Heartbeat(ledger.place, identity, "x", 1, 1.0) as other, watching(ledger, identity, "x") as cancelled:
        assert main([str(table), "--cancel", "1:1"]) == 0
        assert cancelled.wait(5)
        until = time.monotonic() + 1.5
        while time.monotonic() < until:  # another one evaluates, or writes
            other.beat()
            time.sleep(0.02)
        assert not ended.is_set()
        assert ended.wait(5)


def stopped(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, what: Callable[[Ledger, str, Heartbeat, threading.Event], None]
) -> float:
    """How long a driver waits for a training that does ``what``."""
    monkeypatch.setattr(cancellation, "LOOK_S", 0.02)
    monkeypatch.setattr(cancellation, "GRACE_S", 0.6)
    ledger, identity, over = Ledger(plan.storage), begin(plan), threading.Event()
    with Heartbeat(ledger.place, identity, "x", 0, 1.0) as worker:
        trial = threading.Thread(target=lambda: (what(ledger, identity, worker, over), over.wait(20)))
        trial.start()
        began = time.monotonic()
        end_gracefully(ledger, [identity, plan.rows[1].identity], trial)
        took = time.monotonic() - began
        over.set()
        trial.join()
    return took


def test_a_driver_waits_for_what_saves_a_checkpoint_and_for_nothing_else(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(ledger: Ledger, identity: str, worker: Heartbeat, over: threading.Event) -> None:
        for _ in range(75):
            worker.beat()
            time.sleep(0.02)
        ledger.attempt_failed(identity, "stopped at step 7 of 10, resumable", outcome="interrupted")

    assert 1.5 <= stopped(plan, monkeypatch, save) < 4
    assert 0.5 <= stopped(plan, monkeypatch, lambda *_: None) < 2  # stands still


def test_a_driver_does_not_wait_for_what_waits_for_room(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "GRACE_S", 10.0)
    over = threading.Event()
    trial = threading.Thread(target=over.wait, args=(20,))
    trial.start()
    began = time.monotonic()
    end_gracefully(Ledger(plan.storage), [row.identity for row in plan.rows], trial)
    assert time.monotonic() - began < 2
    over.set()
    trial.join()
