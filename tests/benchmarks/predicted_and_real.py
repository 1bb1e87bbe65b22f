"""A small sweep as ``orchestrator.plan`` predicts it for this machine, and as it really goes.

Steps are measured before and after it, as ``sweep --dry-run --measure`` does, since a machine is not always equally
fast; the prediction is made from each, with the constants that the command has, and their mean is compared.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

from orchestrator.forecast import forecast, read_shape
from orchestrator.measurement import measure as measure_steps
from orchestrator.simulation import Cluster
from tests.benchmarks.alternating import Figure
from tests.benchmarks.sweeps import prepared, run_sweep
from tests.orchestrator.tables import MemoryLedger

ROWS = ("1:1", "0.5:1", "0.75:1", "1:0.5")
ITERATIONS = 190
WITHIN = 0.15


def measure() -> list[Figure]:
    """Seconds of the whole command, predicted and real."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shape = read_shape(f"1x{cores}xcpu")
    cluster = Cluster(nodes=1, devices=cores, gpus=False, cpus=cores, network=1e9, links=1e10)
    with tempfile.TemporaryDirectory(prefix="detsweep-") as scratch:
        plan, ledger = prepared(Path(scratch), ROWS, ITERATIONS)

        def predicted() -> tuple[float, float]:
            measured = measure_steps(plan, ledger)
            # As nothing were done: the second time all of it is.
            found = forecast(plan, MemoryLedger(), measured, shape, cluster)
            assert found is not None
            return found.seconds, next(iter(measured.values())).step_s or 0.0

        before = predicted()
        real = run_sweep(Path(scratch), ROWS, ITERATIONS)
        after = predicted()
    mean = statistics.fmean([before[0], after[0]])
    ratio = mean / real
    return [
        Figure(
            f"a sweep of {len(ROWS)} trainings on {shape}, s",
            real,
            mean,
            ratio,
            low=min(before[0], after[0]) / real,
            high=max(before[0], after[0]) / real,
            goal=f"{1 - WITHIN:g} to {1 + WITHIN:g}",
            reached=abs(ratio - 1) <= WITHIN,
            pairs=2,
            peer="predicted",
            notes={"step before, s": round(before[1], 4), "step after, s": round(after[1], 4)},
        )
    ]
