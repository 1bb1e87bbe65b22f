"""A ledger in an object store is the same ledger: on a local server that speaks S3, beside a folder."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from pathlib import Path

import pytest

from detector.checkpoint_store import write_manifest
from detector.errors import InputError, UnreachableError
from orchestrator import journal, lease, objects
from orchestrator.ledger import Ledger
from orchestrator.objects import ObjectStore
from orchestrator.storage import open_storage
from orchestrator.worker import checkpoints
from tests.faults.servers import s3_server


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The address of a bucket, to which the environment leads."""
    with pytest.MonkeyPatch.context() as patch, s3_server(tmp_path_factory.mktemp("s3")) as environment:
        for key, value in environment.items():
            patch.setenv(key, value)
        yield "s3://detsweep"


@pytest.fixture(params=["folder", "s3"])
def address(request, tmp_path):
    """A storage of either kind, empty."""
    if request.param == "folder":
        return str(tmp_path / "storage")
    return f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"


@pytest.fixture
def elsewhere(address, monkeypatch, tmp_path):
    """Makes what is opened from now on that of another node."""

    def move():
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / uuid.uuid4().hex))

    return move


def claim(ledger, identity="a1", sweep="t"):
    return ledger.claim(identity, sweep=sweep, row="1:1", seed=0, config={"seed": 0}, iterations=100)


def results(folder):
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text('{"name": "r18"}')
    (folder / "detections.json").write_text("[]")
    return folder


def test_a_training_from_claim_to_result_as_another_node_sees_it(address, elsewhere, tmp_path):
    ledger = Ledger(address)
    ledger.prepare()
    with lease.Lease(ledger.place, "t") as held:
        mine = Ledger(address, held.fence)
        assert claim(mine)
        mine.started("a1", node="n1", from_step=0, hardware={"device": "cpu"})
        mine.append("a1", journal.steps_line(1, {"loss": [2.0, 1.0]}), journal.line(2, "train", {"loss": 1.5}))
        mine.flush("a1")
        elsewhere()
        there = Ledger(address)
        assert (there.record("a1").state, there.record("a1").step) == ("running", 2)
        assert there.journal_metrics("a1", ["loss"]) == ([2], {"loss": [1.5]})
        assert journal.every_step(there.record("a1").journal, "loss") == {1: 2.0, 2: 1.0}
        mine.append("a1", journal.line(4, "evaluation", {"AP": 3.0}, evaluation="k"), durable=True)
        assert there.record("a1").step == 4
        mine.evaluated("a1", "k", results(tmp_path / "ck"), {"AP": 3.0}, {})
        mine.finished("a1", tmp_path / "ck", {"loss": 1.0})
        mine.release("a1")
    elsewhere()
    record = Ledger(address).record("a1", {"": "k"})
    assert (record.state, record.metrics) == ("finished", {"loss": 1.0, "AP": 3.0})
    there = Ledger(address)
    assert json.loads((there.fetched(record.model) / "config.json").read_text()) == {"name": "r18"}
    assert (there.fetched(record.evaluations[""]) / "detections.json").read_text() == "[]"
    assert there.place.read("trainings/a1/config.json") == {"seed": 0}


def test_the_second_driver_is_refused_and_a_dead_one_replaced(address, monkeypatch):
    ledger = Ledger(address)
    ledger.prepare()
    with lease.Lease(ledger.place, "t") as held:
        assert held.fence.number == 1
        with pytest.raises(lease.SweepHeldError, match=f"already being run by process {os.getpid()} on "):
            lease.Lease(Ledger(address).place, "t").__enter__()
        assert ledger.held("t")
        # From here it looks like another host's, of which only the storage's clock is known.
        monkeypatch.setattr(lease.socket, "gethostname", lambda: "another-host")
        with pytest.raises(lease.SweepHeldError):
            lease.Lease(Ledger(address).place, "t").__enter__()
        monkeypatch.setattr(lease, "STALE_S", 0.0)
        with lease.Lease(Ledger(address).place, "t") as taken:
            assert taken.fence.number == 2
            with pytest.raises(lease.LeaseLostError, match="was taken over"):
                Ledger(address, held.fence).check()
    assert not ledger.held("t")


