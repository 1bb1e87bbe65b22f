"""Steps that are really timed, each workload in a process of its own; what fails is said and ends nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator import measurement
from orchestrator.costs import Measurement, remembered, workload_key
from orchestrator.ledger import Ledger
from orchestrator.measurement import measure, memory_of_a_worker, sample
from orchestrator.plan import Plan
from orchestrator.step_timing import Sample
from orchestrator.sweep import main
from tests.orchestrator.comparisons import plan_of
from tests.orchestrator.tables import BASE, write_data, write_table

TABLE = """\
name: tiny
title: A tiny table
base: small
rows:
  - {name: plain}
  - {name: same, set: {model.assigner.topk: 9, schedule.learning_rate: 0.5}}
  - {name: broken, set: {model.backbone: "timm:there_is_no_such_network"}}
"""
SMALL = """\
data: {train: train, val: val, short_side: 64, long_side: 64}
model: {backbone: r18, weights: none, neck: {channels: 64}, head: {convolutions: 1}}
schedule: {iterations: 100, batch_size: 2, recipe_batch_size: 2}
resources: {loader_workers: 0}
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETSWEEP_STORAGE", str(tmp_path / "storage"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_data(tmp_path / "data")
    return write_table(tmp_path, TABLE, base=SMALL + f"data.root: {tmp_path / 'data'}\n")


def test_two_rows_of_one_workload_are_timed_once_and_a_failure_ends_nothing(
    small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(small), "--dry-run", "--measure", "--json", "--price", "3"]) == 0
    captured = capfd.readouterr()
    document = json.loads(captured.out)
    plain, same, broken = document["measured"]["rows"]
    assert "measured 2/2" in captured.err
    assert plain["step_seconds"] > 0
    assert plain["steps"] >= 1
    assert plain["fits"] is True
    assert 0 < plain["memory_bytes"] < plain["available_bytes"]
    assert plain["real_images"] is True
    assert {key: value for key, value in same.items() if key != "row"} == {
        key: value for key, value in plain.items() if key != "row"
    }
    seconds = 100 * plain["step_seconds"] + 2 * plain["evaluation_image_seconds"]
    assert seconds / 3600 <= plain["hours"] <= (seconds + 60) / 3600  # and a checkpoint
    assert plain["cost"] == pytest.approx(3 * plain["hours"])
    assert "there_is_no_such_network" in broken["error"]
    assert broken["hours"] is None
    storage = small.parent / "storage"
    assert [path.name for path in storage.iterdir()] == ["measurements"], "nothing of the sweep itself"
    assert len(list((storage / "measurements").glob("*.json"))) == 1, "a failure isn't remembered"


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param(("model.weights=imagenet", "model.norm=frozen_bn"), marks=pytest.mark.slow),
        pytest.param(
            ("model.weights=imagenet", "model.norm=frozen_bn", "model.backbone=timm:resnet18.a1_in1k"),
            marks=pytest.mark.slow,
        ),
        ("model.init=mmdet:atss_r50_fpn_1x_coco", "model.weights=auto", "model.backbone=r50"),
    ],
)
def test_pretrained_weights_are_not_fetched_to_time_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: tuple[str, ...]
) -> None:
    if "timm" in weights[-1]:
        pytest.importorskip("timm")
    for variable in ("TORCH_HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (row,) = plan_of(tmp_path, "name: a\ntitle: b\nbase: small\nrows: [{name: one}]\n", set=weights).rows
    assert row.config.model.norm == "frozen_bn"
    found = measurement._measured(row, lambda text: None)
    assert found.error is None
    assert found.step_s is not None
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".pth", ".safetensors")]


