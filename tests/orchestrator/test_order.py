"""The order in which trainings start: pairs before the rest, cheap before dear, one seed of all before a second one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.costs import Measurement, operations, relative_costs, remember, workload_key
from orchestrator.dry_run import describe
from orchestrator.ledger import Ledger
from orchestrator.order import RULE, in_order, order
from orchestrator.plan import Plan
from tests.orchestrator.comparisons import plan_of
from tests.orchestrator.tables import MemoryLedger

TABLE = """\
name: tiny
title: A tiny table
base: small
rows:
  - {name: long, set: {schedule.epochs_factor: 4}}
  - {name: alone}
  - {name: large, set: {model.backbone: r50, model.assigner.topk: 8}}
  - {name: small, set: {model.assigner.topk: 7}}
  - {name: middle, set: {model.backbone: r34}}
compare: [[long, large], [small, large], [small, middle]]
seeds: [3, 1]
"""


def turns(plan: Plan, ledger: MemoryLedger | None = None, **measured: float) -> list[tuple[str, int]]:
    """Rows and seeds in their order, where each step of the rows named takes so many seconds."""
    found = {}
    for row in plan.rows:
        if row.row in measured:
            found[workload_key(row)] = Measurement(step_s=measured[row.row], hardware="here")
    identities, _ = order(plan, ledger or MemoryLedger(), found)
    names = {row.identity: (row.row, row.seed) for row in plan.rows}
    return [names[identity] for identity in identities]


def test_a_seed_of_every_pair_comes_first_and_the_cheapest_pair_before_all(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TABLE)
    first = [("small", 3), ("middle", 3), ("large", 3), ("long", 3), ("alone", 3)]
    assert turns(plan) == first + [(name, 1) for name, _ in first]


def test_what_is_measured_takes_the_place_of_what_is_estimated(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TABLE, seeds=(3,))
    dear_middle = {"small": 1.0, "middle": 50.0, "large": 2.0, "long": 1.0, "alone": 1.0}
    assert [name for name, _ in turns(plan, **dear_middle)] == ["small", "large", "long", "middle", "alone"]
    # One row without a measurement: seconds can't be compared with operations.
    dear_middle.pop("large")
    assert [name for name, _ in turns(plan, **dear_middle)] == ["small", "middle", "large", "long", "alone"]


def test_what_is_done_costs_nothing_and_has_no_turn(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TABLE, seeds=(3,))
    ledger = MemoryLedger()
    ledger.state(plan, "long", "finished", seed=3, AP=1.0)
    ledger.state(plan, "large", "finished", seed=3, AP=1.0)
    # The pair of the two that are done lacks nothing, and that of small and large only the cheap one.
    assert [name for name, _ in turns(plan, ledger)] == ["small", "middle", "alone"]


def test_the_same_plan_has_the_same_order_and_equal_rows_that_of_the_table(tmp_path: Path) -> None:
    table = TABLE.replace("{schedule.epochs_factor: 4}", "{model.assigner.topk: 6}").replace("r50", "r18")
    plan = plan_of(tmp_path, table.replace("r34", "r18, model.assigner.topk: 5"), seeds=(0,))
    expected = ["long", "large", "small", "middle", "alone"]
    assert [name for name, _ in turns(plan)] == expected
    assert [name for name, _ in turns(plan)] == expected


def test_a_sweep_starts_its_trainings_as_the_dry_run_says(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TABLE, seeds=(3,))
    ledger = Ledger(plan.storage)
    ledger.prepare()
    assert [row.row for row in in_order(plan, ledger)] == ["small", "middle", "large", "long", "alone"]
    for row in plan.rows:
        seconds = {"middle": 90.0, "alone": 1e-3}.get(row.row, 1.0)
        remember(ledger.place, workload_key(row), Measurement(step_s=seconds, hardware="here"))
    # The rows long and alone are the same model: what was remembered last stands for both.
    assert [row.row for row in in_order(plan, ledger)] == ["long", "large", "small", "middle", "alone"]


def test_operations_are_those_of_the_published_table(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TABLE, seeds=(3,))
    config = next(row.config for row in plan.rows if row.row == "large")
    bare = config.model_copy(
        update={
            "model": config.model.model_copy(
                update={
                    "head": config.model.head.model_copy(update={"convolutions": 0}),
                    "neck": config.model.neck.model_copy(update={"channels": 0}),
                }
            ),
            "data": config.data.model_copy(update={"short_side": 224, "long_side": 224}),
        }
    )
    # 100 iterations of 4 images of a ResNet-50 at the size of ImageNet.
    assert operations(bare) == pytest.approx(400 * 4.09e9)


def test_devices_count_as_well_as_seconds(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TABLE, seeds=(3,))
    rows = plan.rows[:2]
    resources = rows[1].config.resources.model_copy(update={"workers": 4})
    rows = (rows[0], replace(rows[1], config=rows[1].config.model_copy(update={"resources": resources})))
    found = {workload_key(row): Measurement(step_s=1.0, hardware="here") for row in rows}
    costs, measured = relative_costs(rows, found)
    assert measured
    assert [costs[row.identity] for row in rows] == [400.0, 400.0]  # four times as long, and four workers


def test_a_dry_run_shows_the_order_with_its_rule(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TABLE)
    turns = order(plan, MemoryLedger(), {})[0]
    text = " ".join(describe(plan, MemoryLedger(), None, turns).split())
    assert (
        f"order {RULE}: small (seed 3); middle (seed 3); large (seed 3); long (seed 3); alone (seed 3); small" in text
    )
    one = describe(plan, MemoryLedger(), None, turns[:1])
    assert "\norder" not in one
