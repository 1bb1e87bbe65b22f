"""A pass over a sweep on a stand-in for the cluster: what it takes, sets aside and leaves. The ledger is real."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from detector.errors import InputError, UnreachableError
from orchestrator import nodes, session, supply
from orchestrator.cancellation import is_cancelled
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan, make_plan
from orchestrator.request import SweepRequest
from orchestrator.runs import RunStore
from orchestrator.session import SweepOutcome, run_sweep
from orchestrator.supply import Growth
from orchestrator.worker import Assignment
from tests.orchestrator.tables import BASE, write_data, write_table


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, its data and an empty MLflow store, whose schema takes seconds to make."""
    folder = tmp_path_factory.mktemp("session")
    image = write_data(folder / "data", splits=("train", "val", "other")) / "other" / "1.jpg"
    image.write_bytes(image.read_bytes() + b"more")  # or it would be the same split by another name
    write_table(folder, base=BASE)
    plan = plan_of(folder)
    RunStore(plan, Ledger(plan.storage)).connect()
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path


def plan_of(folder: Path, *sets: str, **options: object) -> Plan:
    sets = (f"data.root={folder / 'data'}", *sets)
    return make_plan(SweepRequest(str(folder / "tiny.yaml"), set=sets, storage=str(folder / "storage"), **options))  # type: ignore[arg-type]


