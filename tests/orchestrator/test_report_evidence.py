"""Kinds of error, changed images, cost and marks in the report: from stored results, by hand and by plain loops."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector.error_kinds import KINDS, STATES, ErrorKinds, best_threshold, error_kinds
from detector.matches import match
from detector.results import Results
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan
from orchestrator.record import Record
from orchestrator.report import write_report
from orchestrator.report.changed import MOST_BYTES, SIDE, most_changed, thumbnail
from orchestrator.report.cost import costs, hours_text, training_hours
from orchestrator.report.errors import cells
from orchestrator.report.evidence import Evidence, most_confused
from orchestrator.report.figures import Curves
from orchestrator.report.hardware import marks
from orchestrator.report.page import page
from orchestrator.report.table import make_table, notes
from orchestrator.report.text import markdown, terminal
from tests.made_up import make_sweep, name_of
from tests.orchestrator.tables import TABLE, MemoryLedger
from tests.orchestrator.test_report import _Strict, plan_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Ledger]:
    """Three rows with two seeds each, all there but one, with their images."""
    return make_sweep(tmp_path_factory.mktemp("made"), rows=3, seeds=2, images=10, pairs=2, unfinished=[(2, 1)])


def folder_of(plan: Plan, ledger: Ledger, place: int) -> Path:
    return ledger.training(plan.rows[place].identity) / "evaluations" / plan.rows[place].evaluation


def test_an_evaluation_is_examined_once_and_again_where_that_is_damaged(made: tuple[Plan, Ledger]) -> None:
    plan, ledger = made
    row, folder = plan.rows[0], folder_of(plan, ledger, 0)
    assert row.val is not None
    found = ledger.examined(row.identity, row.evaluation, row.val.digest)
    assert isinstance(found, ErrorKinds)
    split = ledger.split(row.val.digest)
    assert not isinstance(split, str)
    detections = json.loads((folder / "detections.json").read_text())
    truth, found_there = split.instances(), Results.of_entries(detections)
    threshold = best_threshold(match(truth, found_there))
    again = error_kinds(truth, found_there, threshold)
    assert 0.2 < threshold < 0.9
    assert {name: value.tolist() for name, value in found.arrays().items()} == {
        name: value.tolist() for name, value in again.arrays().items()
    }
    (folder / "errors.npz").write_bytes(b"torn")
    second = ledger.examined(row.identity, row.evaluation, row.val.digest)
    assert isinstance(second, ErrorKinds)
    assert second.counts() == found.counts()
    assert isinstance(ledger.examined(row.identity, "nothing", row.val.digest), str)
    assert ledger.split("other") == "its converted images are no longer in the storage"


def test_a_row_is_the_mean_of_its_seeds(made: tuple[Plan, Ledger]) -> None:
    plan, ledger = made
    rows = Evidence(plan, ledger).rows()
    assert [(row.name, row.seeds) for row in rows] == [(name_of(0), 2), (name_of(1), 2), (name_of(2), 1)]
    singles = [ledger.examined(row.identity, row.evaluation, row.val.digest) for row in plan.rows[:2] if row.val]
    counts = [one.counts() for one in singles if isinstance(one, ErrorKinds)]
    assert rows[0].counts["found"] == (counts[0]["found"] + counts[1]["found"]) / 2
    told = sum(sum(one[kind] for kind in KINDS if kind != "in a crowd") for one in counts) / 2
    assert rows[0].f1 == pytest.approx(200 * rows[0].counts["found"] / (told + counts[0]["boxes"]))
    assert cells(rows[0])[:2] == [name_of(0), f"{rows[0].f1:.1f}"]
    ids = [number for number, _ in plan.rows[0].val.categories] if plan.rows[0].val else []
    assert most_confused(rows, ids, 2) == sorted(most_confused(rows, ids, 2))
    assert most_confused(rows, ids, 99) == ids


def errors(image_ids: list[int], per_image: list[int]) -> ErrorKinds:
    """An evaluation that missed so many boxes on each image."""
    place = np.repeat(np.arange(len(image_ids)), per_image).astype(np.int32)
    none, box = np.zeros(0, np.int32), np.zeros((0, 4), np.float32)
    return ErrorKinds(
        np.array(0.5), np.array(image_ids), np.array([1]), none, none, box, box[:, 0], none.astype(np.int8), none,
        place, np.zeros_like(place), np.ones((len(place), 4), np.float32),
        np.full(len(place), STATES.index("missed"), np.int8),
    )  # fmt: skip


def test_the_images_that_changed_most_are_half_in_favour_of_each() -> None:
    ids = [10, 20, 30, 40, 50, 60]
    # Seed 0: differences 3 -1 0 2 -4 1; seed 1: 1 -1 0 2 0 5; mean 2 -1 0 2 -2 3.
    pairs = [
        (0, errors(ids, [4, 1, 2, 3, 1, 1]), errors(ids, [1, 2, 2, 1, 5, 0])),
        (1, errors(ids, [1, 0, 2, 2, 3, 5]), errors(ids, [0, 1, 2, 0, 3, 0])),
    ]
    assert [(c.image_id, c.difference, c.seed) for c in most_changed(pairs, 4)] == [
        (60, 3.0, 1), (10, 2.0, 0), (50, -2.0, 0), (20, -1.0, 0),
    ]  # fmt: skip
    assert [c.image_id for c in most_changed(pairs, 2)] == [60, 50]
    assert [c.image_id for c in most_changed(pairs, 99)] == [60, 10, 40, 50, 20]  # nothing changed on 30
    # Where there is nothing to the favour of one, the other has all.
    one_sided = [(0, errors(ids, [1, 2, 3, 4, 5, 6]), errors(ids, [0] * 6))]
    assert [c.image_id for c in most_changed(one_sided, 4)] == [60, 50, 40, 30]
    assert most_changed([(0, pairs[0][1], pairs[0][1])], 4) == []
    assert most_changed([], 4) == []


@pytest.mark.parametrize(("height", "width"), [(1200, 90), (300, 2000), (20, 10)])
def test_thumbnails_are_small(height: int, width: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    content = thumbnail(noise)
    assert len(content) <= MOST_BYTES
    image = Image.open(io.BytesIO(content))
    assert max(image.size) <= SIDE
    assert image.width / image.height == pytest.approx(width / height, rel=0.1)


def test_both_rows_boxes_are_drawn_over_the_truth(made: tuple[Plan, Ledger]) -> None:
    plan, ledger = made
    text = write_report(plan, ledger)["report.html"].read_text()
    reader = _Strict()
    reader.feed(text)
    assert reader.open == []
    section = text[text.index('<section id="images">') : text.index('<section id="cost">')]
    cards = section.split('<div class="change">')[1:]
    assert 3 <= len(cards) <= 8
    split = ledger.split(plan.rows[0].val.digest) if plan.rows[0].val else ""
    assert not isinstance(split, str)
    for card in cards:
        file_name = re.search(r'caption"><b>([^<]+)</b>', card)
        assert file_name is not None
        place = split.file_names.index(file_name[1])
        height, width = split.sizes[place].tolist()
        assert card.count(f'viewBox="0 0 {width} {height}"') == 3
        data = re.search(r"base64,([^\"]+)", card)
        assert data is not None
        assert Image.open(io.BytesIO(base64.b64decode(data[1]))).format == "JPEG"
        first, second = card.split('<svg class="picture"')[1:]
        for panel in (first, second):
            truths = panel.count('<g class="truth">') + panel.count('<g class="lost">')
            assert truths == len(split.boxes(place))
        assert first != second


def test_markdown_has_errors_and_cost(made: tuple[Plan, Ledger]) -> None:
    plan, ledger = made
    text = write_report(plan, ledger)["report.md"].read_text()
    rows = Evidence(plan, ledger).rows()
    assert "| " + " | ".join(cells(rows[0])) + " |" in text
    assert "## Kinds of error" in text
    assert re.search(r"\| weight 1\.00 \| [0-9.]+ GPU-[hs] \| – \| 32 \| 21\.5 \| 2 x Made-up GPU \|", text)


def test_what_can_not_be_examined_is_said(made: tuple[Plan, Ledger], tmp_path: Path) -> None:
    plan, _ = made
    copy = tmp_path / "storage"
    shutil.copytree(plan.storage, copy)
    for row in plan.rows[:2]:
        folder = copy / "trainings" / row.identity / "evaluations" / row.evaluation
        for name in ("errors.npz", "matches.npz", "detections.json"):
            (folder / name).unlink(missing_ok=True)
    other = replace(plan, storage=copy)
    text = page(other, make_table(other, Ledger(copy)), Ledger(copy))
    assert f"Not examined: {name_of(0)} (its detections are not in the storage)." in text
    assert "No images: its detections are not in the storage." in text


def test_rows_without_results_have_no_errors_and_no_images(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    text = page(plan, make_table(plan, MemoryLedger()), MemoryLedger())
    assert 'id="errors"' not in text
    assert 'id="images"' not in text
    assert "There are no values of loss_reg yet." in text
    assert "2 pending" in text


def test_a_metric_that_some_rows_lack_is_undefined_there_alone(tmp_path: Path) -> None:
    table = TABLE.replace("metric: loss_reg", "metric: loss_quality")
    plan = plan_of(tmp_path, table)
    ledger = MemoryLedger()
    identity = ledger.state(plan, "1:1", "finished", AP=40.0, APs=None)
    ledger.state(plan, "D_up:1", "finished", AP=39.0, APs=21.0)
    ledger.journals[identity] = {"loss_quality": [(10, 0.6), (20, 0.5)]}
    text = page(plan, make_table(plan, ledger), ledger)
    figure = text[text.index("<figure>") : text.index("</figure>")]
    assert (figure.count("1:1"), figure.count("D_up:1")) == (1, 0)
    lines = re.findall(r'<tr class="finished">(.*?)</tr>', text)
    assert [re.findall(r'class="ours">([^<]+)<', line)[3] for line in lines] == ["–", "21.00"]


def ran(plan: Plan, ledger: MemoryLedger, row: str, hours: float, seed: int = 0, **hardware: object) -> str:
    identity = ledger.state(plan, row, "finished", seed=seed, AP=30.0, inference_ms=20.0 + seed)
    values = {"device": "cuda", "name": "H", "workers": 2, "threads": 4, "torch": "2.14", **hardware}
    attempt = {"started": 0.0, "ended": 3600 * hours, "hardware": values}
    record = replace(ledger.records[identity], history=(attempt,), seconds=3600 * hours, hardware=values)
    ledger.records[identity] = record
    return identity


def test_cost_and_what_reuse_saved(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=(0, 1))
    ledger = MemoryLedger()
    identity = ran(plan, ledger, "1:1", 3.0)
    ran(plan, ledger, "1:1", 2.0, seed=1)
    ledger.journals[identity] = {"images_per_second": [(10, 30.0), (20, 50.0)]}
    ran(plan, ledger, "D_up:1", 1.5)
    ran(plan, ledger, "D_up:1", 0.5, seed=1, device="cpu", workers=1)
    ledger.reused["D_up:1", 0] = "table1/ATSS"
    first, second = costs(plan, ledger, Curves(plan, ledger))
    assert (first.hours, first.saved, first.reused) == ({"GPU": 10.0}, {}, 0)  # two workers
    assert (first.images_per_second, first.inference_ms) == (40.0, 20.5)
    assert (second.hours, second.saved, second.reused) == ({"CPU": 2.0}, {"GPU": 3.0}, 1)  # four threads
    assert second.images_per_second is None
    assert hours_text({"GPU": 3.0, "CPU": 0.25}) == "3 GPU-h + 0.25 CPU-h"
    text = page(plan, make_table(plan, ledger), ledger)
    assert "In all 10 GPU-h + 2 CPU-h were spent, and 3 GPU-h saved since trainings were there already." in text


def test_hours_count_every_attempt_and_one_that_goes_on() -> None:
    on = {"device": "cuda", "workers": 4}
    history = ({"started": 0.0, "ended": 1800.0, "hardware": on}, {"started": 2000.0, "hardware": on})
    record = Record("a", Path(), history=history, seconds=5400.0, hardware=on)
    assert training_hours(record) == {"GPU": 6.0}
    assert training_hours(Record("a", Path())) == {}


def test_rows_of_other_hardware_or_versions_are_marked(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=(0, 1))
    ledger = MemoryLedger()
    for seed in (0, 1):
        ran(plan, ledger, "1:1", 1.0, seed=seed)
    ran(plan, ledger, "D_up:1", 1.0)
    assert marks(plan, ledger) == {}
    ran(plan, ledger, "D_up:1", 1.0, seed=1, torch="2.15", name="V")
    assert marks(plan, ledger) == {"D_up:1": "2 x V, torch 2.15"}
    table = make_table(plan, ledger)
    assert any(note.startswith("◆") and "D_up:1 (2 x V, torch 2.15)" in note for note in notes(plan, table))
    assert "◆ 2 x V, torch 2.15" in page(plan, table, ledger)
    for text in (terminal(plan, table), markdown(plan, table)):
        assert text.count("up:1 ◆") == 1
        assert "\n1:1 ◆" not in text


def test_names_are_escaped_wherever_they_stand(made: tuple[Plan, Ledger]) -> None:
    plan, ledger = made
    attack = "<img src=x onerror=alert(1)>"
    evil_names = {name_of(0): attack}
    rows = tuple(
        replace(
            row,
            row=evil_names.get(row.row, row.row),
            val=row.val and replace(row.val, categories=tuple((n, attack + str(n)) for n, _ in row.val.categories)),
        )
        for row in plan.rows
    )
    evil = replace(plan, rows=rows, compare=((attack, name_of(1)),), title=attack)
    text = page(evil, make_table(evil, ledger), ledger)
    reader = _Strict()
    reader.feed(text)
    assert reader.open == []
    assert attack not in text
    assert text.count("&lt;img src=x") > 20


def test_thousands_of_classes_leave_the_page_small(made: tuple[Plan, Ledger]) -> None:
    plan, ledger = made
    many = tuple((number, f"class {number}") for number in range(1, 5001))
    rows = tuple(replace(row, val=row.val and replace(row.val, categories=many)) for row in plan.rows)
    wide = replace(plan, rows=rows)
    text = page(wide, make_table(wide, ledger), ledger)
    assert "the 4,990 other classes are left out" in text
    assert len(text) < 1_000_000


def test_a_class_without_a_box_is_undefined(made: tuple[Plan, Ledger]) -> None:
    plan, ledger = made
    rows = tuple(
        replace(row, val=row.val and replace(row.val, categories=(*row.val.categories, (99, "unicorn"))))
        for row in plan.rows
    )
    text = page(replace(plan, rows=rows), make_table(plan, ledger), ledger)
    line = re.search(r'<th scope="row" class="text">unicorn</th>(.*?)</tr>', text)
    assert line is not None
    assert set(re.findall(r">([^<>]+)</td>", line[1])) == {"–"}


def test_a_password_is_nowhere(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    secret = replace(
        plan,
        tracking_uri="https://me:hunter2@tracking.example/mlflow",
        command="python -m orchestrator.sweep t.yaml --tracking-uri https://me:hunter2@tracking.example/mlflow",
    )
    ledger = MemoryLedger()
    ledger.state(secret, "1:1", "finished", AP=1.0)
    ledger.runs["1:1", 0] = "abc"
    for path in write_report(secret, ledger).values():
        assert "hunter2" not in path.read_text()
    assert 'href="https://tracking.example/mlflow/#/runs/abc"' in (secret.folder / "report.html").read_text()


def test_an_attempt_on_other_hardware_marks_the_row_though_the_last_was_on_the_usual(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    ledger = MemoryLedger()
    for row in ("1:1", "D_up:1"):
        ran(plan, ledger, row, 1.0)
    record = ledger.records[ran(plan, ledger, "D_up:1", 1.0)]
    before = {"started": 0.0, "ended": 60.0, "hardware": {**record.hardware, "name": "V", "torch": "2.13"}}
    ledger.records[record.identity] = replace(record, history=(before, *record.history))
    assert marks(plan, ledger) == {"D_up:1": "2 x V, torch 2.13"}
    text = page(plan, make_table(plan, ledger), ledger)
    assert "2 x V; 2 x H" in text
    assert "torch 2.13; torch 2.14" in text
