"""Rates by hand, and parameter groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detector.config import ScheduleConfig
from detector.schedule import build_optimizer, learning_rate, set_rate

PAPER = ScheduleConfig()


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.01 / 3),
        (499, 0.01 / 3),
        (500, 0.01),
        (59_999, 0.01),
        (60_000, 0.001),
        (79_999, 0.001),
        (80_000, 0.0001),
        (89_999, 0.0001),
    ],
)
def test_the_1x_schedule(step, rate):
    assert learning_rate(PAPER, step) == pytest.approx(rate, rel=1e-12)


def test_the_2x_schedule_decays_at_120k_and_160k():
    twice = PAPER.model_copy(update={"epochs_factor": 2})
    assert twice.max_iterations == 180_000
    assert learning_rate(twice, 119_999) == pytest.approx(0.01)
    assert learning_rate(twice, 120_000) == pytest.approx(0.001)
    assert learning_rate(twice, 160_000) == pytest.approx(0.0001)


def test_a_short_training_scales_everything():
    short = PAPER.model_copy(update={"iterations": 100})
    rates = [round(learning_rate(short, step) / 0.01, 4) for step in (0, 4, 5, 66, 67, 88, 89)]
    assert rates == [0.3333, 0.3333, 1, 1, 0.1, 0.1, 0.01]


def test_a_linear_warm_up_rises():
    linear = PAPER.model_copy(update={"warmup_shape": "linear", "warmup_factor": 0.001})
    assert learning_rate(linear, 0) == pytest.approx(0.01 * 0.001)
    assert learning_rate(linear, 250) == pytest.approx(0.01 * (0.0005 + 0.5))


def test_another_batch_scales_rate_length_and_warm_up():
    half = ScheduleConfig(batch_size=8, scale_with_batch="linear")
    assert half.max_iterations == 180_000
    assert learning_rate(half, 999) == pytest.approx(0.005 / 3)
    assert learning_rate(half, 1000) == pytest.approx(0.005)


def test_one_cycle_equals_torchs():
    config = ScheduleConfig(iterations=101, policy="one_cycle", learning_rate=0.002)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    # torch counts to total_steps - 1, and its rise ends at 0.3 * total - 1.
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.002, total_steps=101, pct_start=31 / 101, cycle_momentum=False
    )
    for step in range(101):
        assert learning_rate(config, step) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        if step < 100:
            scheduler.step()


def network():
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.GroupNorm(32, 32), nn.Conv2d(32, 4, 1))


def test_sgd_gives_biases_twice_the_rate_and_no_decay():
    optimizer = build_optimizer(PAPER, network())
    set_rate(optimizer, 0.5)
    weights, biases = optimizer.param_groups
    assert (weights["lr"], weights["weight_decay"], len(weights["params"])) == (0.5, 1e-4, 3)
    assert (biases["lr"], biases["weight_decay"], len(biases["params"])) == (1.0, 0.0, 3)
    plain = build_optimizer(PAPER.model_copy(update={"double_bias_rate": False}), network()).param_groups[1]
    assert (plain["rate_factor"], plain["weight_decay"]) == (1.0, 1e-4)


def test_adamw_decays_only_kernels():
    groups = build_optimizer(PAPER.model_copy(update={"optimizer": "adamw"}), network()).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(2, 1e-4), (4, 0.0)]
