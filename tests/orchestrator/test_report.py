"""The table and its forms, with figures that can be checked by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from orchestrator.plan import Plan, make_plan
from orchestrator.report import terminal_table, write_report
from orchestrator.report.figures import Curves, Line, caption, smoothed, svg
from orchestrator.report.page import page
from orchestrator.report.table import make_table, notes
from orchestrator.report.text import comma_separated, markdown
from orchestrator.request import SweepRequest
from orchestrator.results import best, mean, result_rows
from tests.orchestrator.tables import BASE, TABLE, MemoryLedger, write_data, write_table


def plan_of(folder: Path, table: str = TABLE, **options: object) -> Plan:
    write_data(folder / "data")
    path = write_table(folder, table, base=BASE + f"data.root: {folder / 'data'}\n")
    return make_plan(SweepRequest(str(path), storage=str(folder / "storage"), **options))  # type: ignore[arg-type]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(tmp_path)


def test_mean_and_deviation_of_the_defined_values() -> None:
    found = mean([1.0, 2.0, None, 6.0])
    assert found is not None
    # Mean of 1, 2, 6 is 3; squared distances 4, 1, 9; 14 / 2 = 7.
    assert (found.value, found.n) == (3.0, 3)
    assert found.deviation == pytest.approx(math.sqrt(7))
    single = mean([5.0])
    assert single is not None
    assert single.deviation is None
    assert mean([None]) is None


def test_ours_stands_beside_the_papers(plan: Plan) -> None:
    ledger = MemoryLedger()
    ledger.state(plan, "1:1", "finished", AP=40.0, AP50=57.0, APs=None)
    table = make_table(plan, ledger)
    cell = table.rows[0].cells["AP"]
    assert cell.difference == pytest.approx(0.25)
    assert table.rows[0].cells["AP50"].difference == pytest.approx(-0.43)
    assert table.rows[0].cells["APs"].ours is None
    assert table.rows[0].cells["AP75"].paper is None
    assert (table.rows[0].state, table.rows[1].state) == ("finished", "pending")
    assert table.columns == ("PIoUs", "AIoUs")


def test_the_terminal_table(plan: Plan) -> None:
    ledger = MemoryLedger()
    ledger.state(plan, "1:1", "finished", AP=40.0, AP50=57.0)
    ledger.state(plan, "D_up:1", "failed", error="the loss is not finite at step 7")
    lines = terminal_table(plan, ledger).splitlines()
    assert lines[0] == "A tiny table"
    assert lines[2].split() == ["row", "AP", "AP50", "AP75", "APs", "APm", "APl", "state"]
    assert lines[4].split() == ["1:1", "40.00", "57.00", "–", "–", "–", "–", "finished"]
    assert lines[5].split() == ["paper", "39.75", "57.43", "–", "–", "–", "–"]
    assert lines[6].split() == ["difference", "+0.25", "-0.43", "–", "–", "–", "–"]
    assert lines[7].split()[:7] == ["D_up:1", "–", "–", "–", "–", "–", "–"]
    assert "failed (the loss is not finite at step 7)" in lines[7]


def test_several_seeds_are_given_with_deviation_and_number(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=(0, 1, 2))
    ledger = MemoryLedger()
    for seed, value in enumerate((1.0, 2.0, 6.0)):
        ledger.state(plan, "1:1", "finished", seed=seed, AP=value)
    ledger.state(plan, "D_up:1", "finished", seed=0, AP=4.0)
    ledger.state(plan, "D_up:1", "running", seed=1)
    table = make_table(plan, ledger)
    text = terminal_table(plan, ledger)
    assert "3.00 ± 2.65 (3)" in text
    assert table.rows[1].state == "running"
    assert table.rows[1].detail == "1 of 3 seeds"
    assert any("mean ± standard deviation" in note for note in notes(plan, table))
    assert not any("One seed" in note for note in notes(plan, table))


def test_with_one_seed_it_says_what_a_difference_carries(plan: Plan) -> None:
    table = make_table(plan, MemoryLedger())
    assert any("±0.5 to ±0.7 AP" in note and "No verdict" in note for note in notes(plan, table))
    assert any("no figures of the paper for: D_up:1" in note for note in notes(plan, table))


def test_what_is_not_the_papers_recipe_is_said(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, set=("schedule.iterations=7",))
    table = make_table(plan, MemoryLedger())
    assert any("Not the paper's recipe" in note and "schedule.iterations" in note for note in notes(plan, table))


def test_quoted_rows_are_shown_and_not_counted(tmp_path: Path) -> None:
    quoted = "quoted: [{show: {PIoUs: other work}, paper: {AP: 41}}]\n"
    plan = plan_of(tmp_path, TABLE + quoted)
    table = make_table(plan, MemoryLedger())
    assert (table.rows[-1].state, table.rows[-1].cells["AP"].paper) == ("quoted", 41)
    assert "2 of 2 rows are not finished." in notes(plan, table)
    assert "other work" in terminal_table(plan, MemoryLedger())


def test_a_test_split_has_columns_of_its_own(tmp_path: Path) -> None:
    write_data(tmp_path / "data", splits=("train", "val", "final"))
    plan = plan_of(tmp_path, set=("data.test=final",))
    ledger = MemoryLedger()
    ledger.state(plan, "1:1", "finished", AP=40.0, test_AP=38.5)
    table = make_table(plan, ledger)
    assert table.metrics[6:8] == ("test_AP", "test_AP50")
    assert (table.rows[0].cells["test_AP"].ours, table.rows[0].cells["test_AP"].paper) == (mean([38.5]), None)
    assert "38.50" in terminal_table(plan, ledger)
    assert "test_AP" in page(plan, table, ledger)
    assert next(csv.DictReader(io.StringIO(comma_separated(table))))["test_AP"] == "38.5"


def test_a_test_split_without_annotations_has_none_and_says_where_the_detections_are(tmp_path: Path) -> None:
    path = write_data(tmp_path / "data", splits=("train", "val", "final")) / "annotations" / "final.json"
    document = json.loads(path.read_text())
    del document["annotations"]
    path.write_text(json.dumps(document))
    plan = plan_of(tmp_path, set=("data.test=final",))
    assert plan.rows[0].test is not None
    assert not plan.rows[0].test.annotated
    table = make_table(plan, MemoryLedger())
    assert "test_AP" not in table.metrics
    assert any(note.startswith("final has no annotations here") for note in notes(plan, table))


def test_markdown_and_csv(plan: Plan) -> None:
    ledger = MemoryLedger()
    ledger.state(plan, "1:1", "finished", AP=40.0)
    ledger.reused["1:1", 0] = "table1/ATSS"
    table = make_table(plan, ledger)
    text = markdown(plan, table)
    assert "| 1:1 | 1 | 1 | 40.00 / 39.75 / +0.25 | – / 57.43 / – | – |" in text
    assert "finished (reused from table1/ATSS)" in text
    rows = list(csv.DictReader(io.StringIO(comma_separated(table))))
    assert (rows[0]["row"], rows[0]["AP"], rows[0]["AP_paper"], rows[0]["AP50"]) == ("1:1", "40.0", "39.75", "")
    assert (rows[1]["PIoUs"], rows[1]["AP"], rows[1]["state"]) == ("D_up", "", "pending")


def test_json_entries(plan: Plan) -> None:
    ledger = MemoryLedger()
    identity = ledger.state(plan, "1:1", "finished", AP=40.0, APs=None, APm=math.nan)
    ledger.runs["1:1", 0] = "abc"
    first, second = result_rows(plan, ledger)
    assert first == {
        "row": "1:1", "seed": 0, "identity": identity, "state": "finished", "run_id": "abc", "reused_from": None,
        "step": 100, "metrics": {"AP": 40.0, "APs": None, "APm": None}, "error": None,
    }  # fmt: skip
    assert (second["state"], second["metrics"], second["run_id"]) == ("pending", {}, None)


def test_the_best_is_the_first_with_the_highest_defined_ap(plan: Plan) -> None:
    ledger = MemoryLedger()
    assert best(plan, result_rows(plan, ledger)) is None
    ledger.state(plan, "1:1", "finished", AP=None)
    ledger.state(plan, "D_up:1", "finished", AP=3.0)
    winner = best(plan, result_rows(plan, ledger))
    assert winner is not None
    assert winner[0].row == "D_up:1"
    ledger.state(plan, "1:1", "finished", AP=3.0)
    winner = best(plan, result_rows(plan, ledger))
    assert winner is not None
    assert winner[0].row == "1:1"


class _Strict(HTMLParser):
    """Every tag is closed, and nothing is fetched from anywhere: links lead to runs or to sections of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "img", "object", "embed", "form")
        for name, value in attrs:
            assert name != "src"
            assert not name.startswith("on"), (tag, name, value)
            if name == "href":
                assert value is not None
                allowed = {"a": ("#", "http://127.0.0.1:5000/#/runs/"), "link": ("data:",), "use": ("#",)}
                assert value.startswith(allowed.get(tag, ("data:image/jpeg;base64,",))), (tag, value)
                self.links += [value] if tag == "a" else []
        self.tags.append(tag)
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_offline_and_escaped(plan: Plan) -> None:
    attack = '<script>alert("x")</script>&"'
    evil = replace(
        plan,
        title=attack,
        command=attack,
        rows=tuple(replace(row, row=attack, show={attack: attack}) if row.row == "1:1" else row for row in plan.rows),
        figures=(plan.figures[0].model_copy(update={"name": attack, "rows": [attack, "D_up:1"]}),),
    )
    ledger = MemoryLedger()
    identity = ledger.state(evil, attack, "failed", error=attack)
    ledger.journals[identity] = {"loss_reg": [(20, 1.0), (40, 0.5)]}
    ledger.runs[attack, 0] = attack
    text = page(evil, make_table(evil, ledger), ledger)
    reader = _Strict()
    reader.feed(text)
    assert reader.open == []
    assert "svg" in reader.tags
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 6
    assert "url(" not in text
    assert "@import" not in text
    assert "#figures" in reader.links
    document = markdown(evil, make_table(evil, ledger))
    assert "<script" not in document.split("Made by\n\n    ")[0]
    assert "\x1b" not in terminal_table(replace(plan, rows=(replace(plan.rows[0], row="a\x1b[31m"),)), ledger)


