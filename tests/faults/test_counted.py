"""The count of what a fault left twice or damaged finds what is put there."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient

from detector.checkpoint_store import CheckpointStore, write_manifest
from orchestrator.ledger import Ledger
from tests.faults.counted import damaged, repeated

TAGS = {"sweep": "t", "kind": "row", "row": "a", "seed": "0", "identity": "a1"}


def test_runs_steps_checkpoints_and_models_that_should_not_be_so_are_found(tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("t", artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment, tags=TAGS).info.run_id
    for step, value in ((1, 2.0), (2, 1.0)):
        client.log_metric(run, "loss", value, step=step, timestamp=step)
    ledger = Ledger(tmp_path)
    ledger.claim("a1", sweep="t", row="a", seed=0, config={}, iterations=2)
    store = CheckpointStore(ledger.training("a1"))
    for step in (1, 2):
        folder = tmp_path / "scratch"
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "model.safetensors").write_bytes(b"weights")
        write_manifest(folder, step, None)
        store.keep(folder, step)
    ledger.finished("a1", ledger.training("a1") / "checkpoint_00000002", {})
    client.log_artifact(run, str(ledger.training("a1") / "model" / "model.safetensors"), "model")
    client.set_terminated(run, "FINISHED")
    assert (repeated(client), damaged(ledger, client)) == ([], [])

    client.log_metric(run, "loss", 3.0, step=2, timestamp=9)
    client.create_run(experiment, tags=TAGS)
    assert len(repeated(client)) == 2
    (ledger.training("a1") / "checkpoint_00000001" / "model" / "model.safetensors").write_bytes(b"Weights")
    (ledger.training("a1") / "model" / "model.safetensors").write_bytes(b"Weights")
    found = damaged(ledger, client)
    assert [one.partition(":")[0] for one in found] == [
        "a1/checkpoint_00000001",
        "a1/model",
        f"the model of the run {run}",
    ]
