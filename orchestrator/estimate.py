"""What a sweep takes, by row and in all: hours and money from timed steps, for a terminal and for ``--json``."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.costs import Measurement, devices, training_seconds, workload_key
from orchestrator.plan import Plan
from orchestrator.results import Results

GIB = 2**30


@dataclass(frozen=True)
class RowEstimate:
    """One row over its seeds."""

    row: str
    measurement: Measurement | None
    """None: its workload was never measured."""
    hours: float | None
    """Of one training, from its beginning, its workers side by side."""
    each: float | None
    """That times its GPUs, or times its workers where there is no GPU."""
    device_hours: float | None
    """Of all its trainings."""
    left: float | None
    """The part of that which isn't trained yet."""
    images_per_second: float | None
    """Of a training's workers together."""


@dataclass(frozen=True)
class Estimate:
    """A whole sweep; each training counts once, however many rows share it."""

    rows: tuple[RowEstimate, ...]
    device_hours: float | None
    """None unless every row is measured."""
    left: float | None
    price: float | None
    """Of an hour of a GPU or, without one, of a worker."""
    unit: str
    """"GPU-hours" or "worker-hours"."""
    now: bool
    """Whether it was measured just now, or is remembered."""

    @property
    def known(self) -> bool:
        """Whether there is any figure."""
        return any(row.hours is not None for row in self.rows)

    def of_a_seed(self, first: str, second: str) -> float | None:
        """Device-hours of one seed of both rows; None unless both are measured."""
        found = [row.each for row in self.rows if row.row in (first, second)]
        return sum(each for each in found if each is not None) if None not in found and len(found) == 2 else None


def estimate(
    plan: Plan, ledger: Results, measurements: Mapping[str, Measurement], *, price: float | None = None, now: bool
) -> Estimate:
    """The estimate for ``plan`` as the ledger stands."""
    spent: dict[str, float] = {}
    left: dict[str, float] = {}
    rows = []
    for name in plan.row_names:
        mine = [row for row in plan.rows if row.row == name]
        one = measurements.get(workload_key(mine[0]))
        if one is None or not one.known or one.step_s is None:
            rows.append(RowEstimate(name, one, None, None, None, None, None))
            continue
        for row in mine:
            spent[row.identity] = training_seconds(row, one) / 3600 * devices(row.config, one)
            record = ledger.record(row.identity)
            done = record.step / row.config.schedule.max_iterations
            left[row.identity] = 0.0 if record.trained else spent[row.identity] * (1 - done)
        identities = dict.fromkeys(row.identity for row in mine)
        rows.append(
            RowEstimate(
                row=name,
                measurement=one,
                hours=training_seconds(mine[0], one) / 3600,
                each=spent[mine[0].identity],
                device_hours=sum(spent[identity] for identity in identities),
                left=sum(left[identity] for identity in identities),
                images_per_second=mine[0].config.schedule.batch_size / one.step_s,
            )
        )
    complete = bool(rows) and all(row.hours is not None for row in rows)
    on_gpu = any(row.measurement is not None and row.measurement.device == "cuda" for row in rows)
    return Estimate(
        rows=tuple(rows),
        device_hours=sum(spent.values()) if complete else None,
        left=sum(left.values()) if complete else None,
        price=price,
        unit="GPU-hours" if on_gpu else "worker-hours",
        now=now,
    )


