"""Workers that stand still are noticed in time, and those that only take long are left alone."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time

import psutil
import pytest

from detector.config import TrainingConfig
from orchestrator import heartbeat, worker
from orchestrator.heartbeat import Heartbeat, Watch, kill, read_signs
from orchestrator.storage import open_storage


@pytest.fixture
def ended(monkeypatch):
    """The workers that a watch ended, as if one of them had been stopped."""
    found: list[dict] = []

    def end(workers):
        found.extend(workers)
        return [(worker, "stopped" if worker["rank"] == 1 else "waiting") for worker in workers]

    monkeypatch.setattr(heartbeat, "end", end)
    return found


def test_signs_are_those_of_the_launch_that_is_meant(tmp_path):
    storage = open_storage(tmp_path)
    for rank, launch in ((0, "new"), (1, "new"), (2, "old")):
        with Heartbeat(storage, "a1", launch, rank, 1.0) as one:
            one.beat(rank + 5)
    signs = read_signs(storage, "a1", "new")
    assert [(sign["rank"], sign["step"], sign["done"]) for sign in signs] == [(0, 5, True), (1, 6, True)]
    assert signs[0]["pid"] == psutil.Process().pid


def test_a_standstill_is_noticed_in_time_and_says_who_was_stopped(tmp_path, ended):
    storage = open_storage(tmp_path)
    with (
        Watch(storage, "a1", "x", 1.0) as watch,
        Heartbeat(storage, "a1", "x", 0, 1.0) as one,
        Heartbeat(storage, "a1", "x", 1, 1.0) as other,
    ):
        for step in range(5):
            one.beat(step)
            other.beat(step)
            time.sleep(0.02)
        began = time.monotonic()
        while not ended and time.monotonic() - began < 10:
            time.sleep(0.02)
        noticed = time.monotonic() - began
    assert noticed < 1.2
    assert [worker["rank"] for worker in ended] == [0, 1]
    assert watch.stalled.startswith("no iteration was completed for 1 s after step 4: worker 1 (process ")
    assert "worker 0" not in watch.stalled
    assert "raise resources.stall_timeout_s" in watch.stalled


def test_who_is_busy_waits_to_begin_or_is_done_is_not_ended(tmp_path, ended):
    storage = open_storage(tmp_path)
    with Watch(storage, "a1", "x", 0.5) as watch:
        time.sleep(0.7)
        with Heartbeat(storage, "a1", "x", 0, 0.5) as one, one.busy():
            time.sleep(0.8)
        time.sleep(0.8)
    assert watch.stalled is None
    assert not ended


def test_who_stands_still_is_noticed_although_others_are_done(tmp_path, ended):
    storage = open_storage(tmp_path)
    with Watch(storage, "a1", "x", 0.5) as watch, Heartbeat(storage, "a1", "x", 0, 0.5) as last:
        with Heartbeat(storage, "a1", "x", 1, 0.5) as other:
            other.beat(7)
        last.beat(7)
        until = time.monotonic() + 5
        while not ended and time.monotonic() < until:
            time.sleep(0.02)
    assert [worker["rank"] for worker in ended] == [0, 1]
    assert "after step 7" in watch.stalled


def test_a_worker_is_watched_before_it_meets_the_others(tmp_path, monkeypatch):
    signs = []

    class Context:
        def get_world_rank(self):
            return 1

    @contextlib.contextmanager
    def meeting(*, gpus):
        until = time.monotonic() + 20
        while not signs and time.monotonic() < until:
            signs.extend(read_signs(open_storage(tmp_path), "a1", "x"))
        yield

    monkeypatch.setattr("ray.train.get_context", Context)
    monkeypatch.setattr("orchestrator.process_group.process_group", meeting)
    monkeypatch.setattr(worker, "_work", lambda settings, context, heartbeat: heartbeat.step)
    config = TrainingConfig().model_dump(mode="json")
    assignment = worker.Assignment("a1", str(tmp_path), config, {}, (), 0.0)
    assert worker.work({"assignment": assignment, "launch": "x"}) == 0
    assert [(sign["rank"], sign["done"]) for sign in signs] == [(1, False)]


def test_only_the_process_that_was_meant_is_killed():
    process = psutil.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.DEVNULL)
    assert kill(process.pid, process.create_time() - 100) == "gone"
    assert process.is_running()
    process.suspend()
    while process.status() != psutil.STATUS_STOPPED:  # a signal takes its time
        time.sleep(0.01)
    assert kill(process.pid, process.create_time()) == "stopped"
    process.wait(10)
    assert kill(process.pid, 0.0) == "gone"
