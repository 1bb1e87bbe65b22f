"""Runs a sweep: ``python -m orchestrator.sweep sweeps/table3.yaml``. The same command again continues it.

Nothing heavy is imported before it is known that there is something to train.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from detector.document import listed
from detector.errors import InputError
from detector.origins import without_secrets
from orchestrator import registry
from orchestrator.costs import remembered, workload_key
from orchestrator.dry_run import describe
from orchestrator.estimate import estimate, estimate_document
from orchestrator.history import MOST
from orchestrator.holdout import refuse_without
from orchestrator.identity import deciding, digest
from orchestrator.ledger import Ledger
from orchestrator.options import Answer, Parser, add_sweep_options, answer, positive, positive_number, sweep_request
from orchestrator.order import order
from orchestrator.plan import Plan, make_plan
from orchestrator.report import terminal_table, write_report
from orchestrator.request import resolve_storage, resolve_tracking_uri
from orchestrator.results import best, result_rows

EXIT_STATUSES = """exit status:
  0  every row has its result
  2  the specification, the data or a reuse is wrong; nothing was started
  3  some trainings failed for good, or the budget is used up; the rest is complete and reported
  4  the cluster, the storage or the tracking server can't be reached, or can't ever satisfy the request
  5  another driver holds the sweep
  130, 143  interrupted; the same command continues
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return answer(_sweep, _parser(), argv)


def _parser() -> Parser:
    parser = Parser(
        "sweep",
        "Train every row of a table on Ray, track it in MLflow, and compare it with the paper's.",
        EXIT_STATUSES,
    )
    add_sweep_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained and what it needs, and stop")
    parser.add_argument(
        "--measure", action="store_true", help="with --dry-run: time some steps of each distinct model on this machine"
    )
    parser.add_argument(
        "--price", metavar="P", type=positive_number, help="with --dry-run: of an hour of a GPU, or of a worker on CPUs"
    )
    parser.add_argument("--address", metavar="RAY", help="cluster to join; default: $RAY_ADDRESS, then a local one")
    parser.add_argument(
        "--max-concurrent",
        metavar="N",
        type=positive,
        help="most trainings at a time; with --wait-for-nodes as many ask for room on a cluster",
    )
    parser.add_argument(
        "--max-gpu-hours",
        metavar="N",
        type=positive_number,
        help="stop when this sweep's trainings have taken so many, in all runs of it; resumable",
    )
    parser.add_argument(
        "--wait-for-nodes",
        metavar="MINUTES",
        type=positive_number,
        help="time that a cluster has to grow to what a training needs, or to replace nodes that it lost; default: "
        "none at first, 10 minutes after a loss",
    )
    parser.add_argument("--fresh", action="store_true", help="set earlier results of these trainings aside, train anew")
    parser.add_argument(
        "--accept-code-change",
        action="store_true",
        help="use, and continue, trainings that were made before the code was edited; the report says so",
    )
    return parser


def _sweep(arguments: argparse.Namespace) -> Answer:
    if (arguments.measure or arguments.price is not None) and not arguments.dry_run:
        raise InputError("--measure and --price say what a sweep would cost, before it is run; add --dry-run")
    request = replace(sweep_request(arguments), other_code=_other_code(arguments))
    plan = make_plan(request, "describe" if arguments.dry_run else "run")
    ledger = Ledger(plan.place)
    if plan.search is not None and plan.rows[0].val is not None:
        refuse_without(plan.rows[0].val)
    if arguments.dry_run:
        return _dry_run(plan, ledger, arguments)
    refuse_other_code(plan)
    if plan.search is not None:
        from orchestrator.search import check_optuna

        check_optuna()
    fetch_initial_weights(plan)
    try_plugins(plan, ledger, fresh=arguments.fresh)
    from orchestrator.search import run_search
    from orchestrator.session import run_sweep

    run = run_sweep if plan.search is None else functools.partial(run_search, again=lambda: make_plan(request))
    outcome = run(
        plan,
        address=arguments.address,
        max_concurrent=arguments.max_concurrent,
        fresh=arguments.fresh,
        quiet_json=arguments.json,
        max_gpu_hours=arguments.max_gpu_hours,
        wait_for_nodes_s=None if arguments.wait_for_nodes is None else 60 * arguments.wait_for_nodes,
    )
    if plan.search is not None:
        plan = make_plan(request)
    if outcome.notice:
        print(f"note: {outcome.notice}", file=sys.stderr)
    if outcome.status == "unreachable":
        return Answer(
            outcome.exit_status, _document(plan, ledger, outcome.status, None, outcome.error), "", outcome.error
        )
    files = write_report(plan, ledger)
    ledger.publish(files.values())
    report = files["report.html"]
    document = _document(plan, ledger, outcome.status, report, outcome.error)
    text = f"\n{terminal_table(plan, ledger)}\n{closing_lines(plan, ledger, report)}"
    return Answer(outcome.exit_status, document, text, outcome.error)


def _dry_run(plan: Plan, ledger: Ledger, arguments: argparse.Namespace) -> Answer:
    known = remembered(ledger.place, map(workload_key, plan.rows))
    if arguments.measure:
        from orchestrator.measurement import measure

        known |= measure(plan, ledger)
    costs = estimate(plan, ledger, known, price=arguments.price, now=arguments.measure)
    turns, _ = order(plan, ledger, known)
    document = _document(plan, ledger, "dry_run", None, None) | {"trainings": trainings(plan)}
    if known:
        document |= {"measured": estimate_document(costs), "order": turns}
    elif arguments.price is not None:
        print("note: nothing has been measured, so --price says nothing; add --measure", file=sys.stderr)
    return Answer(0, document, describe(plan, ledger, costs, turns))


