"""Fault 18: a sweep of twelve trainings on a cluster where something dies every minute on average, until it is done.

A random worker is killed, or a random node with everything on it (another one joins), or the driver (the same command
is given again). Were a checkpoint, a lease or a journal not exact, the table would differ from the undisturbed one.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from orchestrator import journal
from orchestrator.ledger import Ledger
from tests.faults.clusters import LocalCluster, local_cluster
from tests.faults.conftest import Measure
from tests.faults.counted import counted
from tests.faults.sweeps import Sweep, executed

pytestmark = [pytest.mark.faults, pytest.mark.timeout(2400)]
ITERATIONS, EVERY = 60, 5
MEAN_S = 60.0
SEED = 20260
ROWS = "".join(
    f"  - {{name: r{number}, set: {{model.assigner.predicted_weight: {number / 10}, resources.workers: {workers}}}}}\n"
    for number, workers in zip(range(12), itertools.cycle((1, 1, 1, 2)), strict=False)
)
FIGURES = ("AP", "AP50", "AP75")


def table(document: dict) -> dict[str, dict[str, float | None]]:
    """The figures of each row, which must all be finished."""
    assert [row["state"] for row in document["rows"]] == ["finished"] * 12
    return {row["row"]: {name: row["metrics"][name] for name in FIGURES} for row in document["rows"]}


def kill_something(what: str, chance: random.Random, sweep: Sweep, cluster: LocalCluster) -> str | None:
    """Kills one of that kind, if there is one; what it was."""
    if what == "worker":
        alive = [sign for sign in sweep.workers() if not sign["done"] and psutil.pid_exists(sign["pid"])]
        if not alive:
            return None
        sign = chance.choice(alive)
        os.kill(sign["pid"], signal.SIGKILL)
        return f"worker {sign['rank']} at step {sign['step']}"
    if what == "node":
        victim = chance.choice(cluster.nodes()[1:])
        cluster.do("kill", victim)
        cluster.do("add")
        return f"node {victim}"
    assert sweep.process is not None
    sweep.process.kill()
    sweep.process.communicate()
    return "driver"


def test_twelve_trainings_while_something_dies_every_minute(tmp_path: Path, measured: Measure) -> None:
    calm = Sweep(tmp_path / "calm", ROWS, iterations=ITERATIONS)
    rough = Sweep(tmp_path / "rough", ROWS, iterations=ITERATIONS, stall=60)
    chance = random.Random(SEED)
    killed: list[str] = []
    with local_cluster(tmp_path / "jobs", 6451) as cluster:
        cluster.start(calm)
        undisturbed = table(calm.end(0, patience=1200))
        began = time.monotonic()
        process = cluster.start(rough)
        due = began + 15  # the first one before the first training is done
        while process.poll() is None:
            time.sleep(0.2)
            if time.monotonic() < due:
                continue
            done = kill_something(chance.choice(("worker", "node", "driver")), chance, rough, cluster)
            if done is None:
                continue
            killed.append(f"{time.monotonic() - began:.0f} s: {done}")
            due = time.monotonic() + min(180.0, chance.expovariate(1 / MEAN_S))
            if done == "driver":
                process = cluster.start(rough)
        document = rough.end(0)
        seconds = time.monotonic() - began
    assert len(killed) >= 3, killed
    assert table(document) == undisturbed
    ledger, calm_ledger = Ledger(rough.storage), Ledger(calm.storage)
    total = 0
    for row in document["rows"]:
        record = ledger.record(row["identity"])
        losses = journal.every_step(record.journal, "loss")
        assert list(losses) == list(range(1, ITERATIONS + 1))
        assert losses == journal.every_step(calm_ledger.record(row["identity"]).journal, "loss")
        total += executed(record)
    # A worker tells its steps every few seconds, so the last of a killed one may be older than it was.
    wasted = total - 12 * ITERATIONS
    assert wasted <= 2 * (EVERY + 30) * len(killed)
    client = MlflowClient(tracking_uri=f"sqlite:///{rough.storage / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert sorted(run.data.tags["kind"] for run in runs) == ["row"] * 12 + ["sweep"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    measured(
        f"18: {len(killed)} deaths in {seconds:.0f} s",
        wasted=f"{wasted} of {12 * ITERATIONS}",
        said="; ".join(killed),
        **counted(rough.storage),
    )
