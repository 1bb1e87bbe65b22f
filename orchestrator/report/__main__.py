"""Writes the report of a sweep as it stands: ``python -m orchestrator.report sweeps/table3.yaml --profile laptop``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from detector.origins import without_secrets
from orchestrator.comparison import compare
from orchestrator.ledger import Ledger
from orchestrator.options import Answer, Parser, add_sweep_options, answer, sweep_request
from orchestrator.plan import Plan, make_plan
from orchestrator.report import terminal_table, write_report
from orchestrator.report.pairs import documents, looks_document, order_document
from orchestrator.results import result_rows


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 when the report is written, however much of the sweep is done."""
    parser = Parser(
        "report",
        "Write report.html, report.md, table.csv and pairs.csv of a sweep into its folder. They have all that is "
        "finished; --only and --seeds choose what is printed.",
    )
    add_sweep_options(parser)
    return answer(_report, parser, argv)


def _report(arguments: argparse.Namespace) -> Answer:
    plan = make_plan(sweep_request(arguments), "read")
    ledger = Ledger(plan.place)
    paths = write_report(plan, ledger)
    ledger.publish(paths.values())
    run_id = ledger.parent_run_id(plan.key)
    if run_id is not None:
        _log(plan, run_id, paths.values())
    rows, comparison = result_rows(plan, ledger), compare(plan, ledger)
    complete = all(row["state"] == "finished" for row in rows)
    document = {
        "sweep": plan.key,
        "status": "complete" if complete else "partial",
        "rows": rows,
        "report": str(paths["report.html"]),
        "error": None,
        "pairs": documents(comparison),
        "looks": looks_document(comparison),
        "order": order_document(comparison),
    }
    return Answer(0, document, terminal_table(plan, ledger) + "".join(f"{path}\n" for path in paths.values()))


def _log(plan: Plan, run_id: str, paths: Iterable[Path]) -> None:
    """Puts the report into the sweep's run, too; a server that is away changes nothing about the files."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    try:
        client = MlflowClient(tracking_uri=plan.tracking_uri)
        for path in paths:
            client.log_artifact(run_id, str(path), artifact_path="report")
    except Exception as error:
        reason = without_secrets(" ".join(str(error).split()))[:200]
        where = without_secrets(plan.tracking_uri)
        print(f"note: the report is written, but not logged to {where} ({reason}); run this again", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
