"""What a fault left twice or damaged, as the storage and MLflow have it at the end."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from detector.checkpoint_store import CheckpointStore
from orchestrator.ledger import Ledger


def counted(storage: str | Path, tracking_uri: str | None = None) -> dict[str, int]:
    """Cells of the table: what is "duplicates", none of which may be, and "damaged"."""
    client = MlflowClient(tracking_uri=tracking_uri or f"sqlite:///{storage}/mlflow.db")
    duplicates = repeated(client)
    assert duplicates == [], duplicates
    return {"duplicates": 0, "damaged": len(damaged(Ledger(storage), client))}


def repeated(client: MlflowClient) -> list[str]:
    """Runs of a sweep, or of a row and seed, beyond the first, and steps that a metric has more than once."""
    found: list[str] = []
    seen: set[tuple[str | None, ...]] = set()
    for run in _runs(client):
        name = tuple(run.data.tags.get(key) for key in ("sweep", "kind", "row", "seed"))
        found += [f"run {name}"] if name in seen else []
        seen.add(name)
        for key in run.data.metrics:
            steps = Counter(metric.step for metric in client.get_metric_history(run.info.run_id, key))
            found += [f"{key} of {name} at step {step}" for step, times in steps.items() if times > 1]
    return found


def damaged(ledger: Ledger, client: MlflowClient) -> list[str]:
    """Checkpoints that aren't what their manifests say, and finished models, here and in MLflow, that aren't theirs."""
    found = []
    models = {}
    for identity in ledger.place.names("trainings"):
        store = CheckpointStore(ledger.place.shared(f"trainings/{identity}"))
        kept = store._listed()
        found += [f"{identity}/{one.name}: {why}" for one in kept if (why := store._damage(one))]
        record = ledger.record(identity)
        if record.model is None:
            continue
        wanted = {one.files["model/model.safetensors"][1] for one in kept if one.step == record.iterations}
        models[identity] = digest(ledger.fetched(record.model) / "model.safetensors")
        found += [] if models[identity] in wanted else [f"{identity}/model"]
    for run in _runs(client):
        identity = run.data.tags.get("identity")
        if identity in models and run.info.status == "FINISHED":
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(client.download_artifacts(run.info.run_id, "model/model.safetensors", scratch))
                found += [] if digest(path) == models[identity] else [f"the model of the run {run.info.run_id}"]
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _runs(client: MlflowClient) -> list[Any]:
    return list(client.search_runs([one.experiment_id for one in client.search_experiments()], max_results=1000))
