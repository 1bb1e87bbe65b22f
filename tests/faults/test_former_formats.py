"""A storage that an earlier version wrote is read as it was meant, or its reader says what to do.

format_1/ was written by the version before checkpoints had manifests: a training that is finished, one that was stopped
after step 40 and one that failed, all of one sweep.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from detector.checkpoint_store import CheckpointStore, write_manifest
from detector.errors import InputError
from orchestrator.ledger import Ledger

FORMAT_1 = Path(__file__).parent / "format_1"
DONE, STOPPED, FAILED = ("aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", "cccccccccccccccc")


@pytest.fixture
def storage(tmp_path):
    return Path(shutil.copytree(FORMAT_1, tmp_path / "storage"))


def test_results_states_and_runs_are_read(storage):
    ledger = Ledger(storage)
    done, stopped, failed = (ledger.record(identity, {"": "k"}) for identity in (DONE, STOPPED, FAILED))
    assert (done.state, done.step, done.metrics) == ("finished", 100, {"loss": 1.0, "AP": 12.5, "APs": None})
    assert (done.model / "model.safetensors").is_file()
    assert (stopped.state, stopped.step, stopped.history[0]["outcome"]) == ("pending", 40, "interrupted")
    assert (failed.state, failed.error) == ("failed", "image 7 can't be read")
    assert ledger.run_id("t", "done", 0) == "run-1"
    assert ledger.journal_metrics(STOPPED, ["loss"]) == ([20, 40], {"loss": [5.0, 2.5]})


def test_what_was_stopped_or_failed_is_continued(storage, measured):
    ledger = Ledger(storage)
    for identity in (STOPPED, FAILED):
        assert ledger.claim(identity, sweep="t", row="x", seed=0, config={}, iterations=100)
        assert ledger.record(identity).attempts == 1
    store = CheckpointStore(ledger.training(STOPPED))
    assert store.newest().step == 40
    # A new one beside them counts first; then the oldest goes.
    scratch = storage / "scratch"
    shutil.copytree(ledger.training(STOPPED) / store.newest().name, scratch)
    write_manifest(scratch, 60, None)
    store.keep(scratch, 60)
    assert store.newest().name == "checkpoint_00000060"
    assert store.steps() == [40, 60]
    measured("17: checkpoints of the former format", wasted=0)


def test_a_former_checkpoint_that_was_cut_short_is_passed_over(storage):
    folder = Ledger(storage).training(STOPPED)
    path = folder / "checkpoint_2026-11-22_15-00-40.123456" / "state.pt"
    path.write_bytes(path.read_bytes()[:500])
    assert CheckpointStore(folder).newest().step == 20


def test_a_later_format_is_refused_with_what_to_do(storage):
    path = storage / "trainings" / DONE / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(InputError, match="use the version that wrote it, or move the folder away"):
        Ledger(storage).record(DONE)
