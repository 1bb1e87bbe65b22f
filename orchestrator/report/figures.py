"""Metrics over the steps as inline SVG: one curve a row, raw and smoothed, its seeds as a band, without any library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from orchestrator.curves import Curve, Index, make_missing
from orchestrator.plan import Plan
from orchestrator.results import Results

WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 58, 26, 12, 42
COLOURS = 8
"""Colours of the page's style, after which they are dashed."""
POINTS = 300
"""Most points of a curve; a longer one is averaged in as many bins."""
SMOOTHING = 15
"""Points that a smoothed one is the mean of, where there are at least twice as many; odd."""
FIXED = "loss_reg_fixed"
"""What stands beside every regression loss."""


@dataclass(frozen=True, eq=False)
class Line:
    """One row's metric over the steps."""

    name: str
    steps: np.ndarray
    """(P,) ascending."""
    raw: np.ndarray
    """(P,) mean over the seeds that have come so far."""
    smooth: np.ndarray
    """(P,) mean over the seeds' smoothed curves,"""
    low: np.ndarray
    """(P,) the lowest"""
    high: np.ndarray
    """(P,) and the highest of them."""
    seeds: int
    width: float
    """Steps that a raw point is the mean of."""


class Curves:
    """Curves of a sweep's trainings, each index read once."""

    def __init__(self, plan: Plan, ledger: Results) -> None:
        self._plan, self._ledger = plan, ledger
        self._indices: dict[str, Index] = {}
        records = [ledger.record(identity) for identity in dict.fromkeys(row.identity for row in plan.rows)]
        make_missing(record.journal for record in records if record.attempts)

    def index(self, identity: str) -> Index:
        """Of a training."""
        if identity not in self._indices:
            self._indices[identity] = self._ledger.curves(identity)
        return self._indices[identity]

    def lines(self, metric: str, rows: Sequence[str]) -> list[Line]:
        """Those of ``rows`` that have any value, on common steps."""
        found: dict[str, list[Curve]] = {}
        for name in rows:
            trainings = dict.fromkeys((row.identity, row.evaluation) for row in self._plan.rows if row.row == name)
            curves = [self.index(identity).curve(metric, key or None) for identity, key in trainings]
            found[name] = [curve for curve in curves if len(curve.steps)]
        everything = [curve for curves in found.values() for curve in curves]
        if not everything:
            return []
        last = max(float(curve.steps[-1]) for curve in everything)
        thin = max(len(curve.steps) for curve in everything) > POINTS
        size = last / POINTS if thin else None
        return [_line(name, curves, size) for name, curves in found.items() if curves]


def _line(name: str, curves: Sequence[Curve], size: float | None) -> Line:
    """``size``: steps of a bin; None keeps every step."""
    thinned = [_binned(curve, size) for curve in curves]
    steps = np.unique(np.concatenate([steps for steps, _ in thinned]))
    raw = np.full((len(thinned), len(steps)), np.nan)
    smooth = raw.copy()
    for place, (at, values) in enumerate(thinned):
        # Seeds that were measured at other steps are drawn on common ones; none is continued beyond its own.
        reached = (steps >= at[0]) & (steps <= at[-1])
        raw[place, reached] = np.interp(steps[reached], at, values)
        smooth[place, reached] = np.interp(steps[reached], at, smoothed(values))
    width = max(max(curve.width for curve in curves), size or 0)
    return Line(
        name,
        steps,
        raw=np.nanmean(raw, axis=0),
        smooth=np.nanmean(smooth, axis=0),
        low=np.nanmin(smooth, axis=0),
        high=np.nanmax(smooth, axis=0),
        seeds=len(curves),
        width=width,
    )


