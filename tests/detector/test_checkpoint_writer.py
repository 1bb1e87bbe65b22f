"""Checkpoints are written while training goes on, whole, one after the other, and what goes wrong is told."""

from __future__ import annotations

import threading

import pytest
import torch

from detector.checkpoint_store import CheckpointStore
from detector.checkpoint_writer import CheckpointWriter
from detector.errors import UnreachableError
from detector.training import Hooks, TrainingError, TrainingState, train
from tests.detector.conftest import small_config

CONFIG = small_config(
    schedule={"iterations": 41, "batch_size": 1, "recipe_batch_size": 1}, data={"short_side": 32, "long_side": 32},
    checkpoint={"every": 20}, tracking={"every": 10},
)  # fmt: skip


class Watched(Hooks):
    """Keeps checkpoints in a store; each writing waits until training has gone on for ``ahead`` steps."""

    def __init__(self, folder, *, ahead=1, patience=60.0):
        self.store, self.ahead, self.patience = CheckpointStore(folder), ahead, patience
        self.step, self.changed = 0, threading.Condition()
        self.seen, self.late, self.reached = [], [], []

    def on_progress(self, step):
        with self.changed:
            self.step = step
            self.changed.notify_all()

    def on_checkpoint(self, step, metrics):
        self.seen.append((step, self.step, self.store.steps()))

    def keep(self, step, folder):
        if step < 41:
            with self.changed:
                if not self.changed.wait_for(lambda: self.step >= step + self.ahead, self.patience):
                    self.late.append(step)
                    self.reached.append(self.step)
        self.store.keep(folder, step)


def test_steps_go_on_while_a_checkpoint_is_written(generated, tmp_path):
    hooks = Watched(tmp_path / "kept")
    train(CONFIG, generated[0], folder=tmp_path / "scratch", hooks=hooks)
    assert hooks.late == []
    # It is told of when it is kept.
    assert hooks.seen == [(20, 21, [20]), (40, 41, [20, 40]), (41, 41, [40, 41])]


def test_training_waits_when_it_is_a_twentieth_of_the_interval_ahead(generated, tmp_path):
    class Slow(Watched):
        def keep(self, step, folder):
            super().keep(step, folder)
            threading.Event().wait(0.5)
            self.reached.append(self.step)

    hooks = Slow(tmp_path / "kept")
    train(CONFIG, generated[0], folder=tmp_path / "scratch", hooks=hooks)
    assert hooks.late == []
    assert hooks.reached == [21, 41, 41]


def test_with_few_steps_between_them_no_step_is_made_before_it_is_kept(generated, tmp_path):
    config = small_config(
        schedule={"iterations": 20}, data={"short_side": 32, "long_side": 32}, checkpoint={"every": 19}
    )
    hooks = Watched(tmp_path / "kept", ahead=1, patience=0.3)
    train(config, generated[0], folder=tmp_path / "scratch", hooks=hooks)
    assert hooks.reached == [19, 20]


def test_what_is_written_late_is_the_state_of_its_own_step(generated, tmp_path):
    """Written at once, and written after one more step, it is the same bit for bit."""
    late = Watched(tmp_path / "late")
    late.store.prune = lambda: None
    train(CONFIG, generated[0], folder=tmp_path / "scratch", hooks=late)

    class AtOnce(Hooks):
        def keep(self, step, folder):
            pass

    train(CONFIG, generated[0], folder=tmp_path / "at once", hooks=AtOnce())
    for step in (20, 40, 41):
        states = [
            torch.load(folder / "state.pt", weights_only=True)
            for folder in (tmp_path / "late" / f"checkpoint_{step:08d}", tmp_path / "at once" / f"step_{step:08d}")
        ]
        assert states[0]["step"] == states[1]["step"] == step
        for part in ("network", "optimizer"):
            assert str(states[0][part]) == str(states[1][part])
        assert all(torch.equal(value, states[1]["network"][key]) for key, value in states[0]["network"].items())


def test_a_snapshot_shares_nothing_with_the_training(generated):
    config = small_config(schedule={"ema": 0.9})
    state = TrainingState(config, generated[0], torch.device("cpu"))

    def places(value):
        if isinstance(value, torch.Tensor):
            return {value.untyped_storage().data_ptr()}
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return set().union(*map(places, parts))

    live = places(state.model.network.state_dict()) | places(state.average.state_dict())
    assert len(live) > 50
    assert not places(state.snapshot().state) & live


def test_what_can_not_be_written_ends_the_training_within_a_twentieth_of_the_interval(generated, tmp_path):
    class Full(Hooks):
        def __init__(self):
            self.steps = 0

        def on_progress(self, step):
            self.steps = step

        def keep(self, step, folder):
            if step == 40:
                raise OSError(28, "No space left on device")

    hooks = Full()
    said = r"the checkpoint of step 40 can't be written to .*No space left on device.*make room"
    with pytest.raises(UnreachableError, match=said):
        train(CONFIG, generated[0], folder=tmp_path, hooks=hooks)
    assert 40 <= hooks.steps <= 41


def test_the_last_one_that_can_not_be_written_is_told_too(generated, tmp_path):
    class Full(Hooks):
        def keep(self, step, folder):
            if step == 41:
                raise OSError(28, "No space left on device")

    with pytest.raises(UnreachableError, match="the checkpoint of step 41 can't be written"):
        train(CONFIG, generated[0], folder=tmp_path, hooks=Full())


def test_a_training_that_fails_finishes_what_is_being_written(generated, tmp_path):
    class Failing(Watched):
        def on_metrics(self, step, metrics):
            if step == 30:
                raise TrainingError("at step 30")

    hooks = Failing(tmp_path / "kept", patience=0.3)
    with pytest.raises(TrainingError, match="at step 30"):
        train(CONFIG, generated[0], folder=tmp_path / "scratch", hooks=hooks)
    assert hooks.store.newest().step == 20


def test_one_at_a_time_and_waiting_counts_as_busy():
    running, most, busy = 0, 0, []

    class Busy:
        def __enter__(self):
            busy.append(True)

        def __exit__(self, *error):
            busy.append(False)

    def write():
        nonlocal running, most
        running += 1
        most = max(most, running)
        threading.Event().wait(0.02)
        running -= 1

    told = []
    with CheckpointWriter(5, Busy) as writer:
        for step in range(4):
            writer.start(write, lambda step=step: told.append(step), step, "here")
            assert told == list(range(step))
    assert told == [0, 1, 2, 3]
    assert most == 1
    assert busy == [True, False] * 4


def test_a_process_that_writes_nothing_is_told_after_as_many_steps():
    told = []
    with CheckpointWriter(3) as writer:
        writer.start(None, lambda: told.append(10), 10, "elsewhere")
        for step in (11, 12):
            writer.keep_up(step)
            assert told == []
        writer.keep_up(13)
        assert told == [10]
