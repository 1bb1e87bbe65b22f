"""What a number of seeds can show, and how many a difference needs, before anything is run and after.

A pair of rows over n seeds is judged by Student's t with the table's degrees of freedom, so its power is that of the
noncentral t with noncentrality difference / (deviation * sqrt(2/n)) (Cohen, *Statistical Power Analysis for the
Behavioral Sciences*, 1988, chapter 2). Only a verdict on the true side counts. The level of one pair is the look's
level over the number of pairs: that is Holm's first step, so the power is what a pair has when no other pair shows
anything, and more where others do.

All differences and deviations are AP in percent; R rows of the table share the deviation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import special

from orchestrator.statistics.looks import ALPHA, look_level
from orchestrator.statistics.variance import t_quantile

ASSUMED_DEVIATION = (0.20, 0.25)
"""AP on COCO between trainings that differ only in their seed, until a table's own results tell.

No long published series is known to us. RetinaNet trained several times lay between 35.8 and 36.3
(facebookresearch/detectron2#457, called a little more than normal there), which is the range to be expected of five
trainings with a deviation of 0.21; open-mmlab/mmdetection#3496 says less than 0.3 between trainings. Without
a seed part that rows share, it is the deviation of the rest, too; with one the rest is smaller and fewer seeds do."""
POWER = 0.8
MOST_SEEDS = 1000
"""Where a search for a number of seeds ends."""


@dataclass(frozen=True)
class SeedRange:
    """A number of seeds, and what it would be at either end of the deviation's interval; None is over MOST_SEEDS."""

    about: int | None
    lowest: int | None
    highest: int | None


@dataclass(frozen=True)
class Forecast:
    """What can be said of one pair before it is run."""

    first: str
    second: str
    smallest: tuple[float, float] | None
    """Smallest difference in AP that the planned seeds show at 80 % power, for either assumed deviation. None: with the
    planned seeds nothing can be shown."""
    paper: float | None
    """The paper's difference."""
    seeds: SeedRange | None
    """Seeds in all that a difference as large as the paper's would need; None without one."""


def power(difference: float, deviation: float, *, seeds: int, rows: int, level: float) -> float:
    """Probability that a true ``difference`` is shown, on its own side, by ``seeds`` seeds of ``rows`` full rows."""
    df = (rows - 1) * (seeds - 1)
    if df < 1 or level <= 0:
        return 0.0
    if deviation <= 0:
        return float(difference != 0)
    limit = t_quantile(df, level)
    noncentrality = abs(difference) / (deviation * math.sqrt(2 / seeds))
    below = float(special.nctdtr(df, noncentrality, limit))
    # The series of the noncentral t gives up far out, where there is nothing left to tell.
    return float(noncentrality > limit) if math.isnan(below) else 1 - below


def smallest_difference(
    deviation: float, *, seeds: int, rows: int, level: float, wanted: float = POWER
) -> float | None:
    """The true difference in AP that is shown with probability ``wanted``; None where nothing ever is (one seed)."""
    df = (rows - 1) * (seeds - 1)
    if df < 1 or level <= 0:
        return None
    noncentrality = float(special.nctdtrinc(df, 1 - wanted, t_quantile(df, level)))
    return noncentrality * deviation * math.sqrt(2 / seeds)


def seeds_needed(
    difference: float,
    deviation: float,
    *,
    rows: int,
    pairs: int,
    looks: Sequence[float] = (),
    alpha: float = ALPHA,
    wanted: float = POWER,
) -> int | None:
    """The smallest number of seeds in all at which one more look shows ``difference`` with probability ``wanted``.

    ``looks`` are those that have been taken. None: more than ``MOST_SEEDS``.
    """

    def enough(seeds: int) -> bool:
        level = look_level(seeds, looks, alpha) / pairs
        return power(difference, deviation, seeds=seeds, rows=rows, level=level) >= wanted

    low = max(1, math.floor(max(looks, default=1.0)))  # never enough: nothing is left to spend there
    high = low + 1
    while not enough(high):
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def forecast(
    pair: tuple[str, str],
    paper: dict[str, float],
    *,
    rows: int,
    pairs: int,
    seeds: int,
    looks: Sequence[float] = (),
    deviations: tuple[float, float] = ASSUMED_DEVIATION,
    alpha: float = ALPHA,
) -> Forecast:
    """What ``seeds`` planned seeds of ``pair`` can show in a table of ``rows`` rows that compares ``pairs`` pairs.

    ``paper`` has the paper's AP by row, as far as it has figures; ``deviations`` is the least and the greatest assumed.
    ``looks`` are those at this pair.
    """
    level = look_level(seeds, looks, alpha) / pairs
    ends = [smallest_difference(deviation, seeds=seeds, rows=rows, level=level) for deviation in deviations]
    smallest = None if ends[0] is None or ends[1] is None else (ends[0], ends[1])
    first, second = pair
    known = first in paper and second in paper
    stated = round(paper[first] - paper[second], 9) if known else None
    needed = (
        seed_range(stated, sum(deviations) / 2, deviations, rows=rows, pairs=pairs, looks=looks, alpha=alpha)
        if stated
        else None
    )
    return Forecast(first, second, smallest, stated, needed)


def seed_range(
    difference: float,
    deviation: float,
    ends: tuple[float, float],
    *,
    rows: int,
    pairs: int,
    looks: Sequence[float] = (),
    alpha: float = ALPHA,
) -> SeedRange:
    """``seeds_needed`` for a deviation and for both ends of its interval."""
    about, lowest, highest = (
        seeds_needed(difference, value, rows=rows, pairs=pairs, looks=looks, alpha=alpha)
        for value in (deviation, *ends)
    )
    return SeedRange(about, lowest, highest)
