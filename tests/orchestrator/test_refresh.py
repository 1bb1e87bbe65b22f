"""The report of a running sweep: written when something happened, and never in the sweep's way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from detector.errors import UnreachableError
from orchestrator import journal
from orchestrator.lease import LeaseLostError
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan
from orchestrator.report import refresh
from orchestrator.report.refresh import Refresh
from tests.orchestrator.test_report import plan_of


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def running(tmp_path: Path) -> tuple[Plan, Ledger]:
    """A sweep of which one training has begun."""
    plan = plan_of(tmp_path)
    plan.folder.mkdir(parents=True)
    ledger = Ledger(plan.place)
    row = plan.rows[0]
    ledger.claim(row.identity, sweep=plan.key, row=row.row, seed=0, config={}, iterations=100)
    ledger.started(row.identity, node="n", from_step=0, hardware={})
    return plan, ledger


def test_it_is_written_at_once_and_again_when_something_has_happened(
    running: tuple[Plan, Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, ledger = running
    written: list[str] = []
    write = refresh.write_report

    def count(plan: Plan, ledger: Ledger) -> dict[str, Path]:
        paths = write(plan, ledger)
        written.append(paths["report.html"].read_text())
        return paths

    monkeypatch.setattr(refresh, "write_report", count)
    monkeypatch.setattr(refresh, "SHARE", 1e9)
    with Refresh(lambda: plan, ledger, every=0.01):
        until(lambda: len(written) == 1)
        time.sleep(0.3)
        assert len(written) == 1, "nothing happened"
        ledger.append(plan.rows[0].identity, journal.line(20, "train", {"loss_reg": 1.0}))
        ledger.append(plan.rows[0].identity, journal.line(40, "train", {"loss_reg": 0.5}))
        until(lambda: len(written) >= 2 and "polyline" in written[-1])
    assert "There are no values of loss_reg yet" in written[0]
    assert not [thread for thread in threading.enumerate() if thread.name == "report"]
    assert not ledger.looks(plan.key), "an unfinished table is no look at verdicts"


@pytest.mark.parametrize(
    ("error", "traceback"),
    [(OSError(28, "No space left on device"), True), (UnreachableError("the storage can't be used"), False)],
)
def test_what_goes_wrong_is_logged_and_tried_again(
    running: tuple[Plan, Ledger],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    traceback: bool,
) -> None:
    tries: list[int] = []

    def fail(*_: object) -> dict[str, Path]:
        tries.append(1)
        raise error

    monkeypatch.setattr(refresh, "write_report", fail)
    monkeypatch.setattr(refresh, "SHARE", 1e9)
    with Refresh(lambda: running[0], running[1], every=0.01):
        until(lambda: len(tries) > 2)
    assert str(error) in caplog.text
    assert ("Traceback" in caplog.text) is traceback


def test_a_driver_that_lost_its_sweep_writes_no_report(
    running: tuple[Plan, Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, ledger = running

    def lost() -> None:
        raise LeaseLostError("another driver has it")

    monkeypatch.setattr(ledger, "check", lost)
    with Refresh(lambda: plan, ledger, every=0.01) as kept:
        until(lambda: not kept._thread.is_alive())
    assert not (plan.folder / "report.html").exists()