def trainings(plan: Plan) -> int:
    """Distinct trainings; of a search with the samples that are yet to be drawn, and the winner's."""
    known = len(plan.whole.trainings)
    if plan.search is None or plan.search.winner is not None:
        return known
    drawn, seeds = len(plan.search.samples), len({row.seed for row in plan.rows})
    return known + max(0, plan.search.spec.samples - drawn) + seeds


def _other_code(arguments: argparse.Namespace) -> Literal["refuse", "accept", "anew"]:
    if arguments.fresh and arguments.accept_code_change:
        raise InputError("--fresh trains anew and --accept-code-change reuses what was trained; give one of them")
    return "anew" if arguments.fresh else "accept" if arguments.accept_code_change else "refuse"


def refuse_other_code(plan: Plan) -> None:
    """Raises InputError where a row has been trained, or begun, by other code, and nothing was said about it."""
    rows = [row for row in plan.rows if row.other_code is not None and not row.other_code.accepted]
    if rows:
        names = list(dict.fromkeys(row.row for row in rows))
        files = sorted({file for row in rows if row.other_code is not None for file in row.other_code.files})
        raise InputError(
            f"{listed(names, MOST)} {'was' if len(names) == 1 else 'were'} trained before the code that decides the "
            f"weights was changed ({listed(files, MOST)}); --accept-code-change uses what is there all the same, and "
            "the report says so; --fresh, with --only for single rows, trains anew; --dry-run shows more"
        )


def fetch_initial_weights(plan: Plan) -> None:
    """Raises InputError, before anything is started, where pretrained weights that a row asks for can't be had."""
    models = {
        (c.model.backbone, c.model.weights, c.model.init, c.model.norm, c.model.pixels): c.model
        for c in plan.trainings.values()
        if c.model.weights != "none" or c.model.init is not None or c.model.backbone.startswith("timm:")
    }
    if models:
        from detector.backbones import fetch_weights

        for model in models.values():
            fetch_weights(model)


def try_plugins(plan: Plan, ledger: Ledger, *, fresh: bool) -> None:
    """Raises InputError, before anything is started, where a plug-in can't do a step with the options of a row."""
    models = {
        digest(deciding(config)["model"]): config
        for identity, config in plan.trainings.items()
        if config.plugins and (fresh or not ledger.record(identity).trained)
    }
    if models:
        from detector.rehearsal import rehearse

        for config in models.values():
            rehearse(config)


def _document(plan: Plan, ledger: Ledger, status: str, report: Path | None, error: str | None) -> dict[str, Any]:
    registered = registry.kept(plan)
    return {
        "sweep": plan.key,
        "status": status,
        "rows": result_rows(plan.whole, ledger),
        "report": None if report is None else str(report),
        "error": error,
        **({"registered": registered} if registered is not None else {}),
    }


def closing_lines(plan: Plan, ledger: Ledger, report: Path) -> str:
    """The exact lines that open the report, the MLflow UI and the best model."""
    lines = [("report", f"python -m webbrowser {shlex.quote(report.as_uri())}"), ("MLflow", _mlflow_line(plan))]
    winner = best(plan, result_rows(plan, ledger))
    if winner is not None:
        row, entry = winner
        # The highest of all rows and seeds, which no new images would give again.
        split = row.val.split if row.val is not None else row.config.data.val
        chosen = f"AP {entry['metrics']['AP']:.2f} on {split}, by which it was chosen"
        lines.append(("best model", f"row {row.row}, seed {row.seed}, {chosen}"))
        needed = [p for p in row.config.plugins if "head" in p.provides and p.name == row.config.model.head.name]
        lines += [("", f'detector.plugins.use("{plugin.file}")') for plugin in needed]
        lines.append(("", f"detector.load({_model(plan, ledger, entry)})"))
    registered = registry.kept(plan)
    if registered is not None:
        lines.append(("registered", registered["sentence"]))
    return "".join(f"{label:<12}{line}\n" for label, line in lines)


def _model(plan: Plan, ledger: Ledger, entry: dict[str, Any]) -> str:
    if entry["run_id"] is None:
        return f'"{ledger.record(entry["identity"]).model}"'
    source = f'"runs:/{entry["run_id"]}/model"'
    try:
        found_anyway = plan.tracking_uri == resolve_tracking_uri(None, resolve_storage(None))
    except InputError:  # $DETSWEEP_STORAGE alone names no tracking server
        found_anyway = False
    if found_anyway or without_secrets(plan.tracking_uri) != plan.tracking_uri:
        # A password is never shown; whoever has it finds the run by $MLFLOW_TRACKING_URI.
        return source
    return f'{source}, tracking_uri="{plan.tracking_uri}"'


def _mlflow_line(plan: Plan) -> str:
    uri = without_secrets(plan.tracking_uri)
    if uri.startswith(("http://", "https://")):
        return f"python -m webbrowser {shlex.quote(uri)}"
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


if __name__ == "__main__":
    sys.exit(main())
