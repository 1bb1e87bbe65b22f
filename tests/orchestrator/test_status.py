"""What is shown of a sweep while it runs: from the ledger alone, a line for each change in a log."""

import io
import re

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


def begin(ledger, row, from_step=0):
    ledger.claim(row.identity, sweep="t", row=row.row, seed=0, config={}, iterations=100)
    ledger.started(row.identity, node="n", from_step=from_step, hardware={})


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
    assert text[0].split() == ["row", "seed", "state", "step", "loss", "AP", "left"]
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
        r"0 of 3 rows finished, 2 failed, 1 running, after 0 s; b 10/100 loss 2.000, about .* left", summary
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
