"""The report of a sweep: the comparison table as text, Markdown and CSV, and one HTML file with figures."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from detector.errors import UnreachableError
from orchestrator.comparison import Comparison, compare
from orchestrator.plan import Plan
from orchestrator.report.cost import costs
from orchestrator.report.evidence import Evidence
from orchestrator.report.figures import Curves
from orchestrator.report.page import page
from orchestrator.report.pairs import comma_separated_pairs
from orchestrator.report.search import search_markdown, search_terminal
from orchestrator.report.table import make_table
from orchestrator.report.text import comma_separated, markdown, terminal
from orchestrator.results import Results

__all__ = ["terminal_table", "write_report"]


def write_report(plan: Plan, ledger: Results) -> dict[str, Path]:
    """Writes report.html, report.md and table.csv, and pairs.csv where rows are compared, into the sweep's folder.

    They are of ``plan.reported``. Each is whole or not there. Returns their paths by name. Where verdicts are given, in
    the files or of the rows and seeds that are selected, that is a look at them, which is remembered first. Raises
    UnreachableError where the folder can't be written.
    """
    if plan.reported is not plan:
        _remember(plan, ledger, compare(plan, ledger))  # so that the other counts it
    plan = plan.reported
    table, comparison = make_table(plan, ledger), compare(plan, ledger)
    evidence, curves = Evidence(plan, ledger), Curves(plan, ledger)
    contents = {
        "report.html": page(plan, table, ledger, comparison, evidence, curves),
        "report.md": markdown(plan, table, comparison, evidence.rows(), costs(plan, ledger, curves))
        + search_markdown(plan, ledger),
        "table.csv": comma_separated(table),
    }
    if comparison.pairs or (plan.folder / "pairs.csv").exists():
        contents["pairs.csv"] = comma_separated_pairs(comparison)
    _remember(plan, ledger, comparison)
    with _writable(plan):
        plan.folder.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            _write(plan.folder / name, text)
    return {name: plan.folder / name for name in contents}


def _remember(plan: Plan, ledger: Results, comparison: Comparison) -> None:
    if comparison.look:
        with _writable(plan):
            ledger.remember_look(plan.key, comparison.present)


@contextlib.contextmanager
def _writable(plan: Plan) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnreachableError(
            f"the report can't be written to {plan.folder} ({error.strerror}); name a folder of yours with --storage"
        ) from None


def terminal_table(plan: Plan, ledger: Results) -> str:
    """The table for a terminal, as wide as standard output if that is one."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return terminal(plan, make_table(plan, ledger), compare(plan, ledger), width) + search_terminal(plan, ledger)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
