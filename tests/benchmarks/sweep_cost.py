"""What a sweep adds to its trainings: through Ray and MLflow, against the same ones bare, two at a time.

Sweeps of two and of six short trainings: the first has one of them after the other on each core, the second three. What
the second adds to its bare trainings beyond the first is the cost of two more; the rest is the sweep's own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.benchmarks.alternating import Figure
from tests.benchmarks.sweeps import prepared, run_bare, run_sweep

ROWS = ("1:1", "0.5:1", "0.75:1", "1:0.5", "1:0.75", "D_up:1")
ITERATIONS = 20
LONG_S = 150.0
"""A training for which the whole is told, too."""


def measure() -> list[Figure]:
    """Seconds that a sweep, and each training of it, take beyond bare trainings with their imports."""
    added: dict[int, float] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="detsweep-") as scratch:
        for count in (2, len(ROWS)):
            storage, bare = Path(scratch) / f"sweep-{count}", Path(scratch) / f"bare-{count}"
            bare.mkdir()
            plan, ledger = prepared(storage, ROWS[:count], ITERATIONS)
            alone = run_bare(plan, ledger, bare)
            whole = run_sweep(storage, ROWS[:count], ITERATIONS)
            added[count] = whole - alone
            seconds |= {f"{count} trainings bare, s": round(alone, 1), f"{count} in a sweep, s": round(whole, 1)}
    rounds = len(ROWS) // 2
    each = (added[len(ROWS)] - added[2]) / (rounds - 1)
    sweep = added[2] - each
    table = 4 * LONG_S  # eight rows, two at a time
    ratio = (table + sweep + 4 * each) / table
    return [
        Figure("a sweep, s", sweep, 25.0, goal="<= 25 s", reached=sweep <= 25, peer="goal", notes=seconds),
        Figure("a training of it, s", each, 12.0, goal="<= 12 s", reached=each <= 12, peer="goal"),
        Figure(
            f"eight trainings of {LONG_S:g} s, two at a time, from these, s",
            table + sweep + 4 * each,
            table,
            ratio,
            goal="<= 1.15",
            reached=ratio <= 1.15,
            peer="bare",
        ),
    ]
