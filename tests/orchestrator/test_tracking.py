"""MLflow as a view of the ledger: one run a row and seed for ever, no step twice, true states. On a real sqlite."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from detector.config import ModelConfig, PostprocessConfig, TrainingConfig
from orchestrator import journal
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan, PlannedRow
from orchestrator.tracking import Tracker

STEPS = 6
PACKAGE = {
    *("model.safetensors", "config.json", "MLmodel", "LICENCES.md", "input_example.json"),
    *("serving_input_example.json", "requirements.txt", "conda.yaml", "python_env.yaml"),
}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """MLflow's schema takes seconds to make: once for all tests."""
    folder = tmp_path_factory.mktemp("mlflow")
    tracker = Tracker(make_plan(folder, {}), Ledger(folder))
    tracker.connect()
    return folder / "mlflow.db"


@pytest.fixture
def storage(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


def make_plan(storage: Path, rows: dict[str, str], key="t", seeds=(0,)) -> Plan:
    """A plan of ``rows``: name -> identity (with the seed added)."""
    planned = [
        PlannedRow(row, seed, f"{identity}-{seed}", TrainingConfig(seed=seed), evaluation="val")
        for row, identity in rows.items()
        for seed in seeds
    ]
    return Plan(
        key=key,
        name="t",
        title="A table",
        profile=None,
        rows=tuple(planned),
        quoted=(),
        compare=(),
        figures=(),
        storage=storage,
        tracking_uri=f"sqlite:///{storage / 'mlflow.db'}",
        command="python -m orchestrator.sweep t.yaml",
    )


def begin(ledger, plan, row):
    ledger.claim(row.identity, sweep=plan.key, row=row.row, seed=row.seed, config={"seed": 0}, iterations=STEPS)
    ledger.started(row.identity, node="n", from_step=0, hardware={})


def train(ledger, row, start, stop):
    for step in range(start + 1, stop + 1):
        journal.append(ledger.record(row.identity).journal, step, "train", {"loss": 10.0 - step, "lr": 0.1})
    if stop == STEPS:
        journal.append(
            ledger.record(row.identity).journal, step, "evaluation", {"AP": 30.0, "APs": None}, evaluation="val"
        )


def finish(ledger, row):
    checkpoint = ledger.storage / "checkpoint" / row.identity
    (checkpoint / "model").mkdir(parents=True)
    (checkpoint / "model" / "model.safetensors").write_bytes(b"weights")
    description = {"model": {"postprocess": row.config.model.postprocess.model_dump(mode="json")}}
    (checkpoint / "model" / "config.json").write_text(json.dumps(description))
    ledger.finished(row.identity, checkpoint, {"loss": 4.0})
    evaluate(ledger, row, {"AP": 30.0, "APs": None})


def evaluate(ledger, row, metrics, prefix=""):
    results = ledger.storage / "results"
    results.mkdir(exist_ok=True)
    (results / "detections.json").write_text(json.dumps([row.row]))
    ledger.evaluated(row.identity, row.evaluations[prefix], results, metrics, {})
    ledger.release(row.identity)


def opened(plan, ledger, **options):
    tracker = Tracker(plan, ledger, **options)
    tracker.connect()
    tracker.open()
    return tracker


def runs(plan):
    client = MlflowClient(tracking_uri=plan.tracking_uri)
    experiment = client.get_experiment_by_name(plan.name)
    found = client.search_runs([experiment.experiment_id])
    parents = [run for run in found if run.data.tags["kind"] == "sweep"]
    children = {
        (run.data.tags["row"], int(run.data.tags["seed"])): run for run in found if run.data.tags["kind"] == "row"
    }
    assert len(parents) + len(children) == len(found)
    return client, parents, children


def history(client, run, key):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]


