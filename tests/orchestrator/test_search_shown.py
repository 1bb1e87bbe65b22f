"""What report, status and dry run say of a search, while it draws and afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import session, status
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan
from orchestrator.report import terminal_table, write_report
from orchestrator.report.cost import costs
from orchestrator.report.figures import Curves
from orchestrator.report.refresh import Refresh
from orchestrator.search_text import data_line
from orchestrator.statistics.looks import look_level
from orchestrator.statistics.power import ASSUMED_DEVIATION, smallest_difference
from orchestrator.sweep import main
from tests.orchestrator.searches import Tuned, height, plan_of, search


@pytest.fixture
def folder(search_folder: Path) -> Path:
    return search_folder


def test_the_report_has_the_samples_beside_the_judged_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tuned(monkeypatch, height)
    plan, _ = search(folder)
    ledger = Ledger(plan.storage)
    files = write_report(plan, ledger)
    page, text = files["report.html"].read_text(), files["report.md"].read_text()
    assert plan.search is not None
    samples = page[page.index('<section id="search"><h2>What the search tried</h2>') :]
    samples = samples[: samples.index("</section>")]
    assert samples.count("<tr>") == 1 + 12
    assert samples.count("(best)") == 1
    assert "stopped" in samples
    assert "the search sees val-search (1 images); the winner and the rows are judged on val-judge (1 images)" in page
    assert "## What the search tried" in text
    assert f"winner: {plan.search.winner.row}" in text.replace("\\", "")  # type: ignore[union-attr]
    shown = terminal_table(plan, ledger)
    assert "and 7 more samples, in the report" in shown


def test_the_samples_cost_is_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tuned(monkeypatch, height)
    plan, _ = search(folder)
    ledger = Ledger(plan.storage)
    found = {row.name: row for row in costs(plan, ledger, Curves(plan, ledger))}
    assert list(found)[-1] == "samples of the search"
    assert plan.search is not None
    seconds = [ledger.record(row.identity).seconds or 0.0 for row in plan.search.samples]
    assert found["samples of the search"].hours["CPU"] == pytest.approx(sum(seconds) / 3600)


def test_while_samples_are_drawn_the_report_is_of_all_of_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Callable[[], Plan]] = []

    class Kept(Refresh):
        def __init__(self, plan: Callable[[], Plan], ledger: Ledger) -> None:
            super().__init__(plan, ledger)
            shown.append(plan)

    monkeypatch.setattr(session, "Refresh", Kept)
    Tuned(monkeypatch, height)
    plan, _ = search(folder)
    assert plan.search is not None
    drawing = shown[0]()
    assert drawing.search is not None
    assert [row.row for row in drawing.search.samples] == [row.row for row in plan.search.samples]
    # The rows that are judged, on images that the search doesn't see.
    assert {row.row for row in drawing.rows} == {"plain", "both"}
    assert data_line(drawing) == data_line(plan)


def test_watching_goes_on_from_the_samples_to_what_is_judged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan_of(folder)
    Tuned(monkeypatch, height)
    after, _ = search(folder)
    ledger, held = Ledger(after.storage), iter([True, False, True, False])
    monkeypatch.setattr(ledger, "held", lambda key: next(held))
    monkeypatch.setattr(status.time, "sleep", lambda seconds: None)
    states = iter(["pending"] * len(after.rows))
    whole = ledger.record

    def record(identity: str, evaluations: Any = ()) -> Any:
        """Of what is judged nothing is done, at the first look."""
        found = whole(identity, evaluations)
        judged = identity in {row.identity for row in after.rows}
        return replace(found, state=next(states, found.state)) if judged else found

    monkeypatch.setattr(status, "LiveTable", Silent)
    monkeypatch.setattr(ledger, "record", record)
    assert status._watch(before, ledger, lambda: after) is after
    assert next(held, None) is None, "it didn't end between the two"


class Silent:
    """In the place of the live table."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def update(self) -> None: ...

    def close(self) -> None: ...


def test_status_json_and_dry_run_know_the_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from orchestrator.status import main as status_main

    words = [str(folder / "hunt.yaml"), "--storage", str(folder / "storage")]
    assert main([*words, "--dry-run"]) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert (
        "search model.assigner.predicted_weight uniform 0 to 2; model.assigner.topk a whole number from 5 to 11" in out
    )
    assert "stops all but the best 1/3 at 10, 30, 90 of 100 iterations" in out
    assert "0 samples begun, 12 to draw; then 6 rows and seeds are judged, and as many seeds of the winner" in out
    # Three rows, of three seeds each, by the assumed deviation.
    level = look_level(3) / 1
    low, high = (smallest_difference(deviation, seeds=3, rows=3, level=level) for deviation in ASSUMED_DEVIATION)
    assert f"the winner \N{MINUS SIGN} both: differences from {low:.2f} to {high:.2f} AP are shown" in out
    assert main([*words, "--dry-run", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["trainings"] == 6 + 12 + 3
    Tuned(monkeypatch, height)
    assert main([*words, "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["status"] == "complete"
    assert len(document["rows"]) == 12 + 9
    assert status_main([*words, "--json"]) == 0
    status = json.loads(capfd.readouterr().out)
    assert (status["status"], status["rows"]) == ("complete", document["rows"])
    assert main([*words, "--dry-run", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["trainings"] == 12 + 9
