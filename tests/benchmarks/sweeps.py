"""Small sweeps for the benchmarks, run as a user runs them, and the same trainings run bare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.ledger import Ledger
from orchestrator.plan import Plan, make_plan
from orchestrator.preparation import convert_data
from orchestrator.request import SweepRequest
from tests.pages.pages import PROJECT

TABLE = "sweeps/table3.yaml"
PROFILE = "laptop"


def words(storage: Path, rows: Sequence[str], iterations: int) -> list[str]:
    """Which sweep is meant: these rows of Table 3 on generated images, each a training of one core."""
    chosen = [word for row in rows for word in ("--only", row)]
    return [
        TABLE,
        "--profile",
        PROFILE,
        *chosen,
        "--set",
        f"schedule.iterations={iterations}",
        "--storage",
        str(storage),
    ]


def prepared(storage: Path, rows: Sequence[str], iterations: int) -> tuple[Plan, Ledger]:
    """The plan of such a sweep, whose images are there and converted: neither side is to be timed at that."""
    request = SweepRequest(
        TABLE,
        profile=PROFILE,
        only=tuple(rows),
        set=(f"schedule.iterations={iterations}",),
        storage=str(storage),
        tracking_uri=f"sqlite:///{storage / 'mlflow.db'}",
    )
    plan = make_plan(request)
    ledger = Ledger(plan.place)
    ledger.prepare()
    convert_data(plan, list(plan.trainings), ledger)
    return plan, ledger


def run_sweep(storage: Path, rows: Sequence[str], iterations: int) -> float:
    """Seconds of the whole command, to its end. Raises RuntimeError where it doesn't complete."""
    command = [sys.executable, "-m", "orchestrator.sweep", *words(storage, rows, iterations)]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=PROJECT, env=environment(), capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"the sweep ended with {done.returncode}: {done.stderr[-2000:]}")
    return seconds


def run_bare(plan: Plan, ledger: Ledger, folder: Path, at_once: int = 2) -> float:
    """Seconds of the same trainings in processes of their own, ``at_once`` at a time, imports included."""
    jobs = []
    for number, row in enumerate(plan.rows):
        stores = [f"{ledger.stores}/{facts.digest}" for facts in (row.train, row.val) if facts is not None]
        job = {"config": row.config.model_dump(mode="json"), "stores": stores, "folder": str(folder / str(number))}
        path = folder / f"job-{number}.json"
        path.write_text(json.dumps(job))
        jobs.append(path)
    began = time.perf_counter()
    running: list[subprocess.Popen[bytes]] = []
    while jobs or running:
        while jobs and len(running) < at_once:
            command = [sys.executable, "-m", "tests.benchmarks.bare_training", str(jobs.pop(0))]
            running.append(subprocess.Popen(command, cwd=PROJECT, env={**environment(), "OMP_NUM_THREADS": "1"}))
        time.sleep(0.05)
        if any(process.poll() for process in running):
            raise RuntimeError("a bare training failed")
        running = [process for process in running if process.poll() is None]
    return time.perf_counter() - began


def environment() -> dict[str, str]:
    """This process', without what would send a sweep elsewhere."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_", "DETSWEEP_"))}
    path = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
