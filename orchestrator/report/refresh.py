"""The report while its sweep runs: written anew now and then, in the background, when something has happened."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

from detector.errors import UnreachableError
from orchestrator.lease import LeaseLostError
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan
from orchestrator.report import write_report

EVERY_S = 60.0
SHARE = 0.05
"""Of one core at most: a report that takes long is written more seldom."""
END_S = 10.0

log = logging.getLogger(__name__)


class Refresh:
    """Keeps the report of what ``plan`` gives up to date inside a ``with``. It never ends a sweep: what goes wrong is
    logged."""

    def __init__(self, plan: Callable[[], Plan], ledger: Ledger, every: float = EVERY_S) -> None:
        self._plan, self._ledger, self._every = plan, ledger, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="report", daemon=True)
        self._seen: object = None

    def __enter__(self) -> Refresh:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(END_S)

    def _run(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            began = time.monotonic()
            try:
                self._write()
            except LeaseLostError:
                return  # the sweep, and its report, are another driver's
            except UnreachableError as error:  # the next one follows when the storage is back
                log.warning("the report could not be written while the sweep runs: %s", error)
            except Exception:
                log.exception("the report could not be written while the sweep runs")
            pause = max(self._every, (time.monotonic() - began) / SHARE)

    def _write(self) -> None:
        plan = self._plan()
        records = (self._ledger.record(row.identity, row.evaluations) for row in plan.whole.rows)
        now = [(record.state, record.step, record.attempts) for record in records]
        if now == self._seen:
            return
        self._ledger.check()
        self._ledger.publish(write_report(plan, self._ledger).values())
        self._seen = now
