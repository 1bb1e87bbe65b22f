"""Fault 9: the tracking server is away at the start, in the middle or at the end, fails, is slow, or answers too late.

Simulated by a proxy before a real `mlflow server`. The trainings are threads that write journals as rank 0 does; what
MLflow has in the end is compared with them. Were the promise broken, a training would wait, or MLflow would have a step
twice or not at all, a second run of a row, or a state that isn't true.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from detector.config import TrainingConfig
from orchestrator import journal, tracking
from orchestrator.lease import Lease, LeaseLostError
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan, PlannedRow
from orchestrator.tracking import Tracker
from tests.faults.counted import repeated
from tests.faults.servers import FlakyProxy, mlflow_server

pytestmark = pytest.mark.long
EVERY = 5
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with mlflow_server(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture
def proxy(server):
    with FlakyProxy(server) as found:
        yield found


def make_plan(storage: Path, uri: str, rows=("one", "two")) -> Plan:
    """A sweep of its own, with an experiment of its own."""
    name = f"t{next(NUMBERS)}"
    return Plan(
        key=name,
        name=name,
        title="A table",
        profile=None,
        rows=tuple(PlannedRow(row, 0, f"{name}-{row}", TrainingConfig(), evaluation="val") for row in rows),
        quoted=(),
        compare=(),
        figures=(),
        storage=storage,
        tracking_uri=uri,
        command=f"python -m orchestrator.sweep {name}.yaml",
    )


class Training(threading.Thread):
    """Writes a journal, a window of steps every ``pause`` seconds, until it is told to end; then it is finished."""

    def __init__(self, ledger: Ledger, plan: Plan, row: PlannedRow, pause: float) -> None:
        super().__init__(daemon=True)
        self.ledger, self.row, self.pause = ledger, row, pause
        self.last, self.longest, self.ends = 0, 0.0, threading.Event()
        ledger.claim(row.identity, sweep=plan.key, row=row.row, seed=0, config={}, iterations=100_000)
        ledger.started(row.identity, node="n", from_step=0, hardware={})

    def run(self) -> None:
        before = time.monotonic()
        while not self.ends.wait(self.pause):
            first, self.last = self.last + 1, self.last + EVERY
            columns = {"loss": [1.0 / step for step in range(first, self.last + 1)]}
            means = {"loss": sum(columns["loss"]) / EVERY, "lr": 0.1}
            lines = journal.steps_line(first, columns), journal.line(self.last, "train", means)
            try:
                self.ledger.append(self.row.identity, *lines)
            except LeaseLostError:
                return  # it was given back
            self.longest, before = max(self.longest, time.monotonic() - before), time.monotonic()

    def finish(self, folder: Path) -> None:
        """The end, with a model and an evaluation."""
        self.ends.set()
        self.join()
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "model.safetensors").write_bytes(b"weights")
        postprocess = self.row.config.model.postprocess.model_dump(mode="json")
        (folder / "model" / "config.json").write_text(json.dumps({"model": {"postprocess": postprocess}}))
        (folder / "detections.json").write_text("[]")
        self.ledger.evaluated(self.row.identity, "val", folder, {"AP": 30.0}, {})
        self.ledger.finished(self.row.identity, folder, {})
        self.ledger.release(self.row.identity)


def opened(plan: Plan, ledger: Ledger, patience: float = 0.0, **options: bool) -> Tracker:
    """A tracker whose parent run is open."""
    tracker = Tracker(plan, ledger, **options)
    tracker.connect(patience)
    tracker.open(patience)
    return tracker


def runs_of(plan: Plan, uri: str):
    """MLflow's parent runs and the children by row, as they are shown to whoever looks."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(plan.name)
    found = client.search_runs([experiment.experiment_id])
    children: dict[str, list] = {}
    for run in found:
        if run.data.tags["kind"] == "row":
            children.setdefault(run.data.tags["row"], []).append(run)
    return client, [run for run in found if run.data.tags["kind"] == "sweep"], children


