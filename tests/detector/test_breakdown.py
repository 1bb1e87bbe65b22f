"""An update that isn't finite changes nothing, on no worker, and is told with its step and its losses."""

from __future__ import annotations

import copy

import pytest
import torch

from detector import distributed
from detector.data.store import open_store
from detector.errors import TrainingError
from detector.training import TrainingState, _batches, train
from tests.detector.conftest import small_config
from tests.detector.processes import run


def everything(state: TrainingState) -> dict:
    """All that an update may change."""
    average = None if state.average is None else state.average.module.state_dict()
    return copy.deepcopy(
        {"network": state.model.network.state_dict(), "optimizer": state.optimizer.state_dict(), "average": average}
    )


def break_down(config, uri, broken_rank, broken):
    """Four updates, of which the third has a loss or gradient that isn't finite on one process."""
    state = TrainingState(config, open_store(uri), torch.device("cpu"))
    losses = state.model.criterion.losses

    def faulty(outputs, targets, totals):
        found = losses(outputs, targets, totals)
        if state.step == 2 and distributed.rank() == broken_rank:
            found = dict(found, loss_reg=broken(found["loss_reg"]))
        return found

    state.model.criterion.losses = faulty
    before = None
    for number, batches in enumerate(_batches(config, open_store(uri), start=0, stop=4), 1):
        state.window.add(state.update(batches), images=4)
        if number == 2:
            state.window.settle(state)
            before = everything(state)
    with pytest.raises(TrainingError) as error:
        state.window.settle(state)
    return before, everything(state), str(error.value)


def not_a_number(loss):
    return loss * float("nan")


def infinite(loss):
    # Its own gradient is finite: only the value tells.
    return loss + float("inf")


def steep(loss):
    # And here only the gradient.
    return _Steep.apply(loss)


class _Steep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


SCHEDULES = [{"clip_norm": 1.0}, {"optimizer": "adamw", "ema": 0.9, "policy": "one_cycle"}]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["sgd", "adamw"])
@pytest.mark.parametrize("broken", [not_a_number, infinite, steep], ids=lambda one: one.__name__)
def test_nothing_changes_from_there_on(generated, schedule, broken):
    config = small_config(schedule={"batch_size": 2, "recipe_batch_size": 2, "iterations": 4, **schedule})
    before, after, error = break_down(config, generated[0].uri, 0, broken)
    for name in ("network", "average"):
        assert same(before[name], after[name]), name
    assert same(before["optimizer"]["state"], after["optimizer"]["state"])
    what = "gradient" if broken is steep else "loss"
    assert f"the {what} is no longer finite at step 3 (loss_cls " in error
    assert "lower schedule.learning_rate or set schedule.clip_norm" in error


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["sgd", "adamw"])
def test_one_worker_suffices_for_all(generated, tmp_path, schedule):
    config = small_config(schedule={"batch_size": 2, "recipe_batch_size": 2, "iterations": 4, **schedule})
    both = run(break_down, 2, tmp_path, config, generated[0].uri, 1, not_a_number)
    for before, after, error in both:
        assert same(before["network"], after["network"])
        assert same(before["optimizer"]["state"], after["optimizer"]["state"])
        assert "the loss is no longer finite at step 3 (" in error
        assert "loss_reg nan" in error
    assert same(both[0][1]["network"], both[1][1]["network"])


def test_no_checkpoint_after_it(generated, tmp_path):
    config = small_config(
        schedule={"iterations": 20, "learning_rate": 1000}, tracking={"every": 20}, checkpoint={"every": 1}
    )
    with pytest.raises(TrainingError, match=r"no longer finite (at|after) step (\d+)") as error:
        train(config, generated[0], folder=tmp_path)
    step = int(str(error.value).split(" step ")[1].split()[0].rstrip(";"))
    kept = sorted(tmp_path.glob("step_*"))
    assert len(kept) == step - 1
    for folder in kept:
        state = torch.load(folder / "state.pt", weights_only=True)
        assert all(value.isfinite().all() for value in state["network"].values())
