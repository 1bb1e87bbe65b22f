"""Writes the report of a sweep as it stands: ``python -m orchestrator.report sweeps/table3.yaml --profile laptop``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from orchestrator.ledger import Ledger
from orchestrator.options import Answer, Parser, add_sweep_options, answer, sweep_request
from orchestrator.plan import make_plan
from orchestrator.report import terminal_table, write_report
from orchestrator.results import result_rows


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 when the report is written, however much of the sweep is done."""
    parser = Parser("report", "Write report.html, report.md and table.csv of a sweep into its folder.")
    add_sweep_options(parser)
    return answer(_report, parser, argv)


def _report(arguments: argparse.Namespace) -> Answer:
    plan = make_plan(sweep_request(arguments))
    ledger = Ledger(plan.storage)
    paths = write_report(plan, ledger)
    rows = result_rows(plan, ledger)
    complete = all(row["state"] == "finished" for row in rows)
    document = {
        "sweep": plan.key,
        "status": "complete" if complete else "partial",
        "rows": rows,
        "report": str(paths["report.html"]),
        "error": None,
    }
    return Answer(0, document, terminal_table(plan, ledger) + "".join(f"{path}\n" for path in paths.values()))


if __name__ == "__main__":
    sys.exit(main())
