"""What a row's run has in MLflow beside its figures, made from the ledger alone."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from detector.checkpoint_store import CheckpointStore, write_manifest
from orchestrator import journal
from orchestrator.artifacts import class_table, precision_recall_plot
from orchestrator.dataset import SplitFacts
from orchestrator.evaluation import sheet_name
from orchestrator.ledger import Ledger
from orchestrator.plan import make_plan as planned
from orchestrator.report.page import page
from orchestrator.report.table import make_table
from orchestrator.request import SweepRequest
from orchestrator.run_tags import params, row_tags, sweep_tags, training_tags
from orchestrator.sweep import closing_lines
from tests.orchestrator.test_tracking import (  # noqa: F401
    STEPS,
    begin,
    empty_database,
    finish,
    history,
    make_plan,
    opened,
    runs,
    storage,
    train,
)  # fmt: skip

TRAIN = SplitFacts("/data/bccd", "train", "a" * 64, ((1, "cat"),), 100, 300)
VAL = SplitFacts("/data/bccd", "val", "b" * 64, ((1, "cat"),), 10, 30)


def keep_sheet(ledger, row, step):
    folder = ledger.storage / "shown"
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (step, 0, 0)).save(folder / sheet_name(step))
    (folder / "precision.json").write_text(
        json.dumps({"0.5": [1.0, 0.5], "0.75": [None, None], "0.5:0.95": [0.5, 0.0]})
    )
    ledger.show(row.identity, row.evaluation, folder)


def keep_checkpoint(ledger, row, step):
    source = ledger.storage / "made" / str(step)
    source.mkdir(parents=True)
    (source / "state.pt").write_bytes(b"x" * step)
    write_manifest(source, step, None)
    CheckpointStore(ledger.place.shared(f"trainings/{row.identity}")).keep(source, step)


def images(client, run):
    return sorted(file.path for file in client.list_artifacts(run.info.run_id, "images"))


def test_a_run_shows_data_machine_predictions_and_checkpoints_once(storage):  # noqa: F811
    plan = make_plan(storage, {"x": "a"})
    row = replace(plan.rows[0], train=TRAIN, val=VAL)
    plan = replace(plan, rows=(row,))
    ledger = Ledger(storage)
    ledger.claim(
        row.identity, sweep=plan.key, row=row.row, seed=0, config={"seed": 0}, iterations=STEPS, basis={"r": 1}
    )
    hardware = {"device": "cpu", "name": "x86_64", "workers": 2, "threads": 3, "torch": "2.9", "ray": "2.60"}
    more = {"nodes": ["one", "two"], "revision": "c" * 40, "sources": "d" * 16}
    ledger.started(row.identity, node="one", from_step=0, hardware=hardware, **more)
    tracker = opened(plan, ledger)
    path = ledger.record(row.identity).journal
    for step in (2, 4):
        journal.append(path, step, "train", {"loss": 1.0})
        journal.append(path, step, "system", {"system/cpu_utilization_percentage": 50.0})
        keep_sheet(ledger, row, step)
        journal.append(path, step, "evaluation", {"AP": 1.0 * step}, evaluation="val")
        tracker.push()
    keep_checkpoint(ledger, row, 4)
    # A new driver: it goes on from step 2, and evaluates step 4 again.
    ledger.started(row.identity, node="one", from_step=2, hardware=hardware, **more)
    keep_sheet(ledger, row, 4)
    journal.append(path, 4, "evaluation", {"AP": 4.0}, evaluation="val")
    second = opened(plan, ledger)
    second.push()
    train(ledger, row, 4, STEPS)
    keep_sheet(ledger, row, STEPS)
    finish(ledger, row)
    assert second.finish("FINISHED") is None
    assert opened(plan, ledger, thorough=True).finish("FINISHED") is None
    client, (parent,), children = runs(plan)
    run = children["x", 0]
    assert history(client, run, "system/cpu_utilization_percentage") == [(2, 50.0), (4, 50.0)]
    assert history(client, run, "AP") == [(2, 2.0), (4, 4.0), (STEPS, 30.0)]
    shown = images(client, run)
    assert [name.split("+")[2] for name in shown] == ["2", "2", "4", "4", "6", "6"]
    assert all(name.startswith("images/predictions+step+") and name.endswith(".webp") for name in shown)
    assert sum("+compressed." in name for name in shown) == 3
    assert run.data.tags["mlflow.loggedImages"] == "True"
    inputs = {one.tags[0].value: one.dataset for one in run.inputs.dataset_inputs}
    assert {use: data.name for use, data in inputs.items()} == {"training": "bccd/train", "evaluation": "bccd/val"}
    assert inputs["training"].digest == "a" * 32
    assert json.loads(inputs["training"].profile) == {"images": 100, "boxes": 300, "classes": 1}
    tags = run.data.tags
    assert (tags["attempt"], tags["nodes"], tags["sources"]) == ("2", "one, two", "d" * 16)
    assert tags["hardware"] == "cpu x86_64, 2 workers of 3 threads"
    assert tags["mlflow.source.git.commit"] == "c" * 40
    assert (tags["table"], tags["row"], tags["seed"], tags["identity"]) == ("t", "x", "0", row.identity)
    assert tags["mlflow.source.name"] == parent.data.tags["mlflow.source.name"] == plan.command
    known = json.loads(Path(client.download_artifacts(run.info.run_id, "checkpoints.json")).read_text())["checkpoints"]
    assert [(one["step"], one["bytes"]) for one in known] == [(4, 4)]
    assert known[0]["uri"].startswith("file://")
    assert (tags["checkpoint"], tags["checkpoint_sha256"]) == (known[0]["uri"], known[0]["sha256"])
    assert "precision_recall.svg" in {file.path for file in client.list_artifacts(run.info.run_id)}
    assert json.loads(Path(client.download_artifacts(run.info.run_id, "basis.json")).read_text()) == {"r": 1}


def test_a_class_without_boxes_has_no_figures_and_thousands_have_their_line():
    rows = [{"id": n, "name": f'"c{n}", <i>', "AP": 1.5, "AP50": 2.5, "boxes": 3} for n in range(3000)]
    rows.append({"id": 9999, "name": "absent", "AP": None, "AP50": None, "boxes": 0})
    read = list(csv.reader(io.StringIO(class_table(rows))))
    assert len(read) == 3002
    assert read[1] == ["0", '"c0", <i>', "1.5000", "2.5000", "3"]
    assert read[-1] == ["9999", "absent", "", "", "0"]


def test_the_plot_has_a_curve_for_what_is_defined():
    drawn = precision_recall_plot({"0.5": [1.0] * 51 + [0.0] * 50, "0.75": [None] * 101, "0.5:0.95": [0.25] * 101})
    root = ElementTree.fromstring(drawn)
    lines = root.findall(".//{*}polyline")
    assert len(lines) == 2
    points = [tuple(map(float, point.split(","))) for point in lines[0].attrib["points"].split()]
    assert len(points) == 101
    assert points[0][1] == points[50][1] < points[51][1]
    assert points[100][0] - points[0][0] == pytest.approx(360)
    texts = [text.text for text in root.findall(".//{*}text")]
    assert "IoU 0.5: AP 50.5" in texts
    assert "IoU 0.75: undefined" in texts
    assert "IoU 0.5:0.95: AP 25.0" in texts


@pytest.mark.parametrize("table", ["table1", "table2", "table3", "table4", "table5", "assigners"])
def test_parameters_that_differ_are_those_that_the_table_varies(tmp_path, table):
    plan = planned(SweepRequest(f"sweeps/{table}.yaml", profile="laptop", storage=str(tmp_path)), "describe")
    for base in {row.base for row in plan.rows}:
        rows = [row for row in plan.rows if row.base == base]
        found = [params(row) for row in rows]
        differing = {key for one in found for key in one if len({other.get(key) for other in found}) > 1}
        assert differing <= {key for row in rows for key in row.differences}
        if len(rows) > 1:
            assert differing


def test_a_password_of_the_tracking_server_stands_nowhere(tmp_path):
    uri = "http://me:hunter2@127.0.0.1:9?token=hunter2"
    request = SweepRequest("sweeps/table3.yaml", profile="laptop", storage=str(tmp_path), tracking_uri=uri)
    plan = planned(request, "describe")
    row = plan.rows[0]
    ledger = Ledger(tmp_path)
    shown = [str(sweep_tags(plan)), str(row_tags(plan, row, None)), str(params(row)), plan.command]
    shown += [page(plan, make_table(plan, ledger), ledger), closing_lines(plan, ledger, tmp_path / "report.html")]
    assert plan.tracking_uri == uri
    assert not [text for text in shown if "hunter2" in text]


def test_notes_show_names_letter_by_letter(storage):  # noqa: F811
    plan = make_plan(storage, {"<img src=x onerror=alert(1)> `a`": "a"})
    note = row_tags(plan, plan.rows[0], None)["mlflow.note.content"]
    assert "`<img src=x onerror=alert(1)> 'a'`" in note
    assert sweep_tags(plan)["mlflow.note.content"].startswith("`A table`")


def test_a_record_without_attempts_says_nothing(storage):  # noqa: F811
    plan = make_plan(storage, {"x": "a"})
    ledger = Ledger(storage)
    assert training_tags(ledger.record("nothing")) == {}
    begin(ledger, plan, plan.rows[0])
    assert training_tags(ledger.record(plan.rows[0].identity)) == {"attempt": "1", "nodes": "n"}
