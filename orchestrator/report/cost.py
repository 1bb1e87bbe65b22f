"""What each row cost, and what it didn't since a training was there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.plan import Plan
from orchestrator.record import Record
from orchestrator.report.figures import Curves
from orchestrator.report.hardware import hardware, hardware_of
from orchestrator.report.table import UNDEFINED
from orchestrator.results import Results, mean

HEAD = ("row", "cost", "saved by reuse", "images/s in training", "inference ms an image", "on")
SAMPLES = "samples of the search"
"""Stands for their rows, which aren't in the table."""
Hours = dict[str, float]
"""By unit, "GPU" and "CPU": a training that went on elsewhere has both."""


@dataclass(frozen=True)
class RowCost:
    """One row over its seeds."""

    name: str
    hours: Hours
    """Of its trainings in all their attempts, those of other rows and sweeps left out."""
    saved: Hours
    """Of trainings that were there already."""
    reused: int
    """How many these are."""
    images_per_second: float | None
    """In training, mean over the seeds; undefined where nothing was logged."""
    inference_ms: float | None
    """For one image at the final evaluation, mean over the seeds."""
    where: str
    """What it ran on."""


def cells(row: RowCost) -> list[str]:
    """A line of the table, below ``HEAD``."""
    saved = UNDEFINED if not row.reused else f"{hours_text(row.saved)} ({row.reused})"
    speeds = (_number(row.images_per_second), _number(row.inference_ms))
    return [row.name, hours_text(row.hours), saved, *speeds, row.where or UNDEFINED]


def said(rows: Sequence[RowCost]) -> str:
    """All of it, in a sentence."""
    spent, saved = total([row.hours for row in rows]), total([row.saved for row in rows])
    less = f", and {hours_text(saved)} saved since trainings were there already" if saved else ""
    return (
        f"In all {hours_text(spent)} were spent{less}. A worker counts with its GPU, or with all its threads where it "
        "has none, in every attempt, evaluations during training included; brackets: trainings that another row or "
        "sweep had made."
    )


def costs(plan: Plan, ledger: Results, curves: Curves) -> list[RowCost]:
    """Of every row, in their order, and of a search's samples together. A training that several rows name is the first
    one's."""
    spent: set[str] = set()
    found = []
    groups = {name: [row for row in plan.rows if row.row == name] for name in plan.row_names}
    if plan.search is not None and plan.search.samples:
        groups[SAMPLES] = list(plan.search.samples)
    for name, rows in groups.items():
        hours: Hours = {}
        saved: Hours = {}
        reused = 0
        speeds, times = [], []
        where: dict[str, None] = {}
        for row in rows:
            record = ledger.record(row.identity, row.evaluations)
            here = ledger.reused_from(plan.key, row.row, row.seed, row.identity) is None and row.identity not in spent
            spent.add(row.identity)
            _add(hours if here else saved, training_hours(record))
            reused += 0 if here else bool(record.attempts)
            speeds.append(curves.index(row.identity).mean("images_per_second"))
            times.append(record.metrics.get("inference_ms"))
            where |= {hardware(values): None for values in hardware_of(record)}
        speed, time = mean(speeds), mean(times)
        found.append(
            RowCost(
                name=name,
                hours=hours,
                saved=saved,
                reused=reused,
                images_per_second=speed.value if speed else None,
                inference_ms=time.value if time else None,
                where="; ".join(where),
            )
        )
    return found


def training_hours(record: Record) -> Hours:
    """GPU-hours, or CPU-hours where there is no GPU: of all workers, over all attempts.

    A worker has one GPU, or as many CPUs as it has threads. An attempt without an end, one that goes on, lasts until
    what ``Record.seconds`` counts.
    """
    found: Hours = {}
    known = 0.0
    for attempt in record.history:
        if attempt.get("ended") is not None:
            seconds = max(0.0, attempt["ended"] - attempt["started"])
            known += seconds
            _add(found, _hours(seconds, attempt.get("hardware") or {}))
    open_end = (record.seconds or 0.0) - known
    if open_end > 1e-6:
        _add(found, _hours(open_end, record.hardware))
    return found


def hours_text(hours: Hours) -> str:
    """``3.2 GPU-h``, of less than a minute ``12 GPU-s``; a dash for none."""
    parts = (
        f"{value:.3g} {unit}-h" if value >= 1 / 60 else f"{3600 * value:.2g} {unit}-s"
        for unit, value in sorted(hours.items(), reverse=True)
    )
    return " + ".join(parts) or UNDEFINED


def total(parts: list[Hours]) -> Hours:
    """Their sum."""
    found: Hours = {}
    for part in parts:
        _add(found, part)
    return found


def _number(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _hours(seconds: float, values: Mapping[str, Any]) -> Hours:
    workers = int(values.get("workers") or 1)
    if values.get("device") == "cuda":
        return {"GPU": seconds * workers / 3600}
    return {"CPU": seconds * workers * int(values.get("threads") or 1) / 3600}


def _add(total: Hours, part: Hours) -> None:
    for unit, value in part.items():
        total[unit] = total.get(unit, 0.0) + value