def test_figures_average_the_seeds_of_a_row_and_show_how_far_they_are_apart(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=(0, 1))
    ledger = MemoryLedger()
    for seed, values in enumerate(([(20, 1.0), (40, 0.5)], [(20, 3.0), (40, None)])):
        ledger.journals[ledger.state(plan, "1:1", "running", seed=seed)] = {"loss_reg": list(values)}
    (line,) = Curves(plan, ledger).lines("loss_reg", ["1:1", "D_up:1"])
    assert (line.name, line.seeds) == ("1:1", 2)
    assert line.steps.tolist() == [20, 40]
    assert line.raw.tolist() == line.smooth.tolist() == [2.0, 0.5]
    assert (line.low.tolist(), line.high.tolist()) == ([1.0, 0.5], [3.0, 0.5])


def test_seeds_that_were_measured_at_other_steps_are_averaged_on_common_ones(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=(0, 1))
    ledger = MemoryLedger()
    for seed, values in enumerate(([(10, 1.0), (20, 2.0), (30, 3.0)], [(10, 3.0), (15, 4.0), (20, 5.0)])):
        ledger.journals[ledger.state(plan, "1:1", "running", seed=seed)] = {"loss_reg": list(values)}
    (line,) = Curves(plan, ledger).lines("loss_reg", ["1:1"])
    # At 15 the first is halfway between 1 and 2; beyond 20 there is only the first.
    assert (line.steps.tolist(), line.raw.tolist()) == ([10, 15, 20, 30], [2.0, 2.75, 3.5, 3.0])


