"""Hours and money from timed steps, worked out by hand; what doesn't fit; what is remembered."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.costs import Measurement, remember, remembered, training_seconds, workload_key
from orchestrator.dry_run import describe
from orchestrator.estimate import estimate, estimate_document, estimate_lines
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan
from orchestrator.prospects import prospect_lines, prospects
from orchestrator.sweep import main
from tests.orchestrator.comparisons import plan_of
from tests.orchestrator.tables import MemoryLedger

GIB = 2**30
ONE = Measurement(
    step_s=36.0, steps=10, images=4, eval_image_s=18.0, checkpoint_s=9.0, memory_bytes=GIB, available_bytes=2 * GIB,
    hardware="a CPU", time=1.0,
)  # fmt: skip


def measured(plan: Plan, one: Measurement = ONE) -> dict[str, Measurement]:
    return {workload_key(row): one for row in plan.rows}


def test_hours_are_steps_evaluations_and_checkpoints(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, set=("evaluation.every=40", "checkpoint.every=50", "data.test=elsewhere"), seeds=(0,))
    # 100 steps; evaluations at 40, 80 and 100 of the two images of val, one of test; checkpoints at 50 and 100.
    assert training_seconds(plan.rows[0], ONE) == 100 * 36 + (3 * 2 + 2) * 18 + 2 * 9
    shared = plan_of(
        tmp_path, set=("evaluation.every=40", "checkpoint.every=50", "resources.workers=2"), seeds=(0,)
    ).rows[0]
    assert training_seconds(shared, ONE) == 100 * 36 + 3 * 2 / 2 * 18 + 2 * 9


def test_a_row_has_its_seeds_and_the_sweep_each_training_once(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=(0, 1))
    hours = (100 * 36 + 2 * 18 + 9) / 3600
    told = estimate(plan, MemoryLedger(), measured(plan), price=3.0, now=True)
    assert [row.row for row in told.rows] == ["plain", "half", "both", "up"]
    for row in told.rows:
        assert row.hours == pytest.approx(hours)
        assert (row.device_hours, row.left) == (pytest.approx(2 * hours), pytest.approx(2 * hours))
        assert row.images_per_second == pytest.approx(4 / 36)
    assert told.device_hours == pytest.approx(8 * hours)
    again = replace(plan, rows=(*plan.rows, *(replace(row, row="again") for row in plan.rows if row.row == "half")))
    twice = estimate(again, MemoryLedger(), measured(plan), now=True)
    assert twice.rows[-1].device_hours == pytest.approx(2 * hours)
    assert twice.device_hours == pytest.approx(8 * hours), "a training that two rows share is paid once"
    document = estimate_document(told)
    assert document["cost"] == pytest.approx(24 * hours)
    assert document["rows"][0]["cost"] == pytest.approx(6 * hours)
    assert (document["unit"], document["rows"][0]["fits"]) == ("worker-hours", True)


def test_a_gpu_is_paid_by_the_gpus_that_the_workers_hold(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, set=("resources.workers=4", "resources.gpus_per_worker=0.5"), seeds=(0,))
    told = estimate(plan, MemoryLedger(), measured(plan, replace(ONE, device="cuda")), now=True)
    assert told.unit == "GPU-hours"
    assert told.rows[0].device_hours == pytest.approx(2 * (told.rows[0].hours or 0.0))


def test_what_is_done_is_no_longer_left(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=(0,))
    ledger = MemoryLedger()
    ledger.state(plan, "plain", "finished", AP=1.0)
    begun = ledger.state(plan, "half", "pending")
    ledger.records[begun] = replace(ledger.records[begun], step=75)
    told = estimate(plan, ledger, measured(plan), now=True)
    each = told.rows[0].device_hours or 0.0
    assert [row.left for row in told.rows] == [0.0, pytest.approx(each / 4), pytest.approx(each), pytest.approx(each)]
    assert told.left == pytest.approx(2.25 * each)


def test_too_little_memory_is_said_with_the_largest_batch(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=(0,))
    small = Measurement(images=4, largest=3, available_bytes=GIB // 2, hardware="a CPU")
    told = estimate(plan, MemoryLedger(), measured(plan, small), now=True)
    lines = estimate_lines(told)
    assert lines[-1] == (
        "plain, half, both, up: memory is too small for 4 images a worker at once; the largest batch that fits is 3: "
        "set resources.micro_batch_size=3, which changes no result"
    )
    assert any("over 0.5 GiB" in line and "not measured" in line for line in lines)
    assert told.device_hours is None
    document = estimate_document(told)
    assert (document["rows"][0]["fits"], document["rows"][0]["largest_batch"]) == (False, 3)
    none = estimate_lines(estimate(plan, MemoryLedger(), measured(plan, replace(small, largest=0)), now=True))
    assert "too small for a single image" in none[-1]


def test_the_price_of_a_pair_stands_beside_what_it_shows(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=(0, 1))
    told = estimate(plan, MemoryLedger(), measured(plan), price=10.0, now=True)
    lines = prospect_lines(prospects(plan, MemoryLedger()), told)
    # One seed of both rows is 2 * 3645 s: 2.025 hours.
    assert any(
        "(4.05 worker-hours for both rows, cost 40.50); the paper's +2.00 would need 2 seeds" in x for x in lines
    )
    assert lines[1].endswith("would need 2 seeds (4.05 worker-hours for both rows, cost 40.50)")
    assert prospect_lines(prospects(plan, MemoryLedger()))[1].endswith("would need 2 seeds")


def test_what_was_measured_is_told_as_remembered_and_a_damaged_file_is_not_there(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=(0,))
    ledger = Ledger(plan.storage)
    keys = list(dict.fromkeys(map(workload_key, plan.rows)))
    assert len(keys) == 2, "the weights of the assignment cost nothing, but predictions in it may"
    assert remembered(ledger.place, keys) == {}
    remember(ledger.place, keys[0], ONE)
    remember(ledger.place, keys[1], ONE)
    assert remembered(ledger.place, keys) == dict.fromkeys(keys, ONE)
    told = estimate(plan, MemoryLedger(), remembered(ledger.place, keys), now=False)
    assert "remembered from 1970-01-01" in estimate_lines(told)[0]
    (plan.storage / "measurements" / f"{keys[0]}.json").write_text("{")
    assert remembered(ledger.place, keys) == {keys[1]: ONE}
    told = estimate(plan, MemoryLedger(), remembered(ledger.place, keys), now=False)
    assert told.device_hours is None, "a total without one of the rows would be too low"


def test_without_measurements_nothing_is_said_of_hours(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert estimate_lines(estimate(plan, MemoryLedger(), {}, now=False)) == []
    assert "hours" not in describe(plan, MemoryLedger())


@pytest.mark.parametrize("option", [["--measure"], ["--price", "2"]])
def test_measuring_is_part_of_a_dry_run(table: Path, option: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(table), *option]) == 2
    assert "add --dry-run" in capfd.readouterr().err


def test_a_later_dry_run_knows_what_an_earlier_one_measured(table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(table), "--dry-run", "--json", "--price", "2"]) == 0
    captured = capfd.readouterr()
    assert "measured" not in json.loads(captured.out)
    assert "nothing has been measured" in captured.err
    plan = plan_of_table(table)
    for row in plan.rows:
        remember(Ledger(plan.storage).place, workload_key(row), ONE)
    assert main([str(table), "--dry-run", "--json", "--price", "2"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["measured"]["measured_now"] is False
    assert document["measured"]["cost"] == pytest.approx(2 * document["measured"]["device_hours"])
    assert document["order"] == [row["identity"] for row in document["rows"]]


def plan_of_table(table: Path) -> Plan:
    from orchestrator.plan import make_plan
    from orchestrator.request import SweepRequest

    return make_plan(SweepRequest(str(table)), "describe")
