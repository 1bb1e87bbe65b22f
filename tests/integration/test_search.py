"""A tiny search through real Ray, Optuna and MLflow, from the command line: drawn, interrupted, continued, judged.

One story in the order of the tests, as in test_sweep.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from orchestrator.files import read_json
from orchestrator.ledger import Ledger

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS, SAMPLES = 60, 5
BASE = f"""
data:
  generated: {{train_images: 12, val_images: 8, classes: 1, long_side: 128}}
  train: train
  val: val
  short_side: 64
  long_side: 64
model: {{backbone: r18, weights: none, neck: {{channels: 64}}, head: {{convolutions: 1}}, anchors: {{scale: 4}}}}
schedule: {{iterations: {STEPS}, batch_size: 2, recipe_batch_size: 2, learning_rate: 0.001, optimizer: adamw}}
checkpoint: {{every: 4}}
tracking: {{every: 4}}
resources: {{workers: 1, cpus_per_worker: 1, loader_workers: 0}}
"""
SEARCH = f"""
name: hunt
title: A tiny search
base: small
rows:
  - {{name: plain, set: {{model.assigner.predicted_weight: 1}}}}
seeds: [0]
search:
  parameters:
    schedule.learning_rate: {{loguniform: [0.0000001, 0.005]}}
    model.assigner.predicted_weight: {{uniform: [0, 2]}}
  samples: {SAMPLES}
  scheduler: {{grace_period: 0.34, reduction_factor: 2}}
  winner_seeds: [1, 2]
"""


class Place:
    def __init__(self, folder: Path) -> None:
        (folder / "bases").mkdir()
        (folder / "bases" / "small.yaml").write_text(BASE)
        (folder / "hunt.yaml").write_text(SEARCH)
        self.folder, self.storage = folder, folder / "storage"
        self.ledger = Ledger(self.storage)

    def start(self, module: str = "sweep") -> subprocess.Popen:
        command = [sys.executable, "-m", f"orchestrator.{module}", "hunt.yaml", "--json"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
        return subprocess.Popen(
            [*command, "--storage", str(self.storage)],
            cwd=self.folder,
            env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pipesize=1 << 20,
            text=True,
        )

    def samples(self) -> list[dict]:
        document = read_json(self.storage / "sweeps" / "hunt" / "search.json") or {"searches": {}}
        return next(iter(document["searches"].values()), {"samples": []})["samples"]


def end(process: subprocess.Popen, status: int) -> dict:
    try:
        output, error = process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
    assert process.returncode == status, error
    assert "Traceback" not in error, error
    return json.loads(output)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def interrupted(place):
    """The search after SIGTERM, once the second sample was at work."""
    process = place.start()
    until = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < until:
        drawn = place.samples()
        if len(drawn) >= 3 and any(place.ledger.record(one["identity"]).step >= 4 for one in drawn[1:]):
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    document = end(process, 143)
    return document, [one["values"] for one in place.samples()]


@pytest.fixture(scope="module")
def finished(place, interrupted):
    return end(place.start(), 0)


def test_a_stop_leaves_the_samples_that_were_drawn(interrupted):
    document, drawn = interrupted
    assert document["status"] == "interrupted"
    assert 3 <= len(drawn) <= SAMPLES
    assert "running" not in {row["state"] for row in document["rows"]}


def test_the_same_command_draws_the_rest_and_judges_the_winner(place, interrupted, finished):
    _, drawn = interrupted
    assert finished["status"] == "complete"
    samples = place.samples()
    assert [one["values"] for one in samples[: len(drawn)]] == drawn
    assert len(samples) == SAMPLES
    rows = {(row["row"], row["seed"]): row for row in finished["rows"]}
    assert {row["state"] for row in rows.values()} == {"finished"}
    judged = [row for row, seed in rows if seed in (1, 2)]
    (title,) = {name for name in judged if name != "plain"}
    assert title.startswith("winner: learning_rate=")
    assert len(rows) == SAMPLES + 4
    for one in samples:
        record = place.ledger.record(one["identity"])
        assert record.holder is None
        if record.trained:
            assert record.step == STEPS
        else:
            assert record.stopped is not None
            assert record.state == "pending"
            assert record.stopped["step"] in (20, 40)
            assert record.stopped["step"] <= record.step < STEPS
            # It ended by itself, with a checkpoint to go on from, and no attempt was lost.
            assert record.history[-1]["outcome"] == "interrupted"
            assert sorted(record.folder.glob("checkpoint_*"))
    assert any(place.ledger.record(one["identity"]).trained for one in samples)
    report = (place.storage / "sweeps" / "hunt" / "report.html").read_text()
    assert "What the search tried" in report
    assert title in report


def test_mlflow_has_a_run_a_sample_and_a_judged_row(place, finished):
    client = MlflowClient(tracking_uri=f"sqlite:///{place.storage / 'mlflow.db'}")
    found = {}
    for run in client.search_runs([e.experiment_id for e in client.search_experiments()]):
        found.setdefault((run.data.tags.get("row"), run.data.tags.get("seed")), []).append(run)
    assert len(found) == SAMPLES + 4 + 1
    assert all(len(runs) == 1 for runs in found.values())
    (parent,) = found.pop((None, None))
    assert parent.info.status == "FINISHED"
    for row in finished["rows"]:
        (run,) = found[row["row"], str(row["seed"])]
        assert run.info.run_id == row["run_id"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == ("KILLED" if "stopped" in row else "FINISHED")
        assert ("stopped_early" in run.data.tags) == ("stopped" in row)


def test_status_says_the_same_and_again_nothing_is_trained(place, finished):
    status = end(place.start("status"), 0)
    assert (status["status"], status["rows"]) == ("complete", finished["rows"])
    before = {path.name: path.stat().st_mtime for path in place.storage.glob("trainings/*/journal.jsonl")}
    again = end(place.start(), 0)
    assert again["rows"] == finished["rows"]
    assert {path.name: path.stat().st_mtime for path in place.storage.glob("trainings/*/journal.jsonl")} == before