class Cluster:
    """Four CPUs on one node, on which a training or an evaluation takes no time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at_once: list[int] = []
        self.trained: list[str] = []
        self.evaluated: list[str] = []
        cluster = self

        @contextlib.contextmanager
        def connected(address: str | None) -> Iterator[nodes.Nodes]:
            yield nodes.Nodes(cpus=(4.0,), gpus=(0.0,), here=True)

        def run_tune(self: session.Pass, assignments: dict[str, Assignment], at_once: int) -> None:
            cluster.at_once.append(at_once)
            for assignment in assignments.values():
                cluster.run(assignment)

        monkeypatch.setattr(nodes, "connected", connected)
        monkeypatch.setattr(session.Pass, "_run_tune", run_tune)

    def run(self, assignment: Assignment) -> None:
        ledger, identity = Ledger(assignment.storage), assignment.identity
        results = ledger.storage / "results"
        (results / "model").mkdir(parents=True, exist_ok=True)
        if not ledger.record(identity).trained:
            self.trained.append(identity)
            ledger.started(identity, node="here", from_step=0, hardware={})
            description = '{"model": {"postprocess": {}}}'
            (results / "model" / "config.json").write_text(description)
            ledger.finished(identity, results, {"loss": 1.0})
        for job in assignment.evaluations:
            if ledger.record(identity, {"": job.key}).state != "finished":
                self.evaluated.append(job.split)
                ledger.evaluated(identity, job.key, results, {"AP": float(len(self.evaluated))}, job.settings)
        ledger.release(identity)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def figures(plan: Plan) -> list[float | None]:
    return [Ledger(plan.storage).record(row.identity, row.evaluations).metrics.get("AP") for row in plan.rows]


def test_only_what_is_selected_is_trained_and_never_more_at_once_than_allowed(folder: Path, cluster: Cluster) -> None:
    plan = plan_of(folder, only=("1:1",), seeds=(0, 1))
    assert run_sweep(plan, max_concurrent=1) == SweepOutcome("complete")
    assert cluster.trained == [row.identity for row in plan.rows]
    assert [(row.row, row.seed) for row in plan.rows] == [("1:1", 0), ("1:1", 1)]
    whole = plan_of(folder)
    assert figures(whole) == [1.0, None]
    assert run_sweep(whole) == SweepOutcome("complete")
    assert len(cluster.trained) == 3
    assert cluster.at_once == [1, 4]  # then as many as there is room for


def test_fresh_trains_anew_what_is_selected_and_keeps_what_was(folder: Path, cluster: Cluster) -> None:
    plan = plan_of(folder)
    run_sweep(plan)
    before = [Ledger(plan.storage).record(row.identity).training for row in plan.rows]
    run_sweep(plan)
    assert len(cluster.trained) == 2
    assert run_sweep(plan_of(folder, only=("1:1",)), fresh=True) == SweepOutcome("complete")
    after = [Ledger(plan.storage).record(row.identity).training for row in plan.rows]
    assert cluster.trained[2:] == [plan.rows[0].identity]
    assert (after[0] != before[0], after[1] == before[1]) == (True, True)
    assert len(list((plan.storage / "replaced").iterdir())) == 1
    assert figures(plan) == [3.0, 2.0]


def test_another_validation_split_gets_its_own_figures_and_trains_nothing(folder: Path, cluster: Cluster) -> None:
    first = plan_of(folder)
    run_sweep(first)
    # Each worker of a training would need four CPUs, and an evaluation needs only one worker's.
    second = plan_of(folder, "data.val=other", "data.test=val", "resources.workers=4", "resources.cpus_per_worker=4")
    assert [row.identity for row in second.rows] == [row.identity for row in first.rows]
    assert run_sweep(second) == SweepOutcome("complete")
    assert (len(cluster.trained), cluster.evaluated) == (2, ["val", "val", "other", "other"])
    assert figures(first) == [1.0, 2.0]
    assert figures(second) == [3.0, 4.0]
    record = Ledger(second.storage).record(second.rows[0].identity, second.rows[0].evaluations)
    # The test split is what the first sweep had evaluated already.
    assert record.metrics == {"loss": 1.0, "AP": 3.0, "test_AP": 1.0}


def test_what_ends_without_a_word_has_failed_and_is_tried_again(
    folder: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(folder)
    run_sweep(plan)
    second = plan_of(folder, "model.postprocess.nms_iou=0.5")
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "run", lambda assignment: None)
        outcome = run_sweep(second)
    assert (outcome.status, outcome.exit_status) == ("partial", 3)
    record = Ledger(plan.storage).record(second.rows[0].identity, second.rows[0].evaluations)
    assert (record.state, record.error, record.trained) == ("failed", "it ended without saying why", True)
    assert figures(plan) == [1.0, 2.0]
    assert run_sweep(second) == SweepOutcome("complete")
    assert len(cluster.trained) == 2


def test_a_budget_ends_the_sweep_resumably_and_is_of_all_its_runs(
    folder: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(folder)

    def run_tune(self: session.Pass, assignments: dict[str, Assignment], at_once: int) -> None:
        first = next(iter(assignments.values()))
        ledger = Ledger(first.storage, first.fence)
        long_ago = time.time() - 7200
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("orchestrator.ledger.time.time", lambda: long_ago)
            ledger.started(first.identity, node="here", from_step=0, hardware={"device": "cpu", "workers": 2})
        while not is_cancelled(ledger, first.identity):  # as its workers do
            time.sleep(0.05)

    monkeypatch.setattr(session.Pass, "_run_tune", run_tune)
    outcome = run_sweep(plan, max_gpu_hours=3)
    assert (outcome.status, outcome.exit_status) == ("partial", 3)
    assert "the budget of 3 worker-hours is used up (4 worker-hours in all attempts" in str(outcome.error)
    assert "--max-gpu-hours counts the hours of their workers" in capfd.readouterr().err
    states = [Ledger(plan.storage).record(row.identity) for row in plan.rows]
    assert [(one.state, one.holder) for one in states] == [("pending", None)] * 2
    again = Cluster(monkeypatch)
    assert run_sweep(plan, max_gpu_hours=3).exit_status == 3  # used up already
    assert again.trained == []
    assert run_sweep(plan, max_gpu_hours=5) == SweepOutcome("complete")
    assert len(again.trained) == 2


def test_a_storage_that_is_away_for_a_moment_ends_no_sweep(
    folder: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plan, looks, check = plan_of(folder, only=("1:1",)), [0], Ledger.check
    run = cluster.run

    def away(ledger: Ledger) -> None:
        if cluster.at_once and threading.current_thread() is threading.main_thread() and looks[0] < 3:
            looks[0] += 1
            raise UnreachableError("the storage can't be used (Service Unavailable)")
        check(ledger)

    def wait(assignment: Assignment) -> None:
        while looks[0] < 3:
            time.sleep(0.05)
        run(assignment)

    monkeypatch.setattr(Ledger, "check", away)
    monkeypatch.setattr(cluster, "run", wait)
    assert run_sweep(plan) == SweepOutcome("complete")
    assert capfd.readouterr().err.count("Service Unavailable") == 1


def joined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes the cluster one that grows from nothing; what its autoscaler is asked for, one after the other."""
    asked: list[str] = []
    grown = nodes.Nodes(cpus=(1.0,), gpus=(0.0,))

    @contextlib.contextmanager
    def connected(address: str | None) -> Iterator[nodes.Nodes]:
        try:
            yield nodes.Nodes(cpus=(), gpus=())
        finally:
            asked.append("left")

    def await_room(needs: Iterable[nodes.Need], wait_s: float, growth: Growth) -> nodes.Nodes:
        growth.ask(next(iter(needs)))
        return grown

    monkeypatch.setattr(nodes, "connected", connected)
    monkeypatch.setattr(nodes, "free_leftovers", lambda: None)
    monkeypatch.setattr(session, "await_room", await_room)
    monkeypatch.setattr(session, "examine_all", lambda expected, tracking_uri: grown)
    monkeypatch.setattr(supply, "_request", lambda bundles: asked.append("nodes" if bundles else "nothing"))
    return asked


