"""Simulated sweeps, worked out by hand; lost nodes against the formula for a job that begins anew."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

import pytest

from orchestrator.nodes import Need
from orchestrator.simulation import Cluster, Work, _Simulation, alone_s, exchange_s, exposed_s, simulate

ONE = Cluster(nodes=1, devices=2, gpus=False, cpus=2, network=10.0, links=100.0)
GPUS = Cluster(nodes=2, devices=3, gpus=True, cpus=99, network=10.0, links=100.0)


def work(name: str = "a", steps: int = 100, step_s: float = 1.0, **fields: Any) -> Work:
    """A training of one worker on one core, unless something else is said."""
    said: dict[str, Any] = {"need": Need(1, 1, 0.0), "placement": "pack", "begun": 0, "gradients": 0.0}
    return Work(identity=name, steps=steps, step_s=step_s, **(said | fields))


def on_gpus(name: str, workers: int, placement: str = "pack", **fields: Any) -> Work:
    """A training of several workers with a GPU each."""
    return work(name, need=Need(workers, 1, 1.0, placement == "one_node"), placement=placement, **fields)


def test_one_training_is_its_steps_and_what_comes_between() -> None:
    one = work(
        step_s=2.0, checkpoint_s=5.0, checkpoint_every=40, evaluation_s=30.0, evaluation_every=50, afterwards=(7.0,)
    )
    found = simulate([one], ONE, at_once=1, start_s=10.0, sweep_s=(3.0, 4.0))
    # Checkpoints at 40, 80 and 100, evaluations at 50 and 100; then a process starts for the other evaluation.
    assert found.seconds == pytest.approx(3 + 10 + 100 * 2 + 3 * 5 + 2 * 30 + 10 + 7 + 4)
    assert found.spent["iterations"] == pytest.approx(200)
    assert found.spent["checkpoints"] + found.spent["evaluations"] == pytest.approx(3 * 5 + 2 * 30 + 7)
    assert found.spent["starting"] == pytest.approx(20)
    assert (found.courses[0].start, found.courses[0].end) == (3.0, pytest.approx(found.seconds - 4))


def test_trainings_start_in_their_order_as_soon_as_there_is_room() -> None:
    works = [work("a", 100), work("b", 50), work("c", 70), work("d", 10)]
    found = simulate(works, ONE, at_once=2)
    assert [(one.identity, one.start, one.end) for one in found.courses] == [
        ("a", 0.0, 100.0),
        ("b", 0.0, 50.0),
        ("c", 50.0, 120.0),
        ("d", 100.0, 110.0),
    ]
    assert found.queued_until == 100.0
    assert simulate(works, ONE, at_once=1).seconds == 230.0


def test_what_is_begun_is_finished_and_what_is_trained_only_evaluated() -> None:
    assert simulate([work(begun=75)], ONE, at_once=1).seconds == pytest.approx(25)
    assert simulate([work(begun=100, afterwards=(4.0, 5.0))], ONE, at_once=1, start_s=2.0).seconds == pytest.approx(13)


def test_workers_of_one_node_leave_the_others_devices_empty() -> None:
    # Three GPUs a node: one training of two each, not three trainings over the six.
    works = [on_gpus(name, 2, "one_node") for name in "abc"]
    assert simulate(works, GPUS, at_once=3).seconds == 200.0
    assert simulate([on_gpus(name, 2) for name in "abc"], GPUS, at_once=3).seconds == 100.0


def test_an_exchange_is_a_ring_and_hides_behind_the_backward_pass() -> None:
    assert exchange_s(100.0, 4, 10.0) == pytest.approx(2 * 3 / 4 * 100 / 10)
    assert exchange_s(100.0, 1, 10.0) == 0.0
    megabytes = 2.0**20
    # 100 MiB at 10 MiB/s over two workers: 10 s, of which 2/3 of a step of 12 s hide 8; the last 25 MiB take 2.5.
    assert exposed_s(100 * megabytes, 2, 10 * megabytes, 12.0) == pytest.approx(2.5)
    assert exposed_s(100 * megabytes, 2, 10 * megabytes, 6.0) == pytest.approx(10 - 4)


def test_trainings_that_cross_a_network_share_it() -> None:
    cluster = Cluster(nodes=2, devices=4, gpus=True, cpus=99, network=10.0, links=1000.0)
    spread = [on_gpus(name, 2, "spread", gradients=100.0) for name in "ab"]
    # Two workers: 100 bytes over 10 a second take 10 s, 20 with half of it; 2/3 s of a step of one hide some.
    alone = 100 * (1 + max(10.0, 10 - 2 / 3))
    assert simulate(spread[:1], cluster, at_once=2).seconds == pytest.approx(alone)
    both = simulate(spread, cluster, at_once=2)
    assert both.seconds == pytest.approx(100 * (1 + 20.0))
    assert both.spent["gradients"] == pytest.approx(2 * 2 * 100 * 20.0)
    inside = on_gpus("c", 2, "pack", gradients=100.0)
    assert simulate([inside], cluster, at_once=1).seconds == pytest.approx(100 * (1 + 0.1))
    known = on_gpus("c", 2, "pack", gradients=100.0, inside=True)
    assert simulate([known], cluster, at_once=1).seconds == pytest.approx(100)


def test_a_lost_node_throws_its_training_back_to_the_newest_checkpoint() -> None:
    one = work(checkpoint_every=25)
    simulation = _Simulation([one], Cluster(**{**vars(ONE), "replaced_s": 20.0}), 1, 5.0, (0.0, 0.0), random.Random(0))
    simulation.fails = [65.0]
    found = simulation.run()
    # 60 steps by 65 s, the newest checkpoint at 50; 20 s without a node, 5 s to start, 50 steps more.
    assert found.seconds == pytest.approx(65 + 20 + 5 + 50)
    assert found.spent["repeated"] == pytest.approx(10)
    assert found.spent["iterations"] == pytest.approx(100)
    assert found.spent["starting"] == pytest.approx(10)
    assert (found.lost_nodes, found.courses[0].losses) == (1, 1)


def test_losses_take_what_the_formula_for_a_job_that_begins_anew_says() -> None:
    rate, length, away = 1 / 100, 80.0, 15.0
    cluster = Cluster(**{**vars(ONE), "lifetime_s": 1 / rate, "replaced_s": away})
    seconds = [simulate([work(steps=80)], cluster, at_once=1, seed=seed).seconds for seed in range(3000)]
    # E = (1 / rate + away) (exp(rate length) - 1), of exponential failures without checkpoints.
    assert statistics.fmean(seconds) == pytest.approx((1 / rate + away) * (math.exp(rate * length) - 1), rel=0.06)
    assert alone_s(work(steps=80), cluster, 0.0) == 80.0


def test_time_held_is_time_spent() -> None:
    cluster = Cluster(**{**vars(GPUS), "lifetime_s": 300.0, "replaced_s": 30.0})
    works = [
        on_gpus(name, 1 + number % 3, "spread", steps=50 + 10 * number, checkpoint_every=20, checkpoint_s=1.0,
                evaluation_s=9.0, afterwards=(5.0,), gradients=2.0)
        for number, name in enumerate("abcdefgh")
    ]  # fmt: skip
    found = simulate(works, cluster, at_once=4, start_s=3.0, seed=1)
    assert found.lost_nodes > 0
    assert found.spent["repeated"] > 0
    useful = sum(one.steps * one.step_s * one.need.workers for one in works)
    assert found.spent["iterations"] == pytest.approx(useful), "each step counts once, however often it was done"
    assert sum(found.spent.values()) <= found.seconds * cluster.nodes * cluster.devices
    assert all(one.end > one.start for one in found.courses)


def test_a_training_without_room_is_no_endless_loop() -> None:
    with pytest.raises(ValueError, match="has no room for 3 workers"):
        simulate([work(need=Need(3, 1, 0.0))], ONE, at_once=1)
