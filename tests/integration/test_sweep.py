"""A tiny sweep through real Ray and real MLflow (sqlite), from the command line.

One story in the order of the tests: the sweep is started, stopped half-way by SIGTERM, continued, and asked for again.
Two of its three rows are the same training.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from mlflow import MlflowClient

import detector
from orchestrator.files import read_json
from orchestrator.ledger import Ledger

ITERATIONS = 100
BASE = f"""
data:
  generated: {{train_images: 12, val_images: 4, classes: 2, long_side: 128}}
  train: train
  val: val
  short_side: 64
  long_side: 96
model: {{backbone: r18, weights: none, neck: {{channels: 64}}, head: {{convolutions: 1}}, anchors: {{scale: 4}}}}
schedule: {{iterations: {ITERATIONS}, batch_size: 2, recipe_batch_size: 2, learning_rate: 0.001, optimizer: adamw}}
checkpoint: {{every: 10}}
tracking: {{every: 2}}
resources: {{workers: 1, cpus_per_worker: 1, loader_workers: 0}}
"""
SWEEP = """
name: tiny
title: A tiny sweep
base: small
rows:
  - {name: plain}
  - {name: same}
  - {name: "1:1", set: {model.assigner.predicted_weight: 1}}
"""
FAILING = """
name: failing
title: A row that can't be trained, beside one that another sweep has trained
base: small
rows:
  - {name: diverges, set: {schedule.optimizer: sgd, schedule.learning_rate: 1000}}
  - {name: reused}
"""


EVALUATED = """
name: evaluated
title: The trainings of the tiny sweep, evaluated in other ways
base: small
rows:
  - {name: same, set: {data.test: train}}
  - {name: few, set: {model.postprocess.max_detections: 1}}
"""


class Place:
    """Where the sweep lies, and its command."""

    def __init__(self, folder: Path) -> None:
        (folder / "bases").mkdir()
        (folder / "bases" / "small.yaml").write_text(BASE)
        (folder / "tiny.yaml").write_text(SWEEP)
        (folder / "failing.yaml").write_text(FAILING)
        (folder / "evaluated.yaml").write_text(EVALUATED)
        self.folder, self.storage = folder, folder / "storage"
        self.uri = f"sqlite:///{self.storage / 'mlflow.db'}"
        self.ledger = Ledger(self.storage)

    def start(self, sweep="tiny.yaml", module="sweep", *options: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"orchestrator.{module}", str(self.folder / sweep), "--json", *options]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
        # From another folder than the packages': the workers must find them all the same.
        return subprocess.Popen(
            [*command, "--storage", str(self.storage)],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, status: int) -> dict:
        document, error = end(self.start(*arguments), status)
        assert "Traceback" not in error
        return document

    def runs(self) -> dict[str, list]:
        """Runs of all sweeps by row; the parents under their sweep's key."""
        client = MlflowClient(tracking_uri=self.uri)
        found: dict[str, list] = {}
        for run in client.search_runs([e.experiment_id for e in client.search_experiments()]):
            found.setdefault(run.data.tags.get("row", run.data.tags["sweep"]), []).append(run)
        return found


