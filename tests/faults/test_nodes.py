"""A cluster of three Ray nodes on this machine, beside another's Ray: trainings over two of them, lost nodes, and jobs.

The nodes have addresses and processes of their own, and are killed as a machine that loses its power is: all at once.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator import journal
from orchestrator.ledger import Ledger
from tests.faults.clusters import LocalCluster, another_ray, local_cluster
from tests.faults.conftest import Measure
from tests.faults.counted import counted
from tests.faults.sweeps import Sweep, executed

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with another_ray(), local_cluster(tmp_path_factory.mktemp("jobs"), 6431, grace=3) as found:
        yield found


@pytest.fixture(autouse=True)
def three_nodes(cluster: LocalCluster) -> None:
    while len(cluster.nodes()) < 3:
        cluster.do("add")


def ended(sweep: Sweep, status: int) -> str:
    """Waits for the sweep; what it wrote to standard error."""
    assert sweep.process is not None
    try:
        _, error = sweep.process.communicate(timeout=280)
    finally:
        sweep.kill()
    assert sweep.process.returncode == status, error
    return error


def test_two_workers_train_on_two_nodes(cluster: LocalCluster, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "sweep", workers=2)
    cluster.start(sweep)
    error = ended(sweep, 0)
    said = next(line for line in error.splitlines() if line.startswith("3 nodes ("))
    assert all(node in said for node in cluster.nodes())
    assert "NCCL none" in said
    assert sweep.record().state == "finished"
    assert len({sign["node"] for sign in sweep.workers()}) == 2


def test_a_node_is_killed_and_another_comes(cluster: LocalCluster, tmp_path: Path, measured: Measure) -> None:
    sweep = Sweep(tmp_path / "sweep", workers=2, iterations=60)
    cluster.start(sweep)
    sweep.wait_for_step(10)
    lost = cluster.nodes()[-1]
    cluster.do("kill", lost)
    cluster.do("add")
    error = ended(sweep, 0)
    assert f"the node {lost} is lost" in error
    assert "has joined" in error
    first, *_, last = sweep.record().history
    assert (first["outcome"], last["outcome"]) == ("lost", "finished")
    assert last["from_step"] >= 10
    wasted = executed(sweep.record()) - 60
    seconds = last["started"] - first["ended"]
    measured(
        "5: node killed, another comes", wasted=wasted, seconds=seconds, said=first["error"], **counted(sweep.storage)
    )


def test_a_node_is_killed_and_none_comes(cluster: LocalCluster, tmp_path: Path, measured: Measure) -> None:
    sweep = Sweep(tmp_path / "sweep", workers=2, iterations=60)
    cluster.start(sweep, "--wait-for-nodes", "0.4")
    sweep.wait_for_step(10)
    began = time.monotonic()
    cluster.do("kill", cluster.nodes()[-1])
    error = ended(sweep, 4)
    seconds = time.monotonic() - began
    assert seconds < 120
    assert "has had no room for what is left: a training needs 2 workers of 1 CPU each" in error
    assert sweep.record().state == "pending"
    cluster.do("add")
    cluster.start(sweep)
    ended(sweep, 0)
    assert sweep.record().history[-1]["from_step"] >= 10
    said = next(line for line in error.splitlines() if "has had no room" in line)
    measured(
        "5: node killed, none comes for 24 s",
        completed="by the next command",
        seconds=seconds,
        said=said,
        **counted(sweep.storage),
    )


def test_what_never_fits_is_refused_at_once(cluster: LocalCluster, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "sweep", workers=2)
    cluster.start(sweep, "--set", "resources.cpus_per_worker=2")
    assert "needs 2 workers of 2 CPU each, but the cluster has 3 nodes with 2 CPU" in ended(sweep, 4)


def test_the_job_of_the_readme_from_any_directory(cluster: LocalCluster, tmp_path: Path) -> None:
    words = ["sweeps/table3.yaml", "--profile", "laptop", "--only", "1:1", "--set", "schedule.iterations=4"]
    done = job(cluster, tmp_path, "submit", "--", "python", "-m", "orchestrator.sweep", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    (training,) = (cluster.storage / "trainings").iterdir()
    assert Ledger(cluster.storage).record(training.name).state == "finished"


def test_a_job_that_is_stopped_with_three_seconds_of_grace_continues(
    cluster: LocalCluster, tmp_path: Path, measured: Measure
) -> None:
    """Fault 2: SIGTERM, and SIGKILL three seconds later."""
    words = ["sweeps/table3.yaml", "--profile", "laptop", "--only", "D_up:1"]
    words += ["--set", "checkpoint.every=5", "--set", "schedule.iterations=60"]
    ray = functools.partial(job, cluster, tmp_path)
    python = ["--", "python", "-m"]
    assert ray("submit", "--no-wait", "--submission-id=stopped", *python, "orchestrator.sweep", *words).returncode == 0
    ledger = Ledger(cluster.storage)

    def begun() -> list[str]:
        names = ledger.place.names("trainings")
        return [one for one in names if ledger.record(one).state == "running" and ledger.record(one).step > 5]

    until = time.monotonic() + 200
    while not begun():
        assert time.monotonic() < until
        time.sleep(0.5)
    (identity,) = begun()
    stopped = ray("stop", "stopped")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    record = ledger.record(identity)
    assert (record.state, record.holder, record.history[-1]["outcome"]) == ("pending", None, "interrupted")
    before, when = runs_of(cluster, identity), "at once"
    if set(before.values()) != {"KILLED"}:
        assert ray("submit", *python, "orchestrator.sync", *words).returncode == 0
        before, when = runs_of(cluster, identity), "by the next command"
    assert set(before.values()) == {"KILLED"}
    assert len(before) == 2

    again = ray("submit", *python, "orchestrator.sweep", *words)
    assert again.returncode == 0, again.stdout + again.stderr
    record = ledger.record(identity)
    assert (record.state, record.history[-1]["outcome"]) == ("finished", "finished")
    assert record.history[-1]["from_step"] >= 5
    assert list(journal.every_step(record.journal, "loss")) == list(range(1, 61))
    assert runs_of(cluster, identity) == dict.fromkeys(before, "FINISHED")
    measured(
        "2: `ray job stop`, 3 s of grace", completed="by the next command", wasted=executed(record) - 60,
        said=f"(ledger closed, runs KILLED {when})", **counted(cluster.storage),
    )  # fmt: skip


def job(cluster: LocalCluster, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``ray job WORDS``, from ``folder``."""
    command = [str(Path(sys.executable).parent / "ray"), "job", *words]
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_ADDRESS": cluster.dashboard}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def runs_of(cluster: LocalCluster, identity: str) -> dict[str, str]:
    """States, by id, of the run of a training and of its sweep's."""
    client = MlflowClient(tracking_uri=f"sqlite:///{cluster.storage}/mlflow.db")
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    (mine,) = [run for run in runs if run.data.tags.get("identity") == identity]
    parent = client.get_run(mine.data.tags["mlflow.parentRunId"])
    return {run.info.run_id: run.info.status for run in (mine, parent)}