def check_all_there(plan: Plan, ledger: Ledger, uri: str) -> None:
    """One run each, every mean once and with its value, and true states."""
    client, parents, children = runs_of(plan, uri)
    assert [run.info.status for run in parents] == ["FINISHED"]
    assert {row: len(runs) for row, runs in children.items()} == {row.row: 1 for row in plan.rows}
    for row in plan.rows:
        (run,) = children[row.row]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        steps, values = ledger.journal_metrics(row.identity, ["loss"])
        history = client.get_metric_history(run.info.run_id, "loss")
        assert [(metric.step, metric.value) for metric in history] == list(zip(steps, values["loss"], strict=True))
        assert [metric.value for metric in client.get_metric_history(run.info.run_id, "AP")] == [30.0]
        every = journal.every_step(ledger.record(row.identity).journal, "loss")
        assert list(every) == list(range(1, steps[-1] + 1))
        there = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert there == {"config.json", "detections.json", "model"}


@contextlib.contextmanager
def trainings(plan: Plan, folder: Path, pause=0.05):
    """The ledger under a lease, and a training a row; they end by ``end``."""
    with Lease(Ledger(plan.storage).place, plan.key) as lease:
        ledger = Ledger(plan.storage, lease.fence)
        running = [Training(ledger, plan, row, pause) for row in plan.rows]
        for training in running:
            training.start()

        def end() -> None:
            for training in running:
                training.finish(folder / training.row.identity)
            # None of them noticed anything; a busy machine gets some leeway.
            assert max(training.longest for training in running) < 2.0

        yield ledger, end
        for training in running:
            training.ends.set()


@pytest.mark.parametrize("seconds", [0, 20, 60])
def test_away_at_start_in_the_middle_and_at_the_end(proxy, tmp_path, seconds, measured):
    plan = make_plan(tmp_path, proxy.url)
    with trainings(plan, tmp_path / "results") as (ledger, end):
        proxy.away_for(seconds)
        tracker = opened(plan, ledger, tracking.PATIENCE_S)
        tracker.start()
        time.sleep(3)
        proxy.away_for(seconds)
        time.sleep(seconds + 3)
        end()
        proxy.away_for(seconds)
        began = time.monotonic()
        tracker.stop_polling()
        assert tracker.finish("FINISHED") is None
        took = time.monotonic() - began
        check_all_there(plan, ledger, proxy.url)
        twice = repeated(MlflowClient(proxy.url))
    assert twice == []
    measured(f"9: MLflow away for {seconds} s at start, middle and end", wasted=0, seconds=took, duplicates=0)


@pytest.mark.parametrize(
    "modes",
    [
        ("500", "up"),
        ("429", "429", "up", "up"),
        ("up", "late 500", "up", "up", "cut"),
        ("slow",),
    ],
    ids=["500", "429", "done but not said", "slow"],
)
def test_bad_answers(proxy, tmp_path, monkeypatch, modes, measured):
    monkeypatch.setattr(tracking, "POLL_S", 0.2)
    monkeypatch.setattr(tracking, "RETRY_S", 0.1)
    proxy.delay = 0.3
    plan = make_plan(tmp_path, proxy.url)
    proxy.mode(*modes)
    with trainings(plan, tmp_path / "results") as (ledger, end):
        tracker = opened(plan, ledger, 60)
        tracker.start()
        time.sleep(6)
        end()
        tracker.stop_polling()
        # A pass is some forty requests: through that it comes when failures end for a moment.
        threading.Timer(4, proxy.mode, ["up"]).start()
        assert tracker.finish("FINISHED") is None
        check_all_there(plan, ledger, proxy.url)
        proxy.mode("up")
        twice = repeated(MlflowClient(proxy.url))
    assert twice == []
    assert proxy.failed > 5 or modes == ("slow",)
    measured(f"9: MLflow answers {', '.join(dict.fromkeys(modes))}", wasted=0, duplicates=0)


