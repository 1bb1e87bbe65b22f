"""How far a sweep is: ``python -m orchestrator.status SWEEP [--watch]``, and rows taken out of it and put back.

From the ledger only, from wherever that can be reached: neither the cluster nor the tracking server is needed.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence

from orchestrator.cancellation import cancel, retry
from orchestrator.ledger import Ledger
from orchestrator.live_table import LiveTable, read_lines, table
from orchestrator.options import Answer, Parser, add_sweep_options, answer, sweep_request
from orchestrator.plan import Plan, make_plan
from orchestrator.results import result_rows
from orchestrator.samples import read_samples

WATCH_S = 1.0
BETWEEN_S = 60.0
"""How long nobody may be at work between a search's samples and what it judges."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = Parser("status", "Say how far a sweep is. Needs neither the cluster nor the tracking server.")
    add_sweep_options(parser)
    parser.add_argument("--watch", action="store_true", help="go on until the sweep ends")
    parser.add_argument("--cancel", metavar="ROW", help="end the training of this row; it stays out until --retry")
    parser.add_argument("--retry", metavar="ROW", help="make this row pending, which has failed or was cancelled")
    return answer(_status, parser, argv)


def _status(arguments: argparse.Namespace) -> Answer:
    request = sweep_request(arguments)
    plan = make_plan(request, "read")
    ledger = Ledger(plan.place)
    notes = []
    if arguments.cancel is not None:
        together = cancel(plan, ledger, arguments.cancel)
        notes.append(f"cancelled: {_together(arguments.cancel, together)}; a driver at work ends it within seconds")
    if arguments.retry is not None:
        together = retry(plan, ledger, arguments.retry)
        notes.append(f"pending again: {_together(arguments.retry, together)}; the next run of the sweep takes it")
    if arguments.watch:
        plan = _watch(plan, ledger, lambda: make_plan(request, "read"))
    rows = result_rows(plan.whole, ledger)
    alive = ledger.held(plan.key)
    complete = all(row["state"] == "finished" for row in rows)
    failed = [f"{row['row']} (seed {row['seed']}) failed: {row['error']}" for row in rows if row["state"] == "failed"]
    end = "complete" if complete else "a driver is at work" if alive else "nobody is at work; run the sweep to continue"
    text = "\n".join([table(read_lines(plan.whole.rows, ledger)), *failed, *notes, f"{plan.key}: {end}"]) + "\n"
    document = {
        "sweep": plan.key,
        "status": "complete" if complete else "partial",
        "rows": rows,
        "report": str(plan.folder / "report.html") if (plan.folder / "report.html").exists() else None,
        "error": None,
    }
    return Answer(0, document, text)


def _together(row: str, rows: list[str]) -> str:
    others = [other for other in rows if other != row]
    return row + (f", and with it {', '.join(others)}, whose training is the same" if others else "")


def _watch(plan: Plan, ledger: Ledger, again: Callable[[], Plan]) -> Plan:
    """Follows a sweep to its end; the plan as it is then, which that of a search changes on the way."""
    rows = list(plan.whole.rows)
    live = LiveTable(rows, ledger, show_first=True)
    held = -math.inf
    while True:
        if ledger.held(plan.key):
            held = time.monotonic()
        elif time.monotonic() - held > (BETWEEN_S if _between(plan, ledger) else 0.0):
            break
        if _has_more(plan, ledger):
            plan = again()
            rows[:] = plan.whole.rows
        live.update()
        time.sleep(max(WATCH_S, ledger.place.pause))
    live.close()
    return plan


def _between(plan: Plan, ledger: Ledger) -> bool:
    """Whether this may be a search between its samples and what it judges: nothing of the latter is done."""
    if plan.search is None:
        return False
    states = [ledger.record(row.identity, row.evaluations).state for row in plan.rows]
    return plan.search.winner is None or not any(state in ("finished", "failed") for state in states)


def _has_more(plan: Plan, ledger: Ledger) -> bool:
    """Whether a search has drawn samples, or chosen its winner, since ``plan`` was made."""
    if plan.search is None:
        return False
    known = read_samples(ledger, plan.key, plan.search.key)
    chosen = known.winner is not None and known.chosen_of >= plan.search.spec.samples
    return len(known.samples) > len(plan.search.samples) or (chosen and plan.search.winner is None)


if __name__ == "__main__":
    sys.exit(main())
