"""Checkpoints are whole or not there, the newest undamaged one counts, and the newest two and the best are kept."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path

import pytest
import torch

from detector.checkpoint_store import CheckpointStore, write_manifest
from detector.errors import InputError, UnreachableError
from detector.training import TrainingState
from tests.detector.conftest import small_config


@pytest.fixture(params=["folder", "object store"])
def store(request, tmp_path):
    """Of a folder; or of the same folder, used as one that knows neither renaming nor moving."""
    store = CheckpointStore(tmp_path / "store")
    store._local = request.param == "folder"
    return store


def saved(folder: Path, step: int, ap: float | None = None, *, content: bytes = b"weights") -> Path:
    """The files of a checkpoint."""
    (folder / "model").mkdir(parents=True)
    (folder / "state.pt").write_bytes(content * step)
    (folder / "model" / "config.json").write_text("{}")
    write_manifest(folder, step, ap)
    return folder


def keep(store: CheckpointStore, folder: Path, step: int, ap: float | None = None) -> str:
    return store.keep(saved(folder / f"scratch-{step}", step, ap), step)


def test_the_newest_two_and_the_best_are_kept(store, tmp_path):
    for step, ap in ((10, 3.0), (20, 9.0), (30, None), (40, 5.0), (50, None), (60, None)):
        keep(store, tmp_path, step, ap)
    assert store.steps() == [20, 50, 60]
    newest = store.newest()
    assert (newest.name, newest.step, newest.ap) == ("checkpoint_00000060", 60, None)
    fetched = store.fetch(newest.name, tmp_path / "copy")
    assert (fetched / "state.pt").read_bytes() == b"weights" * 60
    assert not list(tmp_path.glob("scratch-*"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, flip, remove])
@pytest.mark.parametrize("file", ["state.pt", "model/config.json", "manifest.json"])
def test_a_damaged_one_is_passed_over_and_the_log_says_why(store, tmp_path, caplog, damage, file):
    keep(store, tmp_path, 10)
    keep(store, tmp_path, 20)
    damage(tmp_path / "store" / "checkpoint_00000020" / file)
    with caplog.at_level(logging.WARNING):
        assert store.newest().step == 10
    assert "the checkpoint checkpoint_00000020 in " in caplog.text
    assert "is not used: " in caplog.text
    # It doesn't stand in the way of the next one of the same step.
    keep(store, tmp_path, 20)
    assert store.newest().step == 20
    assert len([step for step in store.steps() if step == 20]) == 1
    assert 10 in store.steps()


def test_the_same_step_again_takes_nothing_away(store, tmp_path):
    first, second = keep(store, tmp_path, 10), keep(store, tmp_path, 10, 4.0)
    assert (first, second) == ("checkpoint_00000010", "checkpoint_00000010_1")
    assert store.newest().name == second
    assert store.steps() == [10]


def test_without_any_there_is_none(store):
    assert store.newest() is None
    assert store.steps() == []


def test_a_full_disk_is_said_and_what_was_there_is_intact(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path / "store")
    keep(store, tmp_path, 10)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    source = saved(tmp_path / "scratch", 20)
    monkeypatch.setattr("detector.checkpoint_store.shutil.move", full)
    said = r"step 20 can't be written .*No space left.*the one of step 10 is intact"
    with pytest.raises(UnreachableError, match=said):
        store.keep(source, 20)
    assert store.newest().step == 10


class Replaced(Exception):
    """What a store's owner raises for who has the training no more."""


def test_who_has_the_training_no_more_keeps_and_removes_nothing(store, tmp_path):
    """It finds that out at any of the times that it is asked: before it uploads, publishes, or prunes."""
    asked, allowed = 0, 0

    @contextlib.contextmanager
    def writing():
        nonlocal asked
        asked += 1
        if asked > allowed:
            raise Replaced
        yield

    for step in (10, 20):
        keep(store, tmp_path, step)
    late = CheckpointStore(tmp_path / "store", writing=writing)
    late._local = store._local
    (tmp_path / "store" / ".checkpoint_00000030.moving").mkdir()
    for allowed in range(1 if store._local else 2):
        asked = 0
        with pytest.raises(Replaced):
            keep(late, tmp_path / str(allowed), 30)
        assert store.newest().step == 20
    allowed, asked = allowed + 1, 0
    with pytest.raises(Replaced):
        keep(late, tmp_path / "published", 30)
    assert store.steps() == [10, 20, 30]
    assert (tmp_path / "store" / ".checkpoint_00000030.moving").exists()


def test_one_of_a_newer_version_is_refused_with_what_to_do(store, tmp_path):
    keep(store, tmp_path, 10)
    path = tmp_path / "store" / "checkpoint_00000010" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(InputError, match=r"newer version .*upgrade detsweep"):
        store.newest()


def test_one_of_the_former_format_is_used_if_it_is_whole(generated, tmp_path):
    """Ray Train named them by the time and wrote no manifest; optimisers were not fused."""
    config = small_config(schedule={"optimizer": "adamw"})
    state = TrainingState(config, generated[0], torch.device("cpu"))
    state.step = 7
    folder = tmp_path / "store" / "checkpoint_2026-11-22_15-00-00.123456"
    state.save(folder)
    old = torch.load(folder / "state.pt", weights_only=True)
    for group in old["optimizer"]["param_groups"]:
        group["fused"] = None
    torch.save({key: value for key, value in old.items() if key != "window"}, folder / "state.pt")
    store = CheckpointStore(tmp_path / "store")
    found = store.newest()
    assert (found.name, found.step) == (folder.name, 7)
    again = TrainingState(config, generated[0], torch.device("cpu"))
    again.load(store.fetch(found.name, tmp_path))
    assert again.step == 7
    assert all(group["fused"] for group in again.optimizer.param_groups)
    truncate(folder / "state.pt")
    assert store.newest() is None