def line_of(name: str, steps: list[float], values: list[float]) -> Line:
    at, value = np.array(steps), np.array(values)
    return Line(name, at, value, value, value, value, 1, 1)


def test_a_curve_is_drawn_to_scale() -> None:
    text = svg("loss", [line_of("a", [0.0, 50.0, 100.0], [1.0, 2.0, 3.0])])
    points = re.search(r'points="([^"]+)"', text)
    assert points is not None
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points[1].split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert (x0, x2) == (58, 614)
    # The plot is 286 high, and 3 % of the range are left free on both sides.
    assert (y0, y2) == pytest.approx((298 - 286 * 0.03 / 1.06, 12 + 286 * 0.03 / 1.06), abs=0.06)
    wide = [line_of("a", [0.0, 1.0], [0.01, 100.0])]
    assert "(logarithmic)" in caption("loss", wide)
    # From 1e-2 to 1e2 in the middle is 1, which is where the axis says 1.
    assert ">1</text>" in svg("loss", wide)
    assert "circle" in svg("AP", [line_of("a", [100.0], [40.0])])
    assert svg("AP", [line_of("a", [1.0, 2.0], [0.0, 0.0])]).count("polyline") == 1


def test_a_smoothed_curve_lags_nowhere() -> None:
    straight = np.arange(100.0)
    assert smoothed(straight) == pytest.approx(straight)
    noise = np.random.default_rng(0).normal(size=3000)
    assert smoothed(noise)[100:-100].std() == pytest.approx(noise.std() / math.sqrt(15), rel=0.1)
    by_hand = [sum(noise[i - 7 : i + 8]) / 15 for i in range(50, 60)]
    assert smoothed(noise)[50:60] == pytest.approx(by_hand)
    # At the ends numpy's own line through the last fifteen points, which one outlier doesn't pull to itself.
    line = np.polyfit(np.arange(15), noise[-15:], 1)
    assert smoothed(noise)[-7:] == pytest.approx(np.polyval(line, np.arange(8, 15)))
    assert abs(smoothed(np.append(noise, 100.0))[-1]) < 35
    assert smoothed(noise[:10]).tolist() == noise[:10].tolist()