def test_nodes_are_asked_for_until_a_training_has_them(
    folder: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, run = joined(monkeypatch), cluster.run

    def begin(assignment: Assignment) -> None:
        Ledger(assignment.storage).started(assignment.identity, node="n", from_step=0, hardware={})
        until = time.monotonic() + 20
        while "nothing" not in asked and time.monotonic() < until:
            time.sleep(0.05)
        asked.append("trained")
        run(assignment)

    monkeypatch.setattr(cluster, "run", begin)
    assert run_sweep(plan_of(folder, only=("1:1",)), max_concurrent=8, wait_for_nodes_s=600) == SweepOutcome("complete")
    assert asked == ["nodes", "nothing", "trained", "left"]
    assert cluster.at_once == [8]


def test_nodes_are_no_longer_asked_for_when_a_sweep_ends_before_a_training_begins(
    folder: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = joined(monkeypatch)

    def refuse(expected: object, tracking_uri: str) -> nodes.Nodes:
        raise UnreachableError("a node lacks the storage")

    monkeypatch.setattr(session, "examine_all", refuse)
    assert run_sweep(plan_of(folder), max_concurrent=8).exit_status == 4
    assert asked == ["nodes", "nothing", "left"]


def test_a_cluster_that_is_not_waited_for_is_asked_for_no_more_than_it_has(
    folder: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_sweep(plan_of(folder), max_concurrent=8, wait_for_nodes_s=600)  # on the machine itself
    joined(monkeypatch)
    run_sweep(plan_of(folder), fresh=True, max_concurrent=8)
    assert cluster.at_once == [4, 1]


def test_a_refused_sweep_leaves_nothing_of_itself(folder: Path, cluster: Cluster) -> None:
    plan = plan_of(folder)
    shutil.rmtree(plan.storage)
    (folder / "data" / "val" / "2.jpg").write_bytes((folder / "data" / "val" / "2.jpg").read_bytes()[:-100])
    plan = plan_of(folder)
    with pytest.raises(InputError, match=r"2\.jpg .* can't be used"):
        run_sweep(plan)
    with pytest.raises(InputError, match="client protocol"):
        run_sweep(plan, address="ray://somewhere:1")
    assert not plan.folder.exists()
    assert not (plan.storage / "mlflow.db").exists()
    assert cluster.trained == []


def test_a_package_that_can_not_be_imported_is_said_and_fails_no_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune = session.Pass._run_tune
    Cluster(monkeypatch)
    monkeypatch.setattr(session.Pass, "_run_tune", tune)
    monkeypatch.setitem(sys.modules, "orchestrator.trial", None)
    outcome = run_sweep(plan_of(folder))
    assert (outcome.status, outcome.exit_status) == ("unreachable", 4)
    assert "the cluster stopped scheduling (import of orchestrator.trial halted" in (outcome.error or "")
    states = {Ledger(folder / "storage").record(identity).state for identity in plan_of(folder).trainings}
    assert states == {"pending"}


def test_an_evaluation_that_is_left_needs_room_too(folder: Path) -> None:
    """A node that goes before a training is evaluated is waited for, and no longer than said."""
    plan = plan_of(folder)
    ledger = Ledger(plan.storage)
    ledger.prepare()
    running = session.Pass(plan, ledger, lambda: None, session.Limits())
    trained, _ = plan.trainings
    needs = {identity: nodes.Need(2, 1, 0.0) for identity in plan.trainings}
    for identity in needs:
        ledger.claim(identity, sweep=plan.key, row="r", seed=0, config={}, iterations=10)
        running._claimed.append(identity)
    ledger.finished(trained, plan.storage, {})
    assert running._left(needs) == [nodes.Need(1, 1, 0.0), nodes.Need(2, 1, 0.0)]
    row = plan.rows[0]
    ledger.evaluated(trained, row.evaluation, plan.storage, {"AP": 1.0}, {})
    assert running._left(needs) == [nodes.Need(2, 1, 0.0)]


def test_a_trial_does_not_give_up_before_its_driver(folder: Path) -> None:
    plan = plan_of(folder)
    for minutes, expected in ((None, 3600.0), (10, 3600.0), (120, 4 * 3600.0)):
        limits = session.Limits(wait_for_nodes_s=None if minutes is None else 60.0 * minutes)
        running = session.Pass(plan, Ledger(plan.storage), lambda: None, limits)
        assert running._assignment(plan.rows[0], 0.0, None, plan.rows).wait_s == expected
