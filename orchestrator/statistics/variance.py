"""The row + seed model of a table: AP[row, seed] = row effect + seed effect + rest, by least squares.

Rows of a table are trained from the same seeds (equal initial weights, equal order, equal augmentation), so a seed that
is lucky for one row may be so for all of them. The model takes that part away, and the rest has one deviation for the
whole table: a few seeds of many rows tell it better than a few seeds of one pair. Where cells are missing nothing is
dropped or filled in: the least squares are solved for the cells that there are (the intra-block analysis of an
unbalanced two-way table without interaction: Searle, *Linear Models for Unbalanced Data*, 1987, chapter 4.9).

R rows, S seeds; all figures are AP in percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

Results = Mapping[str, Mapping[int, float]]
"""AP in percent by row and seed; a seed that has no result yet, or an undefined one, is left out."""

COLLAPSED_SHARE = 0.5
"""A training below this share of the table's median AP counts as collapsed ..."""
COLLAPSED_GAP = 5.0
"""... if it lies that many AP below the median, too: among tiny figures a half is noise."""


@dataclass(frozen=True)
class Fit:
    """What least squares say of a table."""

    rows: tuple[str, ...]
    """Rows that have any result."""
    effects: np.ndarray
    """(R,) AP of each row, as if each had every seed. Comparable only within one component."""
    covariance: np.ndarray
    """(R, R) of the effects, in units of the rest's variance; meant for differences within one component."""
    component: np.ndarray
    """(R,) rows of one number are linked by seeds they share, if need be through other rows."""
    cells: np.ndarray
    """(R, S) bool: which trainings there are."""
    df: int
    """Degrees of freedom of the rest; (R-1)(S-1) for a full table."""
    deviation: float | None
    """Of the rest: what a row's AP still varies by once the seed is taken away. None without degrees of freedom."""
    between_seeds: float | None
    """Of one row's AP from seed to seed, the seed's own part included: that of trainings that share no seed.
    None where no row has two."""


def fit(results: Results, rows: Sequence[str] | None = None) -> Fit:
    """Fits the row + seed model to ``rows`` of ``results`` (None: all).

    Two rows that are one training under two names must come in once: their rests are equal and would count twice.
    Raises ValueError on an AP that isn't finite.
    """
    names = tuple(row for row in (results if rows is None else rows) if results.get(row))
    seeds = sorted({seed for row in names for seed in results[row]})
    values = np.zeros((len(names), len(seeds)))
    cells = np.zeros(values.shape, dtype=bool)
    for number, row in enumerate(names):
        for seed, value in results[row].items():
            if not math.isfinite(value):
                raise ValueError(f"row {row!r}, seed {seed}: AP is {value}; leave an undefined one out")
            values[number, seeds.index(seed)] = value
            cells[number, seeds.index(seed)] = True
    present = cells.astype(float)
    # Centred, so that nothing of the deviation drowns in the size of the AP.
    centre = float(values[cells].mean()) if cells.any() else 0.0
    values = np.where(cells, values - centre, 0.0)
    row_counts, seed_counts = present.sum(1), present.sum(0)
    # The normal equations with the seeds eliminated: C effects = Q.
    reduced = np.diag(row_counts) - (present / seed_counts) @ present.T
    right = values.sum(1) - present @ (values.sum(0) / seed_counts)
    covariance = np.linalg.pinv(reduced, rcond=1e-10, hermitian=True)
    effects = covariance @ right
    seed_effects = (values.sum(0) - present.T @ effects) / seed_counts
    rest = np.where(cells, values - effects[:, None] - seed_effects, 0.0)
    component = _components(cells)
    df = int(cells.sum()) - len(names) - len(seeds) + len(set(component.tolist()))
    within = np.where(cells, values - (values.sum(1) / np.maximum(row_counts, 1))[:, None], 0.0)
    within_df = int(cells.sum()) - len(names)
    return Fit(
        rows=names,
        effects=effects + _level(effects, seed_effects, present) + centre,
        covariance=covariance,
        component=component,
        cells=cells,
        df=df,
        deviation=math.sqrt(float((rest**2).sum()) / df) if df > 0 else None,
        between_seeds=math.sqrt(float((within**2).sum()) / within_df) if within_df > 0 else None,
    )


def collapsed(results: Results) -> tuple[str, ...]:
    """Rows with a training that came to (almost) nothing: far below the median AP of the table's rows.

    Such a row varies in another way than the others, so it takes no part in their common deviation. A row of which one
    seed has collapsed and another hasn't is named, too.
    """
    means = [sum(cells.values()) / len(cells) for cells in results.values() if cells]
    if not means:
        return ()
    median = float(np.median(means))
    limit = min(COLLAPSED_SHARE * median, median - COLLAPSED_GAP)
    return tuple(row for row, cells in results.items() if cells and min(cells.values()) < limit)


def deviation_range(deviation: float, df: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a deviation that was estimated with ``df`` degrees of freedom: sqrt(df s² / chi² quantiles).

    Raises ValueError below one degree of freedom.
    """
    if df < 1:
        raise ValueError("a deviation without degrees of freedom has no interval")
    tail = (1 - confidence) / 2
    upper, lower = special.chdtri(df, tail), special.chdtri(df, 1 - tail)
    return deviation * math.sqrt(df / upper), deviation * math.sqrt(df / lower)


def t_quantile(df: float, level: float) -> float:
    """Student's t that is exceeded on either side with probability ``level`` in all."""
    return float(-special.stdtrit(df, level / 2))


def t_probability(t: float, df: float) -> float:
    """Probability that Student's t lies at least as far from 0 as ``t``: the two-sided p."""
    return float(2 * special.stdtr(df, -abs(t)))


def _components(cells: np.ndarray) -> np.ndarray:
    """(R,) number of the component that each row lies in: rows that share a seed are linked."""
    linked = (cells.astype(int) @ cells.T.astype(int)) > 0
    component = np.arange(len(cells))
    while True:
        merged = np.where(linked, component, len(cells)).min(axis=1, initial=len(cells))
        if (merged == component).all():
            return component
        component = merged


def _level(effects: np.ndarray, seed_effects: np.ndarray, present: np.ndarray) -> np.ndarray:
    """(R,) what is added to the effects of each component, so that they are AP: the mean effect of its seeds."""
    level = np.zeros(len(effects))
    component = _components(present > 0)
    for number in set(component.tolist()):
        inside = component == number
        level[inside] = seed_effects[present[inside].any(0)].mean()
    return level
