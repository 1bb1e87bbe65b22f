"""Metrics over the steps as inline SVG: one curve a row, seeds averaged, drawn without any library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from orchestrator.plan import Plan
from orchestrator.results import Results, mean

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 44
# Told apart without colour vision, too (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999933")
POINTS = 400
"""Most points of a curve; a longer one is averaged in bins."""


@dataclass(frozen=True)
class Curve:
    """One row's metric over the steps."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def curves(plan: Plan, ledger: Results, metric: str, rows: Sequence[str]) -> list[Curve]:
    """The curves of ``rows`` as far as there are any: the mean over the seeds at each step, thinned."""
    found = []
    for name in rows:
        table: dict[int, list[float | None]] = {}
        for identity, key in dict.fromkeys((row.identity, row.evaluation) for row in plan.rows if row.row == name):
            steps, values = ledger.journal_metrics(identity, [metric], key or None)
            for step, value in zip(steps, values[metric], strict=True):
                table.setdefault(step, []).append(value)
        points = [(float(step), average.value) for step in sorted(table) if (average := mean(table[step])) is not None]
        if points:
            thin = _thinned(points)
            found.append(Curve(name, tuple(step for step, _ in thin), tuple(value for _, value in thin)))
    return found


def svg(metric: str, drawn: Sequence[Curve]) -> str:
    """A figure of ``drawn`` with axes and a legend; values that span decades are drawn on a logarithmic scale."""
    values = [value for curve in drawn for value in curve.values]
    last = max(step for curve in drawn for step in curve.steps) or 1.0
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > 30
    lower, upper = (math.log10(low), math.log10(high)) if logarithmic else (low, high)
    if upper == lower:
        lower, upper = lower - 0.5, upper + 0.5

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(value: float) -> float:
        at = math.log10(value) if logarithmic else value
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (at - lower) / (upper - lower)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(metric)} over steps" '
        'xmlns="http://www.w3.org/2000/svg">'
    ]
    for tick in _log_ticks(lower, upper) if logarithmic else _ticks(lower, upper):
        at = y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(0.0, last):
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:,.0f}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">step</text>')
    for index, curve in enumerate(drawn):
        colour = COLOURS[index % len(COLOURS)]
        points = " ".join(
            f"{x(step):.1f},{y(value):.1f}" for step, value in zip(curve.steps, curve.values, strict=True)
        )
        if len(curve.steps) == 1:
            cx, cy = points.split(",")
            parts.append(f'<circle cx="{cx}" cy="{cy}" r="3" fill="{colour}"/>')
        else:
            dash = "" if index < len(COLOURS) else ' stroke-dasharray="6 3"'
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>')
    parts.append("</svg>")
    legend = "".join(
        f'<span><i style="background:{COLOURS[index % len(COLOURS)]}"></i>{escape(curve.name)}</span>'
        for index, curve in enumerate(drawn)
    )
    scale = " (logarithmic)" if logarithmic else ""
    return f'{"".join(parts)}<p class="legend">{legend}<span>{escape(metric)}{scale}</span></p>'


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= POINTS:
        return list(points)
    bins = [points[len(points) * i // POINTS : len(points) * (i + 1) // POINTS] for i in range(POINTS)]
    return [(sum(step for step, _ in part) / len(part), sum(value for _, value in part) / len(part)) for part in bins]


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from ``low`` to ``high``."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if raw <= factor * power * (1 + 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)]
