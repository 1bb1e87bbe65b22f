"""Faults 2, 6, 7 and 8: the driver is interrupted, killed, lost with its whole cluster, or started twice.

The real command on real Ray. Were the promise broken, a finished training would be trained again, one that was under
way would begin anew, MLflow would have a second run or a step twice, or two drivers would train the same thing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time

import psutil
import pytest
from mlflow import MlflowClient

from orchestrator import journal
from orchestrator.files import read_json
from orchestrator.ledger import Ledger
from tests.faults.counted import counted
from tests.faults.sweeps import Sweep, executed

ROWS = """  - {name: plain}
  - {name: "1:1", set: {model.assigner.predicted_weight: 1}}
  - {name: same}
"""
ITERATIONS = 60


@pytest.fixture
def sweep(tmp_path):
    made = Sweep(tmp_path / "sweep", ROWS, iterations=ITERATIONS)
    yield made
    made.kill()


def begun(sweep: Sweep, checkpoints: int = 2) -> bool:
    """Whether both trainings have so many checkpoints."""
    manifests = list(sweep.storage.glob("trainings/*/checkpoint_*/manifest.json"))
    return len({path.parent.parent for path in manifests}) == 2 and len(manifests) >= 2 * checkpoints


def lose(process: subprocess.Popen, *, cluster: bool) -> None:
    """SIGKILL for the driver, and for everything that it started, or else what Ray ends by itself is waited for."""
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    if cluster:
        for child in below:
            child.kill()
    process.communicate()
    wait_for_the_end_of(below)


def wait_for_the_end_of(processes: list[psutil.Process]) -> None:
    """Waits until nothing is left but agents of Ray, which do nothing and take their time; those are killed."""

    def left(agents: bool) -> list[psutil.Process]:
        found = []
        for one in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                if one.status() != psutil.STATUS_ZOMBIE and one.name().endswith("Agent") == agents:
                    found.append(one)
        return found

    until = time.monotonic() + 60
    while left(agents=False) and time.monotonic() < until:
        time.sleep(0.2)
    assert left(agents=False) == []
    for agent in left(agents=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            agent.kill()


def check_continued(sweep: Sweep, document: dict, *, killed: int) -> int:
    """Everything is finished, nothing was begun anew, and MLflow has each run and each step once; steps done twice."""
    wasted = 0
    assert document["status"] == "complete"
    assert [row["state"] for row in document["rows"]] == ["finished"] * 3
    ledger = Ledger(sweep.storage)
    for row in document["rows"]:
        record = ledger.record(row["identity"])
        assert record.attempts == 1 + killed
        assert all(attempt["from_step"] >= 5 for attempt in record.history[1:])
        assert list(journal.every_step(record.journal, "loss")) == list(range(1, ITERATIONS + 1))
        if row["row"] != "same":  # it shares the training of another
            wasted += executed(record) - ITERATIONS
    client = MlflowClient(tracking_uri=f"sqlite:///{sweep.storage / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    names = sorted(run.data.tags.get("row", run.data.tags["sweep"]) for run in runs)
    assert names == ["1:1", "plain", "same", "tiny"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = [run for run in runs if run.data.tags["kind"] == "sweep"]
    for run in runs:
        if run is not parent:
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
            steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]
            whole = list(range(1, ITERATIONS + 1))
            assert steps == ([ITERATIONS] if run.data.tags["row"] == "same" else whole)
    return wasted


def until_training(sweep: Sweep, began: float, attempts: int = 2) -> float:
    """Seconds from ``began`` until a training that was begun goes on."""

    def going_on() -> bool:
        found = [read_json(path) for path in sweep.storage.glob("trainings/*/status.json")]
        return any(len(status["attempts"]) >= attempts for status in found)

    sweep.wait(going_on, "an attempt that goes on")
    return time.monotonic() - began


def continued_after_loss(sweep: Sweep, *, cluster: bool) -> tuple[int, float]:
    """Steps wasted, and seconds from the same command again to training, when driver or cluster went at once."""
    process = sweep.start()
    sweep.wait(lambda: begun(sweep), "two checkpoints of each training")
    lose(process, cluster=cluster)
    assert (sweep.storage / "sweeps" / "tiny" / "lease.json").exists()
    began = time.monotonic()
    sweep.start()
    seconds = until_training(sweep, began)
    return check_continued(sweep, sweep.end(0), killed=1), seconds


def test_a_killed_driver_is_continued_by_the_same_command(sweep, measured):
    """Fault 6."""
    wasted, seconds = continued_after_loss(sweep, cluster=False)
    measured("6: driver killed; two trainings under way", wasted=wasted, seconds=seconds, **counted(sweep.storage))


@pytest.mark.long
def test_what_is_finished_stays_when_the_driver_is_killed_twice(sweep):
    """Fault 6: once as the trainings run, once as one of them is finished."""
    process = sweep.start("--max-concurrent", "1")
    sweep.wait(lambda: list(sweep.storage.glob("trainings/*/checkpoint_*/manifest.json")), "a checkpoint")
    lose(process, cluster=False)
    process = sweep.start("--max-concurrent", "1")
    first = sweep.wait(lambda: finished(sweep), "one training's end")
    before = (sweep.storage / "trainings" / first / "status.json").read_text()
    lose(process, cluster=False)
    document = sweep.run(0)
    assert document["status"] == "complete"
    record = Ledger(sweep.storage).record(first)
    assert record.attempts == 2
    assert read_json(record.folder / "status.json")["finished"] == json.loads(before)["finished"]


def finished(sweep: Sweep) -> str | None:
    """A training that is finished."""
    for path in sweep.storage.glob("trainings/*/status.json"):
        if read_json(path)["state"] == "finished":
            return path.parent.name
    return None


@pytest.mark.long
def test_a_new_cluster_continues_what_was_lost_with_the_old_one(sweep, measured):
    """Fault 7: the driver, Ray's head and all workers go at once; only the storage stays."""
    wasted, seconds = continued_after_loss(sweep, cluster=True)
    measured("7: cluster lost, a new one", wasted=wasted, seconds=seconds, **counted(sweep.storage))


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_driver_closes_the_ledger_first(sweep, number, measured):
    """Fault 2, once: the ledger within a second, the runs KILLED, everything resumable."""
    process = sweep.start()
    sweep.wait(lambda: begun(sweep), "two checkpoints of each training")
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    began = time.monotonic()
    paths = list(sweep.storage.glob("trainings/*/status.json"))
    while {read_json(path)["holder"] for path in paths} != {None}:
        assert time.monotonic() - began < 5
        time.sleep(0.02)
    closed = time.monotonic() - began
    client = MlflowClient(tracking_uri=f"sqlite:///{sweep.storage / 'mlflow.db'}")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    while {run.info.status for run in client.search_runs(ids)} != {"KILLED"}:
        assert time.monotonic() - began < 8
        time.sleep(0.1)
    killed = time.monotonic() - began
    document = sweep.end(128 + number)
    assert closed < 2.5
    assert document["status"] == "interrupted"
    assert {row["state"] for row in document["rows"]} == {"pending"}
    wait_for_the_end_of(children)
    wasted = check_continued(sweep, sweep.run(0), killed=1)
    said = f"{document['error']} (ledger closed after {closed:.2f} s, runs KILLED after {killed:.2f} s)"
    measured(f"2: {number.name}", wasted=wasted, said=said, **counted(sweep.storage))