def test_answers_that_come_after_one_stopped_waiting(proxy, tmp_path, monkeypatch):
    """What is asked again was done: a run is made twice. One is kept, and the other goes to the trash."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    proxy.delay = 2.0
    plan = make_plan(tmp_path, proxy.url)
    with trainings(plan, tmp_path / "results") as (ledger, end):
        tracker = Tracker(plan, ledger)
        tracker.connect(60)
        proxy.mode("slow", "slow", "up", "up", "up", "up")
        tracker.open(60)
        tracker.start()
        time.sleep(15)
        end()
        tracker.stop_polling()
        proxy.mode("up")
        assert tracker.finish("FINISHED") is None
        check_all_there(plan, ledger, proxy.url)


def test_states_are_true_also_when_the_server_was_away_as_they_changed(proxy, tmp_path):
    plan = make_plan(tmp_path, proxy.url, rows=("good", "bad", "stopped", "never"))
    with Lease(Ledger(tmp_path).place, plan.key) as lease:
        ledger = Ledger(tmp_path, lease.fence)
        good, bad, stopped = (Training(ledger, plan, row, 0.05) for row in plan.rows[:3])
        tracker = opened(plan, ledger)
        for training in (good, bad, stopped):
            training.start()
        time.sleep(1)
        tracker.push()
        _, parents, children = runs_of(plan, proxy.url)
        assert {row: runs[0].info.status for row, runs in children.items()} == dict.fromkeys(
            ("good", "bad", "stopped"), "RUNNING"
        )
        assert parents[0].info.status == "RUNNING"
        proxy.away()
        good.finish(tmp_path / "results")
        for training in (bad, stopped):
            training.ends.set()
            training.join()
        ledger.failed(bad.row.identity, "no more memory")
        ledger.release(stopped.row.identity)
        # The driver is interrupted, and gives up on the server in time.
        began = time.monotonic()
        tracker.abandon()
        assert time.monotonic() - began < 2.5
        proxy.back()
    with Lease(Ledger(tmp_path).place, plan.key) as lease:
        # The next command says it.
        tracker = opened(plan, Ledger(tmp_path, lease.fence))
        assert tracker.finish("KILLED") is None
    _, parents, children = runs_of(plan, proxy.url)
    states = {row: [run.info.status for run in runs] for row, runs in children.items()}
    assert states == {"good": ["FINISHED"], "bad": ["FAILED"], "stopped": ["KILLED"]}
    assert [run.info.status for run in parents] == ["KILLED"]


def test_an_interrupted_sweep_says_so_within_seconds(proxy, tmp_path):
    plan = make_plan(tmp_path, proxy.url)
    with trainings(plan, tmp_path / "results") as (ledger, _):
        tracker = opened(plan, ledger)
        tracker.start()
        time.sleep(5)
        for row in plan.rows:
            ledger.release(row.identity)
        began = time.monotonic()
        tracker.abandon()
        assert time.monotonic() - began < 2.5
        _, parents, children = runs_of(plan, proxy.url)
        assert {run.info.status for run in [*parents, *children["one"], *children["two"]]} == {"KILLED"}


def test_a_new_store_gets_from_the_ledger_what_the_old_one_had(proxy, tmp_path):
    plan = make_plan(tmp_path, proxy.url)
    with trainings(plan, tmp_path / "results") as (ledger, end):
        tracker = opened(plan, ledger)
        tracker.start()
        time.sleep(3)
        end()
        tracker.stop_polling()
        assert tracker.finish("FINISHED") is None
        other = f"sqlite:///{tmp_path / 'other.db'}"
        rebuilt = opened(replace(plan, tracking_uri=other), ledger, thorough=True)
        assert rebuilt.finish("FINISHED") is None
    check_all_there(plan, ledger, proxy.url)
    check_all_there(plan, ledger, other)