def test_one_run_a_row_and_seed_over_two_passes_with_a_crash_between(storage):
    plan = make_plan(storage, {"1:1": "a", "D_up:1": "b"}, seeds=(0, 1))
    ledger = Ledger(storage)
    with Lease(plan.folder):
        first = opened(plan, ledger)
        for row in plan.rows[:2]:
            begin(ledger, plan, row)
            train(ledger, row, 0, 4)
        first.push()
        _, parents, children = runs(plan)
        assert {run.info.status for run in [*parents, *children.values()]} == {"RUNNING"}
        assert set(children) == {("1:1", 0), ("1:1", 1)}
    # The driver is gone without a word; the checkpoint was at step 2, and the journal is cut back to it.
    with Lease(plan.folder):
        second = opened(plan, ledger)
        for row in plan.rows:
            begin(ledger, plan, row)
            journal.cut(ledger.record(row.identity).journal, 2)
            train(ledger, row, min(2, ledger.record(row.identity).step), STEPS)
            second.push()
            finish(ledger, row)
        assert second.finish("FINISHED") is None
        assert second.finish("FINISHED") is None
    client, parents, children = runs(plan)
    assert len(parents) == 1
    assert set(children) == {(row.row, row.seed) for row in plan.rows}
    for row in plan.rows:
        run = children[row.row, row.seed]
        assert run.info.status == "FINISHED"
        assert ledger.run_id(plan.key, row.row, row.seed) == run.info.run_id
        assert history(client, run, "loss") == [(step, 10.0 - step) for step in range(1, STEPS + 1)]
        assert history(client, run, "AP") == [(STEPS, 30.0)]
        assert "APs" not in run.data.metrics
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert (run.data.tags["identity"], run.data.tags["sweep"], run.data.tags["table"]) == (row.identity, "t", "t")
        assert run.data.params["model.assigner.topk"] == "9"
        assert run.data.params["seed"] == str(row.seed)
        folder = Path(client.download_artifacts(run.info.run_id, "model"))
        assert (folder / "model.safetensors").read_bytes() == b"weights"
        assert {"config.json", "detections.json", "model"} == {f.path for f in client.list_artifacts(run.info.run_id)}


def test_a_row_that_reuses_a_training_has_a_light_run_of_its_own(storage):
    # The reusing row stands first in the table, and is pushed in the same pass.
    ledger = Ledger(storage)
    whole = make_plan(storage, {"again": "a", "first": "a"})
    alone = replace(whole, rows=whole.rows[1:])
    with Lease(alone.folder):
        begin(ledger, alone, alone.rows[0])
        train(ledger, alone.rows[0], 0, STEPS)
        finish(ledger, alone.rows[0])
        assert opened(alone, ledger).finish("FINISHED") is None
        assert opened(whole, ledger).finish("FINISHED") is None
    client, parents, children = runs(whole)
    assert len(parents) == 1
    first, again = children["first", 0], children["again", 0]
    assert again.data.tags["reused_from"] == "first"
    assert again.data.tags["source_run"] == first.info.run_id
    assert "reused_from" not in first.data.tags
    assert history(client, again, "loss") == [(STEPS, 4.0)]
    assert len(history(client, first, "loss")) == STEPS
    assert again.data.params == first.data.params
    assert again.info.status == "FINISHED"
    assert {Path(f.path).name for f in client.list_artifacts(again.info.run_id, "model")} == PACKAGE


def test_another_sweeps_training_is_named_with_its_sweep(storage):
    ledger = Ledger(storage)
    one, two = make_plan(storage, {"x": "a"}, key="one"), make_plan(storage, {"y": "a"}, key="two")
    begin(ledger, one, one.rows[0])
    train(ledger, one.rows[0], 0, STEPS)
    finish(ledger, one.rows[0])
    opened(one, ledger).finish("FINISHED")
    opened(two, ledger).finish("FINISHED")
    _, parents, children = runs(two)
    assert len(parents) == 2
    assert children["y", 0].data.tags["reused_from"] == "one/x"
    assert children["y", 0].data.tags["source_run"] == children["x", 0].info.run_id


def test_states_are_true(storage):
    plan = make_plan(storage, {"good": "a", "bad": "b", "stopped": "c", "never": "d"})
    ledger = Ledger(storage)
    good, bad, stopped, _ = plan.rows
    with Lease(plan.folder):
        tracker = opened(plan, ledger)
        for row in (good, bad, stopped):
            begin(ledger, plan, row)
            train(ledger, row, 0, 2)
        tracker.push()
        finish(ledger, good)
        ledger.failed(bad.identity, "no more memory")
        ledger.release(stopped.identity)
        tracker.finish("KILLED")
    _, parents, children = runs(plan)
    assert parents[0].info.status == "KILLED"
    states = {row: run.info.status for (row, _), run in children.items()}
    assert states == {"good": "FINISHED", "bad": "FAILED", "stopped": "KILLED"}


def test_trained_anew_gets_a_new_run_and_the_old_one_goes(storage):
    plan = make_plan(storage, {"x": "a"})
    ledger = Ledger(storage)
    row = plan.rows[0]
    for _ in range(2):
        begin(ledger, plan, row)
        train(ledger, row, 0, STEPS)
        finish(ledger, row)
        opened(plan, ledger).finish("FINISHED")
        first = ledger.run_id(plan.key, "x", 0)
        ledger.set_aside(row.identity)
        shutil.rmtree(storage / "checkpoint")
    client, _, children = runs(plan)
    assert children["x", 0].info.run_id == first
    assert len(history(client, children["x", 0], "loss")) == STEPS


