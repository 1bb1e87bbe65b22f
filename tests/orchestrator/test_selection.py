"""``--only`` and ``--seeds``: they choose what is trained and printed, and take nothing finished out of the report."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from orchestrator import session
from orchestrator.ledger import Ledger
from orchestrator.plan import SweepRequest, make_plan
from orchestrator.report.__main__ import main as report_main
from orchestrator.session import SweepOutcome
from orchestrator.sweep import main
from tests.orchestrator.tables import TABLE

from .test_history import run_sweep


@pytest.fixture
def table(table: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table that is run without training."""
    monkeypatch.setattr(session, "run_sweep", run_sweep)
    return table


def table_csv(table: Path) -> dict[str, dict[str, str]]:
    """Rows of table.csv by name."""
    path = table.parent / "storage" / "sweeps" / "tiny" / "table.csv"
    return {row["row"]: row for row in csv.DictReader(path.read_text().splitlines())}


def pairs_csv(table: Path) -> list[dict[str, str]]:
    path = table.parent / "storage" / "sweeps" / "tiny" / "pairs.csv"
    return list(csv.DictReader(path.read_text().splitlines()))


def planned(table: Path, **options: Any) -> list[tuple[str, int]]:
    plan = make_plan(SweepRequest(str(table), **options), "describe")
    return [(row.row, row.seed) for row in plan.reported.rows]


def test_a_sweep_of_one_row_leaves_the_other_in_the_report(table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(table)]) == 0
    before = table_csv(table)
    capfd.readouterr()
    assert main([str(table), "--only", "D_up:1"]) == 0
    assert "\n1:1 " not in capfd.readouterr().out, "the terminal has what was selected"
    assert table_csv(table) == before
    assert [row["first"] for row in pairs_csv(table)] == ["1:1"]


def test_a_report_of_one_row_and_seed_keeps_all_in_the_files(table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(table), "--seeds", "0,1"]) == 0
    before = table_csv(table)
    capfd.readouterr()
    assert report_main([str(table), "--only", "1:1", "--seeds", "1", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert [(row["row"], row["seed"]) for row in document["rows"]] == [("1:1", 1)]
    assert table_csv(table) == before


def test_more_seeds_of_a_pair_join_those_of_the_whole_table(table: Path) -> None:
    assert main([str(table), "--seeds", "2,0"]) == 0
    assert main([str(table), "--only", "1:1", "--seeds", "1"]) == 0
    assert planned(table) == [("1:1", 0), ("1:1", 1), ("1:1", 2), ("D_up:1", 0), ("D_up:1", 2)]
    assert planned(table, only=("1:1",), seeds=(3,))[:4] == [("1:1", 0), ("1:1", 1), ("1:1", 2), ("1:1", 3)]


def test_what_isn_t_finished_is_only_there_if_it_is_selected(
    table: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from orchestrator.preparation import remember_choices

    def nothing(plan: Any, **_: object) -> SweepOutcome:
        remember_choices(plan, Ledger(plan.storage))
        return SweepOutcome("partial", "ended early", 3)

    monkeypatch.setattr(session, "run_sweep", nothing)
    assert main([str(table), "--seeds", "0,1,2"]) == 3
    assert planned(table) == [("1:1", 0), ("D_up:1", 0)]
    monkeypatch.setattr(session, "run_sweep", run_sweep)
    capfd.readouterr()
    assert main([str(table), "--only", "1:1"]) == 0
    assert planned(table, only=("1:1",)) == [("1:1", 0)]
    assert "Not selected by --only, and not finished: D_up:1." in capfd.readouterr().out


def test_data_that_are_gone_take_no_other_row_with_them(table: Path) -> None:
    other = table.parent / "other"
    shutil.copytree(table.parent / "data", other)
    (other / "annotations" / "train.json").write_text(
        (other / "annotations" / "train.json").read_text().replace('"bbox": [4, 5', '"bbox": [5, 5')
    )
    settings = "{model.assigner.predicted_weight: up}"
    table.write_text(TABLE.replace(settings, f"{{model.assigner.predicted_weight: up, data.root: {other}}}"))
    assert main([str(table)]) == 0
    assert planned(table, only=("1:1",)) == [("1:1", 0), ("D_up:1", 0)]
    shutil.rmtree(other)
    assert planned(table, only=("1:1",)) == [("1:1", 0)]
    assert main([str(table), "--only", "1:1"]) == 0


def test_a_pair_that_is_no_longer_compared_leaves_no_verdict_behind(table: Path) -> None:
    assert main([str(table)]) == 0
    assert len(pairs_csv(table)) == 1
    table.write_text(TABLE.replace('compare: [["1:1", "D_up:1"]]', "compare: []"))
    assert main([str(table)]) == 0
    assert pairs_csv(table) == []


@pytest.mark.parametrize(
    ("state", "left", "partly"),
    [("failed", [], ()), ("pending", [("D_up:1", 0)], ("D_up:1",))],
)
def test_of_a_row_that_failed_with_one_seed_the_others_are_no_row(
    table: Path, state: str, left: list[tuple[str, int]], partly: tuple[str, ...]
) -> None:
    """They would be a choice by results; what is only unfinished isn't."""
    assert main([str(table), "--seeds", "0,1"]) == 0
    plan = make_plan(SweepRequest(str(table), seeds=(0, 1)), "describe")
    last = plan.rows[-1]
    assert (last.row, last.seed) == ("D_up:1", 1)
    change = {"state": state, "error": "it diverged" if state == "failed" else None}
    Ledger(plan.storage).place.update(
        f"trainings/{last.identity}/status.json", lambda found: {**(found or {}), **change}
    )
    assert planned(table, only=("1:1",), seeds=(0, 1)) == [("1:1", 0), ("1:1", 1), *left]
    selected = make_plan(SweepRequest(str(table), only=("1:1",), seeds=(0, 1)), "describe")
    assert selected.partly == partly
    assert selected.left_out == (() if left else ("D_up:1",))
    assert [(row.row, row.seed) for row in selected.beside] == ([] if left else [("D_up:1", 0)])
    of_all = make_plan(SweepRequest(str(table), seeds=(0,)), "describe")
    assert of_all.partly == ("D_up:1",), "what is registered is chosen among whole rows"
    # Whoever selects its seeds has said so.
    assert planned(table, seeds=(0,)) == [("1:1", 0), ("1:1", 1), ("D_up:1", 0)]