@pytest.mark.long
def test_twice_ends_at_once_and_is_as_resumable(sweep, measured):
    """Fault 2, twice."""
    process = sweep.start()
    sweep.wait(lambda: begun(sweep), "two checkpoints of each training")
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    process.wait(10)
    ended = time.monotonic() - began
    assert ended < 2
    assert process.returncode == 130
    process.communicate()
    wait_for_the_end_of(children)
    wasted = check_continued(sweep, sweep.run(0), killed=1)
    measured("2: Ctrl-C twice", wasted=wasted, said=f"(ended {ended:.2f} s after the second)", **counted(sweep.storage))


@pytest.mark.long
def test_of_two_drivers_at_once_the_second_is_refused(sweep, measured):
    """Fault 8."""
    commands = [sweep.start(), sweep.start()]
    until = time.monotonic() + 200
    while all(process.poll() is None for process in commands) and time.monotonic() < until:
        time.sleep(0.05)
    (refused,) = [process for process in commands if process.poll() is not None]
    (sweep.process,) = [process for process in commands if process is not refused]
    output, error = refused.communicate()
    assert refused.returncode == 5, error
    assert f"process {sweep.process.pid} on {os.uname().nodename}" in output
    wasted = check_continued(sweep, sweep.end(0), killed=0)
    measured(
        "8: two drivers at once, a folder", wasted=wasted, said=json.loads(output)["error"], **counted(sweep.storage)
    )
