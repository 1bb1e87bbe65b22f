"""What is put into a folder is on its disk before it has its name, and replaces nothing before it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator import storage
from orchestrator.storage import Folder


def model(folder: Path, weights: bytes) -> Path:
    (folder / "inner").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "inner" / "config.json").write_text("{}")
    return folder


def test_files_and_folders_are_on_the_disk_before_they_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, synced = Folder(tmp_path / "storage"), set()
    fsync, replace = os.fsync, os.replace

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    def checked(source: Path, target: Path) -> None:
        assert {source, *Path(source).rglob("*")} <= synced
        synced.discard(target.parent)
        replace(source, target)

    monkeypatch.setattr(storage.os, "fsync", noted)
    monkeypatch.setattr(storage.os, "replace", checked)
    place.put(model(tmp_path / "made", b"one"), "trainings/a/model")
    assert place.root / "trainings" / "a" in synced
    place.put(tmp_path / "made" / "model.safetensors", "trainings/a/detections.json")
    assert place.root / "trainings" / "a" in synced
    assert place.names("trainings/a") == ["detections.json", "model"]
    assert place.names("trainings/a/model") == ["inner", "model.safetensors"]


def test_what_was_there_stays_until_the_new_one_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Folder(tmp_path / "storage")
    place.put(model(tmp_path / "one", b"one"), "model")
    replace, removed = os.replace, storage.shutil.rmtree

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        place.put(model(tmp_path / "two", b"two"), "model")
    assert (place.root / "model" / "model.safetensors").read_bytes() == b"one"

    def looked(path: Path, **options: bool) -> None:
        assert (place.root / "model" / "model.safetensors").read_bytes() == b"two"
        removed(path, **options)

    monkeypatch.setattr(storage.os, "replace", replace)
    monkeypatch.setattr(storage.shutil, "rmtree", looked)
    place.put(tmp_path / "two", "model")
    assert place.names("") == ["model"]