def test_of_many_that_come_at_once_one_gets_the_lease(address):
    Ledger(address).prepare()
    outcomes, together = [], threading.Barrier(6)

    def come():
        place = open_storage(address)
        together.wait()
        try:
            lease.Lease(place, "t").__enter__()
            outcomes.append("held")
        except lease.SweepHeldError:
            outcomes.append("refused")

    threads = [threading.Thread(target=come) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", *["refused"] * 5]


def test_whoever_lost_the_lease_writes_nothing(address, monkeypatch):
    Ledger(address).prepare()
    first = lease.Lease(open_storage(address), "t")
    first.__enter__()
    old = Ledger(address, first.fence)
    for identity in ("a", "b"):
        claim(old, identity)
        old.started(identity, node="old", from_step=0, hardware={})
    monkeypatch.setattr(lease, "STALE_S", 0.0)
    with lease.Lease(open_storage(address), "t") as second:
        new = Ledger(address, second.fence)
        claim(new, "a")
        new.started("a", node="new", from_step=10, hardware={})
        for identity in ("a", "b"):
            with pytest.raises(lease.LeaseLostError):
                old.started(identity, node="old", from_step=50, hardware={})
            with pytest.raises(lease.LeaseLostError):
                old.append(identity, journal.line(60, "train", {"loss": 0.0}), durable=True)
            with pytest.raises(lease.LeaseLostError):
                old.finished(identity, Path("none"), {})
        assert [attempt["node"] for attempt in new.record("a").history] == ["old", "new"]
        assert new.journal_metrics("a", ["loss"]) == ([], {"loss": []})


def test_writers_at_once_lose_nothing(address):
    Ledger(address).prepare()
    claim(Ledger(address))

    def begin(name):
        mine = Ledger(address)
        for _ in range(4):
            mine.started("a1", node=name, from_step=0, hardware={})

    threads = [threading.Thread(target=begin, args=(name,)) for name in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(attempt["node"] for attempt in Ledger(address).record("a1").history) == sorted("xyz" * 4)


def test_a_journal_is_what_its_attempts_say_up_to_where_the_next_began(address, elsewhere):
    Ledger(address).prepare()
    claim(Ledger(address))
    first, second = Ledger(address), Ledger(address)
    first.started("a1", node="n1", from_step=0, hardware={})
    for step in (20, 40):
        first.append("a1", journal.line(step, "train", {"loss": float(step)}), durable=True)
    reader = journal.Reader(Ledger(address).record("a1").journal)
    assert len(reader.poll()) == 2
    second.started("a1", node="n2", from_step=20, hardware={})
    with pytest.raises(lease.LeaseLostError, match="another attempt"):
        first.append("a1", journal.line(60, "train", {"loss": 0.0}), durable=True)
    second.append("a1", journal.line(40, "train", {"loss": 41.0}), durable=True)
    elsewhere()
    assert Ledger(address).journal_metrics("a1", ["loss"]) == ([20, 40], {"loss": [20.0, 41.0]})


def test_checkpoints_are_those_of_the_newest_attempt(address, tmp_path):
    Ledger(address).prepare()
    claim(Ledger(address))
    first, second = Ledger(address), Ledger(address)
    first.started("a1", node="n1", from_step=0, hardware={})
    assert checkpoints(first, "a1").keep(saved(tmp_path / "20", 20), 20) == "checkpoint_00000020"
    second.started("a1", node="n2", from_step=20, hardware={})
    with pytest.raises(lease.LeaseLostError, match="another attempt"):
        checkpoints(first, "a1").keep(saved(tmp_path / "late", 40), 40)
    assert checkpoints(second, "a1").newest().step == 20
    checkpoints(second, "a1").keep(saved(tmp_path / "40", 40), 40)
    assert checkpoints(first, "a1").steps() == [20, 40]


def saved(folder, step):
    """The files of a checkpoint."""
    folder.mkdir()
    (folder / "state.pt").write_bytes(b"state")
    write_manifest(folder, step, None)
    return folder


def test_a_training_that_begins_anew_is_not_taken_for_the_one_before_it(address, elsewhere):
    begins = Ledger(address)
    begins.prepare()
    elsewhere()
    watches, reads = Ledger(address), []
    for loss in (1.0, 2.0):
        claim(begins)
        begins.started("a1", node="n", from_step=0, hardware={})
        begins.append("a1", journal.line(20, "train", {"loss": loss}, at=1.0), durable=True)
        reads.append((watches.journal_metrics("a1", ["loss"]), Ledger(address).journal_metrics("a1", ["loss"])))
        begins.set_aside("a1")
    assert reads == [(([20], {"loss": [loss]}),) * 2 for loss in (1.0, 2.0)]


def test_what_is_set_aside_can_be_trained_anew(address):
    ledger = Ledger(address)
    ledger.prepare()
    claim(ledger)
    before = ledger.record("a1").training
    ledger.set_aside("a1")
    assert ledger.record("a1").training is None
    claim(ledger)
    assert ledger.record("a1").training != before
    (kept,) = ledger.place.names("replaced")
    assert ledger.place.read(f"replaced/{kept}/status.json")["training"] == before


def test_run_ids_and_names(address):
    ledger = Ledger(address)
    ledger.prepare()
    ledger.remember_run("t", "p")
    ledger.remember_run("t", "r", "D_up:1", 3)
    assert (ledger.parent_run_id("t"), ledger.run_id("t", "D_up:1", 3)) == ("p", "r")
    assert [name for name in ledger.place.names("sweeps/t") if not name.startswith(".")] == ["runs.json"]
    assert ledger.place.names("sweeps/none") == []


def test_a_store_that_ignores_conditions_is_refused(bucket, monkeypatch):
    store = ObjectStore(f"{bucket}/careless")
    call = store._call
    monkeypatch.setattr(
        store, "_call", lambda name, **given: call(name, **{k: v for k, v in given.items() if not k.startswith("If")})
    )
    with pytest.raises(UnreachableError, match="ignores the conditions of a write"):
        store.prepare()


def test_lines_reach_the_store_now_and_then_without_a_checkpoint(bucket, monkeypatch):
    address = f"{bucket}/{uuid.uuid4().hex}"
    ledger = Ledger(address)
    claim(ledger)
    ledger.started("a1", node="n", from_step=0, hardware={})
    ledger.append("a1", journal.line(20, "train", {"loss": 1.0}))
    assert ledger.record("a1").step == 0
    monkeypatch.setattr(objects, "FLUSH_S", 0.0)
    time.sleep(0.01)
    ledger.append("a1", journal.line(40, "train", {"loss": 1.0}))
    assert ledger.record("a1").step == 40


@pytest.mark.parametrize("place", ["s3://", "s3://key:secret@bucket/x", "s3://bucket/x?endpoint_override=y"])
def test_an_address_has_nothing_but_a_bucket_and_a_prefix(place):
    with pytest.raises(InputError, match="s3://BUCKET/PREFIX") as caught:
        Ledger(place)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("place", ["gs://bucket/x", "az://bucket/x", "http://host/x"])
def test_other_stores_are_refused_by_what_they_lack(place):
    with pytest.raises(InputError, match="writes that succeed only where nobody else has written"):
        Ledger(place)


def test_a_bucket_that_is_not_there_is_unreachable(bucket):
    with pytest.raises(UnreachableError, match="can't be used"):
        Ledger("s3://no-such-bucket-anywhere/x").prepare()
