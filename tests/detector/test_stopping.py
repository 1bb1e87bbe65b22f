"""Several processes stop together, soon after one is asked to, and none of them before the checkpoint is kept."""

from __future__ import annotations

import time

import pytest
import torch

from detector import stopping
from detector.data.store import open_store
from detector.stopping import Stopping
from detector.training import Hooks, TrainingStopped, train
from tests.detector.conftest import small_config
from tests.detector.processes import run


@pytest.fixture
def asked_after(monkeypatch):
    """The steps after which one of two processes is asked, by seconds a step and how often metrics are logged."""
    now = [0.0]
    monkeypatch.setattr(stopping.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(stopping.distributed, "rank", lambda: 0)
    monkeypatch.setattr(stopping.distributed, "all_sum", lambda tensor: tensor)
    monkeypatch.setattr(stopping.time, "perf_counter", lambda: now[0])

    def steps(seconds, every, total):
        found = []
        one = Stopping(lambda: found.append(step) or False, 0)
        for step in range(1, total + 1):
            now[0] += seconds
            one.asked(step, logged=step % every == 0)
        return found

    return steps


def test_slow_steps_are_asked_after_each_and_quick_ones_about_once_a_second(asked_after):
    assert asked_after(1.5, 20, 60) == list(range(1, 61))
    assert asked_after(0.24, 20, 60) == [*range(1, 21), *range(24, 61, 4)]
    assert asked_after(0.01, 20, 60) == [*range(1, 21), 40, 60]


def test_the_pace_is_rank_0s_and_any_may_ask(monkeypatch, asked_after):
    one = Stopping(lambda: False, 0)
    monkeypatch.setattr(stopping.distributed, "rank", lambda: 1)
    told = []

    def all_sum(tensor):
        told.append(tensor.tolist())
        return torch.tensor([1.0, 0.25])

    monkeypatch.setattr(stopping.distributed, "all_sum", all_sum)
    assert one.asked(2, logged=True)
    assert not one.asked(3, logged=False)
    assert one.asked(4, logged=False)
    assert told == [[0.0, 0.0]] * 2


class Slow(Hooks):
    """Rank 1 is asked to stop at step 3; what is kept takes rank 0 a second."""

    def __init__(self, rank, folder):
        self.rank, self.folder, self.step = rank, folder, 0

    def on_progress(self, step):
        self.step = step

    def keep(self, step, folder):
        time.sleep(1.0)
        (self.folder / "kept").write_text(str(step))

    def should_stop(self):
        return self.rank == 1 and self.step >= 3


def stopped(config, uri, folder):
    """The step at which this process stopped, and the step that was kept by then."""
    hooks = Slow(torch.distributed.get_rank(), folder)
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.raises(TrainingStopped):
        train(config, open_store(uri), folder=folder, hooks=hooks)
    return hooks.step, (folder / "kept").read_text()


def test_a_process_ends_when_the_checkpoint_is_kept(generated, tmp_path):
    config = small_config(
        schedule={"iterations": 60},
        data={"short_side": 48, "long_side": 48},
        tracking={"every": 50},
        checkpoint={"every": 1000},
    )
    found = run(stopped, 2, tmp_path / "run", config, generated[0].uri, tmp_path / "checkpoints")
    assert found == [(3, "3"), (3, "3")]