def test_a_new_store_is_filled_from_the_ledger(storage, empty_database):
    plan = make_plan(storage, {"x": "a", "y": "a"})
    ledger = Ledger(storage)
    begin(ledger, plan, plan.rows[0])
    train(ledger, plan.rows[0], 0, STEPS)
    finish(ledger, plan.rows[0])
    opened(plan, ledger).finish("FINISHED")
    shutil.copy(empty_database, storage / "other.db")
    moved = replace(plan, tracking_uri=f"sqlite:///{storage / 'other.db'}")
    opened(moved, ledger, thorough=True).finish("FINISHED")
    client, parents, children = runs(moved)
    assert len(parents) == 1
    assert len(history(client, children["x", 0], "loss")) == STEPS
    assert children["y", 0].data.tags["source_run"] == children["x", 0].info.run_id


def test_another_evaluation_of_a_training_has_its_own_figures_settings_and_model(storage):
    plan = make_plan(storage, {"x": "a", "y": "a"})
    ledger = Ledger(storage)
    first, second = plan.rows
    model = ModelConfig(postprocess=PostprocessConfig(nms_iou=0.5))
    second = replace(second, config=TrainingConfig(model=model), evaluation="other", test_evaluation="test")
    plan = replace(plan, rows=(first, second))
    with Lease(plan.folder):
        begin(ledger, plan, first)
        train(ledger, first, 0, STEPS)
        finish(ledger, first)
        tracker = opened(plan, ledger)
        tracker.push()
        assert set(runs(plan)[2]) == {("x", 0)}
        evaluate(ledger, second, {"AP": 20.0})
        evaluate(ledger, second, {"AP": None, "AP50": 25.0}, "test_")
        assert tracker.finish("FINISHED") is None
    client, _, children = runs(plan)
    mine, other = children["x", 0], children["y", 0]
    assert (history(client, mine, "AP"), history(client, other, "AP")) == ([(STEPS, 30.0)], [(STEPS, 20.0)])
    assert "test_AP50" not in mine.data.metrics
    assert history(client, other, "test_AP50") == [(STEPS, 25.0)]
    assert {f.path for f in client.list_artifacts(other.info.run_id)} == {
        "config.json", "detections.json", "test_detections.json", "model",
    }  # fmt: skip
    for run, nms_iou in ((mine, 0.6), (other, 0.5)):
        config = json.loads(Path(client.download_artifacts(run.info.run_id, "config.json")).read_text())
        loaded = json.loads(Path(client.download_artifacts(run.info.run_id, "model/config.json")).read_text())
        assert config["model"]["postprocess"]["nms_iou"] == nms_iou
        assert loaded["model"]["postprocess"]["nms_iou"] == nms_iou


def test_a_row_that_is_evaluated_anew_gets_a_run_without_the_old_figures(storage):
    plan = make_plan(storage, {"x": "a"})
    ledger = Ledger(storage)
    row = plan.rows[0]
    begin(ledger, plan, row)
    train(ledger, row, 0, STEPS)
    finish(ledger, row)
    opened(plan, ledger).finish("FINISHED")
    edited = replace(plan, rows=(replace(row, evaluation="other"),))
    evaluate(ledger, edited.rows[0], {"AP": 20.0})
    opened(edited, ledger).finish("FINISHED")
    client, _, children = runs(edited)
    assert history(client, children["x", 0], "AP") == [(STEPS, 20.0)]
    assert len(history(client, children["x", 0], "loss")) == STEPS


DIES = """
import os, sys
from pathlib import Path
import mlflow.store.db.utils as database
from orchestrator.ledger import Ledger
from orchestrator.tracking import Tracker
from tests.orchestrator.test_tracking import make_plan

database._upgrade_db = lambda engine: os._exit(9)  # some of the tables are there
folder = Path(sys.argv[1])
Tracker(make_plan(folder, {}), Ledger(folder)).connect()
"""


def test_who_dies_as_the_database_is_made_leaves_none_that_is_half_made(tmp_path: Path) -> None:
    died = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], cwd=Path(__file__).parents[2])
    assert died.returncode == 9
    assert (tmp_path / ".mlflow.db.new").stat().st_size > 0
    plan = make_plan(tmp_path, {"a": "x"})
    tracker = Tracker(plan, Ledger(tmp_path))
    tracker.connect()
    assert MlflowClient(tracking_uri=plan.tracking_uri).get_experiment_by_name("t") is not None
    assert not (tmp_path / ".mlflow.db.new").exists()
