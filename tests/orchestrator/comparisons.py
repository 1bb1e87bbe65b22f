"""A table of four rows, with results that are stated by hand, for tests of what is said of its pairs."""

from __future__ import annotations

from pathlib import Path

from orchestrator.comparison import Comparison
from orchestrator.looks import Look
from orchestrator.plan import Plan, make_plan
from orchestrator.request import SweepRequest
from tests.orchestrator.tables import BASE, MemoryLedger, write_data, write_table

TABLE = """\
name: tiny
title: A tiny table
base: small
rows:
  - {name: plain, set: {model.assigner.predicted_weight: 0}, paper: {AP: 39.0}}
  - {name: half, set: {model.assigner.predicted_weight: 0.5}, paper: {AP: 39.1}}
  - {name: both, set: {model.assigner.predicted_weight: 1}, paper: {AP: 41.0}}
  - {name: up, set: {model.assigner.predicted_weight: up}}
compare: [[both, plain], [half, plain], [up, plain]]
seeds: [0, 1, 2]
"""
AP = {"plain": (30.0, 30.3, 30.1), "half": (30.1, 30.2, 30.3), "both": (32.1, 32.2, 32.3), "up": (30.0, 30.2, 30.4)}


def plan_of(folder: Path, table: str = TABLE, **options: object) -> Plan:
    write_data(folder / "data", splits=("train", "val", "elsewhere"))
    path = write_table(folder, table, base=BASE + f"data.root: {folder / 'data'}\n")
    return make_plan(SweepRequest(str(path), storage=str(folder / "storage"), **options))  # type: ignore[arg-type]


def finished(plan: Plan, figures: dict[str, tuple[float, ...]] = AP) -> MemoryLedger:
    ledger = MemoryLedger()
    seeds = tuple(dict.fromkeys(row.seed for row in plan.rows))
    for row in plan.row_names:
        for seed in seeds:
            ledger.state(plan, row, "finished", seed=seed, AP=figures[row][seed % 3])
    return ledger


def verdicts(comparison: Comparison) -> dict[str, str]:
    return {pair.name: pair.judgement.verdict if pair.judgement else pair.verdict for pair in comparison.pairs}


def look_of(plan: Plan, *seeds: int) -> Look:
    """A look at which all rows had ``seeds``."""
    return dict.fromkeys(plan.row_names, seeds)
