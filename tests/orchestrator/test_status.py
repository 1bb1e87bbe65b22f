"""What is shown of a sweep while it runs: from the ledger alone, a line for each change in a log."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from abc import ABC, abstractmethod

import pytest

from detector.config import TrainingConfig
from detector.errors import UnreachableError
from orchestrator import journal
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.live_table import LiveTable, read_lines, table
from orchestrator.nodes import Need, Nodes, check_room
from orchestrator.plan import PlannedRow

ROWS = [PlannedRow(row, 0, identity, TrainingConfig()) for row, identity in (("a", "x"), ("again", "x"), ("b", "y"))]


def begin(ledger, row, from_step=0, hardware=None):
    ledger.claim(row.identity, sweep="t", row=row.row, seed=0, config={}, iterations=100)
    ledger.started(row.identity, node="n", from_step=from_step, hardware=hardware or {})


def test_rows_that_share_a_training_share_its_progress(tmp_path):
    ledger = Ledger(tmp_path)
    with Lease(ledger.sweep("t")):
        begin(ledger, ROWS[0])
        journal.append(ledger.record("x").journal, 25, "train", {"loss": 1.2345})
        journal.append(ledger.record("x").journal, 25, "evaluation", {"AP": 7.06})
        lines = read_lines(ROWS, ledger)
    assert [line.cells()[:6] for line in lines] == [
        ("a", "0", "running", "25/100", "1.234", "7.1"),
        ("again", "0", "running", "25/100", "1.234", "7.1"),
        ("b", "0", "pending", "0/90000", "", ""),
    ]
    assert lines[0].left is not None
    assert lines[2].left is None
    text = table(lines).splitlines()
    assert text[0].split() == ["row", "seed", "state", "step", "loss", "AP", "ETA", "where"]
    assert [text[0].index("state"), text[1].index("running"), text[3].index("pending")] == [13, 13, 13]


def test_the_rest_is_estimated_from_this_attempts_pace(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path)
    with Lease(ledger.sweep("t")):
        now = [1000.0]
        monkeypatch.setattr("time.time", lambda: now[0])
        begin(ledger, ROWS[0], from_step=40)
        now[0] = 1010.0
        journal.append(ledger.record("x").journal, 60, "train", {"loss": 1.0})
        # 20 steps in 10 s: the other 40 take 20 s, of which 5 have gone by.
        now[0] = 1015.0
        assert read_lines(ROWS[:1], ledger)[0].left == pytest.approx(15.0)


def test_a_log_gets_a_line_for_each_change_and_one_now_and_then(tmp_path):
    ledger, stream = Ledger(tmp_path), io.StringIO()
    with Lease(ledger.sweep("t")):
        live = LiveTable(ROWS, ledger, stream=stream, log_every=1e9)
        live.update()
        begin(ledger, ROWS[0])
        live.update()
        live.update()
        ledger.failed("x", "image 7 can't be read")
        live.update()
        lines = stream.getvalue().splitlines()
        assert lines == [
            "a (seed 0): running",
            "again (seed 0): running",
            "a (seed 0): failed, image 7 can't be read",
            "again (seed 0): failed, image 7 can't be read",
        ]
        live = LiveTable(ROWS, ledger, stream=(often := io.StringIO()), log_every=0.0)
        begin(ledger, ROWS[2])
        journal.append(ledger.record("y").journal, 10, "train", {"loss": 2.0})
        live.update()
    summary = often.getvalue().splitlines()[-1]
    assert re.fullmatch(
        r"0 of 3 rows finished, 2 failed, 1 running, after 0 s; b \(seed 0\) 10/100 loss 2.000, about .* left, on n",
        summary,
    )


def test_a_terminal_is_redrawn_in_place(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    live = LiveTable(ROWS, Ledger(tmp_path), stream=stream)
    live.update()
    live.update()
    first, second = stream.getvalue().split("\x1b[J")[1:]
    height = first.rstrip("\x1b[0123456789A").count("\n")
    assert height == len(ROWS) + 2
    assert first.endswith(f"\x1b[{height}A")
    assert "row" in second.splitlines()[0]


def test_where_a_training_runs_is_said_as_long_as_it_runs(tmp_path):
    ledger = Ledger(tmp_path)
    with Lease(ledger.sweep("t")):
        begin(ledger, ROWS[0], hardware={"device": "cuda", "workers": 8})
        begin(ledger, ROWS[2], hardware={"device": "cpu", "workers": 1})
        assert [line.where for line in read_lines(ROWS, ledger)] == ["n 8×cuda", "n 8×cuda", "n"]
        ledger.failed("x", "broken")
        assert [line.where for line in read_lines(ROWS, ledger)] == ["", "", "n"]


class Watched(ABC):
    """A sweep that seems to be at work, and `status --watch` over it in a process of its own."""

    def __init__(self, table, **streams):
        from orchestrator.plan import make_plan
        from orchestrator.request import SweepRequest

        self.plan = make_plan(SweepRequest(str(table)))
        self.ledger = Ledger(self.plan.storage)
        words = [sys.executable, "-m", "orchestrator.status", str(table), "--watch"]
        with Lease(self.ledger.place, self.plan.key):
            row = self.plan.rows[0]
            self.ledger.claim(row.identity, sweep=self.plan.key, row=row.row, seed=0, config={}, iterations=100)
            self.ledger.started(row.identity, node="n7", from_step=0, hardware={"device": "cuda", "workers": 2})
            record = self.ledger.record(row.identity)
            journal.append(record.journal, 20, "train", {"loss": 1.25})
            journal.append(record.journal, 20, "evaluation", {"AP": 12.34}, evaluation=row.evaluation)
            self.process = subprocess.Popen(words, **streams)
            steps = self.read()
            next(steps)
            self.ledger.failed(row.identity, "image 7 can't be read")
            next(steps)
        self.text = "".join(steps)
        assert self.process.wait(timeout=60) == 0

    @abstractmethod
    def read(self):
        """Waits for the first picture, and for what the failure changes; then gives all that was written."""


class OnTerminal(Watched):
    def __init__(self, table):
        self.mine, theirs = pty.openpty()
        fcntl.ioctl(self.mine, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        super().__init__(table, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)

    def read(self):
        seen = ""
        for sought in ("n7 2×cuda", "failed"):
            until = time.monotonic() + 60
            while sought not in seen and time.monotonic() < until:
                if select.select([self.mine], [], [], 0.2)[0]:
                    seen += os.read(self.mine, 65536).decode(errors="replace")
            assert sought in seen
            yield ""
        while self.process.poll() is None or select.select([self.mine], [], [], 0.2)[0]:
            if select.select([self.mine], [], [], 0.2)[0]:
                seen += os.read(self.mine, 65536).decode(errors="replace")
        yield seen


class InLog(Watched):
    def __init__(self, table):
        super().__init__(table, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def read(self):
        seen = ""
        for sought in (": running", ": failed"):
            while sought not in seen:
                line = self.process.stdout.readline()
                assert line, seen
                seen += line
            yield ""
        yield seen + self.process.stdout.read()


def test_watch_redraws_a_table_with_every_column_on_a_terminal(table):
    text = OnTerminal(table).text
    frames = text.split("\x1b[J")
    assert len(frames) >= 3, "it is drawn again and again in place"
    header, first = frames[1].splitlines()[:2]
    assert header.split() == ["row", "seed", "state", "step", "loss", "AP", "ETA", "where"]
    assert first.split()[:6] == ["1:1", "0", "running", "20/100", "1.250", "12.3"]
    assert first.endswith("n7 2×cuda")
    assert re.search(r"\x1b\[4A", text), "two rows, the header and the summary"
    assert "1:1 (seed 0) failed: image 7 can't be read" in text
    assert "nobody is at work; run the sweep to continue" in text


def test_watch_writes_lines_where_there_is_no_terminal(table):
    text = InLog(table).text
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0] == "1:1 (seed 0): running"
    assert re.match(r"0 of 2 rows finished, 1 running, .*; 1:1 \(seed 0\) 20/100 loss 1.250 AP 12.3", lines[1])
    assert lines[2] == "1:1 (seed 0): failed, image 7 can't be read"
    assert lines[-1] == "tiny: nobody is at work; run the sweep to continue"


def test_a_log_has_a_line_a_minute(tmp_path, monkeypatch):
    ledger, stream, now = Ledger(tmp_path), io.StringIO(), [0.0]
    monkeypatch.setattr("orchestrator.live_table.time.monotonic", lambda: now[0])
    live = LiveTable(ROWS, ledger, stream=stream)
    for now[0] in (1.0, 59.0, 60.0, 61.0, 119.0, 121.0):
        live.update()
    assert len(stream.getvalue().splitlines()) == 2


def test_room_counts_whole_workers_on_each_node():
    nodes = Nodes(cpus=(4.0, 3.0), gpus=(1.0, 0.0))
    assert nodes.room(Need(workers=1, cpus=1, gpus=0)) == 7
    assert nodes.room(Need(workers=1, cpus=2, gpus=0)) == 3  # 2 + 1: half a worker on each side is none
    assert nodes.room(Need(workers=2, cpus=2, gpus=0)) == 1
    assert nodes.room(Need(workers=3, cpus=1, gpus=0, one_node=True)) == 2
    assert nodes.room(Need(workers=1, cpus=1, gpus=0.5)) == 2
    assert nodes.room(Need(workers=1, cpus=1, gpus=1)) == 1


def test_what_can_never_run_is_refused_with_need_and_supply():
    with pytest.raises(UnreachableError, match="needs 2 workers of 4 CPU each, but the cluster has 1 node with 4 CPU"):
        check_room(Nodes(cpus=(4.0,), gpus=(0.0,)), [Need(1, 4, 0), Need(2, 4, 0)])
