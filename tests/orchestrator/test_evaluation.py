"""One evaluation of a finished model, without a cluster: its figures, or only what was found where nothing is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import detector
from detector.checkpoints import save_model
from detector.data.coco import Category
from orchestrator.evaluation import EvaluationJob, evaluate_training, sheet_name
from orchestrator.files import read_json
from orchestrator.ledger import Ledger
from orchestrator.plan import PlannedRow, make_plan
from orchestrator.request import SweepRequest
from orchestrator.resampling import Resampled
from orchestrator.trial import _resample
from orchestrator.worker import Assignment
from tests.orchestrator.tables import BASE, write_data, write_table


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, its data, and in its storage the row's training as finished, with random weights."""
    folder = tmp_path_factory.mktemp("evaluation")
    path = write_data(folder / "data", splits=("train", "val", "final")) / "annotations" / "final.json"
    document = json.loads(path.read_text())
    del document["annotations"]
    path.write_text(json.dumps(document))
    small = BASE.replace("weights: none", "weights: none, neck: {channels: 64}, head: {convolutions: 0}")
    write_table(folder, base=small + f"data.root: {folder / 'data'}\n")
    row = planned(folder)
    ledger = Ledger(folder / "storage")
    ledger.claim(row.identity, sweep="tiny", row=row.row, seed=0, config={}, iterations=100)
    model = detector.build(row.config.model)
    model.categories = tuple(Category(entry["id"], entry["name"]) for entry in document["categories"])
    save_model(model, folder / "checkpoint" / "model")
    ledger.finished(row.identity, folder / "checkpoint", {"loss": 1.0})
    return folder


def planned(folder: Path, *sets: str) -> PlannedRow:
    request = SweepRequest(str(folder / "tiny.yaml"), set=("data.test=final", *sets), storage=str(folder / "storage"))
    return make_plan(request).rows[0]


def evaluate(folder: Path, row: PlannedRow, key: str, split: str) -> None:
    facts = row.val if split == "val" else row.test
    assert facts is not None
    config = row.config.model_dump(mode="json")
    job = EvaluationJob(key, split, facts.digest, config, {"split": split})
    assignment = Assignment(row.identity, str(folder / "storage"), config, {}, (job,), 0.0)
    evaluate_training(assignment, job)
    _resample(assignment, job, Ledger(folder / "storage"))


def test_settings_of_the_row_and_not_of_the_model_count(trained: Path) -> None:
    ledger, found = Ledger(trained / "storage"), {}
    for most in (100, 1):
        row = planned(trained, "model.postprocess.score_threshold=0", f"model.postprocess.max_detections={most}")
        evaluate(trained, row, row.evaluation, "val")
        record = ledger.record(row.identity, {"": row.evaluation})
        assert record.state == "finished"
        assert record.metrics["loss"] == 1.0
        assert record.metrics["AP"] is not None
        found[most] = read_json(record.evaluations[""] / "detections.json")
        assert (record.evaluations[""] / "per_class.json").is_file()
        curves = read_json(record.evaluations[""] / "precision.json")
        assert record.metrics["AP"] == pytest.approx(100 * sum(curves["0.5:0.95"]) / 101, abs=0.01)
        with Image.open(record.evaluations[""] / sheet_name(100)) as sheet:
            assert sheet.width > 1000
        # For the report: what it needs of other images, made where the evaluation was.
        assert (record.evaluations[""] / "matches.npz").is_file()
        kept = ledger.resampled(row.identity, row.evaluation, "no longer needed")
        assert isinstance(kept, Resampled)
        assert kept.images == 2
    assert len(found[1]) == 2  # one in each image
    assert len(found[100]) > 2


def test_a_split_without_annotations_has_detections_and_undefined_figures(trained: Path) -> None:
    row = planned(trained)
    evaluate(trained, row, row.test_evaluation, "final")
    record = Ledger(trained / "storage").record(row.identity, {"test_": row.test_evaluation})
    assert (record.state, record.metrics["test_AP"], record.metrics["test_APl"]) == ("finished", None, None)
    assert record.metrics["test_eval_seconds"] is not None
    assert (record.evaluations["test_"] / "detections.json").is_file()
    assert not (record.evaluations["test_"] / "per_class.json").exists()
    assert not (record.evaluations["test_"] / "precision.json").exists()
    assert (record.evaluations["test_"] / sheet_name(100)).is_file()
    assert not (record.evaluations["test_"] / "matches.npz").exists()
