"""What a sweep has come to: one entry a row and seed, read from the ledger."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.curves import Index
from orchestrator.looks import Look, Looks
from orchestrator.plan import Plan, PlannedRow
from orchestrator.record import Record
from orchestrator.resampling import Resampled

if TYPE_CHECKING:
    from detector.data.store import Store
    from detector.error_kinds import ErrorKinds


class Results(Protocol):
    """The part of the ledger that results are read from."""

    def record(self, identity: str, evaluations: Mapping[str, str] | None = None) -> Record:
        """What is known of a training, with those evaluations."""

    def run_id(self, sweep_key: str, row: str, seed: int) -> str | None:
        """MLflow run of a row and seed."""

    def reused_from(self, sweep_key: str, row: str, seed: int, identity: str) -> str | None:
        """The row whose training this one uses, if it isn't its own."""

    def journal_metrics(
        self, identity: str, keys: Iterable[str], evaluation: str | None = None
    ) -> tuple[list[int], dict[str, list[float | None]]]:
        """Metrics over the steps, without those of other evaluations than the one named."""

    def curves(self, identity: str) -> Index:
        """Curves of a training, thinned."""

    def looks(self, sweep_key: str) -> Looks:
        """The looks at the sweep's verdicts."""

    def remember_look(self, sweep_key: str, look: Look) -> None:
        """Stores a look, if it is new."""

    def resampled(self, identity: str, key: str, split_digest: str) -> Resampled | str:
        """AP of an evaluation over resamples of its images, or what is missing."""

    def examined(self, identity: str, key: str, split_digest: str) -> ErrorKinds | str:
        """What an evaluation got wrong, box by box, or what is missing."""

    def split(self, split_digest: str) -> Store | str:
        """The converted images of a split, or what is missing."""


@dataclass(frozen=True)
class Mean:
    """A figure over the seeds of a row."""

    value: float
    deviation: float | None
    """Standard deviation (n - 1); None for a single value."""
    n: int


def result_rows(plan: Plan, ledger: Results) -> list[dict[str, Any]]:
    """One entry a row and seed, as ``--json`` prints them; an undefined metric is None."""
    entries = []
    for row in plan.rows:
        record = ledger.record(row.identity, row.evaluations)
        entries.append(
            {
                "row": row.row,
                "seed": row.seed,
                "identity": row.identity if row.drawn else None,
                "state": record.state,
                "run_id": ledger.run_id(plan.key, row.row, row.seed),
                "reused_from": ledger.reused_from(plan.key, row.row, row.seed, row.identity),
                "step": record.step,
                "metrics": {key: _defined(value) for key, value in record.metrics.items()},
                "error": record.error,
            }
        )
        if record.stopped is not None and record.over_for(plan.key):
            # The row has its result, which is less than a whole training's: step and "stopped" say so.
            value = {record.stopped["metric"]: record.stopped["value"]}
            stopped = {name: record.stopped[name] for name in ("by", "step")}
            entries[-1] |= {"state": "finished", "metrics": value, "stopped": stopped}
    return entries


def mean(values: Iterable[float | None]) -> Mean | None:
    """Mean, deviation and number of the values that are defined; None if there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Mean(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


def _defined(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def best(plan: Plan, entries: Sequence[dict[str, Any]]) -> tuple[PlannedRow, dict[str, Any]] | None:
    """The finished row and seed with the highest AP, the first of equals; None where no AP is defined."""
    finished = [
        (row, entry)
        for row, entry in zip(plan.rows, entries, strict=True)
        if entry["state"] == "finished" and entry["metrics"].get("AP") is not None
    ]
    return max(finished, key=lambda pair: pair[1]["metrics"]["AP"], default=None)
