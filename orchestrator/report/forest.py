"""The compared pairs at a glance: each difference with its intervals, and the paper's beside it, on one axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from orchestrator.comparison import Comparison, Pair
from orchestrator.report.figures import ticks
from orchestrator.report.pairs import signed
from orchestrator.statistics.pairs import ELSEWHERE, REPRODUCTION, WITHOUT_PAPER

WIDTH, LINE, TOP, BOTTOM = 1100, 46, 10, 44
RIGHT = 260
LETTER = 7.4
"""Width of a letter of the names, which are bold, at most on average."""
NAME, VERDICT = 44, 36
"""Most letters of a name and of a verdict."""
_SAME = (REPRODUCTION.same, ELSEWHERE.same, WITHOUT_PAPER.same)
_OPPOSITE = (REPRODUCTION.opposite, ELSEWHERE.opposite, WITHOUT_PAPER.opposite)


def forest(comparison: Comparison) -> str:
    """An SVG; empty where no pair has a difference."""
    pairs = [pair for pair in comparison.pairs if pair.judgement is not None and pair.judgement.difference is not None]
    if not pairs:
        return ""
    low, high = _ends(pairs)
    height = TOP + LINE * len(pairs) + BOTTOM
    left = 20 + LETTER * max(len(_short(pair.name, NAME)) for pair in pairs)

    def x(value: float) -> float:
        return left + (WIDTH - left - RIGHT) * (min(max(value, low), high) - low) / (high - low)

    bottom = height - BOTTOM
    parts = [f'<svg class="forest" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Differences of AP by pair">']
    for tick in ticks(low, high, 8):
        kind = "zero" if tick == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 17}" text-anchor="middle">{tick:+g}</text>')
    middle = (left + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle:.1f}" y="{height - 5}" text-anchor="middle">difference in AP (first less second)</text>'
    )
    for number, pair in enumerate(pairs):
        parts.append(_pair(pair, TOP + LINE * (number + 0.5), x))
    return "".join(parts) + "</svg>"


def _pair(pair: Pair, y: float, x: Callable[[float], float]) -> str:
    judgement = pair.judgement
    assert judgement is not None
    assert judgement.difference is not None
    kind = "shown-same" if judgement.verdict in _SAME else "shown-other" if judgement.verdict in _OPPOSITE else "open"
    parts = [f'<g class="{kind}"><text class="name" x="0" y="{y + 4:.1f}">{escape(_short(pair.name, NAME))}</text>']
    if pair.images and pair.images.images:
        parts.append(_line("images", pair.images.images, y, x))
    if judgement.interval:
        parts.append(_line("ours", judgement.interval, y, x))
    parts.append(f'<circle class="dot" cx="{x(judgement.difference):.1f}" cy="{y:.1f}" r="5.5"/>')
    if judgement.size:
        at, below = x(judgement.size.paper), y + 13
        parts.append(_line("range", judgement.size.paper_range, below, x))
        parts.append(
            f'<path class="paper" d="M{at - 5:.1f} {below:.1f}l5 -5l5 5l-5 5z"><title>the paper</title></path>'
        )
    said = f"{signed(judgement.difference)}  {judgement.verdict}"
    return (
        "".join(parts)
        + f'<text class="verdict" x="{WIDTH - RIGHT + 12}" y="{y + 4:.1f}">{escape(_short(said, VERDICT))}</text></g>'
    )


def _line(kind: str, ends: tuple[float, float], y: float, x: Callable[[float], float]) -> str:
    return f'<line class="{kind}" x1="{x(ends[0]):.1f}" x2="{x(ends[1]):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _ends(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Of the axis. Few images say so little that their intervals would leave no room for all others: they may widen it
    to three times what these take, and are cut off there.
    """
    values, images = [0.0], [0.0]
    for pair in pairs:
        judgement = pair.judgement
        assert judgement is not None
        values += [judgement.difference or 0.0, *(judgement.interval or ())]
        values += [judgement.size.paper, *judgement.size.paper_range] if judgement.size else []
        images += [*(pair.images.images or ())] if pair.images else []
    low, high = min(values), max(values)
    room = high - low or 0.5
    low, high = max(min(low, *images), low - room), min(max(high, *images), high + room)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
