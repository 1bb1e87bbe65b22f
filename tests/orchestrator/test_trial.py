"""A trial with a stand-in for Ray Train: how long it waits for room, and what ends that."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from detector.config import TrainingConfig
from detector.errors import UnreachableError
from detector.training import TrainingStopped
from orchestrator import cancellation, journal, nodes, recovery, trial
from orchestrator.evaluation import EvaluationJob, evaluate_training
from orchestrator.ledger import Ledger
from orchestrator.nodes import Nodes
from orchestrator.probe import UnfitNodeError, expect
from orchestrator.recovery import WAIT_S, is_waiting
from orchestrator.worker import Assignment

NO_ROOM = pickle.loads(pickle.dumps(ControllerError(WorkerGroupStartupTimeoutError(2))))
TWO, ONE = Nodes(cpus=(4.0, 4.0), gpus=(0.0, 0.0)), Nodes(cpus=(4.0,), gpus=(0.0,))


class Trainer:
    """Has no room at first, and minutes pass while it waits."""

    def __init__(self, refusals: int, now: list[float], then: Any = None) -> None:
        self.left, self.now, self.then = refusals, now, then
        self.return_value = {"training": {}}

    def fit(self) -> Trainer:
        self.now[0] += 300.0
        self.left -= 1
        if self.left < 0:
            return self
        if self.left == 0 and self.then is not None:
            self.then()
        raise NO_ROOM


@pytest.fixture
def assignment(tmp_path: Path) -> Assignment:
    config = TrainingConfig.model_validate({"resources": {"workers": 2, "cpus_per_worker": 4}}).model_dump(mode="json")
    Ledger(tmp_path).claim("a1", sweep="t", row="1:1", seed=0, config={}, iterations=100)
    return Assignment("a1", str(tmp_path), config, {}, (), 0.0)


def train(
    assignment: Assignment, monkeypatch: pytest.MonkeyPatch, present: Nodes, refusals: int, then: Any = None
) -> tuple[Trainer, list[str]]:
    """Trains it on a cluster of these nodes; the trainer, and what was kept."""
    now, kept = [0.0], list[str]()
    trainer = Trainer(refusals, now, then)
    monkeypatch.setattr(recovery.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(nodes, "present", lambda: present)
    monkeypatch.setattr(trial, "_trainer", lambda *_: trainer)
    monkeypatch.setattr(trial, "_keep", lambda assignment, *_: kept.append(assignment.identity))
    monkeypatch.setattr(trial, "Watch", lambda *_: Unwatched())
    trial._train(assignment, Ledger(assignment.storage))
    return trainer, kept


class Unwatched:
    """A watch that sees nothing."""

    stalled = None

    def __enter__(self) -> Unwatched:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_start_that_found_no_room_is_told_from_a_failure() -> None:
    assert is_waiting(NO_ROOM)
    assert not is_waiting(ControllerError(RuntimeError("else")))


def test_a_training_waits_for_as_long_as_others_hold_its_room(
    assignment: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, kept = train(assignment, monkeypatch, TWO, 200)
    assert trainer.now[0] > 4 * WAIT_S
    assert kept == ["a1"]
    assert Ledger(assignment.storage).record("a1").state == "pending"  # until a worker says otherwise


def test_what_the_cluster_has_no_room_for_at_all_fails_after_a_while(
    assignment: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, kept = train(assignment, monkeypatch, ONE, 200)
    assert WAIT_S <= trainer.now[0] < WAIT_S + 700
    record = Ledger(assignment.storage).record("a1")
    assert (kept, record.state) == ([], "failed")
    assert record.error == "for 60 min the cluster has lacked room for 2 workers of 4 CPU each"


def test_a_training_that_waits_can_be_cancelled(assignment: Assignment, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(assignment.storage)

    def cancel() -> None:
        ledger.place.update("trainings/a1/status.json", lambda found: {**(found or {}), "cancelled": 1.0})

    trainer, kept = train(assignment, monkeypatch, TWO, 3, then=cancel)
    assert (trainer.left, kept) == (0, [])


def test_what_failed_since_the_storage_was_away_is_written_down_when_it_is_back(
    assignment: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, away = Ledger.record, [3]

    def look(ledger: Ledger, identity: str, evaluations: Any = None) -> Any:
        if away[0] > 0:
            away[0] -= 1
            raise UnreachableError("503")
        return record(ledger, identity, evaluations)

    class Failing(Trainer):
        def fit(self) -> Trainer:
            raise WorkerGroupError("...", {0: UnreachableError("the checkpoint of step 5 can't be written")})

    ledger = Ledger(assignment.storage)
    monkeypatch.setattr(Ledger, "record", look)
    monkeypatch.setattr("orchestrator.outage.PAUSE_S", 0.01)
    monkeypatch.setattr(trial, "_trainer", lambda *_: Failing(0, [0.0]))
    monkeypatch.setattr(trial, "Watch", lambda *_: Unwatched())
    trial._train(assignment, ledger)
    assert away == [0]
    assert ledger.record("a1").error == "the checkpoint of step 5 can't be written"


JOB = EvaluationJob("e1", "val", "d1", {}, {})


def evaluated(assignment: Assignment, monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> tuple[int, str | None]:
    """How often the evaluation is tried if these errors end it one after the other, and what the ledger says of it."""
    ledger, tries = Ledger(assignment.storage), [0]
    ledger.started("a1", node="n", from_step=0, hardware={})
    ledger.finished("a1", Path(assignment.storage), {})

    class Task:
        def remote(self, *_: object) -> None:
            tries[0] += 1

    def get(_: object) -> None:
        if tries[0] <= len(errors):
            error = errors[tries[0] - 1]
            raise RayTaskError("evaluate_training", "a traceback", error).as_instanceof_cause()

    monkeypatch.setattr(ray, "remote", lambda **_: lambda function: Task())
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(trial.time, "sleep", lambda seconds: None)
    trial._evaluate(assignment, JOB, ledger)
    return tries[0], ledger.record("a1", {"": "e1"}).error


def test_an_evaluation_on_a_node_that_is_not_fit_is_tried_again(
    assignment: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfit = UnfitNodeError("the node n2 can't be used: it doesn't see the storage")
    assert evaluated(assignment, monkeypatch, unfit, unfit) == (3, None)
    assert evaluated(assignment, monkeypatch, *[unfit] * 9) == (5, f"UnfitNodeError: {unfit}")


def test_an_evaluation_that_fails_is_not_tried_again(assignment: Assignment, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluated(assignment, monkeypatch, ValueError("wrong")) == (1, "ValueError: wrong")


def test_an_evaluation_writes_nothing_on_a_node_that_is_not_fit(assignment: Assignment, tmp_path: Path) -> None:
    expected = replace(expect(Ledger(tmp_path), "t"), nonce="another storage's")
    with pytest.raises(UnfitNodeError, match="it doesn't see the storage"):
        evaluate_training(replace(assignment, expected=expected), JOB)
    assert not (tmp_path / "trainings" / "a1" / "evaluation.log").exists()


@pytest.mark.parametrize("when", ["while they save", "when they have"])
def test_what_is_put_back_when_its_workers_save_is_given_back_when_they_have(
    assignment: Assignment, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    ledger = Ledger(assignment.storage)
    ledger.started("a1", node="n", from_step=0, hardware={})

    def change(how: Any) -> None:
        ledger.place.update("trainings/a1/status.json", how)

    class Stopping(Trainer):
        def fit(self) -> Trainer:
            change(cancellation._cancelled)
            if when == "while they save":
                change(cancellation._pending)
                assert cancellation.is_cancelled(ledger, "a1"), "its workers go on saving"
            ledger.append("a1", journal.line(7, "train", {"loss": 1.0}))
            ledger.attempt_failed("a1", "stopped at step 7 of 100, resumable", outcome="interrupted")
            if when == "when they have":
                change(cancellation._pending)
            raise WorkerGroupError("...", {0: TrainingStopped("stopped at step 7 of 100, resumable")})

    monkeypatch.setattr("ray.tune.report", lambda figures: None)
    trainer = Stopping(1, [0.0])
    monkeypatch.setattr(nodes, "present", lambda: TWO)
    monkeypatch.setattr(trial, "_trainer", lambda *_: trainer)
    monkeypatch.setattr(trial, "Watch", lambda *_: Unwatched())
    trial.run_trial({"identity": "a1"}, assignments={"a1": assignment})
    record = ledger.record("a1")
    assert (record.state, record.holder, record.cancelled, record.step) == ("pending", None, False, 7)
    assert not cancellation.is_cancelled(ledger, "a1")


def test_what_is_put_back_before_it_began_is_as_if_nothing_had_been(assignment: Assignment) -> None:
    ledger = Ledger(assignment.storage)
    before = ledger.place.read("trainings/a1/status.json")
    for change in (cancellation._cancelled, cancellation._pending):
        ledger.place.update("trainings/a1/status.json", change)
    after = ledger.place.read("trainings/a1/status.json")
    assert (after["state"], after["holder"]) == (before["state"], before["holder"]) == ("pending", "t")
    assert not cancellation.is_cancelled(ledger, "a1")
