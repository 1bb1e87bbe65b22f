"""Speed and the share of waiting are of the steps alone, whatever is done between them."""

from __future__ import annotations

import time

import pytest
import torch

from detector import window
from detector.training import Hooks, TrainingState, train
from detector.window import Window
from tests.detector.conftest import small_config


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(window, "time", clock)
    return clock


def closed(figures: Window, state: TrainingState) -> tuple[float, float]:
    figures.rows.append({"loss": 1.0, "lr": 0.1})
    metrics = figures.close(state)
    return metrics["images_per_second"], metrics["data_wait"]


def test_neither_the_start_nor_an_evaluation_is_time_of_steps(generated, clock):
    state = TrainingState(small_config(), generated[0], torch.device("cpu"))
    figures = Window()
    clock.now += 1000  # resuming, and whatever comes before the first step

    def read():
        for _ in range(4):
            clock.now += 1  # the training waits
            yield []

    for step, _ in enumerate(figures.waiting(read()), 1):
        clock.now += 3  # and computes
        figures.add({"loss": torch.ones(())}, images=8)
        if step == 2:
            assert closed(figures, state) == pytest.approx((16 / 8, 2 / 8))
            with figures.paused():
                clock.now += 600
        if step == 3:
            with figures.paused():
                clock.now += 50
    assert closed(figures, state) == pytest.approx((16 / 8, 2 / 8))


def test_evaluations_and_checkpoints_of_a_training_do_not_lower_its_speed(generated, tmp_path):
    class Slow(Hooks):
        def __init__(self) -> None:
            self.speeds: list[float] = []

        def on_metrics(self, step, metrics):
            self.speeds.append(metrics["images_per_second"])

        def on_evaluation(self, step, metrics):
            time.sleep(2)

        def keep(self, step, folder):
            time.sleep(2)

    config = small_config(
        data={"short_side": 48, "long_side": 48}, schedule={"iterations": 3}, evaluation={"every": 1},
        checkpoint={"every": 1},
    )  # fmt: skip
    hooks = Slow()
    train(config, *generated, folder=tmp_path, hooks=hooks)
    # With them a window of four images would last four seconds and more.
    assert min(hooks.speeds[1:]) > 1
