"""The ledger keeps the truth: whole files or none, journals cut to their checkpoint, one driver a sweep."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from detector.errors import InputError, UnreachableError
from orchestrator import journal, lease
from orchestrator.files import locked, read_json, write_json
from orchestrator.ledger import Ledger

CONFIG = {"seed": 0}


def claim(ledger, identity="a1", sweep="t", row="1:1", seed=0, iterations=100):
    return ledger.claim(identity, sweep=sweep, row=row, seed=seed, config=CONFIG, iterations=iterations)


def checkpoint(folder, step):
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text(f'{{"step": {step}}}')
    (folder / "detections.json").write_text("[]")
    return folder


def test_unknown_is_pending(tmp_path):
    record = Ledger(tmp_path).record("nothing")
    assert (record.state, record.step, record.attempts, record.model) == ("pending", 0, 0, None)


def test_a_training_from_claim_to_result(tmp_path):
    ledger = Ledger(tmp_path)
    with lease.Lease(ledger.sweep("t")):
        assert claim(ledger)
        ledger.started("a1", node="n1", from_step=0, hardware={"device": "cpu"})
        journal.append(ledger.record("a1").journal, 40, "train", {"loss": 2.0})
        running = ledger.record("a1")
        assert (running.state, running.step, running.iterations, running.attempts) == ("running", 40, 100, 1)
        ledger.evaluated("a1", "k", checkpoint(tmp_path / "ck", 100), {"AP": 12.5, "APs": None}, {})
        ledger.finished("a1", tmp_path / "ck", {})
    record = ledger.record("a1", {"": "k"})
    assert (record.state, record.step, record.metrics) == ("finished", 100, {"AP": 12.5, "APs": None})
    assert json.loads((record.model / "config.json").read_text()) == {"step": 100}
    assert record.hardware == {"device": "cpu"}
    assert (record.first_sweep, record.first_row, record.first_seed) == ("t", "1:1", 0)
    assert read_json(record.folder / "config.json") == CONFIG


def test_evaluations_are_kept_beside_the_training_by_their_key(tmp_path):
    ledger = Ledger(tmp_path)
    one, both = {"": "k1"}, {"": "k2", "test_": "k1"}
    with lease.Lease(ledger.sweep("t")):
        claim(ledger)
        ledger.started("a1", node="n", from_step=0, hardware={})
        assert ledger.record("a1", one).state == "running"
        ledger.evaluated("a1", "k1", checkpoint(tmp_path / "ck", 100), {"AP": 12.5}, {})
        ledger.finished("a1", tmp_path / "ck", {"loss": 1.0})
        ledger.release("a1")
        assert (ledger.record("a1", one).state, ledger.record("a1", both).state) == ("finished", "pending")
        assert ledger.record("a1", both).trained
        assert claim(ledger)
        ledger.evaluation_started("a1", "k2", {"split": "other"})
        assert [ledger.record("a1", keys).state for keys in (one, both)] == ["finished", "running"]
    assert ledger.record("a1", both).state == "pending"  # the driver is gone
    with lease.Lease(ledger.sweep("t")):
        assert claim(ledger)
        ledger.evaluation_failed("a1", "k2", "image 7 can't be read")
        failed = ledger.record("a1", both)
        assert (failed.state, failed.trained, failed.error) == ("failed", True, "image 7 can't be read")
        assert claim(ledger)
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / "detections.json").write_text("[1]")
        ledger.evaluated("a1", "k2", tmp_path / "results", {"AP": 3.0}, {})
    record = ledger.record("a1", both)
    assert record.metrics == {"loss": 1.0, "AP": 3.0, "test_AP": 12.5}
    assert ledger.record("a1", one).metrics == {"loss": 1.0, "AP": 12.5}
    assert read_json(record.evaluations[""] / "detections.json") == [1]
    assert read_json(record.evaluations["test_"] / "detections.json") == []
    assert record.attempts == 1


def test_failure_keeps_the_causes_own_sentence_and_every_attempt(tmp_path):
    ledger = Ledger(tmp_path)
    claim(ledger)
    ledger.started("a1", node="n1", from_step=0, hardware={})
    ledger.attempt_failed("a1", "image 7 can't be read")
    ledger.started("a1", node="n2", from_step=0, hardware={})
    ledger.attempt_failed("a1", "image 7 can't be read")
    ledger.failed("a1", "some wrapper of the cluster's")
    record = ledger.record("a1")
    assert (record.state, record.error, record.attempts) == ("failed", "image 7 can't be read", 2)
    assert [a["node"] for a in record.history] == ["n1", "n2"]
    claim(ledger)
    assert (ledger.record("a1").state, ledger.record("a1").error) == ("pending", None)


def test_a_driver_that_died_leaves_its_training_pending(tmp_path):
    ledger = Ledger(tmp_path)
    with lease.Lease(ledger.sweep("t")):
        claim(ledger)
        ledger.started("a1", node="n", from_step=0, hardware={})
        assert ledger.record("a1").state == "running"
    assert ledger.record("a1").state == "pending"
    claim(ledger)
    assert ledger.record("a1").history[0]["outcome"] == "lost"


def test_every_attempt_says_how_far_it_came(tmp_path):
    ledger = Ledger(tmp_path)
    claim(ledger)
    ledger.started("a1", node="n", from_step=0, hardware={})
    ledger.append("a1", journal.line(20, "train", {"loss": 1.0}))
    claim(ledger)  # by the next driver, for the one before it was killed
    ledger.started("a1", node="n", from_step=15, hardware={})
    ledger.append("a1", journal.line(30, "train", {"loss": 1.0}))
    ledger.release("a1")
    claim(ledger)
    ledger.started("a1", node="n", from_step=30, hardware={})
    checkpoint(tmp_path / "ck", 100)
    ledger.finished("a1", tmp_path / "ck", {"loss": 1.0})
    steps = [(one["outcome"], one["from_step"], one["to_step"]) for one in ledger.record("a1").history]
    assert steps == [("lost", 0, 20), ("interrupted", 15, 30), ("finished", 30, 100)]


def test_a_live_sweep_keeps_its_trainings_from_another(tmp_path):
    ledger = Ledger(tmp_path)
    with lease.Lease(ledger.sweep("one")):
        assert claim(ledger, sweep="one")
        assert not claim(ledger, sweep="two")
    assert claim(ledger, sweep="two")
    assert ledger.record("a1").first_sweep == "one"
    assert ledger.reused_from("two", "x", 0, "a1") == "one/1:1"
    assert ledger.reused_from("one", "x", 0, "a1") == "1:1"
    assert ledger.reused_from("one", "1:1", 0, "a1") is None


def test_set_aside_trains_anew_and_keeps_what_was(tmp_path):
    ledger = Ledger(tmp_path)
    claim(ledger)
    first = ledger.record("a1").training
    ledger.set_aside("a1")
    assert ledger.record("a1").training is None
    claim(ledger)
    assert ledger.record("a1").training != first
    assert len(list((tmp_path / "replaced").iterdir())) == 1


def test_a_torn_temporary_file_is_ignored_and_a_failed_write_leaves_the_old(tmp_path):
    path = tmp_path / "status.json"
    write_json(path, {"state": "running"})
    (tmp_path / ".status.json.abc.tmp").write_text('{"sta')
    with pytest.raises(TypeError):
        write_json(path, {"state": object()})
    assert read_json(path) == {"state": "running"}
    assert sorted(p.name for p in tmp_path.iterdir()) == [".status.json.abc.tmp", "status.json"]


def _end_attempts(storage, count):
    for _ in range(count):
        Ledger(storage).started("a1", node=str(os.getpid()), from_step=0, hardware={})


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    claim(Ledger(tmp_path))
    processes = [multiprocessing.get_context("fork").Process(target=_end_attempts, args=(tmp_path, 10)) for _ in "123"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert Ledger(tmp_path).record("a1").attempts == 30


def test_journal_is_cut_to_the_checkpoint_and_a_torn_line_goes(tmp_path):
    path = tmp_path / "journal.jsonl"
    reader = journal.Reader(path)
    for step in (20, 40, 60):
        journal.append(path, step, "train", {"loss": float(step)})
    journal.append(path, 60, "evaluation", {"AP": float("nan")})
    assert len(reader.poll()) == 4
    with path.open("a") as file:
        file.write('{"step": 80, "kind": "tr')
    assert reader.poll() == []
    assert journal.last(path)["metrics"] == {"AP": None}
    assert journal.last(path, "train")["step"] == 60
    journal.cut(path, 40)
    assert [entry["step"] for entry in journal.read(path)] == [20, 40]
    assert [entry["step"] for entry in reader.poll()] == [20, 40]  # a shorter file is read again from its start
    journal.append(path, 60, "train", {"loss": 61.0})
    assert [entry["metrics"]["loss"] for entry in reader.poll()] == [61.0]
    assert Ledger(tmp_path).journal_metrics("x", ["loss"]) == ([], {"loss": []})
    assert journal.series(journal.read(path), ["loss", "AP"]) == (
        [20, 40, 60],
        {"loss": [20.0, 40.0, 61.0], "AP": [None, None, None]},
    )


def test_the_last_line_of_a_long_journal_is_found_from_its_end(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal.append(path, 1, "evaluation", {"AP": 1.0})
    for step in range(2, 700):
        journal.append(path, step, "train", {"loss": 1.0, "padding": 0.123456789})
    assert path.stat().st_size > 2 * 16_384
    assert journal.last(path)["step"] == 699
    assert journal.last(path, "evaluation")["step"] == 1
    assert journal.last(path, "final") is None


def test_storage_must_be_a_writable_folder(tmp_path):
    with pytest.raises(InputError, match="is a gs:// address"):
        Ledger("gs://bucket/x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UnreachableError, match="can't be written"):
        Ledger(tmp_path / "file" / "below").prepare()


def test_run_ids_are_kept_by_row_and_seed(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.remember_run("t", "p")
    ledger.remember_run("t", "r", "D_up:1", 3)
    assert ledger.run_id("t", "D_up:1", 3) == "r"
    assert ledger.run_id("t", "D_up:1", 0) is None
    assert ledger.parent_run_id("t") == "p"


def test_a_second_driver_is_refused_with_the_holders_name(tmp_path):
    with lease.Lease(tmp_path):
        assert lease.held(tmp_path)
        with pytest.raises(lease.SweepHeldError, match=f"process {os.getpid()} on "):
            lease.Lease(tmp_path).__enter__()
    assert not lease.held(tmp_path)


def test_a_dead_drivers_lease_is_taken_over(tmp_path):
    code = "import os, sys; from orchestrator.lease import *; Lease(Path(sys.argv[1])).__enter__(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / "lease.json").exists()
    with lease.Lease(tmp_path):
        assert read_json(tmp_path / "lease.json")["pid"] == os.getpid()


def test_elsewhere_the_heartbeat_decides(tmp_path):
    there = {"host": "another-host", "pid": 1, "heartbeat": time.time(), "started": 0, "process_started": 0}
    write_json(tmp_path / "lease.json", there)
    with pytest.raises(lease.SweepHeldError, match="another-host"):
        lease.Lease(tmp_path).__enter__()
    # Its clock may be wrong: the time of the file, which the file server stamps, is compared with that of a new one.
    write_json(tmp_path / "lease.json", {**there, "heartbeat": time.time() - 2 * lease.STALE_S})
    with pytest.raises(lease.SweepHeldError, match="another-host"):
        lease.Lease(tmp_path).__enter__()
    os.utime(tmp_path / "lease.json", (0, time.time() - 2 * lease.STALE_S))
    with lease.Lease(tmp_path):
        pass


@pytest.mark.parametrize("more", [{"boot": "another"}, {}], ids=["another boot", "a lease of the former format"])
def test_a_namesake_of_this_host_is_another_host(tmp_path, more):
    there = {
        "number": 3,
        "host": socket.gethostname(),
        "pid": 2**22 + 1,
        "heartbeat": time.time(),
        "process_started": 0,
    }
    write_json(tmp_path / "lease.json", there | {"namespace": os.readlink("/proc/self/ns/pid")} | more)
    assert lease.held(tmp_path)
    with pytest.raises(lease.SweepHeldError, match="process 4194305 on "):
        lease.Lease(tmp_path).__enter__()
    os.utime(tmp_path / "lease.json", (0, time.time() - 2 * lease.STALE_S))
    with lease.Lease(tmp_path) as held:
        assert held.fence.number == 4


HOLD = """
import sys, time
from pathlib import Path
from orchestrator import history, journal, probe, samples
from orchestrator.cancellation import end_gracefully
from orchestrator.lease import Lease, LeaseLostError
from orchestrator.ledger import Ledger
from orchestrator.worker import checkpoints

