"""A worker that is killed, frozen, or finds its newest checkpoint damaged: the training goes on by itself.

Simulated: SIGKILL and SIGSTOP of a worker's process in the middle of a training of seconds, with a checkpoint every
five steps. Were anything but a whole checkpoint gone on from, or an iteration done twice or left out, the final weights
would differ from those of the training that nobody disturbed.
"""

from __future__ import annotations

import itertools
import os
import signal
import time

import psutil
import pytest

from orchestrator import journal
from tests.faults.sweeps import Sweep, equal, weights

EVERY = 5


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Final weights and the losses of all steps, of a training of 30 steps on one worker that nobody disturbed."""
    sweep = Sweep(tmp_path_factory.mktemp("undisturbed") / "sweep", iterations=30, stall=10)
    sweep.run(0)
    return weights(sweep.training()), losses(sweep)


def losses(sweep: Sweep) -> dict[int, float | None]:
    return journal.every_step(sweep.training() / "journal.jsonl", "loss")


def wasted(history: tuple[dict, ...]) -> list[int]:
    """Steps that each restart did again."""
    return [one["to_step"] - other["from_step"] for one, other in itertools.pairwise(history)]


def test_a_killed_worker_is_replaced_and_the_weights_are_the_same(tmp_path, undisturbed, measured):
    """Fault 1."""
    sweep = Sweep(tmp_path / "sweep", iterations=30, stall=10)
    sweep.start()
    (worker,) = sweep.wait_for_step(12)
    os.kill(worker["pid"], signal.SIGKILL)
    document = sweep.end(0)
    first, second = sweep.record().history
    assert (first["outcome"], second["outcome"]) == ("lost", "finished")
    assert first["error"].startswith(f"a worker was killed or its node was lost (process {worker['pid']} on ")
    assert second["from_step"] >= 10
    # Steps are counted by signs of life, so many a second: the last of them may be a few steps old.
    assert wasted((first, second))[0] <= EVERY
    assert equal(weights(sweep.training()), undisturbed[0])
    assert losses(sweep) == undisturbed[1]
    assert document["rows"][0]["step"] == 30
    recovery = second["started"] - first["ended"]
    measured("1: worker killed", wasted=wasted((first, second))[0], seconds=recovery, said=first["error"])


def test_a_damaged_checkpoint_is_passed_over(tmp_path, undisturbed, measured):
    """Fault 4: one bit of the newest is flipped, and the one before it is gone on from."""
    sweep = Sweep(tmp_path / "sweep", iterations=30, stall=10)
    sweep.start()
    sweep.wait(lambda: list(sweep.storage.glob("trainings/*/checkpoint_00000015/manifest.json")), "a third checkpoint")
    process = sweep.process
    process.send_signal(signal.SIGTERM)
    sweep.end(143)
    newest = max(sweep.training().glob("checkpoint_*"))
    path = newest / "state.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    sweep.run(0)
    log = (sweep.training() / "worker.log").read_text()
    step = int(newest.name.split("_")[1])
    assert f"the checkpoint {newest.name} in {sweep.training()} is not used: state.pt does not have the checksum" in log
    assert f"from the checkpoint checkpoint_{step - EVERY:08d}" in log
    assert sweep.record().history[-1]["from_step"] == step - EVERY
    assert equal(weights(sweep.training()), undisturbed[0])
    said = next(line for line in log.splitlines() if "is not used" in line).split(": ", 1)[1]
    said = said.replace(str(sweep.storage), "STORAGE")
    measured("4: one bit flipped", wasted=wasted(sweep.record().history)[0], damaged=1, said=said)


@pytest.mark.long
def test_a_frozen_worker_is_noticed_ended_and_replaced(tmp_path, measured):
    """Fault 14, one of two workers: the other one waits for it."""
    sweep = Sweep(tmp_path / "sweep", iterations=40, workers=2, stall=12)
    sweep.start()
    workers = sweep.wait_for_step(12)
    frozen = psutil.Process(workers[1]["pid"])
    frozen.suspend()
    began = time.monotonic()
    sweep.wait(
        lambda: not frozen.is_running() or frozen.status() == psutil.STATUS_ZOMBIE, "the frozen worker's end", 60
    )
    noticed = time.monotonic() - began
    sweep.end(0)
    record = sweep.record()
    first, second = record.history
    assert first["outcome"] == "lost"
    assert first["error"].startswith("no iteration was completed for 12 s after step ")
    assert f"worker 1 (process {frozen.pid} on " in first["error"]
    assert first["error"].count("worker") == 1
    assert wasted(record.history)[0] <= EVERY
    assert second["outcome"] == "finished"
    # The end itself is a task, for which Ray starts a process.
    assert noticed < 12 + 10, noticed
    measured("14: worker frozen, limit 12 s", wasted=wasted(record.history)[0], seconds=noticed, said=first["error"])


@pytest.mark.long
def test_killed_again_and_again_it_arrives_as_long_as_it_gets_on(tmp_path, undisturbed, measured):
    sweep = Sweep(tmp_path / "sweep", iterations=30, stall=10)
    sweep.start()
    killed: list[int] = []
    for step in (6, 11, 16, 21):
        new = sweep.wait(
            lambda step=step: [w for w in sweep.workers() if w["step"] >= step and w["pid"] not in killed],
            f"step {step}",
        )
        os.kill(new[0]["pid"], signal.SIGKILL)
        killed.append(new[0]["pid"])
    sweep.end(0)
    record = sweep.record()
    assert record.attempts == 5
    assert sum(wasted(record.history)) <= 4 * EVERY
    assert equal(weights(sweep.training()), undisturbed[0])
    assert losses(sweep) == undisturbed[1]
    measured("1: worker killed four times", wasted=sum(wasted(record.history)))