def estimate_lines(told: Estimate) -> list[str]:
    """A table with a line a row, below one that says where and how it was measured; nothing where nothing was."""
    measured = [row.measurement for row in told.rows if row.measurement is not None]
    if not measured:
        return []
    table = [("row", "s/step", "images/s", "memory", "hours each", told.unit, "left", *_price_header(told))]
    table += [_cells(row, told) for row in told.rows]
    if told.device_hours is not None and told.left is not None:
        total = (_hours(told.device_hours), _hours(told.left), *_money(told, told.device_hours))
        table.append(("the sweep", "", "", "", "", *total))
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = _about(told, measured)
    for line in table:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(size) for cell, size in zip(line[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    said: dict[str, list[str]] = {}
    for row in told.rows:
        problem = _problem(row)
        if problem:
            said.setdefault(problem, []).append(row.row)
    lines += [f"{', '.join(names)}: {problem}" for problem, names in said.items()]
    return lines


def _about(told: Estimate, measured: list[Measurement]) -> list[str]:
    known = [one for one in measured if one.known] or measured
    hardware = " and ".join(dict.fromkeys(one.hardware for one in known if one.hardware)) or "this machine"
    steps = sorted({one.steps for one in known if one.known})
    count = f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else str(steps[0]) if steps else "no"
    images = "the data's own images" if all(one.real for one in known) else "images made up in the configured size"
    newest = time.strftime("%Y-%m-%d %H:%M", time.localtime(max(one.time for one in measured)))
    when = "measured now" if told.now else f"remembered from {newest} (--measure does it anew)"
    beside = max(one.beside for one in known)
    others = f"beside {beside} others that did the same, " if beside else ""
    text = (
        f"{when}, on {hardware}: {others}median of {count} steps after a warm-up, {images}; with evaluations (each "
        "image with as many detections as are kept), without starting processes and without gradients that cross "
        "a network"
    )
    return textwrap.wrap(text, 110)


def _cells(row: RowEstimate, told: Estimate) -> tuple[str, ...]:
    one = row.measurement
    blank = ("",) * len(_price_header(told))
    if one is None or one.step_s is None or row.hours is None or row.device_hours is None or row.left is None:
        return (row.row, "", "", "" if one is None else _memory(one), "not measured", "", "", *blank)
    money = _money(told, row.device_hours)
    return (
        row.row,
        f"{one.step_s:.3g}",
        f"{row.images_per_second:.3g}",
        _memory(one),
        _hours(row.hours),
        _hours(row.device_hours),
        _hours(row.left),
        *money,
    )


def _memory(one: Measurement) -> str:
    if one.largest is not None and one.memory_bytes is None:
        return f"over {one.available_bytes / GIB:.1f} GiB"
    return "" if one.memory_bytes is None else f"{one.memory_bytes / GIB:.1f} of {one.available_bytes / GIB:.1f} GiB"


def _problem(row: RowEstimate) -> str:
    """What has to be known of a row that can't be trained as it stands."""
    one = row.measurement
    if one is None:
        return ""
    if one.error is not None:
        return f"not measured: {one.error}"
    if one.largest is None:
        return ""
    if one.largest == 0:
        return (
            f"memory is too small for a single image a worker ({one.available_bytes / GIB:.1f} GiB); lower "
            "data.short_side and data.long_side, set schedule.precision: bfloat16, or take a device with more memory"
        )
    return (
        f"memory is too small for {one.images} images a worker at once; the largest batch that fits is {one.largest}: "
        f"set resources.micro_batch_size={one.largest}, which changes no result"
    )


def _price_header(told: Estimate) -> tuple[str, ...]:
    return () if told.price is None else ("cost",)


def _money(told: Estimate, device_hours: float) -> tuple[str, ...]:
    return () if told.price is None else (f"{device_hours * told.price:,.2f}",)


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def estimate_document(told: Estimate) -> dict[str, Any]:
    """For ``--json``."""
    entries = []
    for row in told.rows:
        one = row.measurement
        entries.append(
            {
                "row": row.row,
                "step_seconds": one.step_s if one else None,
                "steps": one.steps if one else 0,
                "images_per_second": row.images_per_second,
                "memory_bytes": one.memory_bytes if one else None,
                "available_bytes": one.available_bytes if one else None,
                "fits": None if one is None or (not one.known and one.largest is None) else one.largest is None,
                "largest_batch": one.largest if one else None,
                "evaluation_image_seconds": one.eval_image_s if one else None,
                "hours": row.hours,
                "device_hours": row.device_hours,
                "left": row.left,
                "cost": None if told.price is None or row.device_hours is None else row.device_hours * told.price,
                "device": one.device if one else None,
                "hardware": one.hardware if one else None,
                "real_images": one.real if one else None,
                "measured": one.time if one else None,
                "error": one.error if one else None,
            }
        )
    cost = None if told.price is None or told.device_hours is None else told.device_hours * told.price
    return {
        "rows": entries,
        "device_hours": told.device_hours,
        "left": told.left,
        "unit": told.unit,
        "price": told.price,
        "cost": cost,
        "measured_now": told.now,
    }