def published():
    mine.sweep("t").joinpath("report.md").write_text("old")
    mine.publish([mine.sweep("t") / "report.md"])

def saved(identity):
    source = Path(sys.argv[1], "scratch", identity)
    source.mkdir(parents=True)
    source.joinpath("state.pt").write_text("old")
    checkpoints(mine, identity).keep(source, 60)

ledger = Ledger(sys.argv[1])
with Lease(ledger.place, "t") as held:
    mine = Ledger(sys.argv[1], held.fence)
    for name in ("a", "b"):
        mine.claim(name, sweep="t", row=name, seed=0, config={}, iterations=100)
        mine.started(name, node="old", from_step=0, hardware={})
    print("ready", flush=True)
    sys.stdin.readline()
    writes = {
        "claim": lambda: mine.claim("c", sweep="t", row="c", seed=0, config={}, iterations=100),
        "started": lambda: mine.started("a", node="old", from_step=50, hardware={}),
        "journal": lambda: mine.append("a", journal.line(7, "train", {"loss": 7.0})),
        "unclaimed": lambda: mine.append("b", journal.line(7, "train", {"loss": 7.0})),
        "evaluated": lambda: mine.evaluated("a", "k", Path("none"), {}, {}),
        "finished": lambda: mine.finished("b", Path("none"), {}),
        "aside": lambda: mine.set_aside("b"),
        "failed": lambda: mine.failed("b", "no"),
        "release": lambda: mine.release("b"),
        "checkpoint": lambda: saved("a"),
        "unclaimed checkpoint": lambda: saved("b"),
        "prune": lambda: checkpoints(mine, "a").prune(),
        "parent": lambda: mine.remember_run("t", "old"),
        "run": lambda: mine.remember_run("t", "old", "a", 0),
        "end": lambda: end_gracefully(mine, ["b"], None),
        "stopped": lambda: samples.mark_stopped(mine, "a", sweep="t", by="asha", step=1, metric="AP", value=0.0),
        "sample": lambda: samples.add_sample(mine, "t", "s", {}, "a", 0),
        "forget": lambda: samples.forget(mine, "t", "s"),
        "rows": lambda: history.remember_rows(mine, "t", [("a", 0, "b")]),
        "accepted": lambda: history.forget_accepted(mine, "a"),
        "look": lambda: mine.remember_look("t", [0]),
        "report": published,
        "nodes": lambda: probe.expect(mine, "t"),
    }
    for name, write in writes.items():
        try:
            write()
            print(name, "written", sep=": ")
        except LeaseLostError:
            print(name, "refused", sep=": ")