def _binned(curve: Curve, size: float | None) -> tuple[np.ndarray, np.ndarray]:
    if size is None:
        return curve.steps, curve.values
    bins = np.minimum((curve.steps / size).astype(int), POINTS - 1)
    there, place = np.unique(bins, return_inverse=True)
    means = np.bincount(place, weights=curve.values) / np.bincount(place)
    return (there + 0.5) * size, means


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean over ``SMOOTHING`` points about each, which is the line fitted to them; near the ends, where there are
    none on one side, the line fitted to the first or last ``SMOOTHING``.
    """
    if len(values) < 2 * SMOOTHING:
        return values
    half = SMOOTHING // 2
    about = np.arange(SMOOTHING) - half
    means = np.convolve(values, np.full(SMOOTHING, 1 / SMOOTHING), "valid")
    slopes = [about @ values[part] / (about @ about) for part in (slice(SMOOTHING), slice(-SMOOTHING, None))]
    first = means[0] + slopes[0] * np.arange(-half, 0)
    last = means[-1] + slopes[1] * np.arange(1, half + 1)
    # A line may leave what was measured, as below 0 where a loss levels off.
    first = first.clip(values[:SMOOTHING].min(), values[:SMOOTHING].max())
    last = last.clip(values[-SMOOTHING:].min(), values[-SMOOTHING:].max())
    return np.concatenate([first, means, last])


def figure(title: str, metric: str, lines: Sequence[Line]) -> str:
    """``lines`` with axes, a legend and a caption that says what they are."""
    legend = "".join(
        f'<span class="{_class(index)}"><i{_dashed(index)}></i>{escape(line.name)}</span>'
        for index, line in enumerate(lines)
    )
    return (
        f"<figure><figcaption><b>{escape(title)}</b></figcaption>{svg(metric, lines)}"
        f'<p class="legend">{legend}</p><p class="caption">{escape(caption(metric, lines))}</p></figure>'
    )


def caption(metric: str, lines: Sequence[Line]) -> str:
    """How the curves were made."""
    widest = max(line.width for line in lines)
    many = max(len(line.steps) for line in lines) >= 2 * SMOOTHING
    said = [f"{metric} over steps"]
    if widest > 1:
        said.append(f"thin: means of {widest:,.0f} steps" if many else f"means of {widest:,.0f} steps")
    if many:
        said.append(
            f"thick: smoothed over {SMOOTHING} of them" if widest > 1 else f"thick: {SMOOTHING} points smoothed"
        )
    seeds = {line.seeds for line in lines}
    if max(seeds) > 1:
        number = str(max(seeds)) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
        said.append(f"mean of {number} seeds, band from the lowest to the highest")
    return "; ".join(said) + (" (logarithmic)." if _bounds(lines)[2] else ".")


def svg(metric: str, lines: Sequence[Line]) -> str:
    """The plot alone; values that span decades are drawn on a logarithmic scale."""
    lower, upper, logarithmic = _bounds(lines)
    last = max(float(line.steps[-1]) for line in lines) or 1.0

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(value: float) -> float:
        at = math.log10(max(value, 1e-300)) if logarithmic else value
        place = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (at - lower) / (upper - lower)
        return min(max(place, TOP - 1.0), HEIGHT - BOTTOM + 1.0)  # what lies far outside is drawn at the edge

    def path(steps: Sequence[float], values: Sequence[float]) -> str:
        return " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(steps, values, strict=True))

    parts = [f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(metric)} over steps">']
    for tick in log_ticks(lower, upper) if logarithmic else ticks(lower, upper):
        at = y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in ticks(0.0, last):
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:,.0f}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">step</text>')
    drawn = [(index, line, line.steps.tolist()) for index, line in enumerate(lines)]
    for index, line, steps in drawn:
        if line.seeds > 1 and len(steps) > 1:
            there = path(steps, line.high.tolist())
            back = path(steps[::-1], line.low.tolist()[::-1])
            parts.append(f'<polygon class="band {_class(index)}" points="{there} {back}"/>')
    for index, line, steps in drawn:
        if len(steps) >= 2 * SMOOTHING:
            parts.append(f'<polyline class="raw {_class(index)}" points="{path(steps, line.raw.tolist())}"/>')
    for index, line, steps in drawn:
        if len(steps) == 1:
            parts.append(
                f'<circle class="{_class(index)}" cx="{x(steps[0]):.1f}" cy="{y(float(line.smooth[0])):.1f}" r="4"/>'
            )
        else:
            dash = "" if index < COLOURS else ' stroke-dasharray="6 3"'
            points = path(steps, line.smooth.tolist())
            parts.append(f'<polyline class="smooth {_class(index)}"{dash} points="{points}"/>')
    return "".join(parts) + "</svg>"


def _bounds(lines: Sequence[Line]) -> tuple[float, float, bool]:
    """Lower and upper end of the axis, as powers of ten where it is logarithmic."""
    certain = np.concatenate([np.concatenate([line.smooth, line.low, line.high]) for line in lines])
    noisy = np.concatenate([line.raw for line in lines])
    # A few outliers of single points must not flatten everything else.
    low = min(certain.min(), float(np.quantile(noisy, 0.01)))
    high = max(certain.max(), float(np.quantile(noisy, 0.99)))
    logarithmic = low > 0 and high / low > 30
    lower, upper = (math.log10(low), math.log10(high)) if logarithmic else (float(low), float(high))
    margin = 0.03 * (upper - lower) or 0.5
    return lower - margin, upper + margin, logarithmic


def _class(index: int) -> str:
    return f"c{index % COLOURS}"


def _dashed(index: int) -> str:
    return "" if index < COLOURS else ' class="dashed"'


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """About so many round numbers from ``low`` to ``high``."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if raw <= factor * power * (1 + 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between 10^low and 10^high; with 2 and 5 of each where there are few."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    factors = (1, 2, 5) if high - low < 2.5 else (1,)
    found = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in found if low - 1e-9 <= math.log10(tick) <= high + 1e-9]
