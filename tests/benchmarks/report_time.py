"""How long the report of a large sweep takes: 96 trainings with journals of 90,000 steps each, made up."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from orchestrator.ledger import Ledger
from orchestrator.plan import Plan
from orchestrator.report import write_report
from tests.benchmarks.alternating import Figure
from tests.browser import find_browser, open_page
from tests.made_up import make_sweep

ROWS, SEEDS, STEPS = 32, 3, 90_000


def measure(rows: int = ROWS, seeds: int = SEEDS, steps: int = STEPS, images: int = 200) -> list[Figure]:
    """Seconds to write it, with the indices that trainings leave and without any; its size; seconds to open it."""
    with tempfile.TemporaryDirectory(prefix="detsweep-") as scratch:
        plan, ledger = make_sweep(
            Path(scratch), rows=rows, seeds=seeds, steps=steps, images=images, pairs=8, journals=4
        )
        journals = [ledger.record(row.identity).journal for row in plan.rows]
        paths, seconds = _timed(plan, ledger)
        for path in journals:
            path.with_name("curves.npz").unlink()
        _, anew = _timed(plan, ledger)
        page = paths["report.html"]
        size, entries = page.stat().st_size / 1e6, sum(path.stat().st_size for path in journals) / 1e6
        found = [
            _within(20, "report written, s", seconds, notes={"trainings": len(plan.rows), "journals, MB": entries}),
            Figure("report written with all indices made anew, s", anew),
            _within(5, "report.html, MB", size),
        ]
        browser = find_browser()
        if browser is not None:
            seen = open_page(browser, page.as_uri())
            found.append(_within(2, "report opened, s", seen.seconds, notes={"console": len(seen.errors)}))
        kept = os.environ.get("DETSWEEP_KEEP_REPORT")
        if kept:
            Path(kept).write_bytes(page.read_bytes())
        return found


def _within(limit: float, what: str, value: float, notes: dict[str, Any] | None = None) -> Figure:
    return Figure(what, value, goal=f"< {limit:g}", reached=value < limit, notes=notes or {})


def _timed(plan: Plan, ledger: Ledger) -> tuple[dict[str, Path], float]:
    began = time.perf_counter()
    return write_report(plan, ledger), time.perf_counter() - began
