"""Rows that can't be trained, beside one that can: each says why in a sentence, and the others go on.

Simulated by a plug-in inside the workers of a real sweep: boxes that are not numbers on one of two workers, an
allocation that fails above one image, an error of shapes, and storage that refuses the checkpoint's files. Were one of
these to hang, to be tried again for ever or to stop the sweep, the rows below it would not finish.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detector.checkpoint_store import CheckpointStore
from tests.faults.counted import counted
from tests.faults.sweeps import Sweep

FAULTY = (Path(__file__).parent / "faulty.py").read_text()
ROW = """\
  - name: {fault}
    set: {{model.assigner.name: faulty, model.assigner.options: {{fault: {fault}, at: {at}}}}}
"""
LATE = "  - {name: plain}\n"


def rows(*faults: str, at: float = 0.6) -> str:
    return "".join(ROW.format(fault=fault, at=at) for fault in faults)


def checked(sweep: Sweep, document: dict, fault: str, *, attempts: int, newest: int) -> str:
    """What the row of ``fault`` says; it was tried so often, and its newest checkpoint is whole and finite."""
    row = next(row for row in document["rows"] if row["row"] == fault)
    assert row["state"] == "failed"
    record = sweep.record(row["identity"])
    assert record.attempts == attempts
    store = CheckpointStore(record.folder)
    found = store.newest()
    assert found.step == newest
    state = torch.load(store.fetch(found.name, sweep.folder) / "state.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state["network"].values())
    return row["error"]


EVERY = ("--set", "checkpoint.every=2", "--set", "tracking.every=4")


def not_finite_on_one_of_two(folder: Path) -> Sweep:
    """Boxes of worker 1 are not numbers from 60 % of the training on; beside it a row without a fault."""
    first = rows("nan").replace("at: 0.6", "at: 0.6, rank: 1")
    return Sweep(folder, first + LATE, workers=2, iterations=10, plugin=FAULTY)


@pytest.mark.long
def test_a_loss_that_is_not_finite_on_one_worker_fails_that_row_alone(tmp_path, measured):
    """Fault 12."""
    sweep = not_finite_on_one_of_two(tmp_path / "sweep")
    document = sweep.run(3, *EVERY)
    error = checked(sweep, document, "nan", attempts=1, newest=6)
    assert error.startswith("the loss is no longer finite at step 7 (")
    assert "loss_reg nan" in error
    assert "lower schedule.learning_rate or set schedule.clip_norm" in error
    assert document["status"] == "partial"
    assert [row["state"] for row in document["rows"]] == ["failed", "finished"]
    measured(
        "12: loss not finite on one of two workers", completed="the other row", said=error, **counted(sweep.storage)
    )


@pytest.mark.long
def test_a_failed_row_is_tried_once_more_by_the_same_command_and_shows_both_attempts(tmp_path):
    sweep = not_finite_on_one_of_two(tmp_path / "sweep")
    sweep.run(3, "--only", "nan", *EVERY)
    (row,) = sweep.run(3, "--only", "nan", *EVERY)["rows"]
    history = sweep.record(row["identity"]).history
    assert [(one["from_step"], one["outcome"]) for one in history] == [(0, "failed"), (6, "failed")]
    assert all("at step 7" in one["error"] for one in history)


@pytest.mark.long
def test_what_a_retry_cant_cure_is_tried_at_most_twice(tmp_path, measured):
    """Faults 10 and 13."""
    sweep = Sweep(
        tmp_path / "sweep", rows("memory", "shape", "full_disk", "read_only") + LATE, iterations=10, plugin=FAULTY
    )
    document = sweep.run(3)
    counts = counted(sweep.storage)
    said = checked(sweep, document, "memory", attempts=1, newest=5)
    assert "the memory of cpu is too small for 2 images a worker at once" in said
    assert "set resources.micro_batch_size=1" in said
    measured("13: out of memory", completed="the other rows", said=said, **counts)
    said = checked(sweep, document, "shape", attempts=2, newest=5)
    assert said.startswith("RuntimeError: ")
    assert "mat1 and mat2 shapes cannot be multiplied" in said
    measured("13: error of shapes", completed="the other rows", said=said, **counts)
    for fault, words in (("full_disk", "No space left on device"), ("read_only", "Read-only file system")):
        said = checked(sweep, document, fault, attempts=1, newest=5)
        assert f"the checkpoint of step 10 can't be written to {sweep.storage}" in said
        assert f"({words}); the one of step 5 is intact" in said
        said = said.replace(str(sweep.storage), "STORAGE")
        measured(f"10: {words}", completed="the other rows", said=said, **counts)
    assert document["rows"][-1]["state"] == "finished"


@pytest.mark.long
def test_an_image_that_became_unreadable_ends_the_training_by_name(tmp_path, measured):
    """Fault 11, on one of two workers: training on other images than the recipe's would be another result."""
    sweep = Sweep(tmp_path / "sweep", iterations=2, workers=2)
    sweep.run(0)
    shards = sorted(sweep.storage.glob("data/*/images-00000.arrow"), key=lambda path: path.stat().st_size)
    content = bytearray(shards[-1].read_bytes())
    content[len(content) // 2] ^= 0xFF
    shards[-1].write_bytes(content)
    document = sweep.run(3, "--set", "schedule.iterations=12")
    (row,) = document["rows"]
    assert row["state"] == "failed"
    assert "no longer has its checksum in" in row["error"]
    assert "delete the store and convert the data again" in row["error"]
    assert sweep.record(row["identity"]).attempts == 1
    said = row["error"].replace(str(sweep.storage), "STORAGE")
    measured(
        "11: an image becomes unreadable", completed="–", said=said, **{**counted(sweep.storage), "damaged": "1 image"}
    )
