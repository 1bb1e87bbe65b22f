"""A sweep is stopped, its YAML or the code is edited, a row is taken out: what the next run reuses and what it says."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.cancellation import CANCELLED
from tests.faults.conftest import Measure
from tests.faults.sweeps import ROOT, Sweep

pytestmark = pytest.mark.faults
ROWS = "  - {name: kept}\n  - {name: edited, set: {schedule.learning_rate: 0.002}}\n"


def states(document: dict) -> dict[str, str]:
    return {row["row"]: row["state"] for row in document["rows"]}


def command(sweep: Sweep, module: str, *words: str, packages: Path = ROOT) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", f"orchestrator.{module}", "tiny.yaml", "--storage", str(sweep.storage), *words]
    return subprocess.run(
        line, cwd=sweep.folder, env={"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "PYTHONPATH": str(packages)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_edited_yaml_and_edited_code(tmp_path: Path, measured: Measure) -> None:
    packages = tmp_path / "packages"
    for name in ("detector", "orchestrator"):
        shutil.copytree(ROOT / name, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
    sweep = Sweep(tmp_path / "sweep", ROWS, iterations=60)
    environment = {"PYTHONPATH": str(packages)}
    sweep.start("--max-concurrent", "2", **environment)
    sweep.wait(lambda: len(list(sweep.storage.glob("trainings/*/checkpoint_*/manifest.json"))) >= 2, "two checkpoints")
    assert sweep.process is not None
    sweep.process.send_signal(signal.SIGTERM)
    before = {row["row"]: row["identity"] for row in sweep.end(143)["rows"]}

    # The sweep file: one row of two.
    table = sweep.folder / "tiny.yaml"
    table.write_text(table.read_text().replace("0.002", "0.003"))
    said = command(sweep, "sweep", "--dry-run", packages=packages).stdout
    difference = next(line for line in said.splitlines() if "other than when" in line)
    measured("16: YAML edited", said=difference)
    assert "edited: other than when this was last run: schedule.learning_rate 0.002 → 0.003\n" in said
    assert "kept    0     " + before["kept"] + "  continues (" in said
    after = {row["row"]: row for row in sweep.run(0, **environment)["rows"]}
    assert after["kept"]["identity"] == before["kept"]
    assert after["edited"]["identity"] != before["edited"]
    assert sweep.record(before["kept"]).attempts == 2
    assert sweep.record(after["edited"]["identity"]).attempts == 1

    # The code: what decides the weights.
    losses = packages / "detector" / "losses.py"
    losses.write_text(losses.read_text() + "\nEDITED = 1\n")
    document = sweep.run(2, **environment)
    assert document["status"] == "refused"
    measured("16: code edited", completed="with --accept-code-change", said=document["error"])
    assert "kept, edited were trained before the code that decides the weights was changed (losses.py)" in str(document)
    assert states(sweep.run(0, "--accept-code-change", **environment)) == {"kept": "finished", "edited": "finished"}
    report = (sweep.storage / "sweeps" / "tiny" / "report.md").read_text()
    assert "Trained, or begun, by other code than the present (--accept-code-change): kept, edited." in report
    assert sweep.record(before["kept"]).attempts == 2


def test_a_row_is_cancelled_while_it_trains_and_put_back(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "sweep", ROWS, iterations=400)
    sweep.start("--only", "kept")
    sweep.wait_for_step(10)
    assert command(sweep, "status", "--only", "kept", "--cancel", "kept").returncode == 0
    began = time.monotonic()
    document = sweep.end(3)
    assert time.monotonic() - began < 60
    (row,) = document["rows"]
    assert (row["state"], row["error"]) == ("failed", CANCELLED)
    reached = sweep.record().step
    assert 10 <= reached < 400
    # It stays out.
    assert sweep.run(3, "--only", "kept")["rows"][0]["error"] == CANCELLED
    assert sweep.record().attempts == 1
    assert command(sweep, "status", "--only", "kept", "--retry", "kept").returncode == 0
    sweep.start("--only", "kept")
    sweep.wait(lambda: sweep.record().attempts == 2, "a second attempt")
    assert sweep.record().history[-1]["from_step"] >= reached - 5
    assert sweep.process is not None
    sweep.process.send_signal(signal.SIGTERM)
    sweep.end(143)