def test_long_journals_are_thinned_to_what_can_be_seen(plan: Plan) -> None:
    ledger = MemoryLedger()
    identity = ledger.state(plan, "1:1", "running")
    ledger.journals[identity] = {"loss_reg": [(step, float(step)) for step in range(1, 90_001)]}
    (line,) = Curves(plan, ledger).lines("loss_reg", ["1:1"])
    assert len(line.steps) == 300
    assert line.raw == pytest.approx(line.steps, abs=150)
    assert line.width == pytest.approx(300, rel=0.01)
    assert len(page(plan, make_table(plan, ledger), ledger)) < 100_000


def test_the_loss_on_fixed_positives_stands_beside_the_regression_loss(plan: Plan) -> None:
    ledger = MemoryLedger()
    for name in ("1:1", "D_up:1"):
        journal: dict[str, list[tuple[int, float | None]]] = {"loss_reg": [(20, 1.0), (40, 0.5)]}
        ledger.journals[ledger.state(plan, name, "running")] = journal
    text = page(plan, make_table(plan, ledger), ledger)
    assert "There are no values of loss_reg_fixed yet; it is measured at every evaluation." in text
    assert "choose positives whose predicted boxes already fit" in text
    for journal in ledger.journals.values():
        journal["loss_reg_fixed"] = [(20, 0.75), (40, 0.25)]
    text = page(plan, make_table(plan, ledger), ledger)
    assert "There are no values" not in text
    assert text.count('<svg class="plot"') == 2
    assert 'aria-label="loss_reg_fixed over steps"' in text


def test_the_report_is_written_whole(plan: Plan) -> None:
    paths = write_report(plan, MemoryLedger())
    assert sorted(paths) == ["pairs.csv", "report.html", "report.md", "table.csv"]
    assert sorted(path.name for path in plan.folder.iterdir()) == sorted(paths)
    for path in paths.values():
        assert path.stat().st_size > 100
