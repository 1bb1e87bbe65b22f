"""Real servers of MLflow: the same runs as in a file, and a model that answers the request of docs/mlflow.md."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

import detector
from orchestrator import journal
from orchestrator.ledger import Ledger
from orchestrator.packaging import _example
from orchestrator.registry import kept
from tests.faults.servers import free_port, mlflow_server, running
from tests.orchestrator.test_artifacts import TRAIN, keep_checkpoint, keep_sheet
from tests.orchestrator.test_registry import (  # noqa: F401
    empty_database,
    finish,
    registering,
    saved,
    storage,
)  # fmt: skip
from tests.orchestrator.test_tracking import begin, opened, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PAGE = (Path(__file__).parents[2] / "docs" / "mlflow.md").read_text(encoding="utf-8")


@pytest.fixture
def swept(storage, saved):  # noqa: F811
    """A finished sweep of two rows and two seeds in the storage; nothing in MLflow yet."""
    plan = registering(storage, {"<b>a</b>": "a", "b": "b"}, seeds=(0, 1))
    plan = replace(plan, rows=tuple(replace(row, train=TRAIN) for row in plan.rows))
    ledger = Ledger(storage)
    for number, row in enumerate(plan.rows):
        begin(ledger, plan, row)
        train(ledger, row, 0, 4)
        journal.append(ledger.record(row.identity).journal, 4, "system", {"system/cpu_utilization_percentage": 12.0})
        keep_sheet(ledger, row, 4)
        line = {"AP": 5.0 + number, "APs": None}
        journal.append(ledger.record(row.identity).journal, 4, "evaluation", line, evaluation=row.evaluation)
        keep_checkpoint(ledger, row, 4 + number)
        finish(ledger, row, saved, AP=20.0 + number, APs=None)
    return plan


def what_is_there(plan) -> dict:
    """All that a store has of the sweep, without what differs between any two stores: ids, places and their user."""
    client = MlflowClient(plan.tracking_uri)
    experiment = client.get_experiment_by_name(plan.name)
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        tags = {key: value for key, value in run.data.tags.items() if key != "mlflow.log-model.history"}
        parent = tags.pop("mlflow.parentRunId", None)
        found[tags.get("row", "sweep"), tags.get("seed", "")] = {
            "tags": tags,
            "child": parent is not None,
            "name": run.info.run_name,
            "status": run.info.status,
            "params": run.data.params,
            "metrics": {
                key: [(one.step, one.value, one.timestamp) for one in client.get_metric_history(run.info.run_id, key)]
                for key in run.data.metrics
            },
            "inputs": sorted(
                (one.dataset.name, one.dataset.digest, one.dataset.profile, one.tags[0].value)
                for one in run.inputs.dataset_inputs
            ),
            "artifacts": contents(Path(client.download_artifacts(run.info.run_id, "")), run.info.run_id),
        }
    versions = client.search_model_versions("name = 'detector'")
    found["versions", ""] = {
        int(v.version): (
            v.tags,
            v.description,
            {k: int(v) for k, v in client.get_registered_model("detector").aliases.items()},
        )
        for v in versions
    }
    return found


def contents(folder: Path, run_id: str) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes().replace(run_id.encode(), b"ID") for path in files}


def test_a_file_and_a_server_have_the_same_runs(swept, tmp_path):
    assert opened(swept, Ledger(swept.storage)).finish("FINISHED") is None
    in_file = what_is_there(swept)
    assert len(in_file) == 1 + 4 + 1
    assert list(in_file["versions", ""]) == [1]
    (swept.folder / "runs.json").unlink()
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server") as url:
        served = replace(swept, tracking_uri=url)
        for _ in range(2):
            assert opened(served, Ledger(swept.storage), thorough=True).finish("FINISHED") is None
        there = what_is_there(served)
        assert there.keys() == in_file.keys()
        for key, one in in_file.items():
            if "artifacts" in one:
                assert there[key].pop("artifacts") == one.pop("artifacts"), key
            assert there[key] == one, key
        model = detector.load("models:/detector@best", tracking_uri=url, device="cpu")
        assert model.config.backbone == "r18"
    assert "registered as detector version 1" in kept(swept)["sentence"]


def test_a_served_model_answers_the_request_of_the_page(swept, tmp_path):
    assert opened(swept, Ledger(swept.storage)).finish("FINISHED") is None
    serve = re.findall(r"^(mlflow models serve .*) &$", PAGE, re.MULTILINE)[0]
    curl = re.findall(r"^curl .*?^END$", PAGE, re.DOTALL | re.MULTILINE)[0]
    port = str(free_port())
    (tmp_path / "street.jpg").write_bytes(_example())
    command = serve.replace("models:/cells@best", "models:/detector@best").replace("5001", port)
    words = [sys.executable, "-m", *command.split()]
    environment = {"MLFLOW_TRACKING_URI": swept.tracking_uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with running(words, f"http://127.0.0.1:{port}/ping", tmp_path / "serve.log", **environment, **path):
        # By its recipe's own rule the untrained model finds something.
        asked = curl.replace("5001", port).replace('"score_threshold": 0.3', '"score_threshold": 0.0')
        for text, least in ((curl.replace("5001", port), 0), (asked, 1)):
            done = subprocess.run(["bash", "-euc", text], cwd=tmp_path, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr + (tmp_path / "serve.log").read_text()[-3000:]
            (answer,) = json.loads(done.stdout)["predictions"]
            assert len(answer["boxes"]) == len(answer["scores"]) == len(answer["names"]) >= least
    model = detector.load("models:/detector@best", tracking_uri=swept.tracking_uri, device="cpu")
    expected = model.predict(Image.open(tmp_path / "street.jpg"))
    assert torch.allclose(torch.tensor(answer["boxes"]), expected.boxes, atol=1e-3)
    assert answer["category_ids"] == expected.category_ids.tolist()
