"""A process dies at any point of saving: a whole checkpoint is found afterwards, and training goes on.

Simulated: SIGKILL in a process of its own before each single operation on files (open, mkdir, rename, remove, …, as
Python's audit events tell them) while a checkpoint is written, taken over and old ones are pruned. Were a checkpoint
counted by its name, or an old one removed before the new one is whole, one of these points would leave none, or a part.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from detector.checkpoint_store import CheckpointStore, write_manifest


def save(folder: Path, step: int, ap: float | None = None) -> None:
    """Writes and keeps a checkpoint of several files, as a training does."""
    scratch = folder / f"scratch-{step}"
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "model").mkdir(parents=True)
    (scratch / "state.pt").write_bytes(bytes([step]) * 5000)
    (scratch / "step.json").write_text(f'{{"step": {step}}}')
    (scratch / "model" / "model.safetensors").write_bytes(bytes([step]) * 3000)
    write_manifest(scratch, step, ap)
    CheckpointStore(folder / "store").keep(scratch, step)


def killed_after(folder: Path, operations: int, step: int) -> bool:
    """Saves in a process that is killed before its next operation on files; False if it ended before that."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event: str, _: tuple) -> None:
            nonlocal seen
            if event != "os.kill" and event.startswith(("open", "os.", "shutil.")):
                seen += 1
                if seen > operations:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            save(folder, step)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_killed_at_every_point_of_saving_the_newest_whole_one_is_found(tmp_path, measured):
    points, found = 0, set()
    while True:
        folder = tmp_path / f"at-{points}"
        for step, ap in ((10, 5.0), (20, 1.0), (30, 2.0)):
            save(folder, step, ap)
        died = killed_after(folder, points, 40)
        store = CheckpointStore(folder / "store")
        newest = store.newest()
        assert newest is not None, points
        assert newest.step in (30, 40), points
        content = (store.fetch(newest.name, folder) / "state.pt").read_bytes()
        assert content == bytes([newest.step]) * 5000
        found.add(newest.step)
        # And training goes on from there: the next one is kept, and nothing is left of what was cut short.
        save(folder, 50)
        assert store.newest().step == 50
        assert store.steps() == [10, newest.step, 50]
        assert not [path for path in (folder / "store").iterdir() if path.name.startswith(".")]
        shutil.rmtree(folder)
        if not died:
            break
        points += 1
    assert points > 30
    assert found == {30, 40}
    measured(f"3: death at each of {points} points of saving", said="(the newest or the one before it, never none)")


@pytest.mark.parametrize("after", range(5))
def test_an_upload_that_was_cut_short_counts_for_nothing(tmp_path, monkeypatch, after):
    """An object store has no rename: files arrive one by one, and the manifest is the last."""
    from detector import checkpoint_store

    store = CheckpointStore(tmp_path / "store")
    store._local = False
    for step in (10, 20):
        save(tmp_path, step)
    copy, copied = checkpoint_store.pafs.copy_files, 0

    def cut_short(source: str, target: str, **options: object) -> None:
        nonlocal copied
        if copied == after:
            Path(target).write_bytes(Path(source).read_bytes()[:20])
            raise KeyboardInterrupt
        copied += 1
        copy(source, target, **options)

    monkeypatch.setattr(checkpoint_store.pafs, "copy_files", cut_short)
    scratch = tmp_path / "scratch"
    (scratch / "model").mkdir(parents=True)
    for name in ("state.pt", "step.json", "model/model.safetensors"):
        (scratch / name).write_bytes(b"new" * 100)
    write_manifest(scratch, 30, None)
    if after < 4:
        with pytest.raises(KeyboardInterrupt):
            store.keep(scratch, 30)
        assert store.newest().step == 20
    else:
        store.keep(scratch, 30)
        assert store.newest().step == 30
