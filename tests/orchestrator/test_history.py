"""An edit between two runs of a sweep: what is reused, what is new, what is refused, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator import identity, session
from orchestrator.files import read_json
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan, SweepRequest, make_plan
from orchestrator.session import SweepOutcome
from orchestrator.status import main as status_main
from orchestrator.sweep import main
from tests.orchestrator.tables import TABLE

from .test_sweep_cli import finish


@pytest.fixture
def table(table: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table that is run without training."""
    monkeypatch.setattr(session, "run_sweep", run_sweep)
    return table


def run_sweep(plan: Plan, *, fresh: bool = False, **_: object) -> SweepOutcome:
    """A session on which training takes no time."""
    from orchestrator.history import forget_accepted
    from orchestrator.preparation import remember_choices

    ledger = Ledger(plan.storage)
    for row in plan.rows if fresh else ():
        ledger.set_aside(row.identity)
        forget_accepted(ledger, row.identity)
    remember_choices(plan, ledger)
    return finish(plan)


def edit_code(monkeypatch: pytest.MonkeyPatch, name: str = "losses.py") -> None:
    """As if ``name`` had been edited since."""
    known = identity._source_digests()
    monkeypatch.setattr(identity, "_source_digests", lambda: known | {name: "edited"})
    monkeypatch.setattr(identity, "sources_digest", lambda: f"edited {name}")


def plan_of(table: Path, purpose: str = "describe", **options: object) -> Plan:
    return make_plan(SweepRequest(str(table), **options), purpose)  # type: ignore[arg-type]


def test_edited_yaml_makes_only_the_rows_new_that_it_changes(table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(table)]) == 0
    before = [row.identity for row in plan_of(table).rows]
    edited = TABLE.replace("predicted_weight: up}", "predicted_weight: up, schedule.learning_rate: 0.02}")
    table.write_text(edited.replace('name: "1:1"', 'name: "one"').replace('"1:1"', '"one"'))
    after = [row.identity for row in plan_of(table).rows]
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)
    capfd.readouterr()
    assert main([str(table), "--dry-run"]) == 0
    text = capfd.readouterr().out
    assert "D_up:1: other than when this was last run: schedule.learning_rate 0.01 → 0.02\n" in text
    assert "no longer in the sweep file: 1:1 (what they trained is kept)" in text
    assert "2 distinct trainings, 1 of them done" in text
    assert main([str(table)]) == 0
    assert len(list((table.parent / "storage" / "trainings").iterdir())) == 3


def test_edited_data_are_named(table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(table)]) == 0
    image = table.parent / "data" / "train" / "1.jpg"
    image.write_bytes(image.read_bytes() + b"more")
    capfd.readouterr()
    assert main([str(table), "--dry-run"]) == 0
    assert "1:1, D_up:1: other than when this was last run: the training images" in capfd.readouterr().out


def test_edited_code_refuses_reuse_and_names_the_files(
    table: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(table)]) == 0
    edit_code(monkeypatch)
    capfd.readouterr()
    assert main([str(table), "--json"]) == 2
    out, err = capfd.readouterr()
    assert json.loads(out)["status"] == "refused"
    assert "1:1, D_up:1 were trained before the code that decides the weights was changed (losses.py)" in err
    assert "--accept-code-change" in err
    assert "--fresh" in err
    assert main([str(table), "--dry-run"]) == 0
    text = capfd.readouterr().out
    assert "refused: trained by other code" in text
    assert "1:1, D_up:1: refused, as the code has changed since: losses.py\n" in text
    # Another row of the same table was never trained and is free.
    table.write_text(TABLE.replace("seeds: [0]", "seeds: [7]"))
    assert main([str(table)]) == 0


def test_what_was_trained_is_still_shown_after_the_code_was_edited(
    table: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(table)]) == 0
    edit_code(monkeypatch)
    capfd.readouterr()
    assert status_main([str(table), "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert [row["state"] for row in document["rows"]] == ["finished", "finished"]


def test_an_accepted_change_of_code_reuses_and_is_recorded_and_reported(
    table: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(table)]) == 0
    before = [row.identity for row in plan_of(table).rows]
    edit_code(monkeypatch)
    assert main([str(table), "--accept-code-change", "--only", "1:1"]) == 0
    storage = table.parent / "storage"
    assert {path.name for path in (storage / "trainings").iterdir()} == set(before)
    (entry,) = (storage / "accepted").glob("*.json")
    accepted = read_json(entry)
    assert accepted["training"] == before[0]
    assert (accepted["row"], accepted["files"], accepted["step"]) == ("1:1", ["losses.py"], 100)
    report = (storage / "sweeps" / "tiny" / "report.md").read_text()
    assert (
        "by other code than the present (--accept-code-change): 1:1. Since then these have changed: losses.py."
        in report
    )
    # From now on nothing need be said about that row; the other is refused as before.
    assert main([str(table), "--only", "1:1"]) == 0
    capfd.readouterr()
    assert main([str(table)]) == 2
    assert "error: D_up:1 was trained before" in capfd.readouterr().err
    # Another change of code asks again.
    edit_code(monkeypatch, "training.py")
    assert main([str(table), "--only", "1:1"]) == 2


def test_fresh_trains_anew_after_the_code_was_edited(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([str(table)]) == 0
    before = {row.identity for row in plan_of(table).rows}
    edit_code(monkeypatch)
    assert main([str(table), "--accept-code-change"]) == 0
    assert main([str(table), "--fresh"]) == 0
    after = {row.identity for row in plan_of(table).rows}
    assert not before & after
    assert [read_json(path) for path in (table.parent / "storage" / "accepted").glob("*.json")] == [{}, {}]
    assert main([str(table)]) == 0
    assert main([str(table), "--fresh", "--accept-code-change"]) == 2
