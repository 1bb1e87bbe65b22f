"""What a dry run says of the planned seeds: what they can show, and how many the paper's differences would need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.dry_run import describe
from orchestrator.looks import EVERY_ROW
from orchestrator.prospects import prospect_lines, prospects
from orchestrator.statistics.looks import look_level
from orchestrator.statistics.power import power
from tests.orchestrator.comparisons import TABLE, finished, plan_of
from tests.orchestrator.tables import MemoryLedger


def test_one_seed_shows_nothing_and_the_papers_difference_has_its_price(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=(0,))
    text = describe(plan, MemoryLedger())
    assert "compare   of 1 seed, at 80 % power, by 0.20 to 0.25 AP between seeds (assumed, of COCO):" in text
    assert "both − plain: 1 seed shows nothing; the paper's +2.00 would need 2 seeds" in text
    assert "half − plain: 1 seed shows nothing; the paper's +0.10 would need" in text
    assert "up − plain: 1 seed shows nothing; the paper's difference isn't known" in text


def test_the_smallest_difference_is_shown_with_eighty_percent_power(tmp_path: Path) -> None:
    told = prospects(plan_of(tmp_path), MemoryLedger())
    smallest = told.pairs[0].smallest
    assert smallest is not None
    level = look_level(3) / 3
    for difference, deviation in zip(smallest, (0.20, 0.25), strict=True):
        assert power(difference, deviation, seeds=3, rows=4, level=level) == pytest.approx(0.8, abs=1e-3)
    assert told.pairs[0].paper == 2.0
    assert told.measured == 0


def test_what_is_trained_takes_the_place_of_what_is_assumed(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    ledger = finished(plan)
    told = prospects(plan, ledger)
    # Four rows and three seeds: (4 - 1) * (3 - 1).
    assert told.measured == 6
    assert told.deviations[0] < 0.1 < told.deviations[1]
    assert "6 degrees of freedom of what is trained" in prospect_lines(told)[0]
    ledger.seen = [{EVERY_ROW: (0, 1)}]
    later = prospects(plan, ledger)
    assert later.pairs[0].smallest is not None
    assert told.pairs[0].smallest is not None
    assert later.pairs[0].smallest[0] > told.pairs[0].smallest[0]


def test_other_data_and_rows_that_are_never_compared_are_said(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, set=("schedule.iterations=7",))
    assert "data (train, 2 images) may vary more" in prospect_lines(prospects(plan, MemoryLedger()))[0]
    rows = [
        replace(row, train=replace(row.train, digest="other")) if row.row == "half" and row.train else row
        for row in plan.rows
    ]
    apart = prospect_lines(prospects(replace(plan, rows=tuple(rows)), MemoryLedger()))
    assert apart[-1] == "half − plain: never compared, as the rows have different data"


def test_a_table_that_compares_nothing_says_nothing(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TABLE.replace("compare: [[both, plain], [half, plain], [up, plain]]\n", ""))
    assert prospect_lines(prospects(plan, MemoryLedger())) == []
    assert "\ncompare" not in describe(plan, MemoryLedger())


def test_seeds_beside_earlier_ones_are_forecast_with_them_and_by_pair(tmp_path: Path) -> None:
    whole = plan_of(tmp_path)
    rows = tuple(row for row in whole.rows if row.row in ("both", "plain") or row.seed < 2)
    last = replace(whole, rows=tuple(row for row in rows if row.seed == 2), wider=replace(whole, rows=rows))
    told = prospects(last, MemoryLedger())
    assert told.planned == {("both", "plain"): 3, ("half", "plain"): 2, ("up", "plain"): 2}
    assert prospect_lines(told)[0].startswith("of 2 to 3 seeds, at 80 % power")