def end(process: subprocess.Popen, status: int) -> tuple[dict, str]:
    """The JSON line of ``process``, which must exit with ``status``, and what it wrote to standard error."""
    try:
        output, error = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
    assert process.returncode == status, error
    assert output.count("\n") == 1, output
    return json.loads(output), error


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def interrupted(place):
    """The sweep after SIGTERM, once a checkpoint of each training was there; and what was seen on the way."""
    process = place.start()
    until = time.monotonic() + 200

    def wait_for(pattern: str, count: int) -> None:
        while process.poll() is None and len(list(place.storage.glob(pattern))) < count and time.monotonic() < until:
            time.sleep(0.1)

    wait_for("sweeps/tiny/lease.json", 1)
    second = place.run(status=5)
    wait_for("trainings/*/checkpoint_00000010/manifest.json", 2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    document, _ = end(process, 143)
    _, alive = psutil.wait_procs(children, timeout=20)
    return process.pid, second, document, alive


@pytest.fixture(scope="module")
def finished(place, interrupted):
    """The same command again."""
    return place.run(status=0)


def test_a_second_driver_is_refused_with_the_holders_process(interrupted):
    pid, second, _, _ = interrupted
    assert second["status"] == "refused"
    assert f"process {pid} on " in second["error"]


def test_a_stop_leaves_the_ledger_resumable_the_runs_killed_and_no_process(place, interrupted):
    _, _, document, alive = interrupted
    assert document["status"] == "interrupted"
    assert {row["state"] for row in document["rows"]} == {"pending"}
    assert all(0 < row["step"] < ITERATIONS for row in document["rows"])
    runs = place.runs()
    assert {run.info.status for row in ("plain", "1:1", "tiny") for run in runs[row]} == {"KILLED"}
    assert alive == []


def test_again_it_continues_from_the_checkpoints_to_the_end(place, finished):
    assert finished["status"] == "complete"
    assert [row["state"] for row in finished["rows"]] == ["finished"] * 3
    assert [row["reused_from"] for row in finished["rows"]] == [None, "plain", None]
    assert len({row["identity"] for row in finished["rows"]}) == 2
    for row in finished["rows"]:
        record = place.ledger.record(row["identity"])
        first, second = record.history
        assert (first["outcome"], second["outcome"]) == ("interrupted", "finished")
        assert second["from_step"] >= 10
        assert second["from_step"] % 10 == 0
        steps, values = place.ledger.journal_metrics(row["identity"], ["loss"])
        assert steps == list(range(2, ITERATIONS + 1, 2))
        assert None not in values["loss"]
        assert len(list(record.folder.glob("checkpoint_*"))) == 2
    for name in ("report.html", "report.md", "table.csv"):
        assert (place.storage / "sweeps" / "tiny" / name).stat().st_size > 0


def test_mlflow_has_one_run_a_row_with_every_step_once(place, finished):
    runs = place.runs()
    assert {row: len(found) for row, found in runs.items()} == {"tiny": 1, "plain": 1, "same": 1, "1:1": 1}
    parent = runs["tiny"][0]
    client = MlflowClient(tracking_uri=place.uri)
    for row in finished["rows"]:
        run = runs[row["row"]][0]
        assert run.info.run_id == row["run_id"]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.metrics["AP50"] == pytest.approx(row["metrics"]["AP50"])
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]
        assert steps == ([ITERATIONS] if row["row"] == "same" else list(range(2, ITERATIONS + 1, 2)))
    assert runs["same"][0].data.tags["source_run"] == runs["plain"][0].info.run_id
    report = {file.path for file in client.list_artifacts(parent.info.run_id, "report")}
    assert report == {"report/report.html", "report/report.md", "report/table.csv"}


def test_a_run_has_what_mlflows_users_look_for(place, finished):
    client, run = MlflowClient(tracking_uri=place.uri), place.runs()["1:1"][0]
    there = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"config.json", "basis.json", "checkpoints.json", "per_class.csv", "precision_recall.svg", "model"} <= there
    shown = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    assert [name.split("+")[2] for name in shown] == [str(ITERATIONS)] * 2
    system = client.get_metric_history(run.info.run_id, "system/system_memory_usage_percentage")
    assert system
    assert all(0 < metric.value <= 100 for metric in system)
    assert len({metric.step for metric in system}) == len(system)
    assert {one.dataset.name.rpartition("/")[2] for one in run.inputs.dataset_inputs} == {"train", "val"}
    tags = run.data.tags
    assert tags["attempt"] == "2"
    assert tags["nodes"]
    assert tags["hardware"].endswith("1 worker of 1 thread")
    assert len(tags["sources"]) == 16
    curves = read_json(next(place.ledger.training(tags["identity"]).glob("evaluations/*/precision.json")))
    assert run.data.metrics["AP"] == pytest.approx(100 * sum(curves["0.5:0.95"]) / 101, abs=0.01)
    children = [place.runs()[row["row"]][0].data.params for row in finished["rows"]]
    differing = {key for one in children for key in one if len({other[key] for other in children}) > 1}
    assert differing == {"model.assigner.predicted_weight"}


