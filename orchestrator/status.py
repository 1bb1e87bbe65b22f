"""How far a sweep is: ``python -m orchestrator.status SWEEP [--watch]``, and rows taken out of it and put back.

From the ledger only, from wherever that can be reached: neither the cluster nor the tracking server is needed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from orchestrator.cancellation import cancel, retry
from orchestrator.ledger import Ledger
from orchestrator.live_table import LiveTable, read_lines, table
from orchestrator.options import Answer, Parser, add_sweep_options, answer, sweep_request
from orchestrator.plan import Plan, make_plan
from orchestrator.results import result_rows

WATCH_S = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = Parser("status", "Say how far a sweep is. Needs neither the cluster nor the tracking server.")
    add_sweep_options(parser)
    parser.add_argument("--watch", action="store_true", help="go on until the sweep ends")
    parser.add_argument("--cancel", metavar="ROW", help="end the training of this row; it stays out until --retry")
    parser.add_argument("--retry", metavar="ROW", help="make this row pending, which has failed or was cancelled")
    return answer(_status, parser, argv)


def _status(arguments: argparse.Namespace) -> Answer:
    plan = make_plan(sweep_request(arguments), "read")
    ledger = Ledger(plan.place)
    notes = []
    if arguments.cancel is not None:
        together = cancel(plan, ledger, arguments.cancel)
        notes.append(f"cancelled: {_together(arguments.cancel, together)}; a driver at work ends it within seconds")
    if arguments.retry is not None:
        together = retry(plan, ledger, arguments.retry)
        notes.append(f"pending again: {_together(arguments.retry, together)}; the next run of the sweep takes it")
    if arguments.watch:
        _watch(plan, ledger)
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


def _watch(plan: Plan, ledger: Ledger) -> None:
    live = LiveTable(plan.whole.rows, ledger, show_first=True)
    while ledger.held(plan.key):
        live.update()
        time.sleep(max(WATCH_S, ledger.place.pause))
    live.close()


if __name__ == "__main__":
    sys.exit(main())