"""


def hold(storage):
    """A driver in a process of its own that holds the sweep t, and then writes when it is told to."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(storage)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_driver_that_was_stopped_and_replaced_writes_nothing_any_more(tmp_path, monkeypatch):
    stopped = hold(tmp_path)
    ledger = Ledger(tmp_path)
    try:
        with pytest.raises(lease.SweepHeldError, match=f"process {stopped.pid} on "):
            lease.Lease(ledger.place, "t").__enter__()
        stopped.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(lease, "STALE_S", 0.3)
        time.sleep(0.5)
        with lease.Lease(ledger.place, "t") as held:
            assert held.fence == lease.Fence("t", 2)
            new = Ledger(tmp_path, held.fence)
            assert claim(new, "a")
            new.started("a", node="new", from_step=40, hardware={})
            new.remember_run("t", "new", "a", 0)
            partial = tmp_path / "trainings" / "a" / ".checkpoint_00000050.moving"
            partial.mkdir()
            before = [read_json(tmp_path / f"trainings/{name}/status.json") for name in "ab"]
            stopped.send_signal(signal.SIGCONT)
            output, _ = stopped.communicate("go on\n", timeout=60)
            words = dict(line.split(": ") for line in output.splitlines())
            assert len(words) == 23
            assert set(words.values()) == {"refused"}
            assert [read_json(tmp_path / f"trainings/{name}/status.json") for name in "ab"] == before
            assert not list(tmp_path.glob("trainings/*/journal.jsonl"))
            assert not list(tmp_path.glob("trainings/*/checkpoint_*"))
            assert list(tmp_path.glob("trainings/*/.checkpoint_*")) == [partial]
            assert new.runs("t") == {"parent": None, "rows": {"a": {"0": "new"}}}
            assert read_json(tmp_path / "sweeps/t/lease.json")["pid"] == os.getpid()
    finally:
        stopped.kill()
        stopped.wait()


