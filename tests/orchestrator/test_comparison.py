"""What the report says of pairs of rows, from results that are stated by hand: verdicts and order."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.comparison import compare
from orchestrator.plan import Plan, make_plan
from orchestrator.report import terminal_table, write_report
from orchestrator.report.changed import sections
from orchestrator.report.evidence import Evidence
from orchestrator.report.pairs import documents, order_note, pair_cells, pair_notes
from orchestrator.report.table import make_table
from orchestrator.report.text import markdown, terminal
from orchestrator.request import SweepRequest
from tests.orchestrator.comparisons import AP, TABLE, finished, plan_of, verdicts
from tests.orchestrator.tables import BASE, MemoryLedger, write_data, write_table


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(tmp_path)


def test_a_difference_is_paired_by_seed_and_judged_beside_the_papers(plan: Plan) -> None:
    comparison = compare(plan, finished(plan))
    both, half, up = comparison.pairs
    assert both.judgement is not None
    # (2.1 + 1.9 + 2.2) / 3
    assert both.judgement.difference == pytest.approx(6.2 / 3)
    assert both.judgement.interval is not None
    assert both.judgement.interval[0] < 6.2 / 3 < both.judgement.interval[1]
    assert both.verdict == "reproduced"
    assert both.where == ""
    assert half.verdict.startswith("can't tell: ")
    assert re.fullmatch(r"can't tell: about \d+ more seeds .*, if the difference is the one seen", up.verdict)
    assert half.judgement is not None
    assert half.judgement.size is not None
    assert half.judgement.size.within_noise
    assert "within the paper's own noise" in pair_cells(half)[6]
    assert "beyond the paper's own noise" in pair_cells(both)[6]
    assert pair_cells(up)[5:7] == ["–", "–"]


def test_the_opposite_is_contradicted(plan: Plan) -> None:
    found = compare(plan, finished(plan, AP | {"both": (28.0, 28.3, 28.1)}))
    assert found.pairs[0].verdict == "contradicted"


@pytest.mark.parametrize(
    ("setting", "key", "model"),
    [
        ("schedule.iterations=7", "schedule.iterations", "atss r18"),
        ("model.backbone=r34", "model.backbone", "atss r34"),
        ("schedule.precision=bfloat16", "schedule.precision", "atss r18"),
        ("model.weights=imagenet", "model.weights", "atss r18"),
        ("data.train=elsewhere", "data.train", "atss r18"),
        ("model.postprocess.max_detections=7", "model.postprocess.max_detections", "atss r18"),
    ],
)
def test_elsewhere_nothing_is_reproduced_or_contradicted(tmp_path: Path, setting: str, key: str, model: str) -> None:
    plan = plan_of(tmp_path, set=(setting,))
    ledger = finished(plan)
    both = compare(plan, ledger).pairs[0]
    assert both.verdict.startswith("same direction on data (")
    assert both.verdict.endswith(f"with {model}")
    assert both.other == (key,)
    assert both.judgement is not None
    assert both.judgement.size is not None
    # Of other data or another model a size is no measure of the paper's.
    assert both.judgement.size.verdict is None
    assert both.judgement.size.assumed
    text = markdown(plan, make_table(plan, ledger), compare(plan, ledger))
    assert key.replace("_", "\\_") in text
    for line in text.splitlines():
        assert not line.startswith("|") or ("reproduced" not in line and "contradicted" not in line)
    ledger = finished(plan, AP | {"both": (28.0, 28.3, 28.1)})
    assert compare(plan, ledger).pairs[0].verdict.startswith("opposite on data (")


def test_generated_images_are_named(tmp_path: Path) -> None:
    sets = tuple(f"data.generated.{value}" for value in ("train_images=2", "val_images=1", "long_side=128"))
    plan = plan_of(tmp_path, set=sets)
    both = compare(plan, finished(plan)).pairs[0]
    assert both.verdict == "same direction on generated images with atss r18"
    assert "data.generated" in both.other


def test_a_folder_whose_splits_are_called_as_cocos_is_not_coco(tmp_path: Path) -> None:
    write_data(tmp_path / "data", splits=("train2017", "val2017"))
    base = (
        BASE.replace("train: train, val: val", "train: train2017, val: val2017") + f"data.root: {tmp_path / 'data'}\n"
    )
    path = write_table(tmp_path, TABLE, base=base)
    plan = make_plan(SweepRequest(str(path), storage=str(tmp_path / "storage")))
    both = compare(plan, finished(plan)).pairs[0]
    assert both.other == ("data.root",)
    assert both.verdict == "same direction on data (train2017, 2 images) with atss r18"
    facts = plan.rows[0].train
    assert facts is not None
    coco = [
        replace(
            row,
            train=replace(facts, images=118_287, categories=tuple((n, str(n)) for n in range(80))),
            val=replace(facts, split="val2017", images=5_000, categories=tuple((n, str(n)) for n in range(80))),
        )
        for row in plan.rows
    ]
    plan = replace(plan, rows=tuple(coco))
    assert compare(plan, finished(plan)).pairs[0].verdict == "reproduced"


def test_with_one_seed_nothing_can_be_told(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=(0,))
    ledger = finished(plan, AP | {"both": (90.0, 90.0, 90.0)})
    comparison = compare(plan, ledger)
    assert set(verdicts(comparison).values()) == {"can't tell"}
    assert all(pair.judgement and pair.judgement.interval is None for pair in comparison.pairs)
    assert not comparison.look
    write_report(plan, ledger)
    assert ledger.seen == []
    assert pair_cells(comparison.pairs[2])[4] == "can't tell (one seed)"


def test_no_verdict_before_all_planned_trainings_are_finished(plan: Plan) -> None:
    ledger = finished(plan)
    ledger.state(plan, "up", "failed", seed=2, error="the loss is not finite")
    comparison = compare(plan, ledger)
    assert set(verdicts(comparison).values()) == {"can't tell"}
    assert comparison.pairs[0].judgement is not None
    assert comparison.pairs[0].judgement.interval is not None
    assert any("1 of 12 planned trainings is not finished" in note for note in pair_notes(comparison))
    write_report(plan, ledger)
    assert ledger.seen == []


def test_rows_without_results_and_undefined_figures_are_shown_as_such(plan: Plan) -> None:
    ledger = MemoryLedger()
    comparison = compare(plan, ledger)
    assert pair_cells(comparison.pairs[0])[:4] == ["both − plain", "0", "–", "–"]
    assert documents(comparison)[0]["difference"] is None
    ledger = finished(plan)
    for seed in (0, 1, 2):
        ledger.state(plan, "up", "finished", seed=seed, AP=None)
    comparison = compare(plan, ledger)
    assert comparison.pairs[0].verdict == "reproduced"
    assert pair_cells(comparison.pairs[2])[:5] == [
        "up − plain",
        "0",
        "–",
        "–",
        "can't tell (finished without a defined AP: up (seed 0, 1, 2))",
    ]


def test_rows_of_different_data_are_not_compared(tmp_path: Path) -> None:
    table = TABLE.replace("{name: half, set: {", "{name: half, set: {data.train: elsewhere, ")
    plan_of(tmp_path, table)
    path = tmp_path / "data" / "annotations" / "elsewhere.json"
    path.write_text(path.read_text().replace('"area": 600', '"area": 599'))
    plan = make_plan(SweepRequest(str(tmp_path / "tiny.yaml"), storage=str(tmp_path / "storage")))
    comparison = compare(plan, finished(plan))
    both, half, _ = comparison.pairs
    assert both.verdict == "reproduced"
    assert half.judgement is None
    assert half.refused.startswith(
        "trained on different data: half on elsewhere of data (2 images), plain on train of data"
    )
    entry = documents(comparison)[1]
    assert (entry["verdict"], entry["reason"], entry["difference"]) == ("not compared", half.refused, None)
    assert "not compared: trained on different data" in terminal_table(plan, finished(plan))
    images = sections(plan, finished(plan), Evidence(plan, finished(plan)))
    assert f"<p>Not compared: {half.refused}.</p>" in images
    # What was trained on other data takes no part in the deviation of the others.
    assert both.judgement is not None
    assert both.judgement.df == 4


def test_two_names_of_one_training_count_once(tmp_path: Path) -> None:
    table = TABLE.replace("compare:", "  - {name: again, set: {model.assigner.predicted_weight: 1}}\ncompare:")
    plan = plan_of(tmp_path, table.replace("[up, plain]", "[again, both]"))
    comparison = compare(plan, finished(plan, AP | {"again": AP["both"]}))
    both, _, again = comparison.pairs
    assert both.judgement is not None
    assert both.judgement.df == 6
    assert again.judgement is not None
    assert (again.judgement.difference, again.judgement.reason) == (0.0, "the two rows are one training")


def test_pairs_of_rows_that_are_not_selected_count_in_the_adjustment(tmp_path: Path) -> None:
    whole = plan_of(tmp_path, only=("plain", "both"))
    ledger = finished(whole)
    alone = replace(whole, pairs=1)
    one, three = (compare(plan, ledger).pairs[0].judgement for plan in (alone, whole))
    assert one is not None
    assert three is not None
    assert three.p_adjusted == pytest.approx(3 * one.p_adjusted)


def test_the_order_is_compared_with_the_papers_and_with_a_second_run_of_it(plan: Plan, tmp_path: Path) -> None:
    comparison = compare(plan, finished(plan))
    assert comparison.agreement is not None
    assert comparison.agreement.rows == ("plain", "half", "both")
    # Means 30.13, 30.2 and 32.2 stand in the paper's order.
    assert comparison.agreement.tau == 1.0
    note = order_note(comparison, has_paper=True)
    assert note is not None
    assert note.startswith("Order of the 3 rows that have both figures: Kendall's tau with the paper 1.00; ")
    assert "A second run of the paper would reach" in note
    other = plan_of(tmp_path / "other", set=("schedule.iterations=7",))
    comparison = compare(other, finished(other))
    assert "on data (train, 2 images) with atss r18" in str(order_note(comparison, has_paper=True))
    assert comparison.agreement is not None
    assert (comparison.agreement.deviation, comparison.agreement.assumed) == (0.25, True)
    nothing = compare(plan, MemoryLedger())
    assert nothing.agreement is None
    assert "can't be compared" in str(order_note(nothing, has_paper=True))
    assert order_note(nothing, has_paper=False) is None


def test_two_rows_have_one_order_and_no_interval(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, only=("plain", "both"))
    note = order_note(compare(plan, finished(plan)), has_paper=True)
    assert note == (
        "Only two rows have both figures: their order is the paper's, as it would be by chance every second time."
    )


def test_what_a_note_of_the_table_says_is_not_said_again(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, set=("schedule.iterations=7",))
    text = terminal_table(plan, finished(plan))
    assert "Not the paper's recipe: the profile or --set changed" in text
    assert text.count("schedule.iterations") == 1
    (alone,) = (note for note in pair_notes(compare(plan, finished(plan))) if note.startswith("Not what the paper did"))
    assert "schedule.iterations" in alone


def test_a_narrow_terminal_gets_the_metrics_that_fit(plan: Plan) -> None:
    ledger = finished(plan)
    table, comparison = make_table(plan, ledger), compare(plan, ledger)
    wide = terminal(plan, table, comparison)
    head = wide.splitlines()[2]
    assert head.split()[:8] == ["row", "AP", "AP50", "AP75", "APs", "APm", "APl", "state"]
    narrow = terminal(plan, table, comparison, width=56)
    above = narrow[: narrow.index("compared")].splitlines()
    assert all(len(line) <= 56 for line in above)
    assert above[2].split() == ["row", "AP", "AP50", "AP75", "state"]
    assert "For want of width without APs, APm, APl; report.md has all." in " ".join(narrow.split())
    assert "without AP" not in terminal(plan, table, comparison, width=len(head) + 40)


def test_names_are_escaped_and_every_form_has_the_pairs(plan: Plan) -> None:
    attack = '<script>alert("x")</script>|\x1b[31m'
    evil = replace(
        plan,
        rows=tuple(replace(row, row=attack) if row.row == "both" else row for row in plan.rows),
        compare=((attack, "plain"), ("half", "plain"), ("gone", "plain")),
    )
    ledger = finished(evil, AP | {attack: AP["both"]})
    paths = write_report(evil, ledger)
    text = paths["report.html"].read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "<script" not in paths["report.md"].read_text().split("Made by")[0]
    assert "\x1b" not in terminal_table(evil, ledger)
    lines = list(csv.DictReader(io.StringIO(paths["pairs.csv"].read_text())))
    assert [(line["first"], line["n"], line["verdict"]) for line in lines] == [
        (attack, "3", "reproduced"),
        ("half", "3", "can't tell"),
    ]
    assert float(lines[0]["interval_low"]) < float(lines[0]["difference"]) < float(lines[0]["interval_high"])
    assert lines[1]["interval_images_low"] == ""


def test_a_table_that_compares_nothing_has_no_pairs(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TABLE.replace("compare: [[both, plain], [half, plain], [up, plain]]\n", ""))
    ledger = finished(plan)
    assert sorted(write_report(plan, ledger)) == ["report.html", "report.md", "table.csv"]
    assert ledger.seen == []
