"""Rebuilds MLflow from the ledger: ``python -m orchestrator.sync SWEEP``. Writes what is missing, and nothing twice."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from detector.origins import without_secrets
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.options import Answer, Parser, add_sweep_options, answer, sweep_request
from orchestrator.plan import make_plan
from orchestrator.results import result_rows
from orchestrator.tracking import PATIENCE_S, Tracker


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = Parser("sync", "Bring MLflow to what the ledger says: runs, metrics, models and states that are missing.")
    add_sweep_options(parser)
    return answer(_sync, parser, argv)


def _sync(arguments: argparse.Namespace) -> Answer:
    judged = make_plan(sweep_request(arguments), "read")
    plan = judged.whole
    ledger = Ledger(plan.place)
    # A live driver writes the same runs: there must be one writer.
    with Lease(ledger.place, plan.key) as lease:
        ledger = Ledger(plan.place, lease.fence)
        for row in plan.rows:
            record = ledger.record(row.identity, row.evaluations)
            if record.state == "running" and record.holder == plan.key:
                ledger.release(row.identity)  # its driver is gone, or the lease could not be had
        tracker = Tracker(plan, ledger, judged=judged, thorough=True)
        tracker.connect(PATIENCE_S)
        tracker.open(PATIENCE_S)
        records = [ledger.record(row.identity, row.evaluations) for row in plan.rows]
        states = {"finished" if record.over_for(plan.key) else record.state for record in records}
        problem = tracker.finish("FINISHED" if states == {"finished"} else "FAILED" if "failed" in states else "KILLED")
    rows = result_rows(plan, ledger)
    away = problem is not None and not tracker.unreadable
    status = "unreachable" if away else "complete" if states == {"finished"} and not problem else "partial"
    document = {"sweep": plan.key, "status": status, "rows": rows, "report": None, "error": problem}
    there = sum(row["run_id"] is not None for row in rows)
    text = f"{there} runs of {plan.key} are up to date in {without_secrets(plan.tracking_uri)}\n"
    return Answer(4 if away else 3 if problem else 0, document, "" if problem else text, problem)


if __name__ == "__main__":
    sys.exit(main())