def test_the_driver_that_lost_its_lease_is_told_by_its_own_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.05)
    with lease.Lease(tmp_path) as held:
        taken = read_json(tmp_path / "lease.json") | {"number": 2, "host": "another-host"}
        write_json(tmp_path / "lease.json", taken)
        assert held.lost.wait(10)
    assert read_json(tmp_path / "lease.json") == taken


def test_an_attempt_that_was_replaced_adds_nothing_to_the_journal(tmp_path):
    claim(Ledger(tmp_path))
    first, second = Ledger(tmp_path), Ledger(tmp_path)
    first.started("a1", node="n1", from_step=0, hardware={})
    first.append("a1", journal.line(20, "train", {"loss": 2.0}), journal.line(40, "train", {"loss": 1.0}))
    second.started("a1", node="n2", from_step=20, hardware={})
    with pytest.raises(lease.LeaseLostError, match="another attempt"):
        first.append("a1", journal.line(60, "train", {"loss": 0.5}))
    with pytest.raises(lease.LeaseLostError, match="another attempt"), first.writing("a1"):
        pass
    first.attempt_failed("a1", "it was replaced")
    with second.writing("a1"):
        pass
    assert [one.get("outcome") for one in second.record("a1").history] == ["lost", None]
    second.append("a1", journal.line(40, "train", {"loss": 1.5}))
    assert second.journal_metrics("a1", ["loss"]) == ([20, 40], {"loss": [2.0, 1.5]})


def test_a_lock_that_is_never_given_back_is_named(tmp_path):
    with (
        locked(tmp_path / ".lock"),
        pytest.raises(UnreachableError, match="another process has held"),
        locked(tmp_path / ".lock", patience=0.1),
    ):
        pass


def test_every_step_is_kept_and_means_are_read_as_before(tmp_path):
    path = tmp_path / "journal.jsonl"
    for first in (1, 21):
        journal.write(path, journal.steps_line(first, {"loss": [float(n) for n in range(first, first + 20)]}))
        journal.append(path, first + 19, "train", {"loss": first + 9.5})
    assert journal.every_step(path, "loss") == {n: float(n) for n in range(1, 41)}
    assert [entry["step"] for entry in journal.read(path)] == [20, 40]
    assert journal.last(path, "train")["metrics"] == {"loss": 30.5}
    journal.cut(path, 20)
    assert list(journal.every_step(path, "loss")) == list(range(1, 21))