def test_a_run_is_trained_again_by_its_id_and_reuses_what_is_there(place, finished):
    row = finished["rows"][2]
    words = ["-m", "orchestrator.sweep", "--rerun", row["run_id"], "--json", "--storage", str(place.storage)]
    done = subprocess.run([sys.executable, *words], cwd=place.folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (again,) = json.loads(done.stdout)["rows"]
    assert (again["identity"], again["reused_from"]) == (row["identity"], "tiny/1:1")
    assert again["metrics"] == row["metrics"]
    assert place.ledger.record(row["identity"]).attempts == 2


def test_the_model_of_a_run_finds_the_boxes_that_were_evaluated(place, finished):
    row = finished["rows"][2]
    model = detector.load(f"runs:/{row['run_id']}/model", device="cpu", tracking_uri=place.uri)
    (evaluated_in,) = (place.ledger.training(row["identity"]) / "evaluations").iterdir()
    record = place.ledger.record(row["identity"])
    same = detector.load(record.model, device="cpu")
    evaluated = read_json(evaluated_in / "detections.json")
    root = Path(read_json(record.folder / "config.json")["data"]["root"])
    images = read_json(root / "annotations" / "val.json")["images"]
    assert len(images) == 4
    for image in images:
        path = root / "val" / image["file_name"]
        found = model.predict(path).to_coco(image["id"])
        assert found == same.predict(path).to_coco(image["id"])
        expected = [entry for entry in evaluated if entry["image_id"] == image["id"]]
        assert len(found) == len(expected) > 0
        order = sorted(range(len(found)), key=lambda i: -found[i]["score"])
        wanted = sorted(range(len(found)), key=lambda i: -expected[i]["score"])
        np.testing.assert_allclose(
            [found[i]["score"] for i in order], [expected[i]["score"] for i in wanted], atol=1e-4
        )
        np.testing.assert_allclose(
            [found[i]["bbox"] for i in order[:5]], [expected[i]["bbox"] for i in wanted[:5]], atol=0.05
        )


def test_once_more_it_trains_nothing_and_changes_no_run(place, finished):
    before = {row: (run[0].info.run_id, run[0].info.start_time) for row, run in place.runs().items()}
    assert place.run(status=0) == finished
    assert {row: (run[0].info.run_id, run[0].info.start_time) for row, run in place.runs().items()} == before
    assert all(place.ledger.record(row["identity"]).attempts == 2 for row in finished["rows"])


def test_status_says_so_without_a_cluster(place, finished):
    document = place.run("tiny.yaml", "status", status=0)
    assert document["status"] == "complete"
    assert document["rows"] == finished["rows"]


def test_a_new_mlflow_store_is_rebuilt_from_the_ledger(place, finished):
    uri = f"sqlite:///{place.storage / 'other.db'}"
    document = place.run("tiny.yaml", "sync", "--tracking-uri", uri, status=0)
    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(document["rows"][0]["run_id"])
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "loss")) == ITERATIONS // 2


def test_other_evaluations_of_a_finished_training_train_nothing(place, finished):
    document = place.run("evaluated.yaml", status=0)
    same, few = document["rows"]
    before = finished["rows"][0]
    assert same["identity"] == few["identity"] == before["identity"]
    assert place.ledger.record(before["identity"]).attempts == 2
    figures = {key: value for key, value in same["metrics"].items() if not key.startswith("test_")}
    assert figures == before["metrics"]
    assert same["metrics"]["test_AP50"] is not None
    assert few["metrics"]["loss"] == before["metrics"]["loss"]
    assert "test_AP" not in few["metrics"]
    folders = list((place.ledger.training(before["identity"]) / "evaluations").iterdir())
    detections = sorted(len(read_json(folder / "detections.json")) for folder in folders)
    assert len(folders) == 3
    assert detections[0] == 4  # one in each image
    run = place.runs()["few"][0]
    assert (run.info.status, run.data.tags["reused_from"]) == ("FINISHED", "tiny/plain")
    model = detector.load(f"runs:/{run.info.run_id}/model", device="cpu", tracking_uri=place.uri)
    assert model.config.postprocess.max_detections == 1


def test_a_row_that_fails_says_why_and_the_others_have_their_results(place, finished):
    document = place.run("failing.yaml", status=3)
    diverges, reused = document["rows"]
    assert document["status"] == "partial"
    assert (diverges["state"], reused["state"]) == ("failed", "finished")
    assert diverges["error"].startswith("the loss is no longer finite at step ")
    assert reused["reused_from"] == "tiny/plain"
    assert place.ledger.record(diverges["identity"]).attempts == 1
    runs = place.runs()
    assert runs["diverges"][0].info.status == "FAILED"
    assert runs["failing"][0].info.status == "FAILED"
    assert runs["reused"][0].info.status == "FINISHED"
    assert runs["reused"][0].data.tags["source_run"] in {run.info.run_id for run in runs["plain"]}


def test_fresh_trains_anew_only_what_is_selected_one_at_a_time(place, finished):
    # Those that diverge end at their first step, so this costs little more than Ray's start.
    words = ("--only", "diverges", "--seeds", "0,1", "--max-concurrent", "1", "--fresh")
    document = place.run("failing.yaml", "sweep", *words, status=3)
    assert [(row["row"], row["seed"]) for row in document["rows"]] == [("diverges", 0), ("diverges", 1)]
    first, second = (place.ledger.record(row["identity"]) for row in document["rows"])
    assert (first.attempts, second.attempts) == (1, 1)
    assert first.history[0]["ended"] < second.history[0]["started"]
    (replaced,) = (place.storage / "replaced").iterdir()
    before = read_json(replaced / "status.json")
    assert (before["identity"], before["state"]) == (first.identity, "failed")
    assert before["training"] != first.training
    assert {run.data.tags["training"] for run in place.runs()["diverges"]} == {first.training, second.training}
    assert all(place.ledger.record(row["identity"]).state == "finished" for row in finished["rows"])
