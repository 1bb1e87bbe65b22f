"""MLflow as a view of the ledger where something is away, damaged or another driver's: said, and made up for later."""

# ruff: noqa: F811
from dataclasses import replace

import pytest

from detector.errors import UnreachableError
from orchestrator import lease
from orchestrator import runs as run_store
from orchestrator.lease import Lease, LeaseLostError
from orchestrator.ledger import Ledger
from orchestrator.tracking import Tracker
from tests.orchestrator.test_tracking import (  # noqa: F401
    STEPS,
    begin,
    empty_database,
    finish,
    history,
    make_plan,
    opened,
    runs,
    storage,
    train,
)


def test_a_server_that_fails_between_two_writes_gets_the_rest_and_nothing_twice(storage, monkeypatch):
    plan = make_plan(storage, {"x": "a"})
    ledger = Ledger(storage)
    row = plan.rows[0]
    begin(ledger, plan, row)
    train(ledger, row, 0, STEPS)
    monkeypatch.setattr(run_store, "BATCH", 5)
    tracker = opened(plan, ledger)
    log_batch, calls = tracker.client.log_batch, []

    def failing(run_id, **batch):
        if "metrics" in batch:
            calls.append(len(batch["metrics"]))
            if len(calls) == 2:
                raise ConnectionError(503, "away")
        log_batch(run_id, **batch)

    monkeypatch.setattr(tracker.client, "log_batch", failing)
    with pytest.raises(ConnectionError):
        tracker.push()
    finish(ledger, row)
    assert tracker.finish("FINISHED") is None
    client, _, children = runs(plan)
    assert history(client, children["x", 0], "loss") == [(step, 10.0 - step) for step in range(1, STEPS + 1)]
    assert history(client, children["x", 0], "lr") == [(step, 0.1) for step in range(1, STEPS + 1)]


def test_a_driver_that_was_replaced_as_it_made_a_run_leaves_the_other_drivers(storage, monkeypatch):
    plan = make_plan(storage, {"a": "x", "b": "y"})
    with Lease(Ledger(storage).place, plan.key) as held:
        ledger = Ledger(storage, held.fence)
        for row in plan.rows:
            begin(ledger, plan, row)
        stopped, create = opened(plan, ledger), run_store.RunStore.create

        def replaced(store, name, tags):
            monkeypatch.setattr(run_store.RunStore, "create", create)
            made = create(store, name, tags)
            # Meanwhile another one, that doesn't see it yet, takes over.
            monkeypatch.setattr(lease, "STALE_S", 0.0)
            with Lease(ledger.place, plan.key) as taken:
                Ledger(storage, taken.fence).remember_run(plan.key, create(store, name, tags).info.run_id, "a", 0)
            return made

        monkeypatch.setattr(run_store.RunStore, "create", replaced)
        with pytest.raises(LeaseLostError):
            stopped.push()
        stopped.abandon()
    _, (parent,), children = runs(plan)
    assert parent.info.status == "RUNNING"
    assert {key: run.info.run_id for key, run in children.items()} == {("a", 0): ledger.run_id(plan.key, "a", 0)}


def test_away_at_the_end_is_a_sentence_with_the_remedy(storage, monkeypatch):
    plan = make_plan(storage, {"x": "a"})
    tracker = opened(plan, Ledger(storage))

    def away(*_, **__):
        raise ConnectionError(111, "Connection refused")

    monkeypatch.setattr(tracker.client, "update_run", away)
    sentence = tracker.finish("FINISHED", patience=0.0)
    assert "Connection refused" in sentence
    assert "`python -m orchestrator.sync t.yaml`" in sentence


def test_a_damaged_model_is_named_and_keeps_no_other_run_waiting(storage, caplog):
    plan = make_plan(storage, {"x": "a", "y": "b", "z": "c"})
    ledger = Ledger(storage)
    tracker = opened(plan, ledger)
    for row in plan.rows:
        begin(ledger, plan, row)
        train(ledger, row, 0, STEPS)
        finish(ledger, row)
    damaged = ledger.training(plan.rows[0].identity) / "model" / "config.json"
    whole = damaged.read_text()
    damaged.write_text(whole[: len(whole) // 2])
    (ledger.training(plan.rows[1].identity) / "model" / "config.json").unlink()
    sentence = tracker.finish("FINISHED", patience=0.0)
    assert f"x (seed 0): {damaged} is damaged; y (seed 0): " in sentence
    assert "config.json is missing; put the files back" in sentence
    assert "away" not in sentence + caplog.text
    client, parents, children = runs(plan)
    assert {run.info.status for run in [*parents, *children.values()]} == {"FINISHED"}
    assert "complete" in children["z", 0].data.tags
    assert [f.path for f in client.list_artifacts(children["z", 0].info.run_id) if f.path == "model"]
    assert "complete" not in children["x", 0].data.tags
    assert history(client, children["x", 0], "loss") == [(step, 10.0 - step) for step in range(1, STEPS + 1)]
    # Once the files are there again, so is what lacked.
    for row in plan.rows[:2]:
        (ledger.training(row.identity) / "model" / "config.json").write_text(whole)
    assert tracker.finish("FINISHED", patience=0.0) is None
    assert {"complete" in run.data.tags for run in runs(plan)[2].values()} == {True}


def test_a_server_that_is_not_there_is_named_without_its_password(storage, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    plan = replace(make_plan(storage, {}), tracking_uri="http://me:secret@127.0.0.1:9")
    with pytest.raises(UnreachableError, match=r"http://127.0.0.1:9 can't be used \(Connection refused\)") as caught:
        Tracker(plan, Ledger(storage)).connect()
    assert "secret" not in str(caught.value)


def test_a_storage_that_is_away_is_not_called_a_tracking_server(storage, monkeypatch, caplog):
    plan = make_plan(storage, {"a": "a"})
    ledger = Ledger(storage)
    tracker = opened(plan, ledger)

    def away():
        raise UnreachableError("the storage s3://b/x can't be used (503)") from OSError(111, "Connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "check", away)
        said = tracker.finish("FINISHED", patience=0.01)
    assert "the storage s3://b/x can't be used (503)" in said
    assert "Connection refused" not in said
    assert caplog.messages == ["the storage s3://b/x can't be used (503); waiting up to 0.01 s for it"]


def test_a_driver_that_was_replaced_says_so_as_it_opens_its_run(storage, monkeypatch):
    plan = make_plan(storage, {"a": "a"})
    ledger = Ledger(storage)

    def replaced(*_):
        raise LeaseLostError("the sweep t was taken over")

    monkeypatch.setattr(ledger, "remember_run", replaced)
    with pytest.raises(LeaseLostError):
        opened(plan, ledger)
