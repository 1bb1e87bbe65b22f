"""The MLflow run of one row and seed, and which points of its metrics MLflow lacks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator import journal

if TYPE_CHECKING:
    from mlflow.entities import Metric

    from orchestrator.plan import PlannedRow

Point = tuple[str, float | None, int, float]
"""Metric, value, step and time in seconds."""


@dataclass
class RowRun:
    """The run of one row and seed, as far as this process knows it."""

    row: PlannedRow
    evaluations: dict[str, str]
    """Keys of the evaluations that it shows, by the prefix of their metrics."""
    run_id: str | None = None
    foreign: bool = False
    """Of another sweep, which began what this one continues; ``row`` is ours."""
    status: str | None = None
    reader: journal.Reader | None = None
    attempts: int = 0
    there: set[str] | None = None
    """Paths of artifacts that MLflow has; None: not asked yet."""
    logged: dict[str, set[int]] = field(default_factory=dict)
    """Steps that MLflow has, by metric."""
    marked: bool = False
    """MLflow has the mark that everything of the present training is there."""
    complete: bool = False
    """There is nothing more to do."""

    def new(self, points: Iterable[Point]) -> list[Metric]:
        """Those of ``points`` that MLflow lacks, which it has from now on.

        Undefined metrics have no point in MLflow; a step that was trained again after a crash keeps its first.
        """
        from mlflow.entities import Metric

        metrics = []
        for key, value, step, at in points:
            steps = self.logged.setdefault(key, set())
            if value is not None and step not in steps:
                steps.add(step)
                metrics.append(Metric(key, value, round(at * 1000), step))
        return metrics
