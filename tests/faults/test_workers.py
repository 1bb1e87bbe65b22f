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
import torch

from detector.config import TrainingConfig
from detector.data.store import open_store
from detector.training import Hooks, train
from orchestrator import journal
from tests.faults.counted import counted
from tests.faults.sweeps import Sweep, equal, weights

EVERY = 5


class Losses(Hooks):
    """Of every step."""

    def __init__(self) -> None:
        self.found: dict[int, float] = {}

    def on_steps(self, first, columns):
        # The journal keeps six digits.
        self.found |= {step: float(f"{loss:.6g}") for step, loss in enumerate(columns["loss"], first)}


@pytest.fixture
def undisturbed(tmp_path):
    """Gives final weights and the losses of all steps of a sweep's training, done again without Ray and at one go."""
    threads = torch.get_num_threads()

    def trained(sweep: Sweep) -> tuple[dict[str, torch.Tensor], dict[int, float]]:
        config = TrainingConfig.model_validate_json((sweep.training() / "config.json").read_text())
        stores = [open_store(str(path.parent)) for path in sweep.storage.glob("data/*/manifest.json")]
        (store,) = [store for store in stores if len(store) == 8]
        torch.set_num_threads(config.resources.cpus_per_worker)
        hooks = Losses()
        train(config, store, folder=tmp_path / "undisturbed", hooks=hooks, device="cpu")
        return weights(tmp_path / "undisturbed" / "step_00000030"), hooks.found

    yield trained
    torch.set_num_threads(threads)


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
    same, expected = undisturbed(sweep)
    assert equal(weights(sweep.training()), same)
    assert losses(sweep) == expected
    assert document["rows"][0]["step"] == 30
    recovery = second["started"] - first["ended"]
    measured(
        "1: worker killed",
        wasted=wasted((first, second))[0],
        seconds=recovery,
        said=first["error"],
        **counted(sweep.storage),
    )


@pytest.mark.long
def test_a_damaged_checkpoint_is_passed_over(tmp_path, undisturbed, measured):
    """Fault 4: one bit of the newest is flipped as the worker dies, and the one before it is gone on from."""
    sweep = Sweep(tmp_path / "sweep", iterations=30, stall=20)
    sweep.start()
    (worker,) = sweep.wait_for_step(17)
    process = psutil.Process(worker["pid"])
    process.suspend()  # it shall not write another one meanwhile
    newest = max(path.parent for path in sweep.training().glob("checkpoint_*/manifest.json"))
    path = newest / "state.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    process.kill()
    sweep.end(0)
    log = (sweep.training() / "worker.log").read_text()
    step = int(newest.name.split("_")[1])
    assert f"the checkpoint {newest.name} in {sweep.training()} is not used: state.pt does not have the checksum" in log
    assert f"from the checkpoint checkpoint_{step - EVERY:08d}" in log
    assert sweep.record().history[-1]["from_step"] == step - EVERY
    same, expected = undisturbed(sweep)
    assert equal(weights(sweep.training()), same)
    assert losses(sweep) == expected
    said = next(line for line in log.splitlines() if "is not used" in line).split(": ", 1)[1]
    said = said.replace(str(sweep.storage), "STORAGE")
    measured("4: one bit flipped", wasted=wasted(sweep.record().history)[0], said=said, **counted(sweep.storage))


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
    measured(
        "14: worker frozen, limit 12 s",
        wasted=wasted(record.history)[0],
        seconds=noticed,
        said=first["error"],
        **counted(sweep.storage),
    )


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
    same, expected = undisturbed(sweep)
    assert equal(weights(sweep.training()), same)
    assert losses(sweep) == expected
    measured("1: worker killed four times", wasted=sum(wasted(record.history)), **counted(sweep.storage))