def test_where_memory_is_too_small_the_largest_batch_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = plan_of(tmp_path, "name: a\ntitle: b\nbase: small\nrows: [{name: big}]\n").rows
    config = row.config.model_copy(
        update={
            "data": row.config.data.model_copy(update={"short_side": 384, "long_side": 512}),
            "schedule": row.config.schedule.model_copy(update={"batch_size": 24, "recipe_batch_size": 24}),
        }
    )
    monkeypatch.setattr(measurement, "memory_of_a_worker", lambda cpus: 1500 * 2**20)
    words: list[str] = []
    found = measurement._measured(row.__class__(**{**vars(row), "config": config}), words.append)
    assert found.error is None
    assert found.step_s is None
    assert "looking for the largest batch that fits" in words
    assert found.largest is not None
    assert 0 < found.largest < 24


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "the system ended it"),
        ("import sys; sys.exit('no more room')", "ended with status 1 (no more room)"),
        ("import time; time.sleep(60)", "took more than"),
    ],
)
def test_a_process_that_dies_or_hangs_is_one_failed_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, expected: str
) -> None:
    plan = plan_of(tmp_path, seeds=(0,))
    real = measurement.subprocess.Popen

    def popen(words: list[str], **options: object) -> object:
        return real([words[0], "-c", code], **options)

    monkeypatch.setattr(measurement.subprocess, "Popen", popen)
    monkeypatch.setattr(measurement, "LONGEST_S", 3.0)
    found = measure(plan, Ledger(plan.storage))
    assert len(found) == 2
    for one in found.values():
        assert expected in str(one.error)
        assert not one.known
    assert remembered(Ledger(plan.storage).place, found) == {}


def test_a_sample_is_the_splits_own_images_and_boxes(tmp_path: Path) -> None:
    row = plan_of(tmp_path).rows[0]
    taken = sample(row)
    assert taken["real"]
    store = Sample(taken)
    assert len(store) == 2
    assert store.sizes.tolist() == [[48, 64], [48, 64]]
    assert store.boxes(0).tolist() == [[4, 5, 24, 35]]
    assert store.image(0).shape == (48, 64, 3)
    assert abs(int(store.image(0)[0, 0, 0]) - 40) < 4  # the colour that the file was drawn in
    truth = store.instances()
    assert (truth.boxes[0].tolist(), truth.category_ids[truth.category[0]], len(truth)) == ([4, 5, 20, 30], 3, 2)


def test_images_that_are_not_drawn_yet_are_made_up_in_their_size(tmp_path: Path) -> None:
    generated = "  generated: {train_images: 8, val_images: 2, classes: 2, long_side: 128}\n"
    base = BASE.replace("data: {train: train, val: val, short_side: 64, long_side: 64}\n", "data:\n" + generated)
    plan = generated_plan(tmp_path, base)
    taken = sample(plan.rows[0])
    assert not taken["real"]
    store = Sample(taken)
    assert {max(size) for size in store.sizes.tolist()} == {128}
    assert (store.boxes(0)[:, 2:] > store.boxes(0)[:, :2]).all()
    assert not plan.storage.exists()


def generated_plan(folder: Path, base: str) -> Plan:
    from orchestrator.plan import make_plan
    from orchestrator.request import SweepRequest

    path = write_table(folder, base=base)
    return make_plan(SweepRequest(str(path), storage=str(folder / "storage")), "describe")


def test_what_a_worker_has_is_shared_by_as_many_as_there_are_cores_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(measurement, "_bounds", lambda: [8000])
    assert [memory_of_a_worker(cpus) for cpus in (1, 3, 8, 16)] == [1000, 4000, 8000, 8000]


def test_workloads_differ_in_what_costs_time(tmp_path: Path) -> None:
    keys = {name: workload_key(plan_of(tmp_path, set=(name,)).rows[0]) for name in (
        "schedule.learning_rate=0.1", "schedule.iterations=7", "evaluation.every=9",
        "model.neck.channels=128", "schedule.precision=bfloat16", "data.short_side=96", "resources.workers=2",
        "resources.micro_batch_size=1",
    )}  # fmt: skip
    plain = workload_key(plan_of(tmp_path).rows[0])
    same = [name for name, key in keys.items() if key == plain]
    assert same == ["schedule.learning_rate=0.1", "schedule.iterations=7", "evaluation.every=9"]
    assert len(set(keys.values())) == 6
    assert Measurement().known is False
