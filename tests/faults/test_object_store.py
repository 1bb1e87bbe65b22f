"""Faults 6 to 9 where the storage is an object store, and MLflow lies on PostgreSQL with its files in a bucket.

The servers are real processes on this machine. Were the promise broken, what a lost machine knew would be lost with it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

import detector
from detector.checkpoint_store import CheckpointStore, write_manifest
from detector.errors import UnreachableError
from orchestrator import journal, lease
from orchestrator.ledger import Ledger
from tests.faults.counted import counted
from tests.faults.servers import FlakyProxy, mlflow_server, postgresql, s3_server
from tests.faults.sweeps import Sweep, executed
from tests.faults.test_tracking_server import check_all_there, make_plan, opened, trainings

pytestmark = pytest.mark.long
ITERATIONS = 40


@pytest.fixture
def s3(tmp_path, monkeypatch):
    """The environment leads to a bucket."""
    with s3_server(tmp_path) as environment:
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        yield environment


def test_a_sweep_in_a_bucket_survives_the_loss_of_the_machine_that_drove_it(s3, tmp_path, monkeypatch, measured):
    """Faults 7 and 8: everything but the bucket and MLflow is lost; another machine continues."""
    sweep = Sweep(tmp_path / "sweep", iterations=ITERATIONS)
    sweep.storage = address = "s3://detsweep/experiments"
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    try:
        process = sweep.start("--tracking-uri", database)
        sweep.wait(lambda: Ledger(address).held("tiny"), "the lease")
        second = Sweep(tmp_path / "second", iterations=ITERATIONS)
        second.storage = address
        refused = second.run(5, "--tracking-uri", database)
        assert f"process {process.pid} on " in refused["error"]
        assert address in refused["error"]
        sweep.wait(lambda: len(checkpoints(address)) >= 2, "two checkpoints")
        below = psutil.Process(process.pid).children(recursive=True)
        for one in (process, *below):
            one.kill()
        process.communicate()
        psutil.wait_procs(below, timeout=60)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
        # From another machine only the storage's clock says whether the driver lives; this counts as its last sign.
        Ledger(address).place.update("sweeps/tiny/lease.json", lambda found: found | {"boot": "another machine's"})
        began = time.monotonic()
        held = sweep.run(5, "--tracking-uri", database)
        assert f"process {process.pid} on " in held["error"]
        while Ledger(address).held("tiny"):
            assert time.monotonic() - began < lease.STALE_S + 10
            time.sleep(1)
        seconds = time.monotonic() - began
        assert seconds > lease.STALE_S - 5
        document = sweep.run(0, "--tracking-uri", database)
    finally:
        sweep.kill()
    (row,) = document["rows"]
    ledger = Ledger(address)
    record = ledger.record(row["identity"])
    assert (record.state, record.attempts) == ("finished", 2)
    assert record.history[1]["from_step"] >= 5
    assert list(journal.every_step(record.journal, "loss")) == list(range(1, ITERATIONS + 1))
    assert {"report.html", "report.md", "table.csv"} <= set(ledger.place.names("sweeps/tiny"))
    client = MlflowClient(tracking_uri=database)
    steps = [metric.step for metric in client.get_metric_history(row["run_id"], "loss")]
    assert steps == list(range(1, ITERATIONS + 1))
    model = detector.load(f"runs:/{row['run_id']}/model", device="cpu", tracking_uri=database)
    assert model.config.backbone == "r18"
    wasted = executed(record) - ITERATIONS
    counts = counted(address, database)
    measured("7: machine lost, storage in a bucket", wasted=wasted, seconds=seconds, said=held["error"], **counts)
    measured("8: two drivers at once, a bucket", wasted=0, said=refused["error"], **counts)


def checkpoints(address: str) -> list[str]:
    """Whole checkpoints of the only training."""
    place = Ledger(address).place
    return [
        name
        for identity in place.names("trainings")
        for name in place.names(f"trainings/{identity}")
        if name.startswith("checkpoint_") and "manifest.json" in place.names(f"trainings/{identity}/{name}")
    ]


def test_a_store_that_answers_503_keeps_the_checkpoint_before(s3, tmp_path, monkeypatch):
    """Fault 10."""
    with FlakyProxy(s3["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = CheckpointStore("s3://detsweep/training")
        for step in (10, 20, 30):
            store.keep(written(tmp_path / str(step), step), step)
        proxy.mode("503")
        with pytest.raises(UnreachableError, match="the checkpoint of step 40 can't be written to s3://detsweep/train"):
            store.keep(written(tmp_path / "40", 40), 40)
        proxy.mode("up")
        assert store.steps() == [20, 30]
        assert store.newest().step == 30
        # It comes and goes in the middle of one.
        proxy.mode("up", "up", "503")
        store.keep(written(tmp_path / "50", 50), 50)
        proxy.mode("up")
        assert store.newest().step == 50
        assert (store.fetch(store.newest().name, tmp_path) / "state.pt").read_bytes() == bytes([50]) * 5000


def written(folder: Path, step: int) -> Path:
    """A checkpoint with a manifest."""
    (folder / "model").mkdir(parents=True)
    (folder / "state.pt").write_bytes(bytes([step]) * 5000)
    (folder / "model" / "model.safetensors").write_bytes(bytes([step]) * 3000)
    write_manifest(folder, step, None)
    return folder


def test_a_sweep_goes_on_after_its_bucket_answered_503(s3, tmp_path, measured):
    """Fault 10: for a while nothing can be read or written; what was trained is not lost, nor is a step twice."""
    sweep = Sweep(tmp_path / "sweep", iterations=ITERATIONS)
    sweep.storage = address = "s3://detsweep/experiments"
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with FlakyProxy(s3["AWS_ENDPOINT_URL"]) as proxy:
        sweep.start("--tracking-uri", database, AWS_ENDPOINT_URL=proxy.url)
        try:
            sweep.wait(lambda: len(checkpoints(address)) >= 2, "two checkpoints")
            proxy.mode("503")
            time.sleep(20)
            proxy.mode("up")
            output, error = sweep.process.communicate(timeout=200)
        finally:
            sweep.kill()
        assert "Traceback" not in error, error
        assert sweep.process.returncode in (0, 3), error
        document = sweep.run(0, "--tracking-uri", database, AWS_ENDPOINT_URL=proxy.url)
    (row,) = document["rows"]
    record = Ledger(address).record(row["identity"])
    assert all(attempt["from_step"] >= 5 for attempt in record.history[1:])
    assert list(journal.every_step(record.journal, "loss")) == list(range(1, ITERATIONS + 1))
    wasted = executed(record) - ITERATIONS
    completed = "yes" if sweep.process.returncode == 0 and len(record.history) == 1 else "by itself or the next command"
    measured(
        "10: bucket answers 503 for 20 s",
        completed=completed,
        wasted=wasted,
        said=json.loads(output)["error"] or "–",
        **counted(address, database),
    )


def test_mlflow_on_postgresql_with_files_in_a_bucket(s3, tmp_path):
    """Two passes of a sweep, the second after its driver went without a word."""
    with (
        postgresql() as database,
        mlflow_server(tmp_path, store=database, artifacts="s3://detsweep/artifacts", **s3) as url,
    ):
        plan = make_plan(tmp_path / "storage", url)
        Ledger(plan.storage).prepare()
        with trainings(plan, tmp_path / "results") as (ledger, end):
            tracker = opened(plan, ledger)
            tracker.start()
            time.sleep(4)
            tracker.stop_polling()
            again = opened(plan, ledger)
            again.start()
            time.sleep(2)
            end()
            again.stop_polling()
            assert again.finish("FINISHED") is None
            check_all_there(plan, ledger, url)
        client = MlflowClient(tracking_uri=url)
        (run,) = client.search_runs(
            [client.get_experiment_by_name(plan.name).experiment_id], filter_string="tags.row = 'one'"
        )
        folder = Path(client.download_artifacts(run.info.run_id, "model", str(tmp_path)))
        assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_a_sweep_with_storage_and_artifacts_in_a_bucket_and_runs_on_postgresql(s3, tmp_path):
    """Nothing of it lies on this machine."""
    sweep = Sweep(tmp_path / "sweep", iterations=10)
    sweep.storage = address = "s3://detsweep/experiments"
    with (
        postgresql() as database,
        mlflow_server(tmp_path, store=database, artifacts="s3://detsweep/artifacts", **s3) as url,
    ):
        (row,) = sweep.run(0, "--tracking-uri", url)["rows"]
        assert (row["state"], Ledger(address).record(row["identity"]).state) == ("finished", "finished")
        client = MlflowClient(tracking_uri=url)
        assert client.get_run(row["run_id"]).info.status == "FINISHED"
        steps = [metric.step for metric in client.get_metric_history(row["run_id"], "loss")]
        assert steps == list(range(1, 11))
        folder = client.download_artifacts(row["run_id"], "model", str(tmp_path))
        assert detector.load(folder, device="cpu").config.backbone == "r18"
